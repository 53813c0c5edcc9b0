package tunnel_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/tunnel"
	"github.com/vxlane/vxlane/tunnel/tunneltest"
)

var hcMAC = encap.MAC{2, 5: 3}

// arpFrom returns the datagram of an ARP packet from a peer with the given MAC.
func arpFrom(endpoint string, op uint16, mac encap.MAC, sender, target string) tunnel.Datagram {
	a := encap.ARP{Op: op, SenderMAC: mac, SenderIP: netip.MustParseAddr(sender), TargetMAC: ourMAC, TargetIP: netip.MustParseAddr(target)}
	return tunneltest.From(endpoint, frame(a.Append(nil), setByte(20, 8), setByte(21, 6), setByte(19, mac[5])))
}

func ndFrom(endpoint string, n encap.ND) tunnel.Datagram {
	return tunneltest.From(endpoint, frame(n.Append(nil)))
}

// arpRequests returns the requests sent to an endpoint; announcements are none.
func arpRequests(r *rig, endpoint string) (out []encap.ARP) {
	for _, d := range r.underlay.Sent() {
		if d.Remote.String() == endpoint && d.Data[20] == 8 && d.Data[21] == 6 {
			if a, reason := encap.ParseARP(d.Data[22:]); reason == encap.None && a.Op == encap.ARPRequest && a.SenderIP != a.TargetIP {
				out = append(out, a)
			}
		}
	}
	return out
}

// Packets wait for the MAC, in order, and go out before any later one.
func TestPacketsWaitForTheMAC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		packet := func(n byte) []byte { return udp(t, "10.99.0.1", "10.99.0.3", 53, []byte{n}) }
		r.device.Queue(0).Put(packet(0), packet(1))
		synctest.Wait()
		if s := r.tunnel.Stats(); s.Encap.Held != 2 || len(sentTo(r, "172.30.0.3:8472")) != 0 {
			t.Fatalf("counters %+v", s)
		}
		asked := arpRequests(r, "172.30.0.3:8472")
		if len(asked) == 0 || asked[0].TargetIP.String() != "10.99.0.3" || asked[0].SenderIP.String() != "10.99.0.1" || asked[0].SenderMAC != ourMAC {
			t.Fatalf("asked: %+v", asked)
		}
		r.underlay.Receiver(0).Put(arpFrom("172.30.0.3", encap.ARPReply, hcMAC, "10.99.0.3", "10.99.0.1"))
		synctest.Wait()
		r.device.Queue(0).Put(packet(2))
		synctest.Wait()
		sent := sentTo(r, "172.30.0.3:8472")
		if len(sent) != 3 {
			t.Fatalf("%d datagrams, want 3", len(sent))
		}
		for i, d := range sent {
			if !bytes.Equal(d.Data[22:], packet(byte(i))) || encap.MAC(d.Data[8:14]) != hcMAC {
				t.Errorf("datagram %d: %x", i, d.Data)
			}
		}
		if hc := r.tunnel.PeerStatus()[1]; hc.State != tunnel.NeighbourReachable || !hc.Up() || hc.EncapPackets != 3 {
			t.Errorf("peer %+v", hc)
		}
	})
}

func TestPacketsDoNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		for range 100 {
			r.device.Queue(0).Put(udp(t, "10.99.0.1", "10.99.0.3", 53, nil))
		}
		synctest.Wait()
		s := r.tunnel.Stats().Encap
		if s.Held == 0 || s.Held > 64 || s.Held+s.Dropped != 100 {
			t.Errorf("at once: %+v", s)
		}
		time.Sleep(6 * time.Second)
		if s := r.tunnel.Stats().Encap; s.Held != 0 || s.Reasons["neighbour_unresolved"] != 100 {
			t.Errorf("later: %+v", s)
		}
		if n := len(arpRequests(r, "172.30.0.3:8472")); n < 3 || n > 7 {
			t.Errorf("asked %d times in 6 seconds", n)
		}
	})
}

// However the packets are spaced, none waits for long: what is delivered late is worse than what is lost.
func TestPacketsThatTrickleDoNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		for range 30 {
			r.device.Queue(0).Put(udp(t, "10.99.0.1", "10.99.0.3", 53, nil))
			time.Sleep(1003 * time.Millisecond)
			if s := r.tunnel.Stats().Encap; s.Held > 4 {
				t.Fatalf("%d packets wait", s.Held)
			}
		}
	})
}

