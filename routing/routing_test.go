package routing

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vxlane/vxlane/encap"
)

func peer(name, endpoint string, mac byte, prefixes ...string) Peer {
	p := Peer{Name: name, Endpoint: netip.MustParseAddrPort(endpoint)}
	if mac != 0 {
		p.MAC = encap.MAC{2, 5: mac}
	}
	for _, s := range prefixes {
		p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(s))
	}
	return p
}

func mustSnapshot(tb testing.TB, peers ...Peer) *Snapshot {
	tb.Helper()
	s, err := NewSnapshot(peers)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func nameOf(p *Peer) string {
	if p == nil {
		return ""
	}
	return p.Name
}

func TestLookups(t *testing.T) {
	s := mustSnapshot(t,
		peer("wide", "192.0.2.1:8472", 1, "10.0.0.0/8", "fd00::/16"),
		peer("narrow", "192.0.2.2:8472", 2, "10.1.0.0/16", "fd00:1::/32"),
		peer("host", "192.0.2.3:4789", 0, "10.1.2.3/32", "fd00:1::9/128"),
		peer("default", "192.0.2.4:8472", 4, "0.0.0.0/0"),
		peer("sharing", "192.0.2.3:8472", 0, "10.9.0.0/16"),
	)
	for addr, want := range map[string]string{
		"10.2.0.1": "wide", "10.1.9.9": "narrow", "10.1.2.3": "host", "8.8.8.8": "default", "10.9.0.1": "sharing",
		"fd00:2::1": "wide", "fd00:1::1": "narrow", "fd00:1::9": "host", "2001:db8::1": "", "::ffff:10.1.2.3": "",
	} {
		a := netip.MustParseAddr(addr)
		if got := nameOf(s.Lookup(a)); got != want {
			t.Errorf("lookup of %s: %q, want %q", addr, got, want)
		}
		if _, p := s.LookupPrefix(a); nameOf(p) != want {
			t.Errorf("lookup of %s with its prefix: %q, want %q", addr, nameOf(p), want)
		}
	}
	if prefix, _ := s.LookupPrefix(netip.MustParseAddr("10.1.9.9")); prefix.String() != "10.1.0.0/16" {
		t.Errorf("matched prefix: %s", prefix)
	}
	for mac, want := range map[byte]string{1: "wide", 2: "narrow", 4: "default", 9: ""} {
		if got := nameOf(s.LookupMAC(encap.MAC{2, 5: mac})); got != want {
			t.Errorf("lookup of MAC %d: %q, want %q", mac, got, want)
		}
	}
	if got := nameOf(s.LookupMAC(encap.MAC{})); got != "" {
		t.Errorf("the zero MAC finds %q", got)
	}
	for addr, want := range map[string]string{"192.0.2.1": "wide", "192.0.2.3": "host", "192.0.2.9": ""} {
		if got := nameOf(s.LookupSource(netip.MustParseAddr(addr))); got != want {
			t.Errorf("lookup of source %s: %q, want %q", addr, got, want)
		}
	}
	if !s.IsEndpoint(netip.MustParseAddr("192.0.2.3"), 4789) || s.IsEndpoint(netip.MustParseAddr("192.0.2.1"), 53) || s.IsEndpoint(netip.MustParseAddr("192.0.2.9"), 8472) {
		t.Error("IsEndpoint is wrong")
	}
	if nameOf(s.LookupName("host")) != "host" || s.LookupName("nobody") != nil {
		t.Error("LookupName is wrong")
	}
	if (new(Snapshot)).Lookup(netip.MustParseAddr("10.0.0.1")) != nil {
		t.Error("the empty snapshot finds a peer")
	}
}

func TestConflictsNameBothPeers(t *testing.T) {
	base := peer("a", "192.0.2.1:8472", 1, "10.0.0.0/24")
	for what, second := range map[string]Peer{
		"name":     peer("a", "192.0.2.2:8472", 2, "10.0.1.0/24"),
		"endpoint": peer("b", "192.0.2.1:8472", 2, "10.0.1.0/24"),
		"mac":      peer("b", "192.0.2.2:8472", 1, "10.0.1.0/24"),
		"prefix":   peer("b", "192.0.2.2:8472", 2, "10.0.1.0/24", "10.0.0.0/24"),
	} {
		_, err := NewSnapshot([]Peer{base, second})
		var c *Conflict
		if !errors.As(err, &c) || c.What != what || c.First != 0 || c.Second != 1 {
			t.Errorf("%s twice: %v", what, err)
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, `"a"`) || what != "name" && !strings.Contains(msg, `"b"`) {
			t.Errorf("%s twice: %q does not name both", what, msg)
		}
	}
	if _, err := NewSnapshot([]Peer{peer("a", "192.0.2.1:8472", 0, "10.0.0.0/24", "10.0.0.0/24")}); err == nil {
		t.Error("the same prefix twice in one peer was accepted")
	}
	if _, err := NewSnapshot([]Peer{base, peer("b", "192.0.2.1:4789", 0, "10.0.0.0/25")}); err != nil {
		t.Errorf("nested prefixes, another port: %v", err)
	}
}

func TestApplyKeepsState(t *testing.T) {
	table := NewTable(2)
	first := mustSnapshot(t, peer("stays", "192.0.2.1:8472", 0, "10.0.0.1/32"), peer("moves", "192.0.2.2:8472", 0, "10.0.0.2/32"), peer("goes", "192.0.2.3:8472", 0, "10.0.0.3/32"))
	if c := table.Apply(first); len(c.Added) != 3 || c.String() != "3 peers added" {
		t.Errorf("first: %s", c)
	}
	moving := first.LookupName("moves").State()
	moving.Counters(1).EncapPackets.Add(7)
	moving.SetResolvedMAC(encap.MAC{2, 5: 9})
	moving.Path.SetMTU(1400)

	next := mustSnapshot(t, peer("moves", "192.0.2.9:8472", 0, "10.0.0.2/32"), peer("stays", "192.0.2.1:8472", 0, "10.0.0.1/32"), peer("comes", "192.0.2.4:8472", 0, "10.0.0.4/32"))
	c := table.Apply(next)
	if !slices.Equal(c.Added, []string{"comes"}) || !slices.Equal(c.Changed, []string{"moves"}) || !slices.Equal(c.Removed, []string{"goes"}) || c.Unchanged != 1 {
		t.Errorf("next: %+v", c)
	}
	if got := c.String(); got != "1 peer added, 1 changed, 1 removed, 1 unchanged" {
		t.Errorf("in words: %q", got)
	}
	got := table.Load().LookupName("moves")
	if got.State() != moving || got.State().Totals().EncapPackets != 7 || got.LinkAddr() != (encap.MAC{2, 5: 9}) {
		t.Error("the state did not follow the peer's name")
	}
	if mtu, hole := got.State().Path.MTU(); mtu != 1400 || hole {
		t.Errorf("path MTU %d, black hole %v", mtu, hole)
	}
	if table.Apply(mustSnapshot(t)).String() != "3 peers removed" || table.Load().Lookup(netip.MustParseAddr("10.0.0.1")) != nil {
		t.Error("the empty snapshot leaves something")
	}
}

// A peer whose packets go another way is another, and one that says the same is not.
func TestApplyTellsPeersApart(t *testing.T) {
	base := peer("hb", "192.0.2.1:8472", 0, "10.0.0.1/32")
	for what, edit := range map[string]func(*Peer){
		"":             func(*Peer) {},
		"endpoint":     func(p *Peer) { p.Endpoint = netip.MustParseAddrPort("192.0.2.1:4789") },
		"mac":          func(p *Peer) { p.MAC = encap.MAC{2, 5: 7} },
		"allowed_ips":  func(p *Peer) { p.AllowedIPs = nil },
		"superpackets": func(p *Peer) { p.Segmented = true },
	} {
		table, other := NewTable(1), base
		table.Apply(mustSnapshot(t, base))
		edit(&other)
		if c := table.Apply(mustSnapshot(t, other)); (len(c.Changed) == 1) != (what != "") || len(c.Added)+len(c.Removed) != 0 {
			t.Errorf("%q is another: %+v", what, c)
		}
	}
}

func TestLinkAddrPrefersConfiguration(t *testing.T) {
	table := NewTable(1)
	table.Apply(mustSnapshot(t, peer("a", "192.0.2.1:8472", 7, "10.0.0.0/24", "10.0.1.1/32", "10.0.1.2/32"), peer("b", "192.0.2.2:8472", 0, "10.0.2.0/24")))
	a, b := table.Load().LookupName("a"), table.Load().LookupName("b")
	a.State().SetResolvedMAC(encap.MAC{2, 5: 8})
	if a.LinkAddr() != (encap.MAC{2, 5: 7}) || !b.LinkAddr().IsZero() {
		t.Errorf("MACs %s and %s", a.LinkAddr(), b.LinkAddr())
	}
	if ask, ok := a.ResolveAddr(); !ok || ask.String() != "10.0.1.1" {
		t.Errorf("asked for: %s, %v", ask, ok)
	}
	if _, ok := b.ResolveAddr(); ok {
		t.Error("a network can be asked for")
	}
}

// Lookups agree with a slow reference: of all prefixes that hold an address, the longest.
func TestLookupAgainstReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		peers, err := randomPeers(rng, 40)
		if err != nil {
			t.Fatal(err)
		}
		s := mustSnapshot(t, peers...)
		for range 500 {
			a := randomAddr(rng)
			want, bits := "", -1
			for _, p := range peers {
				for _, prefix := range p.AllowedIPs {
					if prefix.Contains(a) && prefix.Bits() > bits {
						want, bits = p.Name, prefix.Bits()
					}
				}
			}
			if got := nameOf(s.Lookup(a)); got != want {
				t.Fatalf("%s: %q, want %q", a, got, want)
			}
		}
	}
}

