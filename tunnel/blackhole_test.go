package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vxlane/vxlane/routing"
)

// pathway is a path between an Echo and its answers: what is larger than carries vanishes, and with it a part of all.
type pathway struct {
	carries  atomic.Int64
	kernel   atomic.Int64 // path MTU that the kernel knows
	loss     float64
	trip     time.Duration
	slow     bool        // a packet of 1500 bytes takes twice the time of the smallest
	away     atomic.Bool // no answer comes
	rng      *rand.Rand
	requests atomic.Int64
	answers  chan EchoAnswer
}

// carrying returns a path that takes packets of so many bytes.
func carrying(bytes int, trip time.Duration, loss float64) *pathway {
	p := &pathway{loss: loss, trip: trip}
	p.carries.Store(int64(bytes))
	p.kernel.Store(1500)
	return p
}

func (w *pathway) Send(to netip.Addr, bytes int) error {
	w.requests.Add(1)
	if bytes > 1500 {
		return errors.New("message too long")
	}
	if bytes > int(w.carries.Load()) || w.rng.Float64() < w.loss {
		return nil
	}
	trip := w.trip
	if w.slow {
		trip += trip * time.Duration(bytes) / 1500
	}
	time.AfterFunc(trip, func() {
		if w.away.Load() {
			return
		}
		select {
		case w.answers <- EchoAnswer{From: to, Bytes: bytes, RoundTrip: w.trip}:
		default: // as ICMPEcho
		}
	})
	return nil
}

func (w *pathway) Answers() <-chan EchoAnswer { return w.answers }

// probing is a tunnel with a path to peer hb whose packets must not be fragmented, and a way to send packets of a size there; for
// as long as a function runs.
func probing(t *testing.T, w *pathway, f func(tn *Tunnel, path *routing.Path, send func(bytes int) bool)) {
	synctest.Test(t, func(t *testing.T) {
		w.rng, w.answers = rand.New(rand.NewPCG(1, 2)), make(chan EchoAnswer, 2*probesPerSecond)
		tn := bridged(t, FDBConfig{})
		tn.cfg.DF, tn.cfg.Echo, tn.cfg.PathMTU = DFSet, w, func(netip.Addr) (int, error) { return int(w.kernel.Load()), nil }
		tn.paths = newPaths(&tn.cfg, tn.table, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		go tn.paths.run(ctx)
		defer func() { cancel(); time.Sleep(time.Minute); synctest.Wait() }()
		peer := tn.table.Load().LookupName("hb")
		f(tn, &peer.State().Path, func(bytes int) bool {
			return tn.fits(peer, &Packet{Data: make([]byte, bytes-tn.overhead), Count: 1})
		})
	})
}

// stream sends packets of a size, a hundred in a second, until one does not fit any more or the time is over; it returns how long
// that took.
func stream(send func(int) bool, bytes int, most time.Duration) time.Duration {
	begin := time.Now()
	for time.Since(begin) < most {
		if !send(bytes) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begin)
}

// A black hole is found wherever it begins, from the first packet on or later, in time; what is found arrives, and not much less.
func TestBlackHole(t *testing.T) {
	for _, trip := range []time.Duration{time.Millisecond, 40 * time.Millisecond, 150 * time.Millisecond} {
		for carries := 577; carries < 1500; carries += 71 {
			for _, later := range []bool{false, true} {
				w := carrying(carries, trip, 0)
				probing(t, w, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
					if later {
						w.carries.Store(1500)
						if took := stream(send, 1500, 20*time.Second); took < 20*time.Second {
							t.Fatalf("a good path was found to be a black hole after %v", took)
						}
						if mtu, _ := path.MTU(); mtu != 0 || path.Echo() != routing.EchoAnswered {
							t.Errorf("a good path: MTU %d, echo %s", mtu, path.Echo())
						}
						w.carries.Store(int64(carries))
					}
					took := stream(send, 1500, time.Minute)
					mtu, hole := path.MTU()
					if trip == time.Millisecond && !later && took > 600*time.Millisecond {
						t.Errorf("path of %d: found after %v", carries, took)
					}
					if took > 3*time.Second || !hole || mtu > carries || mtu < carries-searchExact-searchExact/2 {
						t.Errorf("round trip %v, path of %d (later: %v): found %d (%v) after %v", trip, carries, later, mtu, hole, took)
					}
					if !send(mtu) || send(carries+1) {
						t.Errorf("%d fits: %v, %d fits: %v", mtu, send(mtu), carries+1, send(carries+1))
					}
				})
			}
		}
	}
}

