package encap

import (
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func TestParseIP(t *testing.T) {
	udp := []byte{0x12, 0x34, 0x56, 0x78, 0, 8, 0, 0} // ports 0x1234, 0x5678
	v4 := func(edit func(p []byte)) []byte {
		p := append([]byte{0x45, 0x02, 0, 28, 0, 1, 0x40, 0, 64, ProtoUDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, udp...)
		edit(p)
		return p
	}
	v6 := func(next byte, rest ...byte) []byte {
		p := append(make([]byte, 40), rest...)
		p[0], p[1], p[5], p[6], p[7] = 0x6a, 0xb0, byte(len(rest)), next, 9
		p[8], p[23], p[24], p[39] = 0xfd, 1, 0xfd, 2
		return p
	}
	chain := func(n int, last byte, rest ...byte) []byte { // n empty destination options headers, then last
		var b []byte
		for i := range n {
			next := byte(60)
			if i == n-1 {
				next = last
			}
			b = append(b, next, 0, 0, 0, 0, 0, 0, 0)
		}
		return append(b, rest...)
	}
	for _, c := range []struct {
		name   string
		packet []byte
		reason Reason
		want   Headers // of which Src and Dst are not compared
	}{
		{"empty", nil, PktTooSmall, Headers{}},
		{"version 5", []byte{0x55, 0, 0, 0}, NotIP, Headers{}},
		{"IPv4", v4(func([]byte) {}), None, Headers{Kind: KindIPv4, L4: 20, Len: 28, Proto: ProtoUDP, SrcPort: 0x1234, DstPort: 0x5678, HasPorts: true, TOS: 2, TTL: 64, DF: true}},
		{"IPv4 padded", append(v4(func([]byte) {}), 0, 0), None, Headers{Kind: KindIPv4, L4: 20, Len: 28, Proto: ProtoUDP, SrcPort: 0x1234, DstPort: 0x5678, HasPorts: true, TOS: 2, TTL: 64, DF: true}},
		{"IPv4 header length 4", v4(func(p []byte) { p[0] = 0x44 }), NotIP, Headers{}},
		{"IPv4 total length below header", v4(func(p []byte) { p[3] = 19 }), NotIP, Headers{}},
		{"IPv4 total length past the end", v4(func(p []byte) { p[3] = 29 }), PktTooSmall, Headers{}},
		{"IPv4 header past total length", v4(func(p []byte) { p[0] = 0x48 }), NotIP, Headers{}},
		{"IPv4 options", v4(func(p []byte) { p[0] = 0x46 }), None, Headers{Kind: KindIPv4, L4: 24, Len: 28, Proto: ProtoUDP, SrcPort: 8, HasPorts: true, TOS: 2, TTL: 64, DF: true}},
		{"IPv4 first fragment", v4(func(p []byte) { p[6] = 0x20 }), None, Headers{Kind: KindIPv4, L4: 20, Len: 28, Proto: ProtoUDP, SrcPort: 0x1234, DstPort: 0x5678, HasPorts: true, TOS: 2, TTL: 64, Fragment: true}},
		{"IPv4 later fragment", v4(func(p []byte) { p[6], p[7] = 0, 3 }), None, Headers{Kind: KindIPv4, Len: 28, Proto: ProtoUDP, TOS: 2, TTL: 64, Fragment: true, Later: true}},
		{"IPv4 no transport", v4(func(p []byte) { p[3] = 20 })[:20], None, Headers{Kind: KindIPv4, L4: 20, Len: 20, Proto: ProtoUDP, TOS: 2, TTL: 64, DF: true}},
		{"IPv4 three bytes of UDP", v4(func(p []byte) { p[3] = 23 })[:23], None, Headers{Kind: KindIPv4, L4: 20, Len: 23, Proto: ProtoUDP, TOS: 2, TTL: 64, DF: true}},
		{"IPv6", v6(ProtoUDP, udp...), None, Headers{Kind: KindIPv6, L4: 40, Len: 48, Proto: ProtoUDP, SrcPort: 0x1234, DstPort: 0x5678, HasPorts: true, TOS: 0xab, TTL: 9}},
		{"IPv6 cut", v6(ProtoUDP, udp...)[:47], PktTooSmall, Headers{}},
		{"IPv6 no next header", v6(59, udp...), None, Headers{Kind: KindIPv6, Len: 48, TOS: 0xab, TTL: 9}},
		{"IPv6 hop-by-hop", v6(0, append([]byte{ProtoUDP, 0, 0, 0, 0, 0, 0, 0}, udp...)...), None, Headers{Kind: KindIPv6, L4: 48, Len: 56, Proto: ProtoUDP, SrcPort: 0x1234, DstPort: 0x5678, HasPorts: true, TOS: 0xab, TTL: 9}},
		{"IPv6 authentication", v6(51, append([]byte{ProtoUDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, udp...)...), None, Headers{Kind: KindIPv6, L4: 52, Len: 60, Proto: ProtoUDP, SrcPort: 0x1234, DstPort: 0x5678, HasPorts: true, TOS: 0xab, TTL: 9}},
		{"IPv6 first fragment", v6(44, append([]byte{ProtoUDP, 0, 0, 1, 0, 0, 0, 0}, udp...)...), None, Headers{Kind: KindIPv6, L4: 48, Len: 56, Proto: ProtoUDP, SrcPort: 0x1234, DstPort: 0x5678, HasPorts: true, TOS: 0xab, TTL: 9, Fragment: true}},
		{"IPv6 later fragment", v6(44, append([]byte{ProtoUDP, 0, 0, 9, 0, 0, 0, 0}, udp...)...), None, Headers{Kind: KindIPv6, Len: 56, Proto: ProtoUDP, TOS: 0xab, TTL: 9, Fragment: true, Later: true}},
		{"IPv6 extension longer than the packet", v6(0, ProtoUDP, 200, 0, 0, 0, 0, 0, 0), None, Headers{Kind: KindIPv6, Len: 48, TOS: 0xab, TTL: 9}},
		{"IPv6 extension cut", v6(0, ProtoUDP, 0, 0), None, Headers{Kind: KindIPv6, Len: 43, TOS: 0xab, TTL: 9}},
		{"IPv6 eight extensions", v6(60, chain(8, ProtoUDP, udp...)...), None, Headers{Kind: KindIPv6, L4: 104, Len: 112, Proto: ProtoUDP, SrcPort: 0x1234, DstPort: 0x5678, HasPorts: true, TOS: 0xab, TTL: 9}},
		{"IPv6 nine extensions are not walked", v6(60, chain(9, ProtoUDP, udp...)...), None, Headers{Kind: KindIPv6, Len: 120, TOS: 0xab, TTL: 9}},
		{"IPv6 ESP hides the transport", v6(50, udp...), None, Headers{Kind: KindIPv6, L4: 40, Len: 48, Proto: 50, TOS: 0xab, TTL: 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h Headers
			r := ParseIP(c.packet, &h)
			if r != c.reason {
				t.Fatalf("reason %s, want %s", r, c.reason)
			}
			if r != None {
				return
			}
			c.want.Src, c.want.Dst = h.Src, h.Dst
			if h != c.want {
				t.Errorf("got  %+v\nwant %+v", h, c.want)
			}
		})
	}
}

func TestParseFrame(t *testing.T) {
	inner := udp4(t, []byte("x"))
	tagged := func(tags ...uint16) []byte {
		stack := []gopacket.SerializableLayer{ethernet(layers.EthernetTypeDot1Q)}
		for i, id := range tags {
			next := layers.EthernetTypeDot1Q
			if i == len(tags)-1 {
				next = layers.EthernetTypeIPv4
			}
			stack = append(stack, &layers.Dot1Q{VLANIdentifier: id, Type: next})
		}
		return serialize(t, append(stack, gopacket.Payload(inner))...)
	}
	for _, c := range []struct {
		name  string
		frame []byte
		kind  Kind
		vlans int
		l3    int
	}{
		{"untagged", serialize(t, ethernet(layers.EthernetTypeIPv4), gopacket.Payload(inner)), KindIPv4, 0, 14},
		{"tagged", tagged(5), KindIPv4, 1, 18},
		{"QinQ", tagged(5, 6), KindIPv4, 2, 22},
		{"three tags", tagged(5, 6, 7), KindOther, 2, 22},
		{"ARP", serialize(t, ethernet(layers.EthernetTypeARP), gopacket.Payload(make([]byte, 28))), KindARP, 0, 14},
		{"LLDP", serialize(t, ethernet(layers.EthernetTypeLinkLayerDiscovery), gopacket.Payload(make([]byte, 50))), KindOther, 0, 14},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h Headers
			if r := ParseFrame(c.frame, &h); r != None {
				t.Fatal(r)
			}
			if h.Kind != c.kind || h.VLANs != c.vlans || h.L3 != c.l3 || h.Link != (Link{Dst: macB, Src: macA}) {
				t.Errorf("got %+v", h)
			}
			if c.kind == KindIPv4 && (h.Src != v4A || h.Dst != v4B || h.DstPort != 2000 || h.Len != c.l3+len(inner)) {
				t.Errorf("got %+v", h)
			}
			for n := range c.l3 {
				if r := ParseFrame(c.frame[:n], &h); r != PktTooSmall {
					t.Errorf("cut to %d bytes: %s", n, r)
				}
			}
		})
	}
}

// Each truncation of a frame with an IP packet is noticed: the IP header states how long it must be.
func TestEveryTruncationIsNoticed(t *testing.T) {
	for name, packet := range map[string][]byte{
		"udp4": udp4(t, []byte("abc")), "udp6": udp6(t, []byte("abc")), "tcp4": tcp4(t, []byte("abc")), "tcp6": tcp6(t, nil),
	} {
		var h Headers
		etherType := layers.EthernetTypeIPv4
		if packet[0]>>4 == 6 {
			etherType = layers.EthernetTypeIPv6
		}
		frame := serialize(t, ethernet(etherType), gopacket.Payload(packet))[:14+len(packet)]
		for n := range len(packet) {
			if r := ParseIP(packet[:n], &h); r != PktTooSmall {
				t.Errorf("%s cut to %d bytes: %s", name, n, r)
			}
			if r := ParseFrame(frame[:14+n], &h); r != PktTooSmall {
				t.Errorf("%s in a frame cut to %d bytes: %s", name, 14+n, r)
			}
		}
	}
}
