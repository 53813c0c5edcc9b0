package encap

import (
	"bytes"
	"testing"
)

// Nothing on the way of a packet allocates.
func TestNothingAllocates(t *testing.T) {
	vxlan, flannel := NewVXLANIP(1, StrictBits), NewFlannelUDP()
	packet4, packet6 := tcp4(t, make([]byte, 5000)), udp6(t, make([]byte, 500))
	h4, h6 := mustParseIP(t, packet4), mustParseIP(t, packet6)
	datagram := append(make([]byte, 22), packet4...)
	vxlan.Encap(datagram[:22], datagram[22:], h4, Link{Dst: macB, Src: macA})
	arp := ARP{Op: ARPRequest, SenderMAC: macA, SenderIP: v4A, TargetIP: v4B}.Append(nil)
	nd := ND{Type: NeighbourSolicitation, Src: v6A, Dst: SolicitedNode(v6B), Target: v6B, LinkAddr: macA}.Append(nil)
	hnd := mustParseIP(t, nd)
	buf, header := make([]byte, 0, 2048), make([]byte, 128)
	original := bytes.Clone(packet4)
	var h Headers
	var port uint16
	for name, f := range map[string]func(){
		"parse":       func() { ParseIP(packet4, &h); ParseIP(packet6, &h); ParseFrame(datagram[8:], &h) },
		"vxlan":       func() { vxlan.Encap(header[:22], packet4, h4, Link{}); vxlan.Decap(datagram, &h) },
		"flannel-udp": func() { copy(packet4, original); flannel.Encap(nil, packet4, h4, Link{}); flannel.Decap(packet4, &h) },
		"flow":        func() { port += SourcePort(h4.FlowHash(), 1, 1000) + uint16(Bucket(h6.FlowHash(), 16)) },
		"checksum":    func() { InspectChecksum(packet4, h4); PartialOffload(h6).FinishChecksum(packet6) },
		"ecn":         func() { SetECN(packet6, h6, CE); SetECN(packet6, h6, NotECT); DecapECN(CE, ECT0) },
		"neighbour":   func() { ParseARP(arp); ParseND(nd, hnd) },
		"icmp":        func() { AppendUnreachable(buf, HostUnreachable, v4B, 0, packet4, h4); SizeHint(packet4, h4) },
		"split": func() {
			var s Splitter
			o, _ := SuperTCP(packet4, h4, 1450)
			s.Reset(packet4, h4, o)
			for s.Next(header) {
			}
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
