package tunnel

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// bridged is a tunnel in Ethernet mode between ends in memory, with peers hb (whose own MAC is known), hc and hd.
func bridged(t testing.TB, cfg FDBConfig) *Tunnel {
	t.Helper()
	ends := &still{}
	ends.receivers = []Receiver{ends}
	tn, err := New(Config{
		Framing: encap.FramingVXLAN, VNI: 1, MAC: encap.MAC{2, 5: 1}, Local: netip.MustParseAddr("172.30.0.1"), Port: 8472, MTU: 1450,
		Bridge: true, FDB: cfg, OuterCheck: CheckEnforce, InnerCheck: CheckEnforce,
	}, ends, ends)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tn.SetPeers(bridgePeers("hb", "hc", "hd")); err != nil {
		t.Fatal(err)
	}
	return tn
}

func bridgePeers(names ...string) (peers []routing.Peer) {
	for _, name := range names {
		p := routing.Peer{Name: name, Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 30, 0, name[1]}), 8472)}
		if name == "hb" {
			p.MAC = encap.MAC{2, 5: 'b'}
		}
		peers = append(peers, p)
	}
	return peers
}

func station(n byte) encap.MAC { return encap.MAC{6, 5: n} }

// hear lets a frame of a station come from a peer.
func hear(tn *Tunnel, n byte, peer string) {
	p := tn.table.Load().LookupName(peer)
	from, _ := netip.ParseAddr(peer) // of one that is no peer
	tn.fdb.observe(tn.view(), FDBKey{MAC: station(n)}, p, from, tn.fdb.now().Unix())
	synctest.Wait()
	time.Sleep(2 * learnBatch)
	synctest.Wait()
}

// behind says which peer a station is behind.
func behind(tn *Tunnel, n byte) string {
	if p := tn.fdb.current.Load().lookup(FDBKey{MAC: station(n)}); p != nil {
		return p.Name
	}
	return ""
}

func TestLearning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tn := bridged(t, FDBConfig{Learning: true, Ageing: 10 * time.Second, Limit: 4, PeerLimit: 3})
		ctx, cancel := context.WithCancel(t.Context())
		go tn.fdb.run(ctx)
		defer func() { cancel(); synctest.Wait() }()
		events, err := tn.WatchFDB(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := func(what, peer string, n byte) {
			t.Helper()
			if got := behind(tn, n); got != peer {
				t.Errorf("%s: station %d is behind %q, want %q", what, n, got, peer)
			}
		}
		hear(tn, 1, "hb")
		want("learned", "hb", 1)
		hear(tn, 1, "hc")
		want("moved", "hc", 1)
		if err := tn.AddFDB(FDBKey{MAC: station(2)}, "hb"); err != nil {
			t.Fatal(err)
		}
		hear(tn, 2, "hc")
		want("static", "hb", 2)
		hear(tn, 3, "hc")
		hear(tn, 4, "hc")
		hear(tn, 5, "hc")
		want("over the peer's limit", "", 5)
		hear(tn, 5, "hd")
		want("within the limit of all", "hd", 5)
		hear(tn, 6, "hd")
		want("over the limit of all", "", 6)
		tn.fdb.observe(tn.view(), FDBKey{MAC: encap.MAC{2, 5: 'b'}}, tn.table.Load().LookupName("hc"), netip.Addr{}, 0)
		if _, stats, _ := tn.FDB(); stats.Moves != 1 || stats.Full != 2 || stats.Missed != 0 {
			t.Errorf("stats %+v", stats)
		}
		time.Sleep(7 * time.Second)
		hear(tn, 3, "hc") // heard again, and so it stays
		time.Sleep(5 * time.Second)
		synctest.Wait()
		want("heard of", "hc", 3)
		want("aged", "", 1)
		want("static does not age", "hb", 2)

		if _, err := tn.SetPeers(bridgePeers("hb", "hd")); err != nil {
			t.Fatal(err)
		}
		want("its peer left", "", 3)
		if n, err := tn.DeleteFDB(func(FDBKey, FDBEntry) bool { return true }); err != nil || n != 1 {
			t.Errorf("%d deleted, %v", n, err)
		}
		var ops []string
		for len(events) > 0 {
			ops = append(ops, (<-events).Op)
		}
		if got := strings.Join(ops, " "); got != "new move add new new new age age age del del" {
			t.Errorf("events %s", got)
		}
	})
}

