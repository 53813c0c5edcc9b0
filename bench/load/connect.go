package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Connections opens TCP connections one after the other, exchanges one byte each way on each, and closes it; it records
// how long each took in the phase at index recorded.
func Connections(ctx context.Context, p Path, phases []Phase, recorded int) (RoundTrips, error) {
	listener, err := openSocket(p.To, unix.SOCK_STREAM, 0, p.Dst)
	if err != nil {
		return RoundTrips{}, wrap("connect", p, err)
	}
	defer unix.Close(listener)
	if err := errors.Join(unix.Listen(listener, 128), setTimeout(listener, stall)); err != nil {
		return RoundTrips{}, wrap("connect", p, err)
	}
	port, err := localPort(listener)
	if err != nil {
		return RoundTrips{}, wrap("connect", p, err)
	}
	client, server, rec := newCrew(), newCrew(), newRecorder()
	server.start(func() error { return wrap("accept", p, serve(server, listener)) })
	client.start(func() error {
		return p.From.Run(func() error { return wrap("connect", p, dialAll(client, p.Src, netip.AddrPortFrom(p.Dst, port), rec)) })
	})
	counts, err := runPhases(ctx, rec.wrap(phases, recorded), rec.totals, client.failed)
	client.finish(func() {})
	server.finish(func() {})
	r := rec.result(counts)
	if err == nil && r.Histogram.TotalCount() == 0 {
		err = wrap("connect", p, fmt.Errorf("none of %d connections came about", r.Lost))
	}
	return r, err
}

// serve takes connections and sends back what comes, until the client closes.
func serve(c *crew, listener int) error {
	buf := make([]byte, 64)
	for !c.stop.Load() {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			if transient(err) || errors.Is(err, unix.ECONNABORTED) {
				continue
			}
			return err
		}
		_ = answer(fd, buf) // the client sees what went wrong
		unix.Close(fd)
	}
	return nil
}

func answer(fd int, buf []byte) error {
	if err := setTimeout(fd, lossTimeout); err != nil {
		return err
	}
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n == 0 {
			return err
		}
		if _, err := unix.Write(fd, buf[:n]); err != nil {
			return err
		}
	}
}

// dialAll runs inside the client's host.
func dialAll(c *crew, src netip.Addr, dst netip.AddrPort, rec *recorder) error {
	buf := make([]byte, 1)
	for !c.stop.Load() {
		start := time.Now()
		err := dial(src, dst, buf)
		switch {
		case err == nil:
			rec.took(time.Since(start))
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.ECONNRESET):
			rec.lost.Add(1)
		default:
			return err
		}
	}
	return nil
}

func dial(src netip.Addr, dst netip.AddrPort, buf []byte) error {
	fd, err := newSocket(unix.SOCK_STREAM, 0, src)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A reset instead of a farewell: closed connections would otherwise take up the ports for a minute (TIME_WAIT).
	reset := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err := errors.Join(reset, setTimeout(fd, lossTimeout)); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(dst)); err != nil {
		return err
	}
	if _, err := unix.Write(fd, buf); err != nil {
		return err
	}
	n, err := unix.Read(fd, buf)
	if err == nil && n == 0 {
		err = unix.ECONNRESET
	}
	return err
}