// It is gone when larger packets arrive again, and it may become narrower.
func TestBlackHoleChanges(t *testing.T) {
	w := carrying(1400, time.Millisecond, 0)
	probing(t, w, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
		stream(send, 1500, time.Minute)
		w.carries.Store(1300)
		if took := stream(send, 1400, time.Minute); took > 3*time.Second {
			t.Errorf("narrower: found after %v", took)
		}
		if mtu, hole := path.MTU(); mtu > 1300 || mtu < 1290 || !hole {
			t.Errorf("narrower: %d, %v", mtu, hole)
		}
		w.carries.Store(1500)
		for range 2 * probeLarger / time.Second { // what does not fit still brings it up
			send(1500)
			time.Sleep(time.Second)
		}
		if mtu, hole := path.MTU(); mtu != 0 || hole || !send(1500) {
			t.Errorf("gone: %d, %v", mtu, hole)
		}
	})
}

// A large packet now and then is enough, whatever else flows; and what flows is enough to find out that the black hole is gone, or takes
// more than it did.
func TestBlackHoleBesideOtherTraffic(t *testing.T) {
	w := carrying(1450, time.Millisecond, 0)
	probing(t, w, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
		second := func(others, large int) { // a second of traffic
			send(large)
			for range 100 {
				send(others)
				time.Sleep(10 * time.Millisecond)
			}
		}
		state := func(what string, least, most int, hole bool) {
			t.Helper()
			if mtu, is := path.MTU(); mtu < least || mtu > most || is != hole {
				t.Errorf("%s: MTU %d (%v), want %d to %d (%v)", what, mtu, is, least, most, hole)
			}
		}
		for range 3 {
			second(1400, 1500)
		}
		state("a retransmission a second", 1438, 1450, true)
		w.carries.Store(1300)
		for range 3 {
			second(1400, 1400)
		}
		state("narrower", 1288, 1300, true)
		w.carries.Store(1420)
		for range 2 * probeLarger / time.Second {
			second(1290, 1290)
		}
		state("wider", 1408, 1420, true)
		w.carries.Store(1500)
		for range 2 * probeLarger / time.Second {
			second(1290, 1290)
		}
		state("gone", 0, 0, false)
	})
}

// A peer that moves while its path is looked at is not held to what is found on the old one.
func TestPeerMovesDuringASearch(t *testing.T) {
	w := carrying(1400, time.Millisecond, 0)
	probing(t, w, func(tn *Tunnel, path *routing.Path, send func(int) bool) {
		send(1500)
		time.Sleep(200 * time.Millisecond)
		peers := bridgePeers("hb", "hc", "hd")
		peers[0].Endpoint = netip.MustParseAddrPort("172.30.0.200:8472")
		if _, err := tn.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if mtu, _ := path.MTU(); mtu != 0 || path.Echo() != routing.EchoUnknown {
			t.Errorf("MTU %d, echo %s", mtu, path.Echo())
		}
	})
}

// Many peers behind one narrow hop are found out about together.
func TestManyBlackHoles(t *testing.T) {
	w := carrying(1450, 100*time.Microsecond, 0)
	probing(t, w, func(tn *Tunnel, _ *routing.Path, _ func(int) bool) {
		var peers []routing.Peer
		for i := range 40 {
			at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 30, 1, byte(i)}), 8472)
			peers = append(peers, routing.Peer{Name: at.String(), Endpoint: at})
		}
		if _, err := tn.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			for _, p := range tn.table.Load().Peers() {
				tn.fits(p, &Packet{Data: make([]byte, 1500-tn.overhead), Count: 1})
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, p := range tn.table.Load().Peers() {
			if mtu, hole := p.State().Path.MTU(); !hole || mtu < 1442 || mtu > 1450 {
				t.Errorf("%s: %d, %v", p.Name, mtu, hole)
			}
		}
	})
}

