package encap

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func TestAppendUnreachable(t *testing.T) {
	for name, c := range map[string]struct {
		packet     []byte
		src        netip.Addr
		u          Unreachable
		typ, code  uint8
		quoteAtMax int
		mtu        int
	}{
		"IPv4 net":  {udp4(t, make([]byte, 1000)), v4B, NetUnreachable, 3, 0, 548, 0},
		"IPv4 host": {udp4(t, make([]byte, 10)), v4B, HostUnreachable, 3, 1, 38, 0},
		"IPv4 time": {tcp4(t, nil), v4B, TimeExceeded, 11, 0, 52, 0},
		"IPv6 host": {udp6(t, make([]byte, 1400)), v6B, HostUnreachable, 1, 3, 1232, 0},
		"IPv6 time": {udp6(t, nil), v6B, TimeExceeded, 3, 0, 48, 0},
		"IPv4 size": {udp4(t, make([]byte, 1400)), v4B, TooBig, 3, 4, 548, 1350},
		"IPv6 size": {udp6(t, make([]byte, 1400)), v6B, TooBig, 2, 0, 1232, 1330},
	} {
		t.Run(name, func(t *testing.T) {
			h := mustParseIP(t, c.packet)
			b := AppendUnreachable(nil, c.u, c.src, c.mtu, c.packet, h)
			got := mustParseIP(t, b)
			if got.Src != c.src || got.Dst != h.Src || b[got.L4] != c.typ || b[got.L4+1] != c.code {
				t.Errorf("answer %+v, type %d code %d", got, b[got.L4], b[got.L4+1])
			}
			if quote := b[got.L4+8:]; len(quote) != c.quoteAtMax || string(quote) != string(c.packet[:len(quote)]) {
				t.Errorf("quotes %d bytes, want %d", len(quote), c.quoteAtMax)
			}
			if host, size, ok := SizeHint(b, got); c.mtu != 0 && (!ok || size != c.mtu || host != h.Dst) {
				t.Errorf("it says %d for %s, %v, want %d", size, host, ok, c.mtu)
			}
			initial := uint16(0)
			first := layers.LayerTypeIPv4
			if got.Kind == KindIPv6 {
				initial, first = pseudoHeaderSum(b, got, got.Len-got.L4), layers.LayerTypeIPv6
			} else if Sum(b[:20], 0) != 0xffff {
				t.Error("IPv4 header checksum is wrong")
			}
			if Sum(b[got.L4:], initial) != 0xffff {
				t.Error("ICMP checksum is wrong")
			}
			if p := gopacket.NewPacket(b, first, gopacket.NoCopy); p.Layer(layers.LayerTypeICMPv4) == nil && p.Layer(layers.LayerTypeICMPv6) == nil {
				t.Errorf("gopacket: %v", p.ErrorLayer())
			}
		})
	}
}

func TestMayAnswerWithError(t *testing.T) {
	icmp := func(typ uint8) []byte {
		return serialize(t, ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0)})
	}
	edit := func(p []byte, at int, v ...byte) []byte {
		copy(p[at:], v)
		return p
	}
	for _, c := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"UDP", udp4(t, nil), true},
		{"UDP over IPv6", udp6(t, nil), true},
		{"echo request", icmp(8), true},
		{"echo reply", icmp(0), true},
		{"unreachable", icmp(3), false},
		{"time exceeded", icmp(11), false},
		{"redirect", icmp(5), false},
		{"to multicast", edit(udp4(t, nil), 16, 224), false},
		{"to broadcast", edit(udp4(t, nil), 16, 255, 255, 255, 255), false},
		{"from nowhere", edit(udp4(t, nil), 12, 0, 0, 0, 0), false},
		{"later fragment", edit(udp4(t, nil), 6, 0, 1), false},
		{"ICMPv6 error", edit(udp6(t, []byte{1, 1, 1, 1}), 6, ProtoICMPv6), false},
	} {
		h := mustParseIP(t, c.packet)
		if c.name == "ICMPv6 error" {
			c.packet[h.L4] = 1
		}
		if got := MayAnswerWithError(c.packet, h); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestSizeHint(t *testing.T) {
	syn := func(v6 bool, flags byte, options ...layers.TCPOption) []byte {
		tcp := &layers.TCP{SYN: flags&2 != 0, ACK: flags&16 != 0, Options: options}
		if v6 {
			ip := ip6(layers.IPProtocolTCP)
			_ = tcp.SetNetworkLayerForChecksum(ip)
			return serialize(t, ip, tcp)
		}
		ip := ip4(layers.IPProtocolTCP)
		_ = tcp.SetNetworkLayerForChecksum(ip)
		return serialize(t, ip, tcp)
	}
	nop := layers.TCPOption{OptionType: layers.TCPOptionKindNop}
	mss := layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{0x05, 0x50}} // 1360
	needed := AppendUnreachable(nil, HostUnreachable, v4B, 0, udp4(t, nil), mustParseIP(t, udp4(t, nil)))
	needed[21], needed[26], needed[27] = 4, 0x05, 0x14 // code 4, MTU 1300
	tooBig := AppendUnreachable(nil, HostUnreachable, v6B, 0, udp6(t, nil), mustParseIP(t, udp6(t, nil)))
	tooBig[40], tooBig[46], tooBig[47] = 2, 0x05, 0x14
	for _, c := range []struct {
		name   string
		packet []byte
		host   netip.Addr
		size   int
	}{
		{"SYN", syn(false, 2, mss), v4A, 1400},
		{"SYN ACK, option behind others", syn(false, 18, nop, nop, mss), v4A, 1400},
		{"SYN over IPv6", syn(true, 2, mss), v6A, 1420},
		{"SYN without MSS", syn(false, 2, nop), netip.Addr{}, 0},
		{"no SYN", syn(false, 16, mss), netip.Addr{}, 0},
		{"fragmentation needed", needed, v4B, 1300},
		{"packet too big", tooBig, v6B, 1300},
		{"UDP", udp4(t, nil), netip.Addr{}, 0},
	} {
		host, size, ok := SizeHint(c.packet, mustParseIP(t, c.packet))
		if host != c.host || size != c.size || ok != (c.size > 0) {
			t.Errorf("%s: %s, %d, %v; want %s, %d", c.name, host, size, ok, c.host, c.size)
		}
	}
}