// What is behind a VTEP that is no peer leads to its address, until it becomes a peer, or nothing is behind it any more.
func TestLearningFromStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tn := bridged(t, FDBConfig{Learning: true, Ageing: 10 * time.Second, Limit: 4, PeerLimit: 2, Group: netip.MustParseAddr("239.1.1.1")})
		ctx, cancel := context.WithCancel(t.Context())
		go tn.fdb.run(ctx)
		defer func() { cancel(); synctest.Wait() }()
		const stranger = "172.30.0.7"
		for n := range byte(3) {
			hear(tn, n+1, stranger)
		}
		if a, c := behind(tn, 2), behind(tn, 3); a != stranger || c != "" {
			t.Errorf("stations are behind %q and %q, want two behind %s", a, c, stranger)
		}
		p := tn.fdb.current.Load().lookup(FDBKey{MAC: station(1)})
		if p == nil || p.Endpoint.String() != stranger+":8472" || p.State() == nil {
			t.Fatalf("a station is behind %+v", p)
		}
		before := tn.Stats().Encap.Delivered
		batch := NewBatch()
		copy(batch.Space()[Headroom:], frameTo(station(1)))
		batch.Add(60, encap.Offload{})
		tn.workers[0].transmit.step(batch.Packets())
		if tn.Stats().Encap.Delivered != before+1 || p.State().Totals().EncapPackets != 1 {
			t.Errorf("a frame for it was not sent: %+v", tn.Stats().Encap)
		}
		hear(tn, 1, "hd")
		if got := behind(tn, 1); got != "hd" {
			t.Errorf("it moved to a peer, but is behind %q", got)
		}
		peers := append(bridgePeers("hb", "hc", "hd"), routing.Peer{Name: "known", Endpoint: netip.MustParseAddrPort(stranger + ":9999")})
		if _, err := tn.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		if got := behind(tn, 2); got != "known" || len(tn.fdb.remotes) != 0 {
			t.Errorf("it became a peer, but what is behind it is behind %q; strangers %v", got, tn.fdb.remotes)
		}
		hear(tn, 4, "172.30.0.8")
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if got := behind(tn, 4); got != "" || len(tn.fdb.remotes) != 0 {
			t.Errorf("aged, but behind %q; strangers %v", got, tn.fdb.remotes)
		}
	})
}

// Moves beyond what a station does are not followed.
func TestRestlessStations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tn := bridged(t, FDBConfig{Learning: true, Ageing: time.Hour, Limit: 4, PeerLimit: 4})
		ctx, cancel := context.WithCancel(t.Context())
		go tn.fdb.run(ctx)
		defer func() { cancel(); synctest.Wait() }()
		for i := range 3 * movesPerSecond {
			hear(tn, 1, []string{"hc", "hd"}[i%2])
		}
		_, stats, _ := tn.FDB()
		// Each sighting takes 10 ms, in which one more move is allowed; the first hundred are.
		if stats.Moves+stats.Restless != 3*movesPerSecond-1 || stats.Restless != 0 {
			t.Errorf("stats %+v", stats)
		}
		for i := range 2 * movesPerSecond { // all at once
			tn.fdb.seen <- sighting{key: FDBKey{MAC: station(1)}, peer: tn.table.Load().LookupName([]string{"hc", "hd"}[i%2])}
		}
		time.Sleep(time.Second / 2)
		synctest.Wait()
		if _, stats, _ := tn.FDB(); stats.Restless < movesPerSecond/2 {
			t.Errorf("after a burst: stats %+v", stats)
		}
	})
}

