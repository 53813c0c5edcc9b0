// Package traffic makes traffic between the hosts of a lab: echo requests, and streams whose every byte is checked.
// It imports nothing else of this project but the lab.
package traffic

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/vxlane/vxlane/bench/lab"
)

// Ping sends one echo request with size bytes of data from host to dst, and waits for the answer that has the same
// data. It returns the time that took.
func Ping(from *lab.Host, dst netip.Addr, size int, timeout time.Duration) (time.Duration, error) {
	p := pinger{dst: dst, id: os.Getpid() & 0xffff, data: pattern(size)}
	err := from.Run(func() (err error) {
		p.conn, err = icmp.ListenPacket(p.network())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ping %s from %s: %w", dst, from.Name(), err)
	}
	defer p.conn.Close()
	rtt, err := p.exchange(timeout)
	if err != nil {
		return 0, fmt.Errorf("ping %s from %s with %d bytes: %w", dst, from.Name(), size, err)
	}
	return rtt, nil
}

// PingUntil sends echo requests until one is answered or ctx ends.
func PingUntil(ctx context.Context, from *lab.Host, dst netip.Addr) error {
	const patience = 50 * time.Millisecond
	for {
		_, err := Ping(from, dst, 56, patience)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(patience / 10):
		}
	}
}

type pinger struct {
	conn *icmp.PacketConn
	dst  netip.Addr
	id   int
	data []byte
}

func (p *pinger) network() (network, address string) {
	if p.dst.Is4() {
		return "ip4:icmp", "0.0.0.0"
	}
	return "ip6:ipv6-icmp", "::"
}

func (p *pinger) exchange(timeout time.Duration) (time.Duration, error) {
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if p.dst.Is6() {
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	seq := int(time.Now().UnixNano() & 0xffff)
	msg := icmp.Message{Type: request, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: p.data}}
	b, err := msg.Marshal(nil) // the kernel fills in ICMPv6 checksums
	if err != nil {
		return 0, err
	}
	if err := p.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: p.dst.AsSlice()}); err != nil {
		return 0, err
	}
	return p.await(reply, seq, start)
}

func (p *pinger) await(reply icmp.Type, seq int, start time.Time) (time.Duration, error) {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := p.conn.ReadFrom(buf)
		if err != nil {
			return 0, err
		}
		rtt := time.Since(start)
		m, err := icmp.ParseMessage(reply.Protocol(), buf[:n])
		if err != nil || m.Type != reply {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if !ok || echo.ID != p.id || echo.Seq != seq {
			continue
		}
		if !bytes.Equal(echo.Data, p.data) {
			return 0, errors.New("the answer carries other data")
		}
		return rtt, nil
	}
}

// pattern returns size bytes in which every position tells where it is.
func pattern(size int) []byte {
	b := make([]byte, size+8)
	for i := 0; i < size; i += 8 {
		binary.BigEndian.PutUint64(b[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	return b[:size]
}
