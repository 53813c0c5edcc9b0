package encap

import (
	"encoding/binary"
	"net/netip"
)

// ICMPv6 types of neighbour discovery (RFC 4861 sections 4.3 and 4.4).
const (
	NeighbourSolicitation  = 135
	NeighbourAdvertisement = 136

	ndHopLimit      = 255 // proof that no router forwarded it (RFC 4861 section 3.1)
	ndMinLen        = 24  // ICMPv6 header, flags, target
	ndOptSourceLink = 1
	ndOptTargetLink = 2
)

// ND is one neighbour solicitation or advertisement:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|     Type      |     Code = 0  |          Checksum             |
//	+-+-+-+---------+---------------+-------------------------------+
//	|R|S|O|                     Reserved                            |
//	+-+-+-+---------------------------------------------------------+
//	|                 Target address (16), options …                |
//	+---------------------------------------------------------------+
type ND struct {
	Type     uint8
	Src, Dst netip.Addr
	Target   netip.Addr
	// LinkAddr is the source (solicitation) or target (advertisement) link-layer address option; zero when absent.
	LinkAddr  MAC
	Router    bool // advertisement only
	Solicited bool // advertisement only
	Override  bool // advertisement only
}

// IsND reports whether a packet is ICMPv6 of a neighbour discovery type; ParseND says whether it is valid.
func IsND(packet []byte, h *Headers) bool {
	if h.Kind != KindIPv6 || h.Proto != ProtoICMPv6 || h.L4 == 0 || h.Fragment || h.Len <= h.L4 {
		return false
	}
	return packet[h.L4] == NeighbourSolicitation || packet[h.L4] == NeighbourAdvertisement
}

// ParseND reads and validates a packet for which IsND is true (RFC 4861 section 7.1). The reason is PktTooSmall when it
// or an option is cut off, NotIP when a rule of validity is broken, MACInvalidSource when the link-layer address is no
// station's.
func ParseND(packet []byte, h *Headers) (ND, Reason) {
	icmp := packet[h.L4:h.Len]
	if len(icmp) < ndMinLen {
		return ND{}, PktTooSmall
	}
	if h.TTL != ndHopLimit || icmp[1] != 0 || Sum(icmp, pseudoHeaderSum(packet, h, len(icmp))) != 0xffff {
		return ND{}, NotIP
	}
	n := ND{Type: icmp[0], Src: h.Src, Dst: h.Dst, Target: netip.AddrFrom16([16]byte(icmp[8:24]))}
	if n.Target.IsMulticast() {
		return ND{}, NotIP
	}
	want := byte(ndOptSourceLink)
	if n.Type == NeighbourAdvertisement {
		want = ndOptTargetLink
		n.Router, n.Solicited, n.Override = icmp[4]&0x80 != 0, icmp[4]&0x40 != 0, icmp[4]&0x20 != 0
	}
	link, r := findLinkOption(icmp[ndMinLen:], want)
	if r != None {
		return ND{}, r
	}
	n.LinkAddr = link
	if n.Src.IsUnspecified() && n.Type == NeighbourSolicitation && !link.IsZero() || n.Solicited && n.Dst.IsMulticast() {
		return ND{}, NotIP
	}
	return n, None
}

// findLinkOption walks the options (RFC 4861 section 4.6: type, length in units of 8 bytes, never 0).
func findLinkOption(b []byte, want byte) (MAC, Reason) {
	for len(b) > 0 {
		if len(b) < 8 || len(b) < int(b[1])*8 {
			return MAC{}, PktTooSmall
		}
		if b[1] == 0 {
			return MAC{}, NotIP
		}
		if b[0] == want {
			link := MAC(b[2:8])
			if !link.IsUnicast() {
				return MAC{}, MACInvalidSource
			}
			return link, None
		}
		b = b[int(b[1])*8:]
	}
	return MAC{}, None
}

// Append appends the message as an IPv6 packet to b.
func (n ND) Append(b []byte) []byte {
	start := len(b)
	size := ndMinLen
	if !n.LinkAddr.IsZero() {
		size += 8
	}
	b = appendIPv6(b, n.Src, n.Dst, ProtoICMPv6, ndHopLimit, size)
	var flags byte
	if n.Router {
		flags |= 0x80
	}
	if n.Solicited {
		flags |= 0x40
	}
	if n.Override {
		flags |= 0x20
	}
	b = append(b, n.Type, 0, 0, 0, flags, 0, 0, 0)
	target := n.Target.As16()
	b = append(b, target[:]...)
	if size > ndMinLen {
		option := byte(ndOptSourceLink)
		if n.Type == NeighbourAdvertisement {
			option = ndOptTargetLink
		}
		b = append(b, option, 1)
		b = append(b, n.LinkAddr[:]...)
	}
	finishICMPv6(b[start:])
	return b
}

// SolicitedNode returns the solicited-node multicast address for an IPv6 address (RFC 4291 section 2.7.1).
func SolicitedNode(target netip.Addr) netip.Addr {
	a := target.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
}

// MulticastMAC returns the Ethernet address of an IPv6 multicast address (RFC 2464 section 7).
func MulticastMAC(group netip.Addr) MAC {
	a := group.As16()
	return MAC{0x33, 0x33, a[12], a[13], a[14], a[15]}
}

func appendIPv6(b []byte, src, dst netip.Addr, proto, hopLimit uint8, payload int) []byte {
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(payload))
	b = append(b, proto, hopLimit)
	s, d := src.As16(), dst.As16()
	b = append(b, s[:]...)
	return append(b, d[:]...)
}

// finishICMPv6 computes the checksum of an IPv6 packet whose payload is one ICMPv6 message with a zero checksum.
func finishICMPv6(packet []byte) {
	h := Headers{Kind: KindIPv6, Proto: ProtoICMPv6}
	icmp := packet[ipv6HeaderLen:]
	sum := ^Sum(icmp, pseudoHeaderSum(packet, &h, len(icmp)))
	binary.BigEndian.PutUint16(icmp[2:], sum)
}