// Looking at the path costs a packet no allocation.
func TestFitsDoesNotAllocate(t *testing.T) {
	probing(t, carrying(1500, time.Millisecond, 0), func(tn *Tunnel, _ *routing.Path, _ func(int) bool) {
		peer, packet := tn.table.Load().LookupName("hb"), &Packet{Data: make([]byte, 1400), Count: 1}
		if n := testing.AllocsPerRun(100, func() { tn.fits(peer, packet) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

// Loss is no black hole.
func TestLossyPath(t *testing.T) {
	w := carrying(1500, 5*time.Millisecond, 0.05)
	probing(t, w, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
		if took := stream(send, 1500, 10*time.Minute); took < 10*time.Minute {
			mtu, _ := path.MTU()
			t.Errorf("a path that loses one in twenty was found to be a black hole of more than %d after %v", mtu, took)
		}
		if perSecond := w.requests.Load() / 600; perSecond > 4 {
			t.Errorf("%d requests a second", perSecond)
		}
	})
}

// A path that is away for a moment is no black hole, at whatever moment of a check and a search; one that was away for longer is looked at
// again first.
func TestPathThatComesAndGoes(t *testing.T) {
	for _, trip := range []time.Duration{time.Millisecond, 40 * time.Millisecond} {
		for outage := 10 * time.Millisecond; outage < time.Second; outage += 10 * time.Millisecond {
			w := carrying(1500, trip, 0)
			w.slow = true
			probing(t, w, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
				send(1500)
				time.Sleep(3 * trip / 2) // within the first answers
				for range 10 {
					w.away.Store(true)
					stream(send, 1500, outage)
					w.away.Store(false)
					for i := 0; i < 10 || path.Echo() == routing.EchoSilent; i++ {
						if mtu, hole := path.MTU(); hole {
							t.Errorf("round trip %v, away for %v: found %d", trip, outage, mtu)
							return
						}
						stream(send, 1500, 61*time.Millisecond) // begins at another moment of a check each time
					}
				}
			})
		}
	}
}

// Where nothing is answered, nothing is believed, and it is asked for seldom; nobody is asked for small packets, or for none.
func TestSilentPeer(t *testing.T) {
	w := carrying(0, 0, 0)
	probing(t, w, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
		stream(send, floor4, time.Minute)
		if time.Sleep(time.Minute); w.requests.Load() != 0 {
			t.Errorf("%d requests for small packets", w.requests.Load())
		}
		if took := stream(send, 1500, 5*time.Minute); took < 5*time.Minute {
			t.Errorf("packets held back after %v", took)
		}
		if mtu, hole := path.MTU(); mtu != 0 || hole || path.Echo() != routing.EchoSilent {
			t.Errorf("MTU %d, %v, echo %s", mtu, hole, path.Echo())
		}
		if perMinute := w.requests.Load() / 5; perMinute > 20 {
			t.Errorf("%d requests a minute", perMinute)
		}
	})
}

// What the kernel knows to be narrow is its own business: the sender is told of that, and nothing is called a black hole.
func TestKernelKnows(t *testing.T) {
	w := carrying(1400, time.Millisecond, 0)
	probing(t, w, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
		send(1500)
		time.Sleep(20 * time.Millisecond)
		w.kernel.Store(1400) // the request has brought it
		stream(send, 1500, time.Minute)
		if mtu, hole := path.MTU(); mtu != 1400 || hole {
			t.Errorf("%d, %v", mtu, hole)
		}
		w.kernel.Store(1500)
		w.carries.Store(1500)
		time.Sleep(2 * pathRefresh)
		if mtu, _ := path.MTU(); mtu != 1500 {
			t.Errorf("the kernel has forgotten it, and the MTU is still %d", mtu)
		}
	})
}
