package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// A path MTU that the kernel knows is believed for as long as the kernel believes it; one that it cannot tell changes nothing.
func TestPathsAreLearnedAndForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tn := bridged(t, FDBConfig{})
		var answer, fail atomic.Int64 // fail: not 0
		answer.Store(1400)
		tn.paths = newPaths(&Config{PathMTU: func(netip.Addr) (int, error) {
			if fail.Load() != 0 {
				return 0, errors.New("no route")
			}
			return int(answer.Load()), nil
		}}, tn.table, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		go tn.paths.run(ctx)
		defer func() { cancel(); synctest.Wait() }()
		peer := tn.table.Load().LookupName("hb")
		want := func(what string, mtu int) {
			t.Helper()
			synctest.Wait()
			if got, _ := peer.State().Path.MTU(); got != mtu {
				t.Errorf("%s: %d, want %d", what, got, mtu)
			}
		}
		tn.paths.ask(peer)
		want("asked", 1400)
		answer.Store(1200)
		tn.paths.ask(peer)
		want("asked again at once", 1400)
		time.Sleep(pathPause)
		answer.Store(1300)
		fail.Store(1)
		tn.paths.ask(peer)
		want("not told", 1400)
		fail.Store(0)
		time.Sleep(pathPause)
		tn.paths.ask(peer)
		want("asked again", 1300)
		answer.Store(1500)
		time.Sleep(pathRefresh)
		want("the route changed", 1500)
		answer.Store(1300)
		time.Sleep(pathRefresh)
		want("the route changed back", 1300)
		time.Sleep(pathExpires + 2*time.Minute)
		want("expired", 0)
		tn.paths.ask(peer)
		want("asked once more", 1300)
		peers := bridgePeers("hb", "hc")
		peers[0].Endpoint = netip.MustParseAddrPort("172.30.0.200:8472")
		if _, err := tn.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		want("the peer moved", 0)
		for range 1000 { // nobody waits
			tn.paths.ask(peer)
		}
	})
}

func TestFits(t *testing.T) {
	tn := bridged(t, FDBConfig{})
	peer := &routing.Peer{}
	*peer = *tn.table.Load().LookupName("hb")
	packet := func(n int, h encap.Headers) *Packet { return &Packet{Data: make([]byte, n), Count: 1, Headers: h} }
	v4, v6 := encap.Headers{Kind: encap.KindIPv4, L3: 14}, encap.Headers{Kind: encap.KindIPv6, L3: 14}
	whole := v4
	whole.DF = true
	for _, c := range []struct {
		name  string
		df    DFPolicy
		known int
		n     int
		h     encap.Headers
		fits  bool
		inner int
	}{
		{"nothing known", DFSet, 0, 60000, v4, true, 68},
		{"just", DFSet, 1400, 1400 - 36, v4, true, 1350},
		{"one too many", DFSet, 1400, 1400 - 35, v4, false, 1350},
		{"may be fragmented", DFUnset, 1400, 1500, whole, true, 1350},
		{"may be fragmented itself", DFInherit, 1400, 1500, v4, true, 1350},
		{"must not itself", DFInherit, 1400, 1500, whole, false, 1350},
		{"IPv6 never is", DFInherit, 1400, 1500, v6, false, 1350},
		{"narrower than IPv6 allows", DFSet, 1000, 1500, v6, false, 1280},
	} {
		peer.State().Path.SetMTU(c.known)
		tn.cfg.DF = c.df
		p := packet(c.n, c.h)
		if got, inner := tn.fits(peer, p), tn.innerMTU(peer, p); got != c.fits || inner != c.inner {
			t.Errorf("%s: %v, MTU %d; want %v, %d", c.name, got, inner, c.fits, c.inner)
		}
	}
	peer.State().Path.SetMTU(1400)
	tn.cfg.DF = DFSet
	super := packet(30000, encap.Headers{Kind: encap.KindIPv4, L3: 14, L4: 34, Len: 30000, Proto: encap.ProtoTCP})
	super.Data[34+12] = 5 << 4
	super.Count, super.Offload = 22, encap.Offload{GSO: encap.GSOTCP, SegmentSize: 1310}
	if !tn.fits(peer, super) {
		t.Error("a super-packet of segments that fit does not")
	}
	if super.Offload.SegmentSize++; tn.fits(peer, super) {
		t.Error("a super-packet of segments that do not fit does")
	}
}
