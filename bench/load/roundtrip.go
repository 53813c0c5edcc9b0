package load

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// RoundTrips is what a client of request and response saw.
type RoundTrips struct {
	Counts []Count // one for each phase; Packets are the responses
	// Histogram has the time of each round trip of the recorded phase, in nanoseconds.
	Histogram *hdrhistogram.Histogram
}

// NewHistogram returns an empty histogram of times in nanoseconds, from 1 µs to 1 minute, with 3 significant digits.
func NewHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(time.Microsecond.Nanoseconds(), time.Minute.Nanoseconds(), 3)
}

// lossTimeout is when a request or its response counts as lost.
const lossTimeout = 500 * time.Millisecond

// recorder takes times while a phase is recorded.
type recorder struct {
	histogram *hdrhistogram.Histogram
	on        atomic.Bool
	count     counter
	lost      atomic.Uint64
}

func newRecorder() *recorder { return &recorder{histogram: NewHistogram()} }

// wrap returns phases of which the one at index i is recorded.
func (r *recorder) wrap(phases []Phase, i int) []Phase {
	wrapped := append([]Phase(nil), phases...)
	begin, end := phases[i].Begin, phases[i].End
	wrapped[i].Begin = func() error {
		err := call(begin)
		r.on.Store(true)
		return err
	}
	wrapped[i].End = func() error { r.on.Store(false); return call(end) }
	return wrapped
}

func (r *recorder) took(d time.Duration) {
	r.count.packets.Add(1)
	if r.on.Load() {
		_ = r.histogram.RecordValue(max(d, time.Microsecond).Nanoseconds()) // a minute, its most, is never reached
	}
}

// outcome records a round trip that began at start, and returns what ends them all.
func (r *recorder) outcome(start time.Time, err error) error {
	switch {
	case err == nil:
		r.took(time.Since(start))
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.ECONNRESET): // lost, or refused half-way
		r.missed()
	default:
		return err
	}
	return nil
}

// missed records a round trip that came to nothing with the longest time that is waited for one: who loses must not look
// quicker than who is late.
func (r *recorder) missed() {
	r.lost.Add(1)
	if r.on.Load() {
		_ = r.histogram.RecordValue(lossTimeout.Nanoseconds())
	}
}

func (r *recorder) totals() totals {
	return totals{packets: r.count.packets.Load(), lost: r.lost.Load()}
}

// result returns what was recorded; an error when no round trip came to its end.
func (r *recorder) result(what string, p Path, counts []Count) (RoundTrips, error) {
	if r.count.packets.Load() == 0 {
		return RoundTrips{}, wrap(what, p, fmt.Errorf("none of %d round trips came to its end", r.lost.Load()))
	}
	return RoundTrips{Counts: counts, Histogram: r.histogram}, nil
}

// PingPong sends a UDP request of size bytes and waits for its echo, again and again, and records the times of the
// phase at index recorded.
func PingPong(ctx context.Context, p Path, size int, phases []Phase, recorded int) (RoundTrips, error) {
	sockets, err := openPair(p, 1)
	if err != nil {
		return RoundTrips{}, wrap("request and response", p, err)
	}
	defer sockets.close()
	failed := newFailures()
	client, server, rec := newCrew(failed), newCrew(failed), newRecorder()
	if err := setTimeout(sockets.from[0], lossTimeout); err != nil {
		return RoundTrips{}, wrap("request and response", p, err)
	}
	server.start(func() error { return wrap("respond", p, echo(server, sockets.to)) })
	client.start(func() error { return wrap("request", p, requests(client, sockets.from[0], size, rec)) })
	counts, err := runPhases(ctx, rec.wrap(phases, recorded), rec.totals, failed)
	client.finish(func() {})
	server.finish(func() {})
	if err != nil {
		return RoundTrips{}, err
	}
	return rec.result("request and response", p, counts)
}

func echo(c *crew, fd int) error {
	buf := make([]byte, 2048)
	for !c.stop.Load() {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err == nil {
			err = unix.Sendto(fd, buf[:n], 0, from)
		}
		if err != nil && !transient(err) {
			return err
		}
	}
	return nil
}

func requests(c *crew, fd, size int, rec *recorder) error {
	request, response := make([]byte, size), make([]byte, 2048)
	for number := uint64(1); !c.stop.Load(); number++ {
		putNumber(request, number)
		start := time.Now()
		if _, err := unix.Write(fd, request); err != nil && !transient(err) {
			return err
		}
		if err := rec.outcome(start, await(fd, response, number)); err != nil {
			return err
		}
	}
	return nil
}

// await reads until the response with the given number comes; late ones to earlier requests are passed over.
func await(fd int, buf []byte, number uint64) error {
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case getNumber(buf[:n]) == number:
			return nil
		}
	}
}

// The number is in the first 8 bytes, as far as there is room.
func putNumber(b []byte, n uint64) {
	for i := range min(8, len(b)) {
		b[i] = byte(n >> (8 * i))
	}
}

func getNumber(b []byte) (n uint64) {
	for i := range min(8, len(b)) {
		n |= uint64(b[i]) << (8 * i)
	}
	return n
}
