package encap

import (
	"encoding/binary"
	"net/netip"
)

// Header lengths in bytes, and the numbers of protocols and EtherTypes that this package acts on.
const (
	EthernetHeaderLen = 14
	ipv4MinHeaderLen  = 20
	ipv6HeaderLen     = 40
	tcpMinHeaderLen   = 20
	udpHeaderLen      = 8
	vlanTagLen        = 4

	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58

	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeIPv6 = 0x86dd
	etherTypeVLAN = 0x8100 // IEEE 802.1Q
	etherTypeQinQ = 0x88a8 // IEEE 802.1ad

	// maxVLANTags bounds the stack of tags that ParseFrame walks: QinQ has two.
	maxVLANTags = 2
	// maxIPv6Extensions bounds the chain of extension headers that ParseIP walks (RFC 8504 section 5.3 lets a host do so).
	maxIPv6Extensions = 8
)

// Kind is what a packet is.
type Kind uint8

// The kinds of packet.
const (
	KindOther Kind = iota // none of the following
	KindIPv4
	KindIPv6
	KindARP
)

// EtherType returns the EtherType for k, or 0 for KindOther.
func (k Kind) EtherType() uint16 {
	switch k {
	case KindIPv4:
		return EtherTypeIPv4
	case KindIPv6:
		return EtherTypeIPv6
	case KindARP:
		return EtherTypeARP
	}
	return 0
}

// Headers is what parsing found in one packet. Offsets are in bytes from the start of the packet. Every field was read
// from bytes that are there; what could not be read is left zero and is never guessed.
type Headers struct {
	Kind Kind

	Link  Link   // Ethernet only
	VLANs int    // number of VLAN tags in front of the packet
	VLAN  uint16 // ID of the outermost tag, 0-4095; 0 without one

	L3       int // start of the IP header, or of what follows Ethernet
	L4       int // start of the transport header; 0 when there is none that could be found
	FinalDst int // start of the IPv6 address where the packet goes in the end, in a routing header; 0 when that is the destination
	Len      int // length of the packet in bytes as its IP header states it; padding after it is not counted

	Src, Dst         netip.Addr
	Proto            uint8 // transport protocol, when L4 is not 0
	SrcPort, DstPort uint16
	HasPorts         bool // SrcPort and DstPort were read (TCP, UDP)
	Fragment         bool // a fragment of a larger packet, the first one included
	Later            bool // a fragment that is not the first: the transport header is in another
	TOS, TTL         uint8
	DF               bool // IPv4: don't fragment
}

// ParseAnyFrame is ParseFrame for those who pass frames on without looking into them: of one whose IP header cannot be read, or
// is longer than the frame, it says nothing but addresses and tags. The reason is PktTooSmall when there is no Ethernet header.
func ParseAnyFrame(frame []byte, h *Headers) Reason {
	if r := ParseFrame(frame, h); r != None {
		if len(frame) < EthernetHeaderLen {
			return r
		}
		h.opaque(frame)
	}
	return None
}

// opaque describes a frame of which nothing behind the Ethernet header can be read.
func (h *Headers) opaque(frame []byte) {
	*h = Headers{Link: h.Link, VLANs: h.VLANs, VLAN: h.VLAN, L3: EthernetHeaderLen + h.VLANs*vlanTagLen, Len: len(frame)}
}

// rebase makes offsets count from n bytes further on.
func (h *Headers) rebase(n int) {
	h.L3 -= n
	if h.L4 != 0 {
		h.L4 -= n
	}
	if h.FinalDst != 0 {
		h.FinalDst -= n
	}
	h.Len -= n
}

// Again parses an IP packet whose headers differ from those of another, which h describes, in nothing but what changes
// from packet to packet of a flow: length, identification and checksums. It is ParseIP at a fraction of the cost, and
// reports false, with nothing said about the packet, when there is more to look at. h.L3 is 0.
func (h *Headers) Again(other, packet []byte) (same Headers, ok bool) {
	const ports = 4
	end := h.L4 + ports
	if !h.HasPorts || h.Fragment || len(other) < end || len(packet) < end {
		return Headers{}, false
	}
	total := 0
	switch {
	case h.Kind == KindIPv4 && h.L4 == ipv4MinHeaderLen:
		total = int(binary.BigEndian.Uint16(packet[2:]))
		ok = string(packet[:2]) == string(other[:2]) && string(packet[6:10]) == string(other[6:10]) && string(packet[12:end]) == string(other[12:end])
	case h.Kind == KindIPv6 && h.L4 == ipv6HeaderLen:
		total = ipv6HeaderLen + int(binary.BigEndian.Uint16(packet[4:]))
		ok = string(packet[:4]) == string(other[:4]) && string(packet[6:end]) == string(other[6:end])
	}
	if !ok || total < end || total > len(packet) {
		return Headers{}, false
	}
	same = *h
	same.Len = total
	return same, true
}

// ParseFrame reads an Ethernet frame: addresses, VLAN tags, and the IP packet when there is one. The reason is
// PktTooSmall when the frame ends before a header or before the length that its IP header states, and NotIP when an IP
// header contradicts itself. Other EtherTypes are no error: h.Kind tells. h.Len counts from the start of the frame.
func ParseFrame(frame []byte, h *Headers) Reason {
	*h = Headers{}
	if len(frame) < EthernetHeaderLen {
		return PktTooSmall
	}
	copy(h.Link.Dst[:], frame[0:6])
	copy(h.Link.Src[:], frame[6:12])
	etherType := binary.BigEndian.Uint16(frame[12:])
	off := EthernetHeaderLen
	for etherType == etherTypeVLAN || etherType == etherTypeQinQ {
		if h.VLANs == maxVLANTags {
			break
		}
		if len(frame) < off+vlanTagLen {
			return PktTooSmall
		}
		if h.VLANs == 0 {
			h.VLAN = binary.BigEndian.Uint16(frame[off:]) & 0xfff
		}
		etherType = binary.BigEndian.Uint16(frame[off+2:])
		off += vlanTagLen
		h.VLANs++
	}
	switch etherType {
	case EtherTypeIPv4:
		return parseIPv4(frame, off, h)
	case EtherTypeIPv6:
		return parseIPv6(frame, off, h)
	case EtherTypeARP:
		h.Kind = KindARP
	}
	h.L3, h.Len = off, len(frame)
	return None
}

