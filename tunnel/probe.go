package tunnel

import "github.com/vxlane/vxlane/encap"

// Super-packets of two segments with four bytes each, from an address to itself, in networks that are for documentation
// (RFC 5737, RFC 3849): what the kernel is asked whether it takes.
var (
	probeTCP4 = probePacket(probeIPv4, encap.ProtoTCP)
	probeTCP6 = probePacket(probeIPv6, encap.ProtoTCP)
	probeUDP4 = probePacket(probeIPv4, encap.ProtoUDP)
	probeUDP6 = probePacket(probeIPv6, encap.ProtoUDP)

	probeIPv4 = []byte{0x45, 9: 0, 12: 192, 0, 2, 1, 192, 0, 2, 1}
	probeIPv6 = []byte{0x60, 8: 0x20, 1, 0x0d, 0xb8, 23: 1, 24: 0x20, 1, 0x0d, 0xb8, 39: 1}
)

func probePacket(ip []byte, proto uint8) []byte {
	l4 := []byte{0, 9, 0, 9, 12: 5 << 4, 13: 0x10, 19: 0} // TCP: ports 9 (discard), ACK
	if proto == encap.ProtoUDP {
		l4 = []byte{0, 9, 0, 9, 5: 16, 7: 0}
	}
	p := append(append(append([]byte(nil), ip...), l4...), make([]byte, 8)...)
	if ip[0]>>4 == 4 {
		p[3], p[8], p[9] = uint8(len(p)), 64, proto
		sum := ^encap.Sum(p[:len(ip)], 0)
		p[10], p[11] = uint8(sum>>8), uint8(sum)
	} else {
		p[5], p[6], p[7] = uint8(len(p)-len(ip)), proto, 64
	}
	var h encap.Headers
	if encap.ParseIP(p, &h) == encap.None {
		if proto == encap.ProtoUDP {
			p[h.L4+7] = 1 // zero would mean that there is no checksum to leave
		}
		encap.LeaveChecksum(p, &h)
	}
	return p
}
