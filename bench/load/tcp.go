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
	Counts         []Count // one for each phase; PerPath has the bytes of each stream
	SegmentSize    int     // largest payload of a TCP segment, in bytes
	Retransmits    uint64  // all phases together
	GeneratorShare float64 // largest share of its time that a thread of the generator spent in its own code
}

const (
	writeBytes = 128 << 10 // as iperf3
	readBytes  = 256 << 10
)

// Bulk sends as much as goes over one TCP stream for each path.
func Bulk(ctx context.Context, paths []Path, phases []Phase) (BulkResult, error) {
	var r BulkResult
	streams := make([]*stream, 0, len(paths))
	defer func() {
		for _, s := range streams {
			s.close()
		}
	}()
	for _, p := range paths {
		s, err := connect(p)
		if err != nil {
			return r, wrap("tcp", p, err)
		}
		streams = append(streams, s)
	}
	counters, c := make([]counter, len(streams)), newCrew()
	for i, s := range streams {
		c.start(func() error { return wrap("tcp send", paths[i], s.send(c)) })
		c.start(func() error { return wrap("tcp receive", paths[i], s.receive(c, &counters[i])) })
	}
	var err error
	r.Counts, err = runPhases(ctx, phases, func() totals { return streamTotals(counters) }, c.failed)
	for _, s := range streams {
		info, infoErr := unix.GetsockoptTCPInfo(s.from, unix.IPPROTO_TCP, unix.TCP_INFO)
		if infoErr == nil {
			r.Retransmits += uint64(info.Total_retrans)
			r.SegmentSize = int(info.Snd_mss)
		}
	}
	c.finish(func() {
		for _, s := range streams {
			s.shutdown()
		}
	})
	r.GeneratorShare = c.ownShare()
	if err != nil {
		return r, err
	}
	return r, stuck(paths[0], r.Counts)
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

// stuck returns an error when nothing at all moved during a phase of some length.
func stuck(p Path, counts []Count) error {
	const tooShort = 20 * time.Millisecond
	for _, c := range counts {
		if c.Bytes == 0 && c.Elapsed > tooShort {
			return wrap("tcp", p, fmt.Errorf("nothing arrived in %s", c.Elapsed.Round(time.Millisecond)))
		}
	}
	return nil
}

func streamTotals(counters []counter) totals {
	t := totals{perPath: make([]uint64, len(counters))}
	for i := range counters {
		t.perPath[i] = counters[i].bytes.Load()
		t.bytes += t.perPath[i]
	}
	return t
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
	if err := setTimeout(s.from, setup); err != nil {
		return nil, err
	}
	if err := unix.Connect(s.from, sockaddr(netip.AddrPortFrom(p.Dst, port))); err != nil {
		if errors.Is(err, unix.EINPROGRESS) {
			err = unix.ETIMEDOUT // what SO_SNDTIMEO makes of it, socket(7)
		}
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
		_, err := unix.Write(s.from, block)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return nil
}

func (s *stream) receive(c *crew, count *counter) error {
	block := make([]byte, readBytes)
	for !c.stop.Load() {
		n, err := unix.Read(s.to, block)
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