// randomAddr draws from a few bits, so that prefixes nest and addresses hit.
func randomAddr(rng *rand.Rand) netip.Addr {
	if rng.UintN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, byte(rng.UintN(4)), byte(rng.UintN(4)), byte(rng.UintN(8))})
	}
	return netip.AddrFrom16([16]byte{0xfd, byte(rng.UintN(4)), 14: byte(rng.UintN(4)), 15: byte(rng.UintN(8))})
}

func randomPeers(rng *rand.Rand, n int) ([]Peer, error) {
	seen := make(map[netip.Prefix]bool)
	var peers []Peer
	for i := range n {
		p := peer(fmt.Sprint("p", i), fmt.Sprintf("192.0.2.%d:8472", i), 0)
		for range 3 {
			a := randomAddr(rng)
			prefix, err := a.Prefix(int(rng.UintN(uint(a.BitLen() + 1))))
			if err != nil {
				return nil, err
			}
			if !seen[prefix] {
				seen[prefix] = true
				p.AllowedIPs = append(p.AllowedIPs, prefix)
			}
		}
		peers = append(peers, p)
	}
	return peers, nil
}

// numbered returns n peers with a /32 each.
func numbered(n int) []Peer {
	peers := make([]Peer, n)
	for i := range peers {
		var a, e [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24|uint32(i))
		binary.BigEndian.PutUint32(e[:], 172<<24|uint32(i))
		peers[i] = Peer{
			Name: fmt.Sprint("p", i), Endpoint: netip.AddrPortFrom(netip.AddrFrom4(e), 8472), MAC: encap.MACFromUint64(2<<40 | uint64(i)),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(a), 32)},
		}
	}
	return peers
}

