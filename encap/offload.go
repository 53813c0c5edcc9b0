package encap

import "encoding/binary"

// GSO says what a super-packet is split into.
type GSO uint8

// The kinds of super-packet.
const (
	GSONone GSO = iota
	GSOTCP      // TCP segments, IPv4 or IPv6
	GSOUDP      // UDP datagrams of equal size (USO)
)

// Offload is the offload metadata of one packet: what is left for a device to do. It holds what the virtio-net header
// holds (virtio 1.3 section 5.1.6). The zero value says that the packet is finished.
type Offload struct {
	// NeedsChecksum: the checksum field holds the pseudo-header's sum alone.
	NeedsChecksum bool
	// ChecksumStart is where the bytes that the checksum covers begin, ChecksumField where it stands, both from the start
	// of the packet, when NeedsChecksum. Of a packet that is itself a tunnel's, they are the innermost packet's.
	ChecksumStart, ChecksumField int

	GSO GSO
	// SegmentSize is how many bytes of payload each segment carries, when GSO is not GSONone.
	SegmentSize int
}

// SuperOffload returns the offload metadata of a TCP or UDP super-packet of the given segment size whose checksum is left to a
// device. h is the packet parsed.
func SuperOffload(h *Headers, segmentSize int) Offload {
	o := PartialOffload(h)
	o.GSO, o.SegmentSize = GSOTCP, segmentSize
	if h.Proto == ProtoUDP {
		o.GSO = GSOUDP
	}
	return o
}

// PartialOffload returns the offload metadata of a TCP or UDP packet whose checksum is left to a device. h is the packet parsed.
func PartialOffload(h *Headers) Offload {
	offset, _, _ := transportChecksumOffset(h.Proto)
	return Offload{NeedsChecksum: true, ChecksumStart: h.L4, ChecksumField: h.L4 + offset}
}

// FinishChecksum computes the checksum that NeedsChecksum speaks of, as the kernel's skb_checksum_help (net/core/dev.c)
// does. It reports false, and changes nothing, when the metadata does not fit the packet.
func (o Offload) FinishChecksum(packet []byte) bool {
	if o.ChecksumStart < 0 || o.ChecksumField < o.ChecksumStart || o.ChecksumField+2 > len(packet) {
		return false
	}
	sum := ^Sum(packet[o.ChecksumStart:], 0) // the field takes part: it holds the pseudo-header's sum
	if sum == 0 {
		sum = 0xffff // the same in one's complement, and for UDP not "none"
	}
	binary.BigEndian.PutUint16(packet[o.ChecksumField:], sum)
	return true
}

// HeaderLen returns the length of the IP and transport headers of a TCP or UDP packet, in bytes; 0 of any other.
func (h *Headers) HeaderLen(packet []byte) int {
	n := transportHeaderLen(packet, h)
	if n == 0 {
		return 0
	}
	return h.L4 + n
}

// IsSuper reports whether the packet stands for several.
func (o Offload) IsSuper() bool { return o.GSO != GSONone }

// Segments returns how many wire packets a packet of the given length stands for: 1 unless it is a super-packet.
func (o Offload) Segments(packet []byte, h *Headers) int {
	if o.GSO == GSONone || o.SegmentSize <= 0 {
		return 1
	}
	payload := h.Len - h.L4 - transportHeaderLen(packet, h)
	if payload <= o.SegmentSize {
		return 1
	}
	return (payload + o.SegmentSize - 1) / o.SegmentSize
}

// transportHeaderLen returns the length of the TCP or UDP header that h.L4 points to, or 0 when it is not there whole.
func transportHeaderLen(packet []byte, h *Headers) int {
	if h.L4 == 0 {
		return 0
	}
	switch h.Proto {
	case ProtoTCP:
		if h.Len < h.L4+tcpMinHeaderLen {
			return 0
		}
		if n := int(packet[h.L4+12]>>4) * 4; n >= tcpMinHeaderLen && h.L4+n <= h.Len {
			return n
		}
	case ProtoUDP:
		if h.Len >= h.L4+udpHeaderLen {
			return udpHeaderLen
		}
	}
	return 0
}

// SuperTCP returns the offload metadata for a TCP packet longer than limit bytes whose sender left it unsegmented: each
// segment will be a packet of at most limit bytes. ok is false when the packet is not TCP, is a fragment or a SYN, has no payload
// or leaves no room for any under the limit.
func SuperTCP(packet []byte, h *Headers, limit int) (o Offload, ok bool) {
	if h.Proto != ProtoTCP || h.Fragment || h.Len-h.L3 <= limit {
		return Offload{}, false
	}
	n := transportHeaderLen(packet, h)
	headers := h.L4 - h.L3 + n
	if n == 0 || h.Len == h.L4+n || limit <= headers || packet[h.L4+13]&tcpSYN != 0 {
		return Offload{}, false
	}
	return SuperOffload(h, limit-headers), true
}
