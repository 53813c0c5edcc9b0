package encap

import (
	"encoding/binary"
	"net/netip"
)

// UDPChecksumOffset is where the checksum stands in a UDP header, in bytes.
const UDPChecksumOffset = 6

// Outer is what the outer IP and UDP headers of a datagram say.
type Outer struct {
	Src, Dst netip.AddrPort // of one family, no IPv4-mapped IPv6
	TOS, TTL uint8
	DF       bool   // IPv4 alone: don't fragment
	ID       uint16 // IPv4 alone: identification
	Flow     uint32 // IPv6 alone: the low 20 bits are the flow label
	Checksum bool   // UDP checksum
}

// OuterHeaderLen returns the length of the IP and UDP headers, in bytes.
func OuterHeaderLen(ipv6 bool) int {
	if ipv6 {
		return ipv6HeaderLen + udpHeaderLen
	}
	return ipv4MinHeaderLen + udpHeaderLen
}

// PutOuter writes IP and UDP headers for a payload of n bytes to b, which has room for them; together they make at most
// 65,535 bytes. With Checksum, the checksum field of UDP holds the pseudo-header's sum: the rest is left to a device.
func PutOuter(b []byte, o *Outer, n int) {
	if o.Dst.Addr().Is4() {
		putOuter4(b, o, n)
		return
	}
	putOuter6(b, o, n)
}

// putOuter4 writes an IPv4 header without options (RFC 791 section 3.1), and UDP's behind it.
func putOuter4(b []byte, o *Outer, n int) {
	_ = b[ipv4MinHeaderLen+udpHeaderLen-1]
	src, dst := o.Src.Addr().As4(), o.Dst.Addr().As4()
	b[0], b[1] = 0x45, o.TOS
	binary.BigEndian.PutUint16(b[2:], uint16(ipv4MinHeaderLen+udpHeaderLen+n))
	binary.BigEndian.PutUint16(b[4:], o.ID)
	b[6], b[7] = 0, 0
	if o.DF {
		b[6] = 0x40
	}
	b[8], b[9], b[10], b[11] = o.TTL, ProtoUDP, 0, 0
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], ^Sum(b[:ipv4MinHeaderLen], 0))
	putOuterUDP(b[ipv4MinHeaderLen:], b[12:20], o, n)
}

// putOuter6 writes an IPv6 header (RFC 8200 section 3) with the flow for a label (RFC 6438), and UDP's behind it.
func putOuter6(b []byte, o *Outer, n int) {
	_ = b[ipv6HeaderLen+udpHeaderLen-1]
	src, dst := o.Src.Addr().As16(), o.Dst.Addr().As16()
	binary.BigEndian.PutUint32(b[0:], 6<<28|uint32(o.TOS)<<20|o.Flow&0xfffff)
	binary.BigEndian.PutUint16(b[4:], uint16(udpHeaderLen+n))
	b[6], b[7] = ProtoUDP, o.TTL
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	putOuterUDP(b[ipv6HeaderLen:], b[8:40], o, n)
}

// putOuterUDP writes a UDP header (RFC 768) behind an IP header with the given addresses.
func putOuterUDP(b, addresses []byte, o *Outer, n int) {
	length := uint16(udpHeaderLen + n)
	binary.BigEndian.PutUint16(b[0:], o.Src.Port())
	binary.BigEndian.PutUint16(b[2:], o.Dst.Port())
	binary.BigEndian.PutUint16(b[4:], length)
	var sum uint16
	if o.Checksum {
		sum = addSum(addSum(Sum(addresses, 0), length), ProtoUDP)
	}
	binary.BigEndian.PutUint16(b[UDPChecksumOffset:], sum)
}

// ParseOuter reads what PutOuter writes: a packet of IPv4 without options, or IPv6, that is not fragmented and holds a UDP datagram. The
// payload is a part of b. Fields of o that it does not say are left zero. What follows the length of IP is ignored, as padding. The header
// checksum of IPv4 is verified, that of UDP is not: VerifyOuter does.
func ParseOuter(b []byte, o *Outer) (payload []byte, r Reason) {
	*o = Outer{}
	if len(b) < ipv4MinHeaderLen+udpHeaderLen {
		return nil, PktTooSmall
	}
	var udp []byte
	var src, dst netip.Addr
	switch b[0] >> 4 {
	case 4:
		udp, r = parseOuter4(b, o)
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	case 6:
		if udp, r = parseOuter6(b, o); r == None {
			src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		}
	default:
		return nil, NotIP
	}
	if r != None {
		return nil, r
	}
	if len(udp) < udpHeaderLen {
		return nil, PktTooSmall
	}
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if n < udpHeaderLen || n > len(udp) {
		return nil, PktTooSmall
	}
	o.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(udp))
	o.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(udp[2:]))
	o.Checksum = binary.BigEndian.Uint16(udp[UDPChecksumOffset:]) != 0
	return udp[udpHeaderLen:n:n], None
}

func parseOuter4(b []byte, o *Outer) (udp []byte, r Reason) {
	length, fragment := int(binary.BigEndian.Uint16(b[2:])), binary.BigEndian.Uint16(b[6:])
	switch {
	case b[0] != 0x45, b[9] != ProtoUDP, fragment&0x3fff != 0:
		return nil, NotIP
	case length < ipv4MinHeaderLen, length > len(b):
		return nil, PktTooSmall
	case Sum(b[:ipv4MinHeaderLen], 0) != 0xffff:
		return nil, OuterChecksum
	}
	o.TOS, o.TTL, o.DF, o.ID = b[1], b[8], fragment&0x4000 != 0, binary.BigEndian.Uint16(b[4:])
	return b[ipv4MinHeaderLen:length], None
}

func parseOuter6(b []byte, o *Outer) (udp []byte, r Reason) {
	if len(b) < ipv6HeaderLen {
		return nil, PktTooSmall
	}
	length := ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	switch {
	case b[6] != ProtoUDP:
		return nil, NotIP
	case length > len(b):
		return nil, PktTooSmall
	}
	head := binary.BigEndian.Uint32(b)
	o.TOS, o.TTL, o.Flow = uint8(head>>20), b[7], head&0xfffff
	return b[ipv6HeaderLen:length], None
}

// VerifyOuter reports whether the UDP checksum of a packet that ParseOuter took, with this payload, is good, or is none.
func VerifyOuter(b []byte, o *Outer, payload []byte) bool {
	if !o.Checksum {
		return true
	}
	addresses, udp := b[12:20], b[ipv4MinHeaderLen:]
	if o.Dst.Addr().Is6() {
		addresses, udp = b[8:40], b[ipv6HeaderLen:]
	}
	udp = udp[:udpHeaderLen+len(payload)]
	return Sum(udp, addSum(addSum(Sum(addresses, 0), uint16(len(udp))), ProtoUDP)) == 0xffff
}