// Readers see one snapshot or the other, never a mixture, while writers replace it.
func TestReadersDuringSwaps(t *testing.T) {
	table := NewTable(1)
	a := netip.MustParseAddr("10.0.0.1")
	build := func(name string) *Snapshot {
		return mustSnapshot(t, peer(name, "192.0.2.1:8472", 1, "10.0.0.1/32"), peer(name+"'", "192.0.2.2:8472", 2, "10.0.0.2/32"))
	}
	table.Apply(build("x"))
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := table.Load()
				p, q := s.Lookup(a), s.LookupMAC(encap.MAC{2, 5: 2})
				if p == nil || q == nil || q.Name != p.Name+"'" || p.State() == nil {
					t.Errorf("half a snapshot: %q and %q", nameOf(p), nameOf(q))
					return
				}
			}
		})
	}
	for i := range 500 {
		table.Apply(build([]string{"x", "y"}[i%2]))
	}
	close(stop)
	readers.Wait()
}

func TestLookupsDoNotAllocate(t *testing.T) {
	table := NewTable(1)
	table.Apply(mustSnapshot(t, numbered(1000)...))
	a, e := netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("172.0.1.1")
	n := testing.AllocsPerRun(100, func() {
		s := table.Load()
		p := s.Lookup(a)
		if p == nil || s.LookupSource(e) != p || s.LookupMAC(p.MAC) != p || !s.IsEndpoint(e, 8472) {
			panic("not found")
		}
		p.State().Counters(0).EncapPackets.Add(1)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	const n = 1000
	snapshot := mustSnapshot(b, numbered(n)...)
	addrs, endpoints, macs := make([]netip.Addr, n), make([]netip.Addr, n), make([]encap.MAC, n)
	for i, p := range numbered(n) {
		addrs[i], endpoints[i], macs[i] = p.AllowedIPs[0].Addr(), p.Endpoint.Addr(), p.MAC
	}
	for by, lookup := range map[string]func(i int) *Peer{
		"prefix": func(i int) *Peer { return snapshot.Lookup(addrs[i]) },
		"source": func(i int) *Peer { return snapshot.LookupSource(endpoints[i]) },
		"mac":    func(i int) *Peer { return snapshot.LookupMAC(macs[i]) },
	} {
		b.Run(fmt.Sprintf("by=%s/peers=%d", by, n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if lookup((i*7919)%n) == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}

// Lookups while another goroutine swaps snapshots without a pause. What -benchmem shows is the writer's; the reader's own
// allocations are in reader-allocs/op.
func BenchmarkLookupDuringSwaps(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("prefixes=%d", n), func(b *testing.B) {
			peers := numbered(n)
			table := NewTable(1)
			table.Apply(mustSnapshot(b, peers...))
			addrs := make([]netip.Addr, 1024)
			for i := range addrs {
				addrs[i] = peers[(i*7919)%n].AllowedIPs[0].Addr()
			}
			b.ReportMetric(testing.AllocsPerRun(1000, func() { table.Load().Lookup(addrs[0]) }), "reader-allocs/op")
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						table.Apply(mustSnapshot(b, peers...))
					}
				}
			}()
			i := 0
			for b.Loop() {
				if table.Load().Lookup(addrs[i%len(addrs)]) == nil {
					b.Fatal("not found")
				}
				i++
			}
			b.StopTimer()
			close(stop)
			<-stopped
		})
	}
}
