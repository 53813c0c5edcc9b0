package tunnel_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/tunnel"
)

func testRules() *tunnel.Rules {
	return &tunnel.Rules{
		Codec: encap.NewVXLANIP(1, encap.StrictBits), Ethernet: true, MAC: ourMAC,
		Local: netip.MustParseAddr("172.30.0.1"), Port: 8472, OuterCheck: tunnel.CheckEnforce, InnerCheck: tunnel.CheckEnforce,
	}
}

func testView(tb testing.TB) tunnel.View {
	s, err := routing.NewSnapshot(rigPeers())
	if err != nil {
		tb.Fatal(err)
	}
	return tunnel.View{Peers: s, Own: tunnel.NewAddresses([]netip.Prefix{netip.MustParsePrefix("10.99.0.1/24"), netip.MustParsePrefix("fd99::1/64")})}
}

func peerName(p *routing.Peer) string {
	if p == nil {
		return ""
	}
	return p.Name
}

func TestDecideTransmit(t *testing.T) {
	rules, view := testRules(), testView(t)
	flannel := *rules
	flannel.Codec, flannel.Ethernet = encap.NewFlannelUDP(), false
	for _, c := range []struct {
		name   string
		rules  *tunnel.Rules
		packet []byte
		peer   string
		reason encap.Reason
	}{
		{"to a host", rules, udp(t, "10.99.0.1", "10.99.0.2", 53, nil), "hb", encap.None},
		{"to a network", rules, udp(t, "10.99.0.1", "10.244.2.9", 53, nil), "hb", encap.None},
		{"over IPv6", rules, udp(t, "fd99::1", "fd99::2", 53, nil), "hb", encap.None},
		{"to another peer", rules, tcp(t, "10.99.0.1", "10.99.0.3", nil), "hc", encap.None},
		{"to nobody", rules, udp(t, "10.99.0.1", "10.99.0.9", 53, nil), "", encap.NoTXTarget},
		{"multicast", rules, udp(t, "fd99::1", "ff02::2", 53, nil), "", encap.NoTXTarget},
		{"cut off", rules, udp(t, "10.99.0.1", "10.99.0.2", 53, nil)[:19], "", encap.PktTooSmall},
		{"not IP", rules, []byte{0x10, 2, 3}, "", encap.NotIP},
		{"our own datagram", rules, udp(t, "172.30.0.1", "172.30.0.2", 8472, nil), "", encap.NestedTunnel},
		{"another datagram to an endpoint", rules, udp(t, "172.30.0.1", "172.30.0.2", 53, nil), "", encap.NoTXTarget},
		{"flannel-udp", &flannel, udp(t, "10.99.0.1", "10.99.0.2", 53, nil), "hb", encap.None},
		{"flannel-udp and IPv6", &flannel, udp(t, "fd99::1", "fd99::2", 53, nil), "", encap.NotIP},
	} {
		var h encap.Headers
		before := bytes.Clone(c.packet)
		v := tunnel.DecideTransmit(c.rules, view, c.packet, &h)
		if v.Reason != c.reason || peerName(v.Peer) != c.peer {
			t.Errorf("%s: %s, peer %q; want %s, %q", c.name, v.Reason, peerName(v.Peer), c.reason, c.peer)
		}
		if !bytes.Equal(c.packet, before) {
			t.Errorf("%s: the packet was changed", c.name)
		}
	}
}