// ParseIP reads an IPv4 or IPv6 packet. The reason is PktTooSmall when the packet ends before a header or before the
// length that its header states, and NotIP for another version or a header that contradicts itself.
func ParseIP(packet []byte, h *Headers) Reason {
	*h = Headers{}
	if len(packet) == 0 {
		return PktTooSmall
	}
	switch packet[0] >> 4 {
	case 4:
		return parseIPv4(packet, 0, h)
	case 6:
		return parseIPv6(packet, 0, h)
	}
	return NotIP
}

// parseIPv4 reads the IPv4 header (RFC 791 section 3.1) at b[off:].
func parseIPv4(b []byte, off int, h *Headers) Reason {
	p := b[off:]
	if len(p) < ipv4MinHeaderLen {
		return PktTooSmall
	}
	headerLen := int(p[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(p[2:]))
	if p[0]>>4 != 4 || headerLen < ipv4MinHeaderLen || total < headerLen {
		return NotIP
	}
	if len(p) < total {
		return PktTooSmall
	}
	h.Kind = KindIPv4
	h.L3, h.Len = off, off+total
	h.TOS, h.TTL = p[1], p[8]
	h.Src = netip.AddrFrom4([4]byte(p[12:16]))
	h.Dst = netip.AddrFrom4([4]byte(p[16:20]))
	flags := binary.BigEndian.Uint16(p[6:])
	h.DF = flags&0x4000 != 0
	h.Fragment = flags&0x3fff != 0
	if flags&0x1fff == 0 {
		parseTransport(b, off+headerLen, p[9], h)
	} else {
		h.Proto, h.Later = p[9], true
	}
	return None
}

// parseIPv6 reads the IPv6 header (RFC 8200 section 3) and its extension headers at b[off:].
func parseIPv6(b []byte, off int, h *Headers) Reason {
	p := b[off:]
	if len(p) < ipv6HeaderLen {
		return PktTooSmall
	}
	if p[0]>>4 != 6 {
		return NotIP
	}
	total := ipv6HeaderLen + int(binary.BigEndian.Uint16(p[4:]))
	if len(p) < total {
		return PktTooSmall
	}
	h.Kind = KindIPv6
	h.L3, h.Len = off, off+total
	h.TOS, h.TTL = p[0]<<4|p[1]>>4, p[7]
	h.Src = netip.AddrFrom16([16]byte(p[8:24]))
	h.Dst = netip.AddrFrom16([16]byte(p[24:40]))
	walkExtensions(b, off+ipv6HeaderLen, p[6], h)
	return None
}

// walkExtensions finds the transport header behind IPv6 extension headers (RFC 8200 section 4, RFC 4302). A chain that
// is cut off, too long or encrypted leaves the transport unknown.
func walkExtensions(b []byte, off int, next uint8, h *Headers) {
	const (
		hopByHop, routing, fragment, auth, noNext, destOpts = 0, 43, 44, 51, 59, 60
	)
	for range maxIPv6Extensions + 1 {
		var size int
		switch next {
		case hopByHop, routing, destOpts, auth, fragment:
			if h.Len < off+8 {
				return
			}
		case noNext:
			return
		default:
			parseTransport(b, off, next, h)
			return
		}
		switch next {
		case fragment:
			size = 8
			h.Fragment = true
			if binary.BigEndian.Uint16(b[off+2:])&0xfff8 != 0 {
				h.Proto, h.Later = b[off], true
				return
			}
		case auth:
			size = (int(b[off+1]) + 2) * 4
		default:
			size = (int(b[off+1]) + 1) * 8
		}
		if next == routing && endsElsewhere(b[off:h.Len]) {
			h.FinalDst = off + 8
		}
		next = b[off]
		off += size
	}
}

// endsElsewhere reports whether the first address in a routing header is where the packet goes in the end: a home address (RFC 6275
// section 6.4), or the last segment of a path (RFC 8754 section 2, which counts them backwards), while there are segments left.
func endsElsewhere(header []byte) bool {
	const home, segments = 2, 4
	return len(header) >= 8+16 && header[1] >= 2 && (header[2] == home || header[2] == segments) && header[3] > 0
}

// parseTransport notes where the transport header begins and reads its ports.
func parseTransport(b []byte, off int, proto uint8, h *Headers) {
	if off > h.Len {
		return
	}
	h.Proto, h.L4 = proto, off
	if (proto == ProtoTCP || proto == ProtoUDP) && h.Len >= off+4 {
		h.SrcPort = binary.BigEndian.Uint16(b[off:])
		h.DstPort = binary.BigEndian.Uint16(b[off+2:])
		h.HasPorts = true
	}
}

// putEthernet writes an Ethernet header of EthernetHeaderLen bytes to b.
func putEthernet(b []byte, link Link, etherType uint16) {
	_ = b[EthernetHeaderLen-1]
	copy(b[0:6], link.Dst[:])
	copy(b[6:12], link.Src[:])
	binary.BigEndian.PutUint16(b[12:], etherType)
}
