package encap

import "testing"

func BenchmarkEncap(b *testing.B) {
	for name, c := range map[string]Codec{"vxlan": NewVXLANIP(1, StrictBits), "flannel-udp": NewFlannelUDP()} {
		b.Run("framing="+name, func(b *testing.B) {
			packet := udp4(b, make([]byte, 1400))
			h, header, link := mustParseIP(b, packet), make([]byte, c.Headroom()), Link{Dst: macB, Src: macA}
			b.ReportAllocs()
			for b.Loop() {
				packet[8] = 64 // the TTL that flannel-UDP takes from
				if r := c.Encap(header, packet, h, link); r != None {
					b.Fatal(r)
				}
			}
		})
	}
}

func BenchmarkDecap(b *testing.B) {
	for name, c := range map[string]Codec{"vxlan": NewVXLANIP(1, StrictBits), "flannel-udp": NewFlannelUDP()} {
		b.Run("framing="+name, func(b *testing.B) {
			packet := udp4(b, make([]byte, 1400))
			datagram := append(make([]byte, c.Headroom()), packet...)
			if r := c.Encap(datagram[:c.Headroom()], datagram[c.Headroom():], mustParseIP(b, packet), Link{Dst: macB, Src: macA}); r != None {
				b.Fatal(r)
			}
			var h Headers
			b.ReportAllocs()
			for b.Loop() {
				if _, r := c.Decap(datagram, &h); r != None {
					b.Fatal(r)
				}
			}
		})
	}
}

func BenchmarkFlowHash(b *testing.B) {
	h := mustParseIP(b, udp6(b, nil))
	b.ReportAllocs()
	var sum uint32
	for b.Loop() {
		sum += h.FlowHash()
	}
	_ = sum
}