// Without learning, nothing is; what cannot be added is named.
func TestStaticEntries(t *testing.T) {
	tn := bridged(t, FDBConfig{Limit: 4, PeerLimit: 4})
	tn.fdb.observe(tn.view(), FDBKey{MAC: station(1)}, tn.table.Load().LookupName("hb"), netip.Addr{}, 0)
	if len(tn.fdb.seen) != 0 {
		t.Error("a station was noted")
	}
	for _, c := range []struct {
		mac  encap.MAC
		peer string
		want string
	}{
		{station(1), "hx", `peer "hx": there is none`},
		{encap.MAC{1}, "hb", "want the address of one station"},
		{encap.MAC{}, "hb", "want the address of one station"},
		{encap.MAC{2, 5: 'b'}, "hc", "that of peer hb itself"},
	} {
		if err := tn.AddFDB(FDBKey{MAC: c.mac}, c.peer); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s to %s: %v, want %s", c.mac, c.peer, err, c.want)
		}
	}
}

// frameTo is a frame from the device's side to a station.
func frameTo(dst encap.MAC) []byte {
	f := make([]byte, 60)
	copy(f, dst[:])
	copy(f[6:], []byte{6, 0, 0, 0, 0, 9})
	f[12], f[13] = 0x08, 0x06
	return f
}

// Frames go by the peer's own MAC, by what is known, and to those who get what is for all; the books count one of the copies.
func TestFrameVerdicts(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    FDBConfig
		dst    encap.MAC
		peer   string
		flood  int
		reason encap.Reason
	}{
		{"the peer's own", FDBConfig{}, encap.MAC{2, 5: 'b'}, "hb", 0, encap.None},
		{"known", FDBConfig{}, station(1), "hc", 0, encap.None},
		{"unknown", FDBConfig{}, station(2), "", 3, encap.None},
		{"broadcast", FDBConfig{}, encap.Broadcast, "", 3, encap.None},
		{"multicast", FDBConfig{}, encap.MAC{1, 0, 0x5e, 5: 1}, "", 3, encap.None},
		{"broadcast to some", FDBConfig{Flood: []string{"hb", "hd"}}, encap.Broadcast, "", 2, encap.None},
		{"broadcast to nobody", FDBConfig{NoFlood: true}, encap.Broadcast, "", 0, encap.NoTXTarget},
		{"broadcast to a group", FDBConfig{Group: netip.MustParseAddr("239.1.1.1")}, encap.Broadcast, "", 1, encap.None},
		{"broadcast to a group and a peer", FDBConfig{Group: netip.MustParseAddr("239.1.1.1"), Flood: []string{"hc"}}, encap.Broadcast, "", 2, encap.None},
		{"unknown to nobody", FDBConfig{NoFlood: true}, station(2), "", 0, encap.NoTXTarget},
	} {
		tn := bridged(t, c.cfg)
		if err := tn.AddFDB(FDBKey{MAC: station(1)}, "hc"); err != nil {
			t.Fatal(err)
		}
		var h encap.Headers
		v := DecideTransmit(&tn.rules, tn.view(), frameTo(c.dst), &h)
		name := ""
		if v.Peer != nil {
			name = v.Peer.Name
		}
		if name != c.peer || v.Flood != (c.flood > 0) || v.Reason != c.reason {
			t.Errorf("%s: %+v to %q", c.name, v, name)
		}
		batch := NewBatch()
		copy(batch.Space()[Headroom:], frameTo(c.dst))
		batch.Add(len(frameTo(c.dst)), encap.Offload{})
		tn.workers[0].transmit.step(batch.Packets())
		s := tn.Stats().Encap
		if delivered := uint64(min(1, c.flood+len(c.peer))); s.Received != 1 || s.Delivered != delivered || s.Dropped != 1-delivered || int(s.Copies) != max(0, c.flood-1) {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// Replication has a limit: a storm is dropped and counted, and not sent to anyone.
func TestFloodLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tn := bridged(t, FDBConfig{})
		batch := NewBatch()
		copy(batch.Space()[Headroom:], frameTo(encap.Broadcast))
		batch.Add(60, encap.Offload{})
		const frames = 2 * copiesPerSecond
		for range frames {
			tn.workers[0].transmit.step(batch.Packets())
		}
		s := tn.Stats().Encap
		if want := uint64(copiesPerSecond / 2); s.Delivered != want || s.Copies != 2*want || s.Reasons["flood_limit"] != frames-want {
			t.Errorf("%d delivered, %d copies, %v", s.Delivered, s.Copies, s.Reasons)
		}
		time.Sleep(time.Second)
		tn.workers[0].transmit.step(batch.Packets())
		if got := tn.Stats().Encap.Delivered; got != s.Delivered+1 {
			t.Error("a second later, nothing goes")
		}
	})
}

