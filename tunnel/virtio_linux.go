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
	virtioDataValid     = 2 // VIRTIO_NET_HDR_F_DATA_VALID

	virtioGSONone  = 0
	virtioGSOTCPv4 = 1
	virtioGSOTCPv6 = 4
	virtioGSOUDP   = 5    // VIRTIO_NET_HDR_GSO_UDP_L4
	virtioGSOECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN

	// Of a device whose packets are tunnels' datagrams: struct virtio_net_hdr_v1_hash_tunnel.
	virtioTunnelLen      = 24
	virtioTunnelChecksum = 8    // VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM: the outer one, too
	virtioGSOTunnelIPv4  = 0x20 // VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4: the outer header is
	virtioGSOTunnelIPv6  = 0x40
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

// putVirtioTunnel writes the header for a frame that holds outer bytes of headers, UDP's last, and then d, which carries a
// packet. With checksum, the outer checksum is left to the device; so is the inner one of a super-packet.
func putVirtioTunnel(b []byte, d *Datagram, outer int, v6, checksum bool) {
	const udp = 8
	clear(b[:virtioTunnelLen])
	p := d.Packet
	if !p.Offload.IsSuper() {
		if checksum {
			putVirtio(b, encap.Offload{NeedsChecksum: true, ChecksumStart: outer - udp, ChecksumField: outer - udp + encap.UDPChecksumOffset}, p.Headers.Kind, 0)
		}
		return
	}
	inner := outer + len(d.Data) - len(p.Data)
	o := p.Offload
	o.ChecksumStart += inner
	o.ChecksumField += inner
	putVirtio(b, o, p.Headers.Kind, inner+p.Headers.HeaderLen(p.Data))
	tunnel := byte(virtioGSOTunnelIPv4)
	if v6 {
		tunnel = virtioGSOTunnelIPv6
	}
	b[1] |= tunnel
	if checksum {
		b[0] |= virtioTunnelChecksum
	}
	binary.LittleEndian.PutUint16(b[20:], uint16(outer-udp)) // these two in no other order (virtio_net_hdr_tnl_to_skb)
	binary.LittleEndian.PutUint16(b[22:], uint16(inner+p.Headers.L3))
}

// What a device may leave undone in the packets that it gives (TUN_F_*, include/uapi/linux/if_tun.h).
const (
	offloadTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	offloadUDP = unix.TUN_F_USO4 | unix.TUN_F_USO6 // since Linux 6.2
	// offloadTunnel is TUN_F_UDP_TUNNEL_GSO and TUN_F_UDP_TUNNEL_GSO_CSUM, since Linux 6.17.
	offloadTunnel = 0x080 | 0x100
)
