package encap

import (
	"encoding/binary"
	"net/netip"
)

// Unreachable says which ICMP error to answer a packet with; the codes are those of RFC 792 and RFC 4443.
type Unreachable uint8

// The errors that AppendUnreachable knows.
const (
	// NetUnreachable: ICMP type 3 code 0, ICMPv6 type 1 code 0; flannel's udp backend answers so.
	NetUnreachable Unreachable = iota
	// HostUnreachable: ICMP type 3 code 1, ICMPv6 type 1 code 3; WireGuard answers so.
	HostUnreachable
	// TimeExceeded: ICMP type 11 code 0, ICMPv6 type 3 code 0.
	TimeExceeded
	// TooBig: ICMP type 3 code 4 (fragmentation needed, RFC 1191), ICMPv6 type 2 code 0; both name an MTU.
	TooBig
)

var unreachableTypes = [...]struct{ v4Type, v4Code, v6Type, v6Code uint8 }{
	NetUnreachable:  {3, 0, 1, 0},
	HostUnreachable: {3, 1, 1, 3},
	TimeExceeded:    {11, 0, 3, 0},
	TooBig:          {3, 4, 2, 0},
}

const (
	icmpHeaderLen = 8
	icmpTTL       = 64
	icmpv4MaxLen  = 576  // RFC 1812 section 4.3.2.3
	icmpv6MaxLen  = 1280 // RFC 4443 section 2.4 (c)
)

// MayAnswerWithError reports whether an ICMP error may answer packet: RFC 1122 section 3.2.2 and RFC 4443 section 2.4
// (e) forbid it for ICMP errors, later fragments, and packets to or from what is no single host.
func MayAnswerWithError(packet []byte, h *Headers) bool {
	if h.Kind != KindIPv4 && h.Kind != KindIPv6 || h.L4 == 0 {
		return false
	}
	if h.Dst.IsMulticast() || h.Dst == broadcastIPv4 || h.Src.IsUnspecified() || h.Src.IsMulticast() || h.Src == broadcastIPv4 {
		return false
	}
	if h.Len <= h.L4 {
		return h.Proto != ProtoICMP && h.Proto != ProtoICMPv6
	}
	switch t := packet[h.L4]; {
	case h.Proto == ProtoICMP && h.Kind == KindIPv4:
		return t == 0 || t == 8 || t >= 13
	case h.Proto == ProtoICMPv6:
		return t >= 128 && t != 137 // 137: redirect
	}
	return true
}

var broadcastIPv4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// AppendUnreachable appends to b an ICMP or ICMPv6 error packet from src to the sender of packet, quoting as much of it
// as the RFCs allow. src has the packet's address family. mtu is what TooBig names, in bytes, 0-65535; the others have none.
func AppendUnreachable(b []byte, u Unreachable, src netip.Addr, mtu int, packet []byte, h *Headers) []byte {
	start, t := len(b), unreachableTypes[u]
	quote := packet[h.L3:h.Len]
	if h.Kind == KindIPv6 {
		quote = quote[:min(len(quote), icmpv6MaxLen-ipv6HeaderLen-icmpHeaderLen)]
		b = appendIPv6(b, src, h.Src, ProtoICMPv6, icmpTTL, icmpHeaderLen+len(quote))
		b = append(b, t.v6Type, t.v6Code, 0, 0, 0, 0, byte(mtu>>8), byte(mtu))
		b = append(b, quote...)
		finishICMPv6(b[start:])
		return b
	}
	quote = quote[:min(len(quote), icmpv4MaxLen-ipv4MinHeaderLen-icmpHeaderLen)]
	const tosInternetControl = 0xc0 // RFC 1812 section 4.3.2.5
	b = append(b, 0x45, tosInternetControl)
	b = binary.BigEndian.AppendUint16(b, uint16(ipv4MinHeaderLen+icmpHeaderLen+len(quote)))
	b = append(b, 0, 0, 0, 0, icmpTTL, ProtoICMP, 0, 0)
	s, d := src.As4(), h.Src.As4()
	b = append(append(b, s[:]...), d[:]...)
	ip := b[start:]
	binary.BigEndian.PutUint16(ip[10:], ^Sum(ip, 0))
	b = append(b, t.v4Type, t.v4Code, 0, 0, 0, 0, byte(mtu>>8), byte(mtu))
	b = append(b, quote...)
	icmp := b[start+ipv4MinHeaderLen:]
	binary.BigEndian.PutUint16(icmp[2:], ^Sum(icmp, 0))
	return b
}

// SizeHint reads from a packet what it tells its receiver about how large packets to its sender, or to a host behind a
// router, may be: the MSS option of a TCP SYN, or the MTU in an ICMP "fragmentation needed" or ICMPv6 "packet too big".
// host is the address that packets of at most size bytes can reach. It serves to split a super-packet of unknown segment
// size no coarser than its sender would have.
func SizeHint(packet []byte, h *Headers) (host netip.Addr, size int, ok bool) {
	switch {
	case h.L4 == 0 || h.Fragment:
	case h.Proto == ProtoTCP:
		return synHint(packet, h)
	case h.Proto == ProtoICMP && h.Kind == KindIPv4 && h.Len >= h.L4+icmpHeaderLen+ipv4MinHeaderLen:
		icmp := packet[h.L4:h.Len]
		if icmp[0] == 3 && icmp[1] == 4 && icmp[icmpHeaderLen]>>4 == 4 { // RFC 1191 section 4
			return netip.AddrFrom4([4]byte(icmp[icmpHeaderLen+16:])), int(binary.BigEndian.Uint16(icmp[6:])), true
		}
	case h.Proto == ProtoICMPv6 && h.Kind == KindIPv6 && h.Len >= h.L4+icmpHeaderLen+ipv6HeaderLen:
		icmp := packet[h.L4:h.Len]
		if icmp[0] == 2 && icmp[icmpHeaderLen]>>4 == 6 { // RFC 4443 section 3.2
			mtu := binary.BigEndian.Uint32(icmp[4:])
			return netip.AddrFrom16([16]byte(icmp[icmpHeaderLen+24:])), int(min(mtu, 1<<16-1)), true
		}
	}
	return netip.Addr{}, 0, false
}

// synHint reads the MSS option (RFC 9293 section 3.7.1) of a SYN.
func synHint(packet []byte, h *Headers) (netip.Addr, int, bool) {
	const optEnd, optNop, optMSS = 0, 1, 2
	if h.Len < h.L4+tcpMinHeaderLen || packet[h.L4+13]&tcpSYN == 0 {
		return netip.Addr{}, 0, false
	}
	options := packet[h.L4 : h.L4+transportHeaderLen(packet, h)]
	for i := tcpMinHeaderLen; i+1 < len(options); {
		switch kind, n := options[i], int(options[i+1]); {
		case kind == optEnd:
			return netip.Addr{}, 0, false
		case kind == optNop:
			i++
		case n < 2 || i+n > len(options):
			return netip.Addr{}, 0, false
		case kind == optMSS && n == 4:
			headers := ipv4MinHeaderLen + tcpMinHeaderLen
			if h.Kind == KindIPv6 {
				headers = ipv6HeaderLen + tcpMinHeaderLen
			}
			return h.Src, headers + int(binary.BigEndian.Uint16(options[i+2:])), true
		default:
			i += n
		}
	}
	return netip.Addr{}, 0, false
}
