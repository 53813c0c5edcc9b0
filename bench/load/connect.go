package load

import (
	"context"
	"errors"
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
	failed := newFailures()
	client, server, rec := newCrew(failed), newCrew(failed), newRecorder()
	server.start(func() error { return wrap("accept", p, serve(server, listener)) })
	client.start(func() error {
		return p.From.Run(func() error { return wrap("connect", p, dialAll(client, p.Src, netip.AddrPortFrom(p.Dst, port), rec)) })
	})
	counts, err := runPhases(ctx, rec.wrap(phases, recorded), rec.totals, failed)
	client.finish(func() {})
	server.finish(func() {})
	if err != nil {
		return RoundTrips{}, err
	}
	return rec.result("connect", p, counts)
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
		n, err := retry(func() (int, error) { return unix.Read(fd, buf) })
		if err != nil || n == 0 {
			return err
		}
		if _, err := retry(func() (int, error) { return unix.Write(fd, buf[:n]) }); err != nil {
			return err
		}
	}
}

// dialAll runs inside the client's host.
func dialAll(c *crew, src netip.Addr, dst netip.AddrPort, rec *recorder) error {
	buf := make([]byte, 1)
	for !c.stop.Load() {
		start := time.Now()
		if err := rec.outcome(start, dial(src, dst, buf)); err != nil {
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
	if err := connectTo(fd, dst, lossTimeout); err != nil {
		return err
	}
	if _, err := retry(func() (int, error) { return unix.Write(fd, buf) }); err != nil {
		return err
	}
	n, err := retry(func() (int, error) { return unix.Read(fd, buf) })
	if err == nil && n == 0 {
		err = unix.ECONNRESET
	}
	return err
}
