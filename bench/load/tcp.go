package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// BulkResult is what TCP streams moved.
type BulkResult struct {
	Counts      []Count // one for each phase; PerPath has the bytes of each stream
	SegmentSize int     // largest payload of a TCP segment, in bytes
	Sender      Load
	Receiver    Load
}

const (
	writeBytes = 128 << 10 // as iperf3
	readBytes  = 256 << 10
)

// Bulk sends as much as goes over one TCP stream for each path while the phases pass.
func Bulk(ctx context.Context, paths []Path, phases []Phase) (BulkResult, error) {
	t, err := StartBulk(paths)
	if err != nil {
		return BulkResult{}, err
	}
	counts, err := runPhases(ctx, phases, t.totals, t.failed)
	r := t.Stop()
	r.Counts = counts
	if err != nil {
		return r, err
	}
	return r, stuck(paths[0], r.Counts)
}

// Transfer is TCP streams that go on until they are stopped.
type Transfer struct {
	streams            []*stream
	counters           []counter
	sending, receiving *crew
	failed             chan error
}

// StartBulk connects one TCP stream for each path and begins to send.
func StartBulk(paths []Path) (*Transfer, error) {
	t := &Transfer{counters: make([]counter, len(paths)), failed: newFailures()}
	t.sending, t.receiving = newCrew(t.failed), newCrew(t.failed)
	for _, p := range paths {
		s, err := connect(p)
		if err != nil {
			t.close()
			return nil, wrap("tcp", p, err)
		}
		t.streams = append(t.streams, s)
	}
	for i, s := range t.streams {
		t.sending.start(func() error { return wrap("tcp send", paths[i], s.send(t.sending)) })
		t.receiving.start(func() error { return wrap("tcp receive", paths[i], s.receive(t.receiving, &t.counters[i])) })
	}
	return t, nil
}

// Phase returns a function that begins to count, and one that ends it and returns the count.
func (t *Transfer) Phase() (begin func(), end func() Count) {
	var before totals
	var start time.Time
	begin = func() { before, start = t.totals(), time.Now() }
	end = func() Count { return t.totals().since(before, time.Since(start)) }
	return begin, end
}

// Stop ends the streams.
func (t *Transfer) Stop() BulkResult {
	defer t.close()
	var r BulkResult
	for _, s := range t.streams {
		if info, err := unix.GetsockoptTCPInfo(s.from, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			r.SegmentSize = int(info.Snd_mss)
		}
	}
	t.sending.stop.Store(true)
	t.receiving.finish(func() {
		for _, s := range t.streams {
			s.shutdown()
		}
	})
	t.sending.finish(func() {})
	r.Sender, r.Receiver = t.sending.load, t.receiving.load
	return r
}

func (t *Transfer) close() {
	for _, s := range t.streams {
		s.close()
	}
}

func (t *Transfer) totals() totals {
	all := totals{perPath: make([]uint64, len(t.counters))}
	for i := range t.counters {
		all.perPath[i] = t.counters[i].bytes.Load()
		all.bytes += all.perPath[i]
	}
	for _, s := range t.streams {
		if info, err := unix.GetsockoptTCPInfo(s.from, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			all.retransmits += uint64(info.Total_retrans)
		}
	}
	return all
}

// Idle returns how many streams moved nothing during a phase.
func (c Count) Idle() (n int) {
	for _, bytes := range c.PerPath {
		if bytes == 0 {
			n++
		}
	}
	return n
}

// stuck returns an error when nothing at all moved during a phase; the first is for warming up.
func stuck(p Path, counts []Count) error {
	for _, c := range counts[min(1, len(counts)-1):] {
		if c.Bytes == 0 {
			return wrap("tcp", p, fmt.Errorf("nothing arrived in %s", c.Elapsed.Round(time.Millisecond)))
		}
	}
	return nil
}

// stream is a TCP connection, both ends of it.
type stream struct{ from, to int }

// connect makes a listener, connects to it, and takes the connection.
func connect(p Path) (_ *stream, err error) {
	s := &stream{-1, -1}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	listener, err := openSocket(p.To, unix.SOCK_STREAM, 0, p.Dst)
	if err != nil {
		return nil, err
	}
	defer unix.Close(listener)
	if err := errors.Join(unix.Listen(listener, 1), setTimeout(listener, setup)); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	port, err := localPort(listener)
	if err != nil {
		return nil, err
	}
	if s.from, err = openSocket(p.From, unix.SOCK_STREAM, 0, p.Src); err != nil {
		return nil, err
	}
	if err := errors.Join(setTimeout(s.from, setup), setCongestion(s.from, p.Congestion)); err != nil {
		return nil, err
	}
	if err := connectTo(s.from, netip.AddrPortFrom(p.Dst, port), setup); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s.to, err = retry(func() (int, error) {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		return fd, err
	})
	if err != nil {
		return nil, fmt.Errorf("accept: %w", err)
	}
	return s, errors.Join(setTimeout(s.from, stall), setTimeout(s.to, stall))
}

func (s *stream) send(c *crew) error {
	block := make([]byte, writeBytes)
	for !c.stop.Load() {
		_, err := rawWrite(s.from, block)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return nil
}

func (s *stream) receive(c *crew, count *counter) error {
	block := make([]byte, readBytes)
	for !c.stop.Load() {
		n, err := rawRead(s.to, block)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errors.New("the connection ended")
		default:
			count.bytes.Add(uint64(n))
		}
	}
	return nil
}

// shutdown wakes both ends.
func (s *stream) shutdown() {
	for _, fd := range []int{s.from, s.to} {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // it may be gone already
	}
}

func (s *stream) close() {
	for _, fd := range []int{s.from, s.to} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
