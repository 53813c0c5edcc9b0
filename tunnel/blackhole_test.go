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
	loss     float64
	trip     time.Duration
	rng      *rand.Rand
	requests atomic.Int64
	answers  chan EchoAnswer
}

// carrying returns a path that takes packets of so many bytes.
func carrying(bytes int, trip time.Duration, loss float64) *pathway {
	p := &pathway{loss: loss, trip: trip}
	p.carries.Store(int64(bytes))
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
	time.AfterFunc(w.trip, func() { w.answers <- EchoAnswer{From: to, Bytes: bytes, RoundTrip: w.trip} })
	return nil
}

func (w *pathway) Answers() <-chan EchoAnswer { return w.answers }

// probing is a tunnel with a path to peer hb whose packets must not be fragmented, and a way to send packets of a size there; for
// as long as a function runs.
func probing(t *testing.T, w *pathway, kernel *atomic.Int64, f func(tn *Tunnel, path *routing.Path, send func(bytes int) bool)) {
	synctest.Test(t, func(t *testing.T) {
		w.rng, w.answers = rand.New(rand.NewPCG(1, 2)), make(chan EchoAnswer, 64)
		tn := bridged(t, FDBConfig{})
		tn.cfg.DF, tn.cfg.Echo, tn.cfg.PathMTU = DFSet, w, func(netip.Addr) (int, error) { return int(kernel.Load()), nil }
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
			var kernel atomic.Int64
			kernel.Store(1500)
			for _, later := range []bool{false, true} {
				w := carrying(carries, trip, 0)
				probing(t, w, &kernel, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
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
	var kernel atomic.Int64
	kernel.Store(1500)
	w := carrying(1400, time.Millisecond, 0)
	probing(t, w, &kernel, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
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

// Loss is no black hole.
func TestLossyPath(t *testing.T) {
	var kernel atomic.Int64
	kernel.Store(1500)
	w := carrying(1500, 5*time.Millisecond, 0.05)
	probing(t, w, &kernel, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
		if took := stream(send, 1500, 10*time.Minute); took < 10*time.Minute {
			mtu, _ := path.MTU()
			t.Errorf("a path that loses one in twenty was found to be a black hole of more than %d after %v", mtu, took)
		}
		if perSecond := w.requests.Load() / 600; perSecond > 4 {
			t.Errorf("%d requests a second", perSecond)
		}
	})
}

// Where nothing is answered, nothing is believed, and it is asked for seldom; nobody is asked for small packets, or for none.
func TestSilentPeer(t *testing.T) {
	var kernel atomic.Int64
	kernel.Store(1500)
	w := carrying(0, 0, 0)
	probing(t, w, &kernel, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
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
	var kernel atomic.Int64
	kernel.Store(1500)
	w := carrying(1400, time.Millisecond, 0)
	probing(t, w, &kernel, func(_ *Tunnel, path *routing.Path, send func(int) bool) {
		send(1500)
		time.Sleep(20 * time.Millisecond)
		kernel.Store(1400) // the request has brought it
		stream(send, 1500, time.Minute)
		if mtu, hole := path.MTU(); mtu != 1400 || hole {
			t.Errorf("%d, %v", mtu, hole)
		}
	})
}
