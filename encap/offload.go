package encap

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
	// NeedsChecksum: the transport checksum field holds the pseudo-header's sum alone.
	NeedsChecksum bool
	GSO           GSO
	// SegmentSize is how many bytes of payload each segment carries, when GSO is not GSONone.
	SegmentSize int
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
// segment will be a packet of at most limit bytes. ok is false when the packet is not TCP, is a fragment, has no payload
// or leaves no room for any under the limit.
func SuperTCP(packet []byte, h *Headers, limit int) (o Offload, ok bool) {
	if h.Proto != ProtoTCP || h.Fragment || h.Len-h.L3 <= limit {
		return Offload{}, false
	}
	n := transportHeaderLen(packet, h)
	headers := h.L4 - h.L3 + n
	if n == 0 || h.Len == h.L4+n || limit <= headers {
		return Offload{}, false
	}
	return Offload{NeedsChecksum: true, GSO: GSOTCP, SegmentSize: limit - headers}, true
}
