package tunnel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// The virtio-net header in front of every packet of a device with IFF_VNET_HDR: struct virtio_net_hdr of
// include/uapi/linux/virtio_net.h, in the host's byte order (drivers/net/tun_vnet.h).
const (
	virtioHeaderLen = 10

	virtioNeedsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM

	virtioGSONone  = 0
	virtioGSOTCPv4 = 1
	virtioGSOTCPv6 = 4
	virtioGSOUDP   = 5    // VIRTIO_NET_HDR_GSO_UDP_L4
	virtioGSOECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN
)

// readVirtio reads a header that the kernel wrote.
func readVirtio(b []byte) (o encap.Offload) {
	_ = b[virtioHeaderLen-1]
	if b[0]&virtioNeedsChecksum != 0 {
		o.NeedsChecksum = true
		o.ChecksumStart = int(binary.NativeEndian.Uint16(b[6:]))
		o.ChecksumField = o.ChecksumStart + int(binary.NativeEndian.Uint16(b[8:]))
	}
	switch b[1] &^ virtioGSOECN {
	case virtioGSOTCPv4, virtioGSOTCPv6:
		o.GSO = encap.GSOTCP
	case virtioGSOUDP:
		o.GSO = encap.GSOUDP
	default:
		return o
	}
	o.SegmentSize = int(binary.NativeEndian.Uint16(b[4:]))
	return o
}

// putVirtio writes the header for a packet with the given metadata. headers is the length of its IP and transport
// headers: what the kernel should keep in one piece.
func putVirtio(b []byte, o encap.Offload, kind encap.Kind, headers int) {
	clear(b[:virtioHeaderLen])
	if o.NeedsChecksum {
		b[0] = virtioNeedsChecksum
		binary.NativeEndian.PutUint16(b[6:], uint16(o.ChecksumStart))
		binary.NativeEndian.PutUint16(b[8:], uint16(o.ChecksumField-o.ChecksumStart))
	}
	if !o.IsSuper() {
		return
	}
	switch {
	case o.GSO == encap.GSOUDP:
		b[1] = virtioGSOUDP
	case kind == encap.KindIPv6:
		b[1] = virtioGSOTCPv6
	default:
		b[1] = virtioGSOTCPv4
	}
	binary.NativeEndian.PutUint16(b[2:], uint16(headers))
	binary.NativeEndian.PutUint16(b[4:], uint16(o.SegmentSize))
}

// What a device may leave undone in the packets that it gives (TUN_F_*, include/uapi/linux/if_tun.h).
const (
	offloadTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	offloadUDP = unix.TUN_F_USO4 | unix.TUN_F_USO6 // since Linux 6.2
)
