package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
)

// EchoResult is what became of packets that went to a host and back, added up over all flows.
type EchoResult struct {
	Sent, Received                   int
	Reordered, Duplicated, Corrupted int // only packets that were not fragmented have an order
}

// window is how many packets of a flow are under way at most: fewer than any queue on the way drops.
const window = 32

const serverBuffer = 4 << 20

// Echo sends numbered UDP packets of mixed sizes in several flows from one host to an address of another, which sends
// them back, and checks what returns: order within each flow, checksum, and that nothing comes twice.
func Echo(ctx context.Context, from, to *lab.Host, dst netip.Addr, flows, packets int) (EchoResult, error) {
	var server *net.UDPConn
	err := to.Run(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 0)))
		if err != nil {
			return err
		}
		return server.SetReadBuffer(serverBuffer) // all flows' windows at once
	})
	if err != nil {
		return EchoResult{}, fmt.Errorf("echo at %s: %w", dst, err)
	}
	defer server.Close()
	go reflect(server)

	var (
		total EchoResult
		errs  []error
		mu    sync.Mutex
		wg    sync.WaitGroup
	)
	for range flows {
		wg.Go(func() {
			r, err := echoFlow(ctx, from, server.LocalAddr().String(), packets)
			mu.Lock()
			defer mu.Unlock()
			total.add(r)
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return total, errors.Join(errs...)
}

func (r *EchoResult) add(o EchoResult) {
	r.Sent += o.Sent
	r.Received += o.Received
	r.Reordered += o.Reordered
	r.Duplicated += o.Duplicated
	r.Corrupted += o.Corrupted
}

// reflect sends back what arrives until the socket is closed.
func reflect(conn *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from) // a packet that is lost is the sender's to notice
		}
	}
}

// echoFlow keeps up to window packets of one flow under way.
func echoFlow(ctx context.Context, from *lab.Host, to string, packets int) (EchoResult, error) {
	var conn net.Conn
	err := from.Run(func() (err error) {
		conn, err = net.Dial("udp", to)
		return err
	})
	if err != nil {
		return EchoResult{}, err
	}
	defer conn.Close()
	f := flow{conn: conn, seen: make([]bool, packets), buf: make([]byte, 1<<16)}
	for seq := range packets {
		if err := ctx.Err(); err != nil {
			return f.result, err
		}
		if _, err := conn.Write(numbered(seq)); err != nil {
			return f.result, err
		}
		f.result.Sent++
		if f.result.Sent-f.answered >= window {
			if err := f.receive(200 * time.Millisecond); err != nil {
				return f.result, err
			}
		}
	}
	for f.answered < f.result.Sent {
		if err := f.receive(200 * time.Millisecond); err != nil {
			return f.result, err
		}
	}
	return f.result, nil
}

type flow struct {
	conn     net.Conn
	buf      []byte
	seen     []bool
	last     int
	answered int // packets that came back, or that are given up
	result   EchoResult
}

// receive takes one packet; when none comes for a while, what is under way is given up.
func (f *flow) receive(patience time.Duration) error {
	if err := f.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, err := f.conn.Read(f.buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		f.answered = f.result.Sent
		return nil
	}
	if err != nil {
		return err
	}
	f.answered++
	f.result.Received++
	seq, ok := readNumbered(f.buf[:n])
	switch {
	case !ok || seq >= len(f.seen):
		f.result.Corrupted++
	case f.seen[seq]:
		f.result.Duplicated++
	case len(f.buf[:n]) > largestFrame:
		f.seen[seq] = true // fragments have no ports: they take another way, through any tunnel that spreads flows
	default:
		if seq < f.last {
			f.result.Reordered++
		}
		f.last, f.seen[seq] = seq, true
	}
	return nil
}

// largestFrame is the most bytes that are not fragmented.
const largestFrame = 1316

// sizeOf returns the size of packet seq, in bytes: runs of equal size, as senders make them and tunnels join them, of 16
// bytes up to what one frame holds, and now and then a packet that must be fragmented, of up to 60,000.
func sizeOf(seq int) int {
	const run, rare = 37, 997
	if seq%rare == rare-1 {
		return 1400 + seq*7919%58_600
	}
	return 16 + seq/run*7919%1300
}

// numbered returns packet seq: its number, filling that depends on it, and a checksum of both.
func numbered(seq int) []byte {
	b := make([]byte, sizeOf(seq))
	binary.BigEndian.PutUint64(b, uint64(seq))
	for i := 8; i < len(b)-4; i++ {
		b[i] = byte(seq + i)
	}
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.ChecksumIEEE(b[:len(b)-4]))
	return b
}

func readNumbered(b []byte) (seq int, ok bool) {
	if len(b) < 16 || crc32.ChecksumIEEE(b[:len(b)-4]) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return 0, false
	}
	seq = int(binary.BigEndian.Uint64(b))
	return seq, len(b) == sizeOf(seq)
}