// A peer that moved is another host: its MAC is asked for anew, and it is told ours.
func TestMovedPeerIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		r.underlay.Receiver(0).Put(arpFrom("172.30.0.3", encap.ARPReply, hcMAC, "10.99.0.3", "10.99.0.1"))
		synctest.Wait()
		peers := rigPeers()
		peers[1].Endpoint = netip.MustParseAddrPort("172.30.0.8:8472")
		if _, err := r.tunnel.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		if got := r.tunnel.Peers().LookupName("hc").LinkAddr(); !got.IsZero() {
			t.Errorf("the old host's MAC %s is kept", got)
		}
		if n := len(arpRequests(r, "172.30.0.8:8472")); n != 1 {
			t.Errorf("asked %d times at the new place", n)
		}
		announced := slices.ContainsFunc(r.underlay.Sent(), func(d tunnel.Datagram) bool {
			a, reason := encap.ParseARP(d.Data[22:])
			return d.Remote.String() == "172.30.0.8:8472" && reason == encap.None && a.SenderIP == a.TargetIP && a.SenderMAC == ourMAC
		})
		if !announced {
			t.Error("the new host was not told our MAC")
		}
		// Another set with a MAC configured lets go what waits.
		r.device.Queue(0).Put(udp(t, "10.99.0.1", "10.99.0.3", 53, nil))
		synctest.Wait()
		peers[1].MAC = hcMAC
		if _, err := r.tunnel.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		if sent := sentTo(r, "172.30.0.8:8472"); len(sent) != 1 || encap.MAC(sent[0].Data[8:14]) != hcMAC {
			t.Errorf("sent %+v", sent)
		}
	})
}

// Two peers behind one address, on two ports: each is answered at its own.
func TestPeersThatShareAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		peers := rigPeers()
		peers[1].Endpoint = netip.MustParseAddrPort("172.30.0.2:4789")
		if _, err := r.tunnel.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		before := len(r.underlay.Sent())
		r.underlay.Receiver(0).Put(
			arpFrom("172.30.0.2", encap.ARPRequest, hcMAC, "10.99.0.3", "10.99.0.1"),
			tunneltest.From("172.30.0.2", frame(udp(t, "10.99.0.3", "10.99.0.1", 53, nil))),
		)
		synctest.Wait()
		if sent := r.underlay.Sent()[before:]; len(sent) != 1 || sent[0].Remote.String() != "172.30.0.2:4789" {
			t.Errorf("answered %+v", sent)
		}
		if st := r.tunnel.PeerStatus(); st[1].DecapPackets != 1 || st[1].Peer.LinkAddr() != hcMAC {
			t.Errorf("peer %+v", st[1])
		}
	})
}

func TestAnswersAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		for range 3000 {
			r.underlay.Receiver(0).Put(arpFrom("172.30.0.2", encap.ARPRequest, peerMAC, "10.99.0.2", "10.99.0.1"))
			synctest.Wait()
		}
		if s := r.tunnel.Stats(); s.Generated.ARPReplies != 1000 || s.Decap.Reasons["rate_limited"] != 2000 {
			t.Errorf("counters %+v", s)
		}
	})
}

// A peer that never answers and that nobody talks to is asked now and then, not every second.
func TestIdlePeersAreAskedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		time.Sleep(10 * time.Minute)
		if n := len(arpRequests(r, "172.30.0.3:8472")); n < 10 || n > 40 {
			t.Errorf("asked %d times in 10 minutes", n)
		}
		if st := r.tunnel.PeerStatus()[1]; st.State != tunnel.NeighbourIncomplete || st.Up() {
			t.Errorf("peer %+v", st)
		}
	})
}

