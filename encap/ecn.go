package encap

import "encoding/binary"

// ECN field values (RFC 3168 section 5): the low two bits of the IPv4 TOS and of the IPv6 traffic class.
const (
	NotECT uint8 = 0
	ECT1   uint8 = 1
	ECT0   uint8 = 2
	CE     uint8 = 3

	ecnMask = 3
)

// ecnDecap is RFC 6040 figure 4: the outgoing inner ECN field by [inner][outer]; ecnDrop where the packet is dropped.
var ecnDecap = [4][4]uint8{
	NotECT: {NotECT: NotECT, ECT0: NotECT, ECT1: NotECT, CE: ecnDrop},
	ECT0:   {NotECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
	ECT1:   {NotECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
	CE:     {NotECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}

const ecnDrop = 0xff

// OuterTOS returns the TOS or traffic class for the outer header of a packet whose own is inner. RFC 6040 section 4.1,
// normal mode: the ECN field is copied, CE included (Linux sends ECT(0) for CE, after RFC 3168). The DSCP is the
// packet's own when inherit is set, otherwise that of fixed.
func OuterTOS(inner uint8, inherit bool, fixed uint8) uint8 {
	if inherit {
		return inner
	}
	return fixed&^ecnMask | inner&ecnMask
}

// DecapECN returns the ECN field that a packet leaves the tunnel with, and false when it must be dropped (outer CE over
// an inner packet that is not ECN-capable). Only the ECN bits of both arguments count. RFC 6040 section 4.2.
func DecapECN(outer, inner uint8) (ecn uint8, ok bool) {
	ecn = ecnDecap[inner&ecnMask][outer&ecnMask]
	return ecn, ecn != ecnDrop
}

// OddECN reports whether no sender that follows RFC 6040 makes such a pair of ECN fields: an ECN-capable outer header over a packet
// that is not, ECT(0) over ECT(1), or ECT(1) over CE. Section 4.2 wants such seen.
func OddECN(outer, inner uint8) bool {
	outer &= ecnMask
	switch inner & ecnMask {
	case NotECT:
		return outer != NotECT
	case ECT1:
		return outer == ECT0
	case CE:
		return outer == ECT1
	}
	return false
}

// SetECN writes the ECN field of an IP packet and mends the IPv4 header checksum. h is the packet parsed, and is updated.
func SetECN(packet []byte, h *Headers, ecn uint8) {
	if h.TOS&ecnMask == ecn {
		return
	}
	p := packet[h.L3:]
	h.TOS = h.TOS&^ecnMask | ecn
	switch h.Kind {
	case KindIPv4:
		old := binary.BigEndian.Uint16(p)
		p[1] = h.TOS
		UpdateChecksum(p[10:12], old, binary.BigEndian.Uint16(p))
	case KindIPv6:
		p[1] = p[1]&0x0f | h.TOS<<4
	}
}
