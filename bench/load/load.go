// Package load makes the traffic that tunnels are measured with, and counts it where applications would: in sockets of
// the hosts. Each generator has threads of its own, which do nothing but system calls, in batches where the kernel has
// them.
package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
)

// Path is where traffic comes from and where it goes.
type Path struct {
	From, To *lab.Host
	Src, Dst netip.Addr
	// Congestion is the congestion control of TCP streams; the hosts' own when it is empty.
	Congestion string
}

// Reverse returns the way back.
func (p Path) Reverse() Path {
	p.From, p.To, p.Src, p.Dst = p.To, p.From, p.Dst, p.Src
	return p
}

// Phase is a part of the time that traffic flows. Begin and End, where they are set, are called at its bounds.
type Phase struct {
	Length     time.Duration
	Begin, End func() error
}

// Count is what was counted during a phase.
type Count struct {
	Elapsed     time.Duration
	Offered     uint64 // packets that were sent, where packets are counted
	Packets     uint64 // that the receiver took
	Bytes       uint64 // of payload that the receiver took
	PerPath     []uint64
	Retransmits uint64 // TCP segments
	Lost        uint64 // requests without a response
}

// PerSecond returns n per second of the phase.
func (c Count) PerSecond(n uint64) float64 { return float64(n) / c.Elapsed.Seconds() }

// totals are counters as they grow.
type totals struct {
	offered, packets, bytes, retransmits, lost uint64
	perPath                                    []uint64
}

func (t totals) since(o totals, elapsed time.Duration) Count {
	c := Count{
		Elapsed: elapsed, Offered: t.offered - o.offered, Packets: t.packets - o.packets, Bytes: t.bytes - o.bytes,
		Retransmits: t.retransmits - o.retransmits, Lost: t.lost - o.lost,
	}
	for i := range t.perPath {
		c.PerPath = append(c.PerPath, t.perPath[i]-o.perPath[i])
	}
	return c
}

// runPhases lets the phases pass and reads the counters at their bounds. It ends early with ctx, and when failed has
// an error.
func runPhases(ctx context.Context, phases []Phase, read func() totals, failed <-chan error) ([]Count, error) {
	counts := make([]Count, len(phases))
	for i, p := range phases {
		if err := call(p.Begin); err != nil {
			return nil, err
		}
		before, start := read(), time.Now()
		timer := time.NewTimer(p.Length)
		select {
		case <-timer.C:
		case err := <-failed:
			timer.Stop()
			return nil, err
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
		counts[i] = read().since(before, time.Since(start))
		if err := call(p.End); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

func call(f func() error) error {
	if f == nil {
		return nil
	}
	return f()
}

// crew is a set of threads that work until they are told to stop.
type crew struct {
	stop   atomic.Bool
	wg     sync.WaitGroup
	failed chan error // the first failure

	mu   sync.Mutex
	load Load
}

// Load is what a generator took itself: the largest share of its time that one of its threads spent.
type Load struct {
	Own  float64 // in its own code
	Busy float64 // in its own code and in the kernel on its behalf
}

func (l Load) or(o Load) Load { return Load{max(l.Own, o.Own), max(l.Busy, o.Busy)} }

// newCrew makes a crew that reports to failed; several crews may share one.
func newCrew(failed chan error) *crew { return &crew{failed: failed} }

func newFailures() chan error { return make(chan error, 1) }

// start runs f on a thread of its own. An error after the stop is not one.
func (c *crew) start(f func() error) {
	const timerSlack = time.Microsecond
	c.wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) // without it, naps are 50 µs longer
		// Undone for the threads and processes that come from this one later: they inherit it.
		defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()
		began := time.Now()
		user, system := threadTimes()
		err := f()
		userEnd, systemEnd := threadTimes()
		elapsed := time.Since(began).Seconds()
		own := (userEnd - user).Seconds() / elapsed
		c.mu.Lock()
		c.load = c.load.or(Load{Own: own, Busy: own + (systemEnd-system).Seconds()/elapsed})
		c.mu.Unlock()
		if err != nil && !c.stop.Load() {
			select {
			case c.failed <- err:
			default:
			}
		}
	})
}

// finish tells all threads to stop, wakes them, and waits for them.
func (c *crew) finish(wake func()) {
	c.stop.Store(true)
	wake()
	c.wg.Wait()
}

// nap makes the thread sleep, without Go's timers on the way. A signal may end it early.
func nap(d time.Duration) {
	t := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&t, nil)
}

func threadTimes() (user, system time.Duration) {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return 0, 0
	}
	return time.Duration(u.Utime.Nano()), time.Duration(u.Stime.Nano())
}

// counter is written by one thread; padded so that threads do not share a cache line.
type counter struct {
	packets, bytes atomic.Uint64
	_              [112]byte
}

func sum(counters []counter) (packets, bytes uint64) {
	for i := range counters {
		packets += counters[i].packets.Load()
		bytes += counters[i].bytes.Load()
	}
	return packets, bytes
}

// stall is how long a blocking call waits before it looks whether to stop.
const stall = 100 * time.Millisecond

// setup is how long a connection may take to come about.
const setup = 5 * time.Second

var errInterrupted = errors.New("interrupted by a signal")

// retry calls f until it is not interrupted by a signal.
func retry(f func() (int, error)) (int, error) {
	for range 100 {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
	return 0, errInterrupted
}

func wrap(what string, p Path, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s from %s to %s (%s): %w", what, p.From.Name(), p.To.Name(), p.Dst, err)
}