// A peer that gets another MAC is found again: by what it says unasked, or because it is asked again while in use.
func TestChangedMACIsNoticed(t *testing.T) {
	other := encap.MAC{2, 5: 0x33}
	for name, change := range map[string]func(r *rig){
		"it asks us": func(r *rig) {
			r.underlay.Receiver(0).Put(arpFrom("172.30.0.3", encap.ARPRequest, other, "10.99.0.3", "10.99.0.1"))
		},
		"it announces itself": func(r *rig) {
			r.underlay.Receiver(0).Put(arpFrom("172.30.0.3", encap.ARPRequest, other, "10.99.0.3", "10.99.0.3"))
		},
		"it is asked again": func(r *rig) {
			for range 40 {
				r.device.Queue(0).Put(udp(r.t, "10.99.0.1", "10.99.0.3", 53, nil))
				time.Sleep(time.Second)
				if asked := arpRequests(r, "172.30.0.3:8472"); len(asked) > 2 {
					r.underlay.Receiver(0).Put(arpFrom("172.30.0.3", encap.ARPReply, other, "10.99.0.3", "10.99.0.1"))
				}
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, rigConfig())
			r.start()
			r.underlay.Receiver(0).Put(arpFrom("172.30.0.3", encap.ARPReply, hcMAC, "10.99.0.3", "10.99.0.1"))
			synctest.Wait()
			if got := r.tunnel.Peers().LookupName("hc").LinkAddr(); got != hcMAC {
				t.Fatalf("%s: first MAC %s", name, got)
			}
			change(r)
			synctest.Wait()
			if got := r.tunnel.Peers().LookupName("hc").LinkAddr(); got != other {
				t.Errorf("%s: MAC is %s", name, got)
			}
		})
	}
}

// Nobody but the peer itself can say what its MAC is.
func TestMACsAreNotTakenFromOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		r.underlay.Receiver(0).Put(
			arpFrom("172.30.0.2", encap.ARPReply, peerMAC, "10.99.0.3", "10.99.0.1"), // another peer
			arpFrom("172.30.0.9", encap.ARPReply, hcMAC, "10.99.0.3", "10.99.0.1"),   // a stranger
			arpFrom("172.30.0.3", encap.ARPReply, hcMAC, "10.99.0.77", "10.99.0.1"),  // about something else
			arpFrom("172.30.0.2", encap.ARPReply, hcMAC, "10.99.0.2", "10.99.0.1"),   // about a configured one
		)
		synctest.Wait()
		for name, want := range map[string]encap.MAC{"hb": peerMAC, "hc": {}} {
			if got := r.tunnel.Peers().LookupName(name).LinkAddr(); got != want {
				t.Errorf("%s: MAC %s", name, got)
			}
		}
		if s := r.tunnel.Stats(); s.Decap.Consumed != 3 || s.Decap.Reasons["peer_unknown"] != 1 || s.Generated.ARPReplies != 0 {
			t.Errorf("counters %+v", s)
		}
	})
}

