package traffic

import (
	"bytes"
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

	"golang.org/x/net/ipv4"

	"github.com/vxlane/vxlane/bench/lab"
)

// EchoResult is what became of packets that went to a host and back, added up over all flows.
type EchoResult struct {
	Sent, Received                   int
	Reordered, Duplicated, Corrupted int // only packets that were not fragmented have an order
}

const (
	// Gently is a window for ways with small queues: the socket of flannel's own proxy has room for some ninety packets, of all flows.
	// Briskly fills every queue there is, and hardly ever overflows one.
	Gently, Briskly = 32, 64

	messagesInCall = 64
	socketBuffer   = 4 << 20 // bytes: room for all flows' windows at once, as the kernel counts
	largestUDP     = 1 << 16 // bytes
)

// Echo sends numbered UDP packets of mixed sizes in several flows from one host to an address of another, which sends
// them back, and checks what returns: order within each flow, checksum, and that nothing comes twice. Three of
// four flows hand runs of equal size to the kernel as one super-packet (UDP_SEGMENT, udp(7)). Of each flow, window packets
// are under way at most: Gently or Briskly.
func Echo(ctx context.Context, from, to *lab.Host, dst netip.Addr, flows, packets, window int) (EchoResult, error) {
	var server *net.UDPConn
	err := to.Run(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 0)))
		if err != nil {
			return err
		}
		return errors.Join(makeRoom(server), takeSupers(server))
	})
	if err != nil {
		return EchoResult{}, fmt.Errorf("echo at %s: %w", dst, err)
	}
	defer server.Close()
	go reflect(ipv4.NewPacketConn(server))

	var (
		total EchoResult
		errs  []error
		mu    sync.Mutex
		wg    sync.WaitGroup
	)
	for i := range flows {
		wg.Go(func() {
			r, err := echoFlow(ctx, from, server.LocalAddr().String(), packets, window, i%4 != 0)
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

// echoFlow keeps up to window packets of one flow under way.
func echoFlow(ctx context.Context, from *lab.Host, to string, packets, window int, supers bool) (EchoResult, error) {
	var conn net.Conn
	err := from.Run(func() (err error) {
		conn, err = net.Dial("udp", to)
		return err
	})
	if err != nil {
		return EchoResult{}, err
	}
	defer conn.Close()
	socket := conn.(*net.UDPConn)
	if err := makeRoom(socket); err != nil {
		return EchoResult{}, err
	}
	f := flow{
		conn: ipv4.NewPacketConn(socket), supers: supers, packets: packets,
		seen: make([]uint64, packets/64+1), in: newMessages(messagesInCall),
	}
	for f.result.Sent < packets || f.answered < f.result.Sent {
		if err := ctx.Err(); err != nil {
			return f.result, err
		}
		if free := window - (f.result.Sent - f.answered); free >= window/2 && f.result.Sent < packets {
			if err := f.send(min(free, packets-f.result.Sent)); err != nil {
				return f.result, err
			}
		}
		if err := f.receive(); err != nil {
			return f.result, err
		}
	}
	return f.result, nil
}

type flow struct {
	conn     *ipv4.PacketConn
	supers   bool
	packets  int
	seen     []uint64 // a bit for each packet
	last     int
	answered int // packets that came back, or that are given up
	result   EchoResult
	in       []ipv4.Message
	out      []ipv4.Message
	data     []byte // what the messages of out hold
}

// send sends the next packets, several in a message where they have one size.
func (f *flow) send(packets int) error {
	f.data, f.out = f.data[:0], f.out[:0]
	for seq := f.result.Sent; seq < f.result.Sent+packets; {
		from, run := len(f.data), 1
		if f.supers {
			run = runLength(seq, f.result.Sent+packets-seq)
		}
		for i := range run {
			f.data = appendNumbered(f.data, seq+i)
		}
		m := ipv4.Message{Buffers: [][]byte{f.data[from:]}}
		if run > 1 {
			m.OOB = segmentsOf(sizeOf(seq))
		}
		f.out = append(f.out, m)
		seq += run
	}
	for rest := f.out; len(rest) > 0; {
		n, err := f.conn.WriteBatch(rest, 0)
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	f.result.Sent += packets
	return nil
}

// lossTime is how long nothing comes until what is under way counts as lost.
const lossTime = time.Second

// receive takes the packets that are there, at least one; when none comes for long, what is under way is given up.
func (f *flow) receive() error {
	if err := f.conn.SetReadDeadline(time.Now().Add(lossTime)); err != nil {
		return err
	}
	n, err := f.conn.ReadBatch(f.in, 0)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		f.answered = f.result.Sent
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range f.in[:n] {
		f.check(m.Buffers[0][:m.N])
	}
	return nil
}

func (f *flow) check(packet []byte) {
	f.answered = min(f.answered+1, f.result.Sent) // it may be one that was given up
	f.result.Received++
	seq, ok := readNumbered(packet)
	switch {
	case !ok || seq >= f.packets:
		f.result.Corrupted++
		return
	case f.seen[seq/64]&(1<<(seq%64)) != 0:
		f.result.Duplicated++
	case len(packet) > largestFrame: // fragments have no ports: they take another way, through any tunnel that spreads flows
	case seq < f.last:
		f.result.Reordered++
	default:
		f.last = seq
	}
	f.seen[seq/64] |= 1 << (seq % 64)
}

// largestFrame is the most bytes that are not fragmented.
const largestFrame = 1316

const (
	sameSize = 37  // packets that follow each other with one size
	rare     = 997 // one in so many is a large one
)

// sizeOf returns the size of packet seq, in bytes: runs of equal size, as senders make them and tunnels join them, of 16
// bytes up to what one frame holds, and now and then a packet that must be fragmented, of up to 60,000.
func sizeOf(seq int) int {
	if seq%rare == rare-1 {
		return 1400 + seq*7919%58_600
	}
	return 16 + seq/sameSize*7919%1300
}

// runLength returns how many packets from seq on, most at most, have its size and need no fragments.
func runLength(seq, most int) int {
	n := 1
	for sizeOf(seq) <= largestFrame && n < most && sizeOf(seq+n) == sizeOf(seq) {
		n++
	}
	return n
}

// filling is all byte values in turn, as often as the largest packet needs from any of them on.
var filling = bytes.Repeat(func() []byte {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}(), largestUDP/256+1)

// appendNumbered appends packet seq: its number, filling that depends on it, and a checksum of both.
func appendNumbered(b []byte, seq int) []byte {
	begin, size := len(b), sizeOf(seq)
	b = binary.BigEndian.AppendUint64(b, uint64(seq))
	b = append(b, filling[seq%256:][:size-12]...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[begin:]))
}

func readNumbered(b []byte) (seq int, ok bool) {
	if len(b) < 16 || crc32.ChecksumIEEE(b[:len(b)-4]) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return 0, false
	}
	seq = int(binary.BigEndian.Uint64(b))
	return seq, len(b) == sizeOf(seq)
}