func TestDecideReceive(t *testing.T) {
	good := udp(t, "10.99.0.2", "10.99.0.1", 53, nil)
	const hb, hc, stranger = "172.30.0.2", "172.30.0.3", "172.30.0.9"
	checks := func(outer, inner tunnel.Check) func(*tunnel.Rules) {
		return func(r *tunnel.Rules) { r.OuterCheck, r.InnerCheck = outer, inner }
	}
	const enforce, off = tunnel.CheckEnforce, tunnel.CheckOff
	all := checks(enforce, enforce)
	for _, c := range []struct {
		name     string
		rules    func(*tunnel.Rules)
		datagram []byte
		from     string
		reason   encap.Reason
		peer     string
	}{
		{"from its peer", all, frame(good), hb, encap.None, "hb"},
		{"over IPv6", all, frame(udp(t, "fd99::2", "fd99::1", 53, nil)), hb, encap.None, "hb"},
		{"from the network behind it", all, frame(udp(t, "10.244.2.7", "10.99.0.1", 53, nil)), hb, encap.None, "hb"},
		{"to a group MAC", all, frame(good, setByte(8, 0xff)), hb, encap.None, "hb"},
		{"to a group MAC, for another host", all, frame(udp(t, "10.99.0.2", "192.0.2.1", 53, nil), setByte(8, 0xff)), hb, encap.OtherHost, "hb"},
		{"to a group MAC, for everyone here", all, frame(udp(t, "10.99.0.2", "10.99.0.255", 53, nil), setByte(8, 0xff)), hb, encap.None, "hb"},
		{"garbage of a stranger", all, []byte{1, 2, 3}, stranger, encap.PeerUnknown, ""},
		{"no I flag", all, frame(good, setByte(0, 0)), hb, encap.VXLANInvalidHdr, "hb"},
		{"other VNI", all, frame(good, setByte(6, 2)), hb, encap.VXLANVNINotFound, "hb"},
		{"empty", all, nil, hb, encap.PktTooSmall, "hb"},
		{"header alone", all, frame(nil)[:8], hb, encap.PktTooSmall, "hb"},
		{"stranger", all, frame(good), stranger, encap.PeerUnknown, ""},
		{"stranger let in", checks(off, enforce), frame(good), stranger, encap.None, "hb"},
		{"stranger let in with a source of nobody", checks(off, enforce), frame(udp(t, "10.88.0.1", "10.99.0.1", 53, nil)), stranger, encap.InnerSourceNotAllowed, ""},
		{"source of another peer", all, frame(good), hc, encap.InnerSourceNotAllowed, "hc"},
		{"source of another peer, unchecked", checks(enforce, off), frame(good), hc, encap.None, "hc"},
		{"source of nobody", all, frame(udp(t, "10.88.0.1", "10.99.0.1", 53, nil)), hb, encap.InnerSourceNotAllowed, "hb"},
		{"our own address", checks(enforce, off), frame(udp(t, "10.99.0.1", "10.99.0.1", 53, nil)), hb, encap.InnerMartian, "hb"},
		{"our underlay address", checks(enforce, off), frame(udp(t, "172.30.0.1", "10.99.0.1", 53, nil)), hb, encap.InnerMartian, "hb"},
		{"loopback", checks(enforce, off), frame(udp(t, "127.0.0.1", "10.99.0.1", 53, nil)), hb, encap.InnerMartian, "hb"},
		{"multicast source", checks(enforce, off), frame(udp(t, "224.0.0.1", "10.99.0.1", 53, nil)), hb, encap.InnerMartian, "hb"},
		{"unspecified source", checks(enforce, off), frame(udp(t, "::", "fd99::1", 53, nil)), hb, encap.InnerMartian, "hb"},
		{"nested in itself", all, frame(udp(t, "10.99.0.2", "172.30.0.1", 8472, nil)), hb, encap.NestedTunnel, "hb"},
		{"other port of the underlay address", all, frame(udp(t, "10.99.0.2", "172.30.0.1", 53, nil)), hb, encap.None, "hb"},
		{"group MAC as source", all, frame(good, setByte(14, 3)), hb, encap.MACInvalidSource, "hb"},
		{"our MAC as source", all, frame(good, setByte(19, 1)), hb, encap.LocalMAC, "hb"},
		{"another host's MAC", all, frame(good, setByte(13, 9)), hb, encap.OtherHost, "hb"},
		{"LLDP", all, frame(good, setByte(20, 0x88), setByte(21, 0xcc)), hb, encap.NotIP, "hb"},
		{"VLAN tag", all, frame(append([]byte{0, 5, 8, 0}, good...), setByte(20, 0x81), setByte(21, 0)), hb, encap.NotIP, "hb"},
	} {
		rules := testRules()
		c.rules(rules)
		var h encap.Headers
		before := bytes.Clone(c.datagram)
		_, v := tunnel.DecideReceive(rules, testView(t), c.datagram, netip.MustParseAddr(c.from), &h)
		if v.Reason != c.reason || peerName(v.Peer) != c.peer || v.Consumed {
			t.Errorf("%s: %s, peer %q; want %s, %q", c.name, v.Reason, peerName(v.Peer), c.reason, c.peer)
		}
		if !bytes.Equal(c.datagram, before) {
			t.Errorf("%s: the datagram was changed", c.name)
		}
	}
}

// A check that counts lets pass what one that enforces drops, and says so.
func TestSuspects(t *testing.T) {
	good, foreign := frame(udp(t, "10.99.0.2", "10.99.0.1", 53, nil)), frame(udp(t, "10.88.0.1", "10.99.0.1", 53, nil))
	const hb, hc, stranger = "172.30.0.2", "172.30.0.3", "172.30.0.9"
	for _, c := range []struct {
		name         string
		outer, inner tunnel.Check
		datagram     []byte
		from         string
		want         tunnel.Verdict
		peer         string
	}{
		{"peer", tunnel.CheckCount, tunnel.CheckCount, good, hb, tunnel.Verdict{}, "hb"},
		{"stranger", tunnel.CheckCount, tunnel.CheckCount, good, stranger, tunnel.Verdict{Suspect: encap.PeerUnknown}, "hb"},
		{"stranger, inner source not looked at", tunnel.CheckCount, tunnel.CheckOff, good, stranger, tunnel.Verdict{Suspect: encap.PeerUnknown}, ""},
		{"stranger with a source of nobody", tunnel.CheckCount, tunnel.CheckCount, foreign, stranger, tunnel.Verdict{Suspect: encap.PeerUnknown}, ""},
		{"stranger with a source of nobody, which is enforced", tunnel.CheckCount, tunnel.CheckEnforce, foreign, stranger, tunnel.Verdict{Suspect: encap.PeerUnknown, Reason: encap.InnerSourceNotAllowed}, ""},
		{"source of another peer", tunnel.CheckCount, tunnel.CheckCount, good, hc, tunnel.Verdict{Suspect: encap.InnerSourceNotAllowed}, "hc"},
		{"source of nobody, outer enforced", tunnel.CheckEnforce, tunnel.CheckCount, foreign, hb, tunnel.Verdict{Suspect: encap.InnerSourceNotAllowed}, "hb"},
	} {
		rules := testRules()
		rules.OuterCheck, rules.InnerCheck = c.outer, c.inner
		var h encap.Headers
		_, v := tunnel.DecideReceive(rules, testView(t), c.datagram, netip.MustParseAddr(c.from), &h)
		if v.Reason != c.want.Reason || v.Suspect != c.want.Suspect || peerName(v.Peer) != c.peer {
			t.Errorf("%s: %+v, peer %q; want %+v, %q", c.name, v, peerName(v.Peer), c.want, c.peer)
		}
	}
}

