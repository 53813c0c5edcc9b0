package load

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// PingInterval is the pause between the echo requests of Ping: long enough for every core and thread to fall asleep.
const PingInterval = 50 * time.Millisecond

// Ping sends ICMP echo requests with pauses between them, and records the times of the phase at index recorded.
func Ping(ctx context.Context, p Path, phases []Phase, recorded int) (RoundTrips, error) {
	fd, err := openSocket(p.From, unix.SOCK_RAW, unix.IPPROTO_ICMP, p.Src)
	if err != nil {
		return RoundTrips{}, wrap("ping", p, err)
	}
	defer unix.Close(fd)
	if err := setTimeout(fd, lossTimeout); err != nil {
		return RoundTrips{}, wrap("ping", p, err)
	}
	c, rec := newCrew(newFailures()), newRecorder()
	c.start(func() error { return wrap("ping", p, pings(c, fd, p, rec)) })
	counts, err := runPhases(ctx, rec.wrap(phases, recorded), rec.totals, c.failed)
	c.finish(func() {})
	if err != nil {
		return RoundTrips{}, err
	}
	return rec.result("ping", p, counts)
}

func pings(c *crew, fd int, p Path, rec *recorder) error {
	id, to, buf := os.Getpid()&0xffff, &unix.SockaddrInet4{Addr: p.Dst.As4()}, make([]byte, 2048)
	for seq := 1; !c.stop.Load(); seq++ {
		nap(PingInterval)
		msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq & 0xffff, Data: make([]byte, 56)}}
		b, err := msg.Marshal(nil)
		if err != nil {
			return err
		}
		start := time.Now()
		if err := unix.Sendto(fd, b, 0, to); err != nil {
			return err
		}
		if err := rec.outcome(start, awaitEcho(fd, buf, id, seq&0xffff)); err != nil {
			return err
		}
	}
	return nil
}

// awaitEcho reads until the answer to one request comes; a raw socket sees every ICMP message of its host.
func awaitEcho(fd int, buf []byte, id, seq int) error {
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		h, err := ipv4.ParseHeader(buf[:n])
		if err != nil {
			continue
		}
		m, err := icmp.ParseMessage(unix.IPPROTO_ICMP, buf[h.Len:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id && e.Seq == seq {
			return nil
		}
	}
}
