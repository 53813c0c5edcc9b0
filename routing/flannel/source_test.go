package flannel_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"

	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/routing/flannel"
)

// cluster stands in for flannel's subnet manager: it plays what it is told to, and then waits, or fails.
type cluster struct {
	play []lease.LeaseWatchResult
	fail error
	runs int
	keep bool // what is left is played to the next watch
}

func (c *cluster) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	c.runs++
	defer func() {
		if !c.keep {
			c.play = nil
		}
	}()
	for _, r := range c.play {
		select {
		case receiver <- []lease.LeaseWatchResult{r}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if c.keep {
			c.play = c.play[1:]
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if c.fail != nil {
		return c.fail
	}
	<-ctx.Done()
	return ctx.Err()
}

func leaseOf(subnet, public string) lease.Lease {
	p := netip.MustParsePrefix(subnet)
	return lease.Lease{
		EnableIPv4: true, Subnet: ip.IP4Net{IP: ip.FromIP(p.Addr().AsSlice()), PrefixLen: uint(p.Bits())},
		Attrs: lease.LeaseAttrs{PublicIP: ip.FromIP(netip.MustParseAddr(public).AsSlice())},
	}
}

var ownLease = leaseOf("10.10.1.0/24", "172.30.0.1")

func everyone(leases ...lease.Lease) lease.LeaseWatchResult {
	return lease.LeaseWatchResult{Snapshot: leases}
}

func event(t lease.EventType, l lease.Lease) lease.LeaseWatchResult {
	return lease.LeaseWatchResult{Events: []lease.Event{{Type: t, Lease: l}}}
}

// follow plays a cluster to a source and returns the sets of peers that came of it, as lines, and the log.
func follow(t *testing.T, c *cluster) (sets []string, log string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		s := flannel.Source{
			Leases: c, Own: leaseOf("10.10.1.0/24", "172.30.0.1"), Log: slog.New(slog.NewTextHandler(&text, nil)),
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.Views = []flannel.View{{Peer: flannel.UDPPeer(netip.MustParseAddr("172.30.0.1"), 8285), Set: func(peers []routing.Peer) (routing.Change, error) {
			if _, err := routing.NewSnapshot(peers); err != nil {
				t.Errorf("no snapshot: %v", err)
			}
			var line []string
			for _, p := range peers {
				line = append(line, p.Name+"@"+p.Endpoint.String())
				for _, a := range p.AllowedIPs[1:] {
					line = append(line, "+"+a.String())
				}
			}
			sets = append(sets, strings.Join(line, " "))
			return routing.Change{}, nil
		}}}
		s.Run(ctx)
		log = text.String()
	})
	return sets, log
}

func TestLeasesBecomePeers(t *testing.T) {
	own, b, c := leaseOf("10.10.1.0/24", "172.30.0.1"), leaseOf("10.10.2.0/24", "172.30.0.2"), leaseOf("10.10.3.0/24", "172.30.0.3")
	moved := leaseOf("10.10.2.0/24", "172.30.0.22")
	for _, tc := range []struct {
		name string
		play []lease.LeaseWatchResult
		want []string
	}{
		{"nobody", []lease.LeaseWatchResult{everyone(own)}, []string{""}},
		{"a snapshot, then events", []lease.LeaseWatchResult{everyone(own, b), event(lease.EventAdded, c), event(lease.EventRemoved, b)},
			[]string{"10.10.2.0/24@172.30.0.2:8285", "10.10.2.0/24@172.30.0.2:8285 10.10.3.0/24@172.30.0.3:8285", "10.10.3.0/24@172.30.0.3:8285"}},
		{"events alone", []lease.LeaseWatchResult{event(lease.EventAdded, own), event(lease.EventAdded, b)}, []string{"", "10.10.2.0/24@172.30.0.2:8285"}},
		// flannel's own watcher compares subnets only, and misses the first two of these (facts of v0.28.9: lease.go, Reset).
		{"a peer that moved while nobody looked", []lease.LeaseWatchResult{everyone(own, b), everyone(own, moved)},
			[]string{"10.10.2.0/24@172.30.0.2:8285", "10.10.2.0/24@172.30.0.22:8285"}},
		{"a peer that went while nobody looked", []lease.LeaseWatchResult{everyone(own, b, c), everyone(own, c)},
			[]string{"10.10.2.0/24@172.30.0.2:8285 10.10.3.0/24@172.30.0.3:8285", "10.10.3.0/24@172.30.0.3:8285"}},
		{"a peer that moved", []lease.LeaseWatchResult{everyone(own, b), event(lease.EventAdded, moved)},
			[]string{"10.10.2.0/24@172.30.0.2:8285", "10.10.2.0/24@172.30.0.22:8285"}},
		{"two leases of one node", []lease.LeaseWatchResult{everyone(own, b, leaseOf("10.10.9.0/24", "172.30.0.2"))},
			[]string{"10.10.2.0/24@172.30.0.2:8285 +10.10.9.0/24"}},
		{"an event for an unknown lease", []lease.LeaseWatchResult{event(lease.EventRemoved, c)}, []string{""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, _ := follow(t, &cluster{play: tc.play}); !slices.Equal(got, tc.want) {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

// One bad lease is named, once, and the others count.
func TestBadLeases(t *testing.T) {
	good := leaseOf("10.10.2.0/24", "172.30.0.2")
	for why, bad := range map[string]lease.Lease{
		"this node's own":        leaseOf("10.10.5.0/24", "172.30.0.1"),
		"address of one host":    leaseOf("10.10.5.0/24", "0.0.0.0"),
		"without host bits":      leaseOf("10.10.5.7/24", "172.30.0.5"),
		"address of one host\" ": leaseOf("10.10.5.0/24", "224.0.0.1"),
	} {
		sets, log := follow(t, &cluster{play: []lease.LeaseWatchResult{everyone(ownLease, good, bad), event(lease.EventAdded, good)}})
		if len(sets) != 2 || sets[0] != "10.10.2.0/24@172.30.0.2:8285" || sets[1] != sets[0] {
			t.Errorf("%s: peers %q", why, sets)
		}
		if strings.Count(log, "left out") != 1 || !strings.Contains(log, strings.TrimSuffix(why, "\" ")) {
			t.Errorf("%s is not in the log, once:\n%s", why, log)
		}
	}
}

// A watch that fails is begun again; what was known stays in force until it says otherwise.
func TestWatchFails(t *testing.T) {
	c := &cluster{play: []lease.LeaseWatchResult{everyone(ownLease, leaseOf("10.10.2.0/24", "172.30.0.2"))}, fail: errors.New("no leader")}
	sets, log := follow(t, c)
	if len(sets) != 1 || c.runs < 30 || !strings.Contains(log, "no leader") {
		t.Errorf("%d watches in a minute, peers %q, log:\n%s", c.runs, sets, log)
	}
}

// deaf is a watch that does not end when it is told to.
type deaf struct{ let chan struct{} }

func (d deaf) WatchLeases(context.Context, chan []lease.LeaseWatchResult) error {
	<-d.let
	return nil
}

// A source ends soon after it was told to, even if its watch does not.
func TestEndsWithoutItsWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := deaf{make(chan struct{})}
		defer close(d.let)
		s := flannel.Source{Leases: d, Own: ownLease, Log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		s.Run(ctx)
		if took := time.Since(begin) - time.Minute; took < 0 || took > 2*time.Second {
			t.Errorf("ended %v after it was told to", took)
		}
	})
}

func TestVXLANPeers(t *testing.T) {
	with := func(backend, data string) lease.Lease {
		l := leaseOf("10.10.2.0/24", "172.30.0.2")
		l.Attrs.BackendType, l.Attrs.BackendData = backend, []byte(data)
		return l
	}
	const good = `{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`
	for _, c := range []struct {
		l    lease.Lease
		ok   bool
		mac  string
		fail string
	}{
		{with("vxlan", good), true, "0a:00:00:00:00:02", ""},
		{with("vxlan", `{"VNI":1,"Later":{"x":1},"VtepMAC":"0A:00:00:00:00:02"}`), true, "0a:00:00:00:00:02", ""},
		{with("", "null"), false, "", ""}, // a node of the udp backend
		{with("host-gw", ""), false, "", ""},
		{with("vxlan", ""), false, "", "backend data"},
		{with("vxlan", "null"), false, "", "VtepMAC"},
		{with("vxlan", `{"VtepMAC":"01:00:00:00:00:02"}`), false, "", "want the address of one station"},
		{with("vxlan", `{"VtepMAC":"00:00:00:00:00:00"}`), false, "", "want the address of one station"},
		{with("vxlan", `{"VtepMAC":7}`), false, "", "backend data"},
	} {
		p, ok, err := flannel.VXLANPeer(netip.MustParseAddr("172.30.0.1"), 8472)(&c.l)
		if ok != c.ok || (err != nil) != (c.fail != "") || err != nil && !strings.Contains(err.Error(), c.fail) {
			t.Errorf("%s: %v, %v, want %v, %q", c.l.Attrs.BackendData, ok, err, c.ok, c.fail)
		}
		if ok && (p.MAC.String() != c.mac || p.Endpoint.String() != "172.30.0.2:8472") {
			t.Errorf("peer %+v", p)
		}
	}
}

// Each family of a dual-stack cluster has its own peers, and a change of one family alone is seen: flannel drops an update in which
// the other family stayed the same (facts of v0.28.9: kube.go, handleUpdateLeaseEvent).
func TestTwoFamilies(t *testing.T) {
	dual := func(mac6 string) lease.Lease {
		l := leaseOf("10.10.2.0/24", "172.30.0.2")
		l.EnableIPv6 = true
		l.IPv6Subnet = ip.IP6Net{IP: ip.MustParseIP6("fd10:0:0:2::"), PrefixLen: 64}
		l.Attrs.PublicIPv6 = ip.MustParseIP6("fd30::2")
		l.Attrs.BackendType, l.Attrs.BackendData = "vxlan", []byte(`{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`)
		l.Attrs.BackendV6Data = []byte(`{"VNI":1,"VtepMAC":"` + mac6 + `"}`)
		return l
	}
	only4 := leaseOf("10.10.3.0/24", "172.30.0.3")
	only4.Attrs.BackendType, only4.Attrs.BackendData = "vxlan", []byte(`{"VNI":1,"VtepMAC":"0a:00:00:00:00:03"}`)
	synctest.Test(t, func(t *testing.T) {
		var sets4, sets6 []string
		view := func(local string, sets *[]string) flannel.View {
			return flannel.View{Peer: flannel.VXLANPeer(netip.MustParseAddr(local), 8472), Set: func(peers []routing.Peer) (routing.Change, error) {
				var line []string
				for _, p := range peers {
					line = append(line, p.Name+"@"+p.Endpoint.String()+"="+p.MAC.String())
				}
				*sets = append(*sets, strings.Join(line, " "))
				return routing.Change{}, nil
			}}
		}
		s := flannel.Source{
			Leases: &cluster{play: []lease.LeaseWatchResult{everyone(ownLease, dual("0a:00:00:00:06:02"), only4), event(lease.EventAdded, dual("0a:00:00:00:06:22"))}},
			Own:    ownLease, Log: slog.New(slog.DiscardHandler),
			Views: []flannel.View{view("172.30.0.1", &sets4), view("fd30::1", &sets6)},
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.Run(ctx)
		const want4 = "10.10.2.0/24@172.30.0.2:8472=0a:00:00:00:00:02 10.10.3.0/24@172.30.0.3:8472=0a:00:00:00:00:03"
		if !slices.Equal(sets4, []string{want4, want4}) {
			t.Errorf("IPv4: %q", sets4)
		}
		if want := []string{"fd10:0:0:2::/64@[fd30::2]:8472=0a:00:00:00:06:02", "fd10:0:0:2::/64@[fd30::2]:8472=0a:00:00:00:06:22"}; !slices.Equal(sets6, want) {
			t.Errorf("IPv6: %q, want %q", sets6, want)
		}
	})
}

// Of two leases of one address, the one that expires last says what the peer's MAC is.
func TestNewestLeaseSpeaks(t *testing.T) {
	old, late := leaseOf("10.10.2.0/24", "172.30.0.2"), leaseOf("10.10.9.0/24", "172.30.0.2")
	old.Expiration, late.Expiration = time.Unix(1000, 0), time.Unix(2000, 0)
	sets, _ := follow(t, &cluster{play: []lease.LeaseWatchResult{everyone(ownLease, old, late)}})
	if want := []string{"10.10.9.0/24@172.30.0.2:8285 +10.10.2.0/24"}; !slices.Equal(sets, want) {
		t.Errorf("%q, want %q", sets, want)
	}
}

// What flannel's etcd watch sends when it could not read an event, and a list from which something is missing, change
// nothing: the watch is begun again.
func TestPartialLists(t *testing.T) {
	b := leaseOf("10.10.2.0/24", "172.30.0.2")
	for _, partial := range []lease.LeaseWatchResult{{Cursor: "7"}, everyone(b), everyone()} {
		c := &cluster{play: []lease.LeaseWatchResult{everyone(ownLease, b), partial}}
		sets, log := follow(t, c)
		if want := []string{"10.10.2.0/24@172.30.0.2:8285"}; !slices.Equal(sets, want) || c.runs != 2 || !strings.Contains(log, "without this node's own") {
			t.Errorf("%d watches, peers %q, log\n%s", c.runs, sets, log)
		}
	}
}

// A list that lacks leases which have not expired is made again before they are given up: flannel leaves out those whose time to
// live it was not told.
func TestIncompleteLists(t *testing.T) {
	lasting := func(subnet, public string) lease.Lease {
		l := leaseOf(subnet, public)
		l.Expiration = time.Now().Add(100 * 365 * 24 * time.Hour)
		return l
	}
	b, c := lasting("10.10.2.0/24", "172.30.0.2"), lasting("10.10.3.0/24", "172.30.0.3")
	const both, one = "10.10.2.0/24@172.30.0.2:8285 10.10.3.0/24@172.30.0.3:8285", "10.10.3.0/24@172.30.0.3:8285"
	for name, tc := range map[string]struct {
		lists []lease.LeaseWatchResult
		want  []string
		runs  int
	}{
		"one list":                     {[]lease.LeaseWatchResult{everyone(ownLease, b, c), everyone(ownLease, c), everyone(ownLease, b, c)}, []string{both, both}, 2},
		"two that agree":               {[]lease.LeaseWatchResult{everyone(ownLease, b, c), everyone(ownLease, c), everyone(ownLease, c)}, []string{both, one}, 2},
		"two that lack different ones": {[]lease.LeaseWatchResult{everyone(ownLease, b, c), everyone(ownLease, c), everyone(ownLease, b), everyone(ownLease, b, c)}, []string{both, both}, 3},
	} {
		cl := &cluster{play: tc.lists, keep: true}
		sets, _ := follow(t, cl)
		if !slices.Equal(sets, tc.want) || cl.runs != tc.runs {
			t.Errorf("%s: %d watches, %q, want %d, %q", name, cl.runs, sets, tc.runs, tc.want)
		}
	}
}

// Whether the leases can be reached is asked, and told.
func TestReachability(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		broken := errors.New("no leader")
		s := flannel.Source{
			Leases: &cluster{play: []lease.LeaseWatchResult{everyone(ownLease)}}, Own: ownLease, Log: slog.New(slog.DiscardHandler),
			Check: func(context.Context) error {
				if down.Load() {
					return broken
				}
				return nil
			}, CheckEvery: 10 * time.Second,
		}
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		defer func() { cancel(); synctest.Wait() }()
		for _, fails := range []bool{false, true, false} {
			down.Store(fails)
			time.Sleep(15 * time.Second)
			if got := s.State().Err; errors.Is(got, broken) != fails {
				t.Errorf("%v, want an error: %v", got, fails)
			}
		}
	})
}

// Two nodes that claim one subnet, or one MAC: the one whose lease is newer is the peer, the other is named.
func TestConflictingLeases(t *testing.T) {
	peer := func(l *lease.Lease) (routing.Peer, bool, error) {
		return flannel.VXLANPeer(netip.MustParseAddr("172.30.0.1"), 8472)(l)
	}
	mk := func(subnet, public string, at int64) lease.Lease {
		l := leaseOf(subnet, public)
		l.Expiration = time.Unix(at, 0)
		l.Attrs.BackendType, l.Attrs.BackendData = "vxlan", []byte(`{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`)
		return l
	}
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		s := flannel.Source{
			Leases: &cluster{play: []lease.LeaseWatchResult{everyone(ownLease, mk("10.10.2.0/24", "172.30.0.2", 1), mk("10.10.3.0/24", "172.30.0.3", 2))}},
			Own:    ownLease, Log: slog.New(slog.NewTextHandler(&text, nil)),
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.Views = []flannel.View{{Peer: peer, Set: func(peers []routing.Peer) (routing.Change, error) {
			if len(peers) != 1 || peers[0].Name != "10.10.3.0/24" {
				t.Errorf("peers %+v", peers)
			}
			return routing.Change{}, nil
		}}}
		s.Run(ctx)
		if st := s.State(); st.Leases != 3 || st.Bad != 1 || st.Applied.IsZero() || st.Failures != 0 {
			t.Errorf("state %+v", st)
		}
		if !strings.Contains(text.String(), "0a:00:00:00:00:02 is that of the node at 172.30.0.3:8472 already") {
			t.Error(text.String())
		}
	})
}