// A super-packet that is flooded is cut once, and goes to every peer; what is cut costs no allocation.
// superFrameTo returns a frame with a TCP super-packet of 30 times 1000 bytes, and its metadata.
func superFrameTo(dst encap.MAC) ([]byte, encap.Offload) {
	frame := make([]byte, encap.EthernetHeaderLen+40+30*1000)
	copy(frame, frameTo(dst)[:12])
	frame[12], frame[13] = 0x08, 0x00
	ip := frame[encap.EthernetHeaderLen:]
	copy(ip, []byte{0x45, 0, byte(len(ip) >> 8), byte(len(ip) & 0xff), 0, 0, 0x40, 0, 64, encap.ProtoTCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	ip[20+12] = 5 << 4
	return frame, encap.Offload{GSO: encap.GSOTCP, SegmentSize: 1000, NeedsChecksum: true, ChecksumStart: 34, ChecksumField: 34 + 16}
}

// All segments of a flooded super-packet go to all peers, although a train to one of them, which they could fill, waits already.
func TestFloodBehindAnOpenTrain(t *testing.T) {
	tn := bridged(t, FDBConfig{})
	first := tn.view().Stations.everyone()[0]
	batch := NewBatch()
	for _, dst := range []encap.MAC{first.MAC, station(7)} {
		frame, o := superFrameTo(dst)
		copy(batch.Space()[Headroom:], frame)
		batch.Add(len(frame), o)
	}
	tn.workers[0].transmit.step(batch.Packets())
	for _, p := range tn.table.Load().Peers() {
		want := uint64(30)
		if p.Name == first.Name {
			want = 60
		}
		if n := p.State().Totals().EncapPackets; n != want {
			t.Errorf("%s got %d packets, want %d", p.Name, n, want)
		}
	}
}

func TestFloodedSuperPackets(t *testing.T) {
	tn := bridged(t, FDBConfig{})
	frame, o := superFrameTo(station(7))
	batch := NewBatch()
	step := func() {
		batch.Reset()
		copy(batch.Space()[Headroom:], frame)
		batch.Add(len(frame), o)
		tn.workers[0].transmit.step(batch.Packets())
	}
	step()
	if s := tn.Stats().Encap; s.Delivered != 30 || s.Copies != 60 || s.Dropped != 0 {
		t.Fatalf("%+v", s)
	}
	for _, p := range tn.table.Load().Peers() {
		if n := p.State().Totals().EncapPackets; n != 30 {
			t.Errorf("%s got %d", p.Name, n)
		}
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Frames cost no allocation either: known or flooded, from a station that is known or one that is to be learned.
func TestFramesDoNotAllocate(t *testing.T) {
	tn := bridged(t, FDBConfig{Learning: true, Limit: 4, PeerLimit: 4})
	if err := tn.AddFDB(FDBKey{MAC: station(1)}, "hc"); err != nil {
		t.Fatal(err)
	}
	batch := NewBatch()
	for i := range 64 {
		f := frameTo([]encap.MAC{station(1), encap.Broadcast}[i%2])
		copy(batch.Space()[Headroom:], f)
		batch.Add(len(f), encap.Offload{})
	}
	var datagrams []Datagram
	for i := range 64 {
		data := append(make([]byte, encap.VXLANHeaderLen), frameTo(encap.Broadcast)...)
		encap.PutVXLAN(data, 1)
		data[encap.VXLANHeaderLen+11] = byte(1 + i%2)
		datagrams = append(datagrams, Datagram{Data: data, Count: 1, Remote: netip.MustParseAddrPort("172.30.0.99:8472")}) // hc
	}
	x, r := tn.workers[0].transmit, tn.workers[0].receive
	for name, step := range map[string]func(){"transmit": func() { x.step(batch.Packets()) }, "receive": func() { _ = r.step(datagrams) }} {
		if n := testing.AllocsPerRun(100, step); n != 0 {
			t.Errorf("%s: %v allocations for a batch", name, n)
		}
	}
	if s := tn.Stats(); s.Decap.Delivered != 101*64 || s.Encap.Received == 0 {
		t.Errorf("nothing moved: %+v", s)
	}
}

// A frame's source is judged by its MAC, and by its address where the peer has allowed_ips.
func TestFrameSources(t *testing.T) {
	tn := bridged(t, FDBConfig{})
	peers := bridgePeers("hb", "hc", "hd")
	peers[1].AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.99.0.3/32")}
	if _, err := tn.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	ip := func(src [4]byte) []byte {
		f := frameTo(encap.Broadcast)
		f[13] = 0
		putUDPv4(f[encap.EthernetHeaderLen:], src, [4]byte{10, 99, 0, 1}, 7)
		return f
	}
	from := func(mac encap.MAC, f []byte) []byte { copy(f[6:], mac[:]); return f }
	for _, c := range []struct {
		name   string
		frame  []byte
		outer  byte
		reason encap.Reason
	}{
		{"ARP of a station", frameTo(encap.Broadcast), 'c', encap.None},
		{"IP of a peer without allowed_ips", ip([4]byte{192, 0, 2, 1}), 'd', encap.None},
		{"an allowed address", ip([4]byte{10, 99, 0, 3}), 'c', encap.None},
		{"no address yet", ip([4]byte{}), 'c', encap.None},
		{"another address", ip([4]byte{10, 99, 0, 4}), 'c', encap.InnerSourceNotAllowed},
		{"another peer's own MAC", from(encap.MAC{2, 5: 'b'}, frameTo(encap.Broadcast)), 'c', encap.InnerSourceNotAllowed},
		{"the peer's own MAC", from(encap.MAC{2, 5: 'b'}, frameTo(encap.Broadcast)), 'b', encap.None},
		{"this device's MAC", from(encap.MAC{2, 5: 1}, frameTo(encap.Broadcast)), 'c', encap.LocalMAC},
		{"a group", from(encap.MAC{3}, frameTo(encap.Broadcast)), 'c', encap.MACInvalidSource},
		{"nobody's MAC", from(encap.MAC{}, frameTo(encap.Broadcast)), 'c', encap.MACInvalidSource},
		{"a stranger", frameTo(encap.Broadcast), 'x', encap.PeerUnknown},
		{"cut off", frameTo(encap.Broadcast)[:13], 'c', encap.PktTooSmall},
	} {
		data := append(make([]byte, encap.VXLANHeaderLen), c.frame...)
		encap.PutVXLAN(data, 1)
		var h encap.Headers
		if _, v := DecideReceive(&tn.rules, tn.view(), data, netip.AddrFrom4([4]byte{172, 30, 0, c.outer}), &h); v.Reason != c.reason {
			t.Errorf("%s: %s, want %s", c.name, v.Reason, c.reason)
		}
	}
}

// Questions for the MAC of a configured host are answered here; all others go on as they would.
func TestSuppression(t *testing.T) {
	tn := bridged(t, FDBConfig{Suppress: SuppressKnown, NoFlood: true})
	peers := bridgePeers("hb", "hc")
	peers[0].AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.99.0.2/32"), netip.MustParsePrefix("fd99::2/128"), netip.MustParsePrefix("10.244.2.0/24")}
	if _, err := tn.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	asker, hb := encap.MAC{6, 5: 9}, encap.MAC{2, 5: 'b'}
	put := func(dst encap.MAC, etherType uint16, packet []byte) []byte {
		f := append(append(append([]byte(nil), dst[:]...), asker[:]...), byte(etherType>>8), byte(etherType))
		return append(f, packet...)
	}
	arp := func(op uint16, target string) []byte {
		a := encap.ARP{Op: op, SenderMAC: asker, SenderIP: netip.MustParseAddr("10.99.0.1"), TargetIP: netip.MustParseAddr(target)}
		return put(encap.Broadcast, encap.EtherTypeARP, a.Append(nil))
	}
	solicit := func(src, target string, mac encap.MAC) []byte {
		to := netip.MustParseAddr(target)
		nd := encap.ND{Type: encap.NeighbourSolicitation, Src: netip.MustParseAddr(src), Dst: encap.SolicitedNode(to), Target: to, LinkAddr: mac}
		return put(encap.MulticastMAC(nd.Dst), encap.EtherTypeIPv6, nd.Append(nil))
	}
	tagged := arp(encap.ARPRequest, "10.99.0.2")
	tagged = append(append(append([]byte(nil), tagged[:12]...), 0x81, 0, 0, 5), tagged[12:]...)
	for _, c := range []struct {
		name     string
		frame    []byte
		answered bool
	}{
		{"a configured host", arp(encap.ARPRequest, "10.99.0.2"), true},
		{"in a VLAN", tagged, true},
		{"a network behind a peer", arp(encap.ARPRequest, "10.244.2.7"), false},
		{"nobody", arp(encap.ARPRequest, "10.99.0.9"), false},
		{"an answer", arp(encap.ARPReply, "10.99.0.2"), false},
		{"its own announcement", arp(encap.ARPRequest, "10.99.0.1"), false},
		{"cut off", arp(encap.ARPRequest, "10.99.0.2")[:30], false},
		{"a solicitation", solicit("fd99::1", "fd99::2", asker), true},
		{"duplicate address detection", solicit("::", "fd99::2", encap.MAC{}), false},
		{"a solicitation for nobody", solicit("fd99::1", "fd99::9", asker), false},
	} {
		ends := &taker{}
		tn.device = ends
		batch := NewBatch()
		copy(batch.Space()[Headroom:], c.frame)
		batch.Add(len(c.frame), encap.Offload{})
		before := tn.Stats().Encap
		tn.workers[0].transmit.step(batch.Packets())
		after := tn.Stats().Encap
		if got := after.Consumed-before.Consumed == 1 && len(ends.injected) == 1; got != c.answered {
			t.Errorf("%s: answered %v; %+v", c.name, got, after)
			continue
		}
		if !c.answered {
			if after.Reasons["no_tx_target"] != before.Reasons["no_tx_target"]+1 {
				t.Errorf("%s: %v", c.name, after.Reasons)
			}
			continue
		}
		var h encap.Headers
		answer := ends.injected[0]
		if r := encap.ParseFrame(answer, &h); r != encap.None || h.Link != (encap.Link{Dst: asker, Src: hb}) || len(answer) != len(c.frame) && h.Kind == encap.KindARP {
			t.Fatalf("%s: %x", c.name, answer)
		}
		if h.Kind == encap.KindARP {
			a, r := encap.ParseARP(answer[h.L3:])
			if r != encap.None || a.Op != encap.ARPReply || a.SenderMAC != hb || a.SenderIP.String() != "10.99.0.2" || a.TargetMAC != asker || a.TargetIP.String() != "10.99.0.1" {
				t.Errorf("%s: %+v", c.name, a)
			}
			continue
		}
		if encap.ParseIP(answer[h.L3:], &h) != encap.None {
			t.Fatalf("%s: %x", c.name, answer)
		}
		nd, r := encap.ParseND(answer[encap.EthernetHeaderLen:], &h)
		if r != encap.None || nd.LinkAddr != hb || nd.Target.String() != "fd99::2" || nd.Dst.String() != "fd99::1" || !nd.Solicited || !nd.Router { // there is a network behind it
			t.Errorf("%s: %+v, %s", c.name, nd, r)
		}
	}
}

// taker is a device that keeps what it is given.
type taker struct {
	still
	injected [][]byte
}

func (d *taker) Inject(packet []byte) error { d.injected = append(d.injected, packet); return nil }

// Trace says of frames what the loops would do with them, and changes nothing.
func TestTraceOfFrames(t *testing.T) {
	tn := bridged(t, FDBConfig{Learning: true, Limit: 4, PeerLimit: 4, Suppress: SuppressKnown})
	peers := bridgePeers("hb", "hc", "hd")
	peers[0].AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.99.0.2/32")}
	if _, err := tn.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	if err := tn.AddFDB(FDBKey{MAC: station(1)}, "hc"); err != nil {
		t.Fatal(err)
	}
	tn.cfg.DF = DFSet
	tn.table.Load().LookupName("hd").State().Path.SetMTU(100)
	if err := tn.AddFDB(FDBKey{MAC: station(3)}, "hd"); err != nil {
		t.Fatal(err)
	}
	question := encap.ARP{Op: encap.ARPRequest, SenderMAC: station(9), SenderIP: netip.MustParseAddr("10.99.0.1"), TargetIP: netip.MustParseAddr("10.99.0.2")}
	ask := append(frameTo(encap.Broadcast)[:encap.EthernetHeaderLen], question.Append(nil)...)
	packet := make([]byte, 29)
	putUDPv4(packet, [4]byte{10, 99, 0, 1}, [4]byte{10, 99, 0, 2}, 7)
	large := append(frameTo(station(3)), make([]byte, 200)...)
	outer := netip.MustParseAddr("172.30.0.99") // hc
	for _, c := range []struct {
		name                        string
		req                         TraceRequest
		verdict, reason, peer, says string
	}{
		{"the peer's own", TraceRequest{Data: frameTo(encap.MAC{2, 5: 'b'})}, "deliver", "", "hb", "peer hb's own MAC"},
		{"added", TraceRequest{Data: frameTo(station(1))}, "deliver", "", "hc", "behind hc (static)"},
		{"unknown", TraceRequest{Data: frameTo(station(2))}, "deliver", "", "", "flooded to 3: hb, hc, hd"},
		{"for all", TraceRequest{Data: frameTo(encap.Broadcast)}, "deliver", "", "", "is for all"},
		{"a question that is answered", TraceRequest{Data: ask}, "consume", "", "", "fdb.suppress"},
		{"too large for the path", TraceRequest{Data: large}, "drop", "pkt_too_big", "hd", "no more than 100 reach peer hd"},
		{"cut off", TraceRequest{Data: make([]byte, 13)}, "drop", "pkt_too_small", "", ""},
		{"a packet for a configured host", TraceRequest{Data: packet, Bare: true}, "deliver", "", "hb", "udp 10.99.0.1:7 -> 10.99.0.2:53"},
		{"a packet in a VLAN", TraceRequest{Data: packet, Bare: true, To: station(1), VLAN: 7}, "deliver", "", "hc", "VLAN 7"},
		{"received", TraceRequest{Direction: Decap, Frame: true, Data: frameTo(encap.Broadcast), Outer: outer}, "deliver", "", "hc", "would be learned"},
		{"received bare", TraceRequest{Direction: Decap, Bare: true, From: station(5), Data: packet, Outer: outer}, "deliver", "", "hc", "would be learned"},
		{"received as another's", TraceRequest{Direction: Decap, Bare: true, From: encap.MAC{2, 5: 'b'}, Data: packet, Outer: outer}, "drop", "inner_source_not_allowed", "hc", "is peer hb's own MAC"},
		{"received from nobody", TraceRequest{Direction: Decap, Frame: true, Data: frameTo(encap.Broadcast), Outer: netip.MustParseAddr("172.30.0.7")}, "drop", "peer_unknown", "", "no peer's endpoint"},
	} {
		got, err := tn.Trace(c.req)
		all := got.Packet + got.Why
		for _, s := range got.Steps {
			all += s.Result
		}
		if err != nil || got.Verdict != c.verdict || got.Reason != c.reason || got.Peer != c.peer || got.Why == "" || !strings.Contains(all, c.says) {
			t.Errorf("%s: %+v, %v; want %s", c.name, got, err, c.says)
		}
	}
	if _, err := tn.Trace(TraceRequest{Data: packet, Bare: true, Direction: Decap, Outer: outer}); err == nil {
		t.Error("a packet of a peer without a MAC was framed")
	}
	if s := tn.Stats(); s.Encap.Received+s.Decap.Received != 0 || len(tn.fdb.seen) != 0 {
		t.Errorf("tracing counted: %+v", s)
	}
}

// With SuppressAll, a question that the configuration does not answer goes nowhere; what is no question passes.
func TestUnansweredQuestions(t *testing.T) {
	for mode, dropped := range map[Suppression]uint64{SuppressNone: 0, SuppressKnown: 0, SuppressAll: 2} {
		tn := bridged(t, FDBConfig{Suppress: mode})
		asker, me, other := station(9), netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.9")
		me6, other6 := netip.MustParseAddr("fd99::1"), netip.MustParseAddr("fd99::9")
		frame := func(dst encap.MAC, etherType byte, packet []byte) []byte {
			return append(append(append(append([]byte(nil), dst[:]...), asker[:]...), etherType, map[byte]byte{0x08: 0x06, 0x86: 0xdd}[etherType]), packet...)
		}
		arp := func(sender, target netip.Addr) []byte {
			a := encap.ARP{Op: encap.ARPRequest, SenderMAC: asker, SenderIP: sender, TargetIP: target}
			return frame(encap.Broadcast, 0x08, a.Append(nil))
		}
		solicit := func(src netip.Addr, mac encap.MAC) []byte {
			nd := encap.ND{Type: encap.NeighbourSolicitation, Src: src, Dst: encap.SolicitedNode(other6), Target: other6, LinkAddr: mac}
			return frame(encap.MulticastMAC(nd.Dst), 0x86, nd.Append(nil))
		}
		batch := NewBatch()
		all := [][]byte{
			arp(me, other), solicit(me6, asker), // questions
			arp(me, me), arp(netip.IPv4Unspecified(), other), solicit(netip.IPv6Unspecified(), encap.MAC{}), frameTo(encap.Broadcast),
		}
		for _, f := range all {
			copy(batch.Space()[Headroom:], f)
			batch.Add(len(f), encap.Offload{})
		}
		tn.workers[0].transmit.step(batch.Packets())
		s := tn.Stats().Encap
		if s.Reasons["neighbour_unresolved"] != dropped || s.Delivered != uint64(len(all))-dropped {
			t.Errorf("mode %d: %d delivered, drops %v", mode, s.Delivered, s.Reasons)
		}
	}
}

// The database and the peers change while frames move: the books add up, and no frame meets half of a change (run with -race).
func TestChangesUnderTraffic(t *testing.T) {
	tn := bridged(t, FDBConfig{Learning: true, Ageing: time.Millisecond, Limit: 8, PeerLimit: 4, Group: netip.MustParseAddr("239.1.1.1"), Flood: []string{"hc"}})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { tn.fdb.run(ctx) })
	loop := func(f func(i int)) {
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				f(i)
			}
		})
	}
	loop(func(i int) {
		key := FDBKey{MAC: station(byte(i % 8))}
		if i%3 == 0 {
			_, _ = tn.DeleteFDB(func(k FDBKey, _ FDBEntry) bool { return k == key })
		} else {
			_ = tn.AddFDB(key, []string{"hb", "hc", "hd"}[i%3])
		}
	})
	loop(func(i int) {
		if _, err := tn.SetPeers(bridgePeers("hb", "hc", "hd")[:1+i%3]); err != nil {
			t.Error(err)
		}
		_, _, _ = tn.FDB()
		_ = tn.PeerStatus()
	})
	batch := NewBatch()
	for i := range 16 {
		f := frameTo(append([]encap.MAC{encap.Broadcast}, station(byte(i)))[i%2])
		copy(batch.Space()[Headroom:], f)
		batch.Add(len(f), encap.Offload{})
	}
	var datagrams []Datagram
	for i := range 16 {
		data := append(make([]byte, encap.VXLANHeaderLen), frameTo(encap.Broadcast)...)
		encap.PutVXLAN(data, 1)
		data[encap.VXLANHeaderLen+11] = byte(i)
		datagrams = append(datagrams, Datagram{Data: data, Count: 1, Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 30, 0, "bcdx"[i%4]}), 8472)})
	}
	const turns = 3000
	for range turns {
		tn.workers[0].transmit.step(batch.Packets())
		_ = tn.workers[0].receive.step(datagrams)
	}
	cancel()
	running.Wait()
	e, d := tn.Stats().Encap, tn.Stats().Decap
	if e.Received != 16*turns || e.Delivered+e.Consumed+e.Dropped != e.Received || d.Received != 16*turns || d.Delivered+d.Dropped != d.Received {
		t.Errorf("encap %+v, decap %+v", e, d)
	}
}
