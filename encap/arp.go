package encap

import (
	"encoding/binary"
	"net/netip"
)

// ARP operations (RFC 826).
const (
	ARPRequest = 1
	ARPReply   = 2

	arpLen = 28
)

// ARP is one ARP packet for IPv4 over Ethernet (RFC 826):
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|     Hardware type = 1         |    Protocol type = 0x0800     |
//	+---------------+---------------+-------------------------------+
//	|  Length = 6   |  Length = 4   |          Operation            |
//	+---------------+---------------+-------------------------------+
//	|  Sender MAC (6), sender IP (4), target MAC (6), target IP (4) |
//	+---------------------------------------------------------------+
type ARP struct {
	Op        uint16
	SenderMAC MAC
	SenderIP  netip.Addr // IPv4; 0.0.0.0 in a probe (RFC 5227)
	TargetMAC MAC
	TargetIP  netip.Addr // IPv4
}

// ParseARP reads an ARP packet. The reason is PktTooSmall when it is cut off, NotIP when it is not for IPv4 over
// Ethernet, and MACInvalidSource when the sender's MAC is no station's.
func ParseARP(packet []byte) (ARP, Reason) {
	if len(packet) < arpLen {
		return ARP{}, PktTooSmall
	}
	const ethernetIPv4 = 0x0001_0800_06_04
	if binary.BigEndian.Uint64(packet)>>16 != ethernetIPv4 {
		return ARP{}, NotIP
	}
	a := ARP{
		Op:        binary.BigEndian.Uint16(packet[6:]),
		SenderMAC: MAC(packet[8:14]),
		SenderIP:  netip.AddrFrom4([4]byte(packet[14:18])),
		TargetMAC: MAC(packet[18:24]),
		TargetIP:  netip.AddrFrom4([4]byte(packet[24:28])),
	}
	if !a.SenderMAC.IsUnicast() {
		return ARP{}, MACInvalidSource
	}
	return a, None
}

// Append appends the packet, without an Ethernet header, to b.
func (a ARP) Append(b []byte) []byte {
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, a.Op)
	b = append(b, a.SenderMAC[:]...)
	sender, target := a.SenderIP.As4(), a.TargetIP.As4()
	b = append(b, sender[:]...)
	b = append(b, a.TargetMAC[:]...)
	return append(b, target[:]...)
}