// A chain of extension headers too long to walk cannot smuggle a datagram to our own socket.
func TestNestedBehindExtensionHeaders(t *testing.T) {
	rules := testRules()
	rules.Local = netip.MustParseAddr("fd30::1")
	for _, n := range []int{1, 8, 9, 40} {
		packet := udp(t, "fd99::2", "fd30::1", 8472, nil)
		var chain []byte
		for i := range n {
			next := byte(60)
			if i == n-1 {
				next = encap.ProtoUDP
			}
			chain = append(chain, next, 0, 0, 0, 0, 0, 0, 0)
		}
		packet = append(append(bytes.Clone(packet[:40]), chain...), packet[40:]...)
		packet[5] += byte(len(chain))
		packet[4] = byte((len(packet) - 40) >> 8)
		packet[5] = byte(len(packet) - 40)
		packet[6] = 60
		var h encap.Headers
		if _, v := tunnel.DecideReceive(rules, testView(t), frame(packet), netip.MustParseAddr("172.30.0.2"), &h); v.Reason != encap.NestedTunnel {
			t.Errorf("%d extension headers: %s", n, v.Reason)
		}
	}
}

func TestNeighbourPacketsAreConsumedFromPeersOnly(t *testing.T) {
	arp := encap.ARP{Op: encap.ARPRequest, SenderMAC: peerMAC, SenderIP: netip.MustParseAddr("10.99.0.2"), TargetIP: netip.MustParseAddr("10.99.0.1")}.Append(nil)
	datagram := frame(arp, setByte(20, 0x08), setByte(21, 0x06))
	rules := testRules()
	rules.OuterCheck = tunnel.CheckOff
	for from, want := range map[string]tunnel.Verdict{"172.30.0.2": {Consumed: true}, "172.30.0.9": {Reason: encap.PeerUnknown}} {
		var h encap.Headers
		_, v := tunnel.DecideReceive(rules, testView(t), datagram, netip.MustParseAddr(from), &h)
		if v.Consumed != want.Consumed || v.Reason != want.Reason {
			t.Errorf("from %s: %+v", from, v)
		}
	}
}

func FuzzDecide(f *testing.F) {
	view := testView(f)
	f.Add(frame(udp(f, "10.99.0.2", "10.99.0.1", 53, nil)), true)
	f.Add(frame(udp(f, "fd99::2", "fd99::1", 53, []byte("x"))), false)
	f.Add(udp(f, "10.99.0.1", "10.99.0.2", 53, nil), true)
	f.Fuzz(func(t *testing.T, b []byte, check bool) {
		rules := testRules()
		rules.Bridge = len(b)%2 == 1
		if !check {
			rules.OuterCheck, rules.InnerCheck = tunnel.CheckCount, tunnel.CheckOff
		}
		before := bytes.Clone(b)
		var h encap.Headers
		if v := tunnel.DecideTransmit(rules, view, b, &h); (v.Reason == encap.None) != (v.Peer != nil) {
			t.Fatalf("transmit: %+v", v)
		}
		for _, from := range []string{"172.30.0.2", "172.30.0.9"} {
			packet, v := tunnel.DecideReceive(rules, view, b, netip.MustParseAddr(from), &h)
			switch {
			case v.Reason == encap.None && packet == nil:
				t.Fatal("accepted, and no packet")
			case v.Reason == encap.None && check && v.Peer == nil:
				t.Fatal("accepted from nobody")
			case v.Reason == encap.None && check && !v.Consumed && !rules.Bridge && view.Peers.Lookup(h.Src) != v.Peer:
				t.Fatalf("source %s accepted from %s", h.Src, v.Peer.Name)
			}
		}
		if !bytes.Equal(b, before) {
			t.Fatal("a verdict changed the packet")
		}
	})
}
