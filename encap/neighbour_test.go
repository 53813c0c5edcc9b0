package encap

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func TestARP(t *testing.T) {
	a := ARP{Op: ARPRequest, SenderMAC: macA, SenderIP: v4A, TargetIP: v4B}
	b := a.Append(nil)
	p, _ := gopacket.NewPacket(b, layers.LayerTypeARP, gopacket.NoCopy).Layer(layers.LayerTypeARP).(*layers.ARP)
	if p == nil || p.Operation != layers.ARPRequest || MAC(p.SourceHwAddress) != macA || netip.AddrFrom4([4]byte(p.DstProtAddress)) != v4B {
		t.Fatalf("gopacket reads %+v", p)
	}
	if got, r := ParseARP(append(b, 0, 0, 0)); got != a || r != None {
		t.Errorf("came back as %+v, %s", got, r)
	}
	for n := range b {
		if _, r := ParseARP(b[:n]); r != PktTooSmall {
			t.Errorf("cut to %d bytes: %s", n, r)
		}
	}
	for name, c := range map[string]struct {
		at     int
		value  byte
		reason Reason
	}{"hardware type": {1, 6, NotIP}, "protocol type": {2, 9, NotIP}, "address length": {4, 8, NotIP}, "group sender": {8, 3, MACInvalidSource}} {
		bad := append([]byte(nil), b...)
		bad[c.at] = c.value
		if _, r := ParseARP(bad); r != c.reason {
			t.Errorf("%s: %s, want %s", name, r, c.reason)
		}
	}
}

func TestND(t *testing.T) {
	for _, n := range []ND{
		{Type: NeighbourSolicitation, Src: v6A, Dst: SolicitedNode(v6B), Target: v6B, LinkAddr: macA},
		{Type: NeighbourSolicitation, Src: netip.IPv6Unspecified(), Dst: SolicitedNode(v6B), Target: v6B},
		{Type: NeighbourAdvertisement, Src: v6B, Dst: v6A, Target: v6B, LinkAddr: macB, Solicited: true, Override: true},
		{Type: NeighbourAdvertisement, Src: v6B, Dst: v6A, Target: v6B, LinkAddr: macB, Router: true, Override: true},
	} {
		b := n.Append(nil)
		h := mustParseIP(t, b)
		if !IsND(b, h) {
			t.Fatalf("%+v is not recognised", n)
		}
		if got, r := ParseND(b, h); got != n || r != None {
			t.Errorf("%+v came back as %+v, %s", n, got, r)
		}
		p := gopacket.NewPacket(b, layers.LayerTypeIPv6, gopacket.NoCopy)
		if p.ErrorLayer() != nil || p.Layer(layers.LayerTypeICMPv6) == nil {
			t.Errorf("gopacket: %v", p.ErrorLayer())
		}
	}
}

func TestParseNDRefuses(t *testing.T) {
	good := ND{Type: NeighbourSolicitation, Src: v6A, Dst: SolicitedNode(v6B), Target: v6B, LinkAddr: macA}.Append(nil)
	for _, c := range []struct {
		name  string
		edit  func(p []byte)
		fixup bool // compute the checksum anew
		want  Reason
	}{
		{"hop limit 254", func(p []byte) { p[7] = 254 }, false, NotIP},
		{"code 1", func(p []byte) { p[41] = 1 }, true, NotIP},
		{"checksum", func(p []byte) { p[43] ^= 1 }, false, NotIP},
		{"multicast target", func(p []byte) { p[48] = 0xff }, true, NotIP},
		{"option of length 0", func(p []byte) { p[65] = 0 }, true, NotIP},
		{"option past the end", func(p []byte) { p[65] = 2 }, true, PktTooSmall},
		{"group as link address", func(p []byte) { p[66] |= 1 }, true, MACInvalidSource},
	} {
		p := append([]byte(nil), good...)
		c.edit(p)
		if c.fixup {
			p[42], p[43] = 0, 0
			finishICMPv6(p)
		}
		if _, r := ParseND(p, mustParseIP(t, p)); r != c.want {
			t.Errorf("%s: %s, want %s", c.name, r, c.want)
		}
	}
	short := append([]byte(nil), good[:40+23]...)
	short[5] = 23
	if _, r := ParseND(short, mustParseIP(t, short)); r != PktTooSmall {
		t.Errorf("cut off: %s", r)
	}
}

func TestMulticastAddresses(t *testing.T) {
	group := SolicitedNode(netip.MustParseAddr("fe80::1:2345:6789"))
	if want := netip.MustParseAddr("ff02::1:ff45:6789"); group != want {
		t.Errorf("solicited-node address %s, want %s", group, want)
	}
	if got := MulticastMAC(group).String(); got != "33:33:ff:45:67:89" {
		t.Errorf("multicast MAC %s", got)
	}
}