func TestOwnAddressesAreAnsweredFor(t *testing.T) {
	v6 := netip.MustParseAddr
	solicit := func(src, target string, link encap.MAC) encap.ND {
		return encap.ND{Type: encap.NeighbourSolicitation, Src: v6(src), Dst: encap.SolicitedNode(v6(target)), Target: v6(target), LinkAddr: link}
	}
	for _, c := range []struct {
		name   string
		in     tunnel.Datagram
		answer func(d []byte) bool // nil: none
	}{
		{"ARP", arpFrom("172.30.0.2", encap.ARPRequest, peerMAC, "10.99.0.2", "10.99.0.1"), func(d []byte) bool {
			a, r := encap.ParseARP(d[22:])
			return r == encap.None && a.Op == encap.ARPReply && a.SenderMAC == ourMAC && a.SenderIP == v6("10.99.0.1") && a.TargetMAC == peerMAC && encap.MAC(d[8:14]) == peerMAC
		}},
		{"ARP probe", arpFrom("172.30.0.2", encap.ARPRequest, peerMAC, "0.0.0.0", "10.99.0.1"), func(d []byte) bool {
			a, r := encap.ParseARP(d[22:])
			return r == encap.None && a.TargetIP == v6("0.0.0.0") && a.SenderMAC == ourMAC
		}},
		{"ARP for another", arpFrom("172.30.0.2", encap.ARPRequest, peerMAC, "10.99.0.2", "10.99.0.7"), nil},
		{"solicitation", ndFrom("172.30.0.2", solicit("fd99::2", "fd99::1", peerMAC)), func(d []byte) bool {
			n, ok := advertisement(d)
			return ok && n.Dst == v6("fd99::2") && n.Target == v6("fd99::1") && n.LinkAddr == ourMAC && n.Solicited && n.Override && encap.MAC(d[8:14]) == peerMAC
		}},
		{"duplicate address detection", ndFrom("172.30.0.2", solicit("::", "fd99::1", encap.MAC{})), func(d []byte) bool {
			n, ok := advertisement(d)
			return ok && n.Dst == v6("ff02::1") && !n.Solicited && n.LinkAddr == ourMAC
		}},
		{"unicast solicitation without a link address", ndFrom("172.30.0.2", solicit("fd99::2", "fd99::1", encap.MAC{})), func(d []byte) bool {
			n, ok := advertisement(d)
			return ok && n.Dst == v6("fd99::2") && n.Solicited && encap.MAC(d[8:14]) == peerMAC
		}},
		{"solicitation for another", ndFrom("172.30.0.2", solicit("fd99::2", "fd99::7", peerMAC)), nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, rigConfig())
			r.start()
			before := len(r.underlay.Sent())
			r.underlay.Receiver(0).Put(c.in)
			synctest.Wait()
			var answers [][]byte
			for _, d := range r.underlay.Sent()[before:] {
				if d.Remote.String() == "172.30.0.2:8472" {
					answers = append(answers, d.Data)
				}
			}
			switch {
			case c.answer == nil && len(answers) != 0:
				t.Errorf("%s: answered %x", c.name, answers)
			case c.answer != nil && (len(answers) != 1 || !c.answer(answers[0])):
				t.Errorf("%s: answers %x", c.name, answers)
			}
			if s := r.tunnel.Stats().Decap; s.Consumed != 1 || s.Received != 1 {
				t.Errorf("%s: counters %+v", c.name, s)
			}
		})
	}
}

func advertisement(datagram []byte) (encap.ND, bool) {
	var h encap.Headers
	packet := datagram[22:]
	if encap.ParseIP(packet, &h) != encap.None || !encap.IsND(packet, &h) {
		return encap.ND{}, false
	}
	n, r := encap.ParseND(packet, &h)
	return n, r == encap.None && n.Type == encap.NeighbourAdvertisement
}

// An IPv6-only peer is asked by neighbour solicitation.
func TestIPv6PeerIsSolicited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		peers := append(rigPeers(), routing.Peer{Name: "hd", Endpoint: netip.MustParseAddrPort("172.30.0.4:8472"), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("fd99::4/128")}})
		if _, err := r.tunnel.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		asked := slices.ContainsFunc(r.underlay.Sent(), func(d tunnel.Datagram) bool {
			return d.Remote.String() == "172.30.0.4:8472" && encap.MAC(d.Data[8:14]).String() == "33:33:ff:00:00:04"
		})
		if !asked {
			t.Fatalf("sent %+v", r.underlay.Sent())
		}
		target := netip.MustParseAddr("fd99::4")
		r.underlay.Receiver(0).Put(ndFrom("172.30.0.4", encap.ND{Type: encap.NeighbourAdvertisement, Src: target, Dst: netip.MustParseAddr("fd99::1"), Target: target, LinkAddr: hcMAC, Solicited: true}))
		synctest.Wait()
		if got := r.tunnel.Peers().LookupName("hd").LinkAddr(); got != hcMAC {
			t.Errorf("MAC is %s", got)
		}
	})
}

// What waits for a peer that leaves is dropped, and what is known of one that stays is kept.
func TestPeersThatLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		r.device.Queue(0).Put(udp(t, "10.99.0.1", "10.99.0.3", 53, nil))
		synctest.Wait()
		change, err := r.tunnel.SetPeers(rigPeers()[:1])
		if err != nil || len(change.Removed) != 1 {
			t.Fatalf("%+v, %v", change, err)
		}
		if s := r.tunnel.Stats().Encap; s.Held != 0 || s.Reasons["neighbour_unresolved"] != 1 {
			t.Errorf("counters %+v", s)
		}
		if _, err := r.tunnel.SetPeers(append(rigPeers(), rigPeers()[0])); err == nil {
			t.Error("the same peer twice was accepted")
		}
		if n := len(r.tunnel.Peers().Peers()); n != 1 {
			t.Errorf("%d peers in force after a refused set", n)
		}
	})
}
