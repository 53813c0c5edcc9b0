package load

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

// Datagrams describes UDP traffic.
type Datagrams struct {
	Flows int   // each with a source port of its own
	Sizes []int // of payload in bytes, sent in turn
	// Rate is how many packets a second are sent by all flows together; 0 is as many as the sender can.
	Rate float64
	// Pause is how long the receiver sleeps when its queue is empty; 0 is until there is a packet.
	Pause time.Duration
}

// IMIX is the usual mix of packet sizes, 7 small to 4 middle to 1 large, with the largest such that it fits into every tunnel.
var IMIX = []int{64, 570, 64, 64, 570, 64, 1400, 64, 570, 64, 64, 570}

// DatagramResult is what became of UDP packets.
type DatagramResult struct {
	Counts           []Count // one for each phase
	Sent, Received   uint64  // all phases together, late packets too
	ReceiverDropped  uint64  // packets that the receiving application was too slow for
	Sender, Receiver Load
}

// Loss returns the share of all packets that did not arrive, however late.
func (r DatagramResult) Loss() float64 { return loss(r.Sent, r.Received) }

// Loss returns the share of the packets offered during a phase that were not taken during it.
func (c Count) Loss() float64 { return loss(c.Offered, c.Packets) }

func loss(sent, received uint64) float64 {
	if sent == 0 {
		return 0
	}
	return 1 - float64(min(received, sent))/float64(sent)
}

// Sustained reports whether what was offered during a phase was taken during it, up to what was just under way: a path
// that only puts packets into a queue does not carry them.
func (c Count) Sustained() bool {
	const underWay, share = vector, 0.98
	return float64(c.Packets) >= share*float64(c.Offered)-underWay
}

// drain is how long the receiver waits for packets that are still under way.
const drain = 30 * time.Millisecond

// Send sends UDP packets along a path while the phases pass.
func Send(ctx context.Context, p Path, d Datagrams, phases []Phase) (DatagramResult, error) {
	sockets, err := openPair(p, d.Flows)
	if err != nil {
		return DatagramResult{}, wrap("udp", p, err)
	}
	defer sockets.close()
	// One thread sends on small machines: a second one would only take the cores of what is measured.
	senders := max(1, min(d.Flows, runtime.NumCPU()/4))
	sent, received := make([]counter, senders), make([]counter, 1)
	failed := newFailures()
	sending, receiving := newCrew(failed), newCrew(failed)
	receiving.start(func() error { return wrap("udp receive", p, receiveAll(receiving, sockets.to, d.Pause, &received[0])) })
	for i := range senders {
		s := newSender(share(sockets.from, i, senders), d.Sizes, d.Rate/float64(senders))
		sending.start(func() error { return wrap("udp send", p, s.run(sending, &sent[i])) })
	}
	read := func() (t totals) {
		t.offered, _ = sum(sent)
		t.packets, t.bytes = sum(received)
		return t
	}
	var r DatagramResult
	r.Counts, err = runPhases(ctx, phases, read, failed)
	sending.finish(func() {})
	for last := ^uint64(0); last != read().packets; {
		last = read().packets
		time.Sleep(drain)
	}
	receiving.finish(func() {})
	all := read()
	r.Sent, r.Received, r.ReceiverDropped = all.offered, all.packets, dropped(sockets.to)
	r.Sender, r.Receiver = sending.load, receiving.load
	if err == nil && r.Received == 0 {
		err = wrap("udp", p, fmt.Errorf("none of %d packets arrived", r.Sent))
	}
	return r, err
}

// share returns every n-th of the sockets, beginning with the i-th.
func share(sockets []int, i, n int) (mine []int) {
	for ; i < len(sockets); i += n {
		mine = append(mine, sockets[i])
	}
	return mine
}

// ReceivePause is how long a receiver sleeps best when its queue is empty. One that sleeps until there is a packet is woken by
// every single one when packets come slower than it reads, and whoever delivers them pays for it: the sender, when the
// kernel does it all in one go. One that sleeps shorter takes the cores with its timers (docs/decisions/0007-how-the-harness-measures.md).
const ReceivePause = 500 * time.Microsecond

// longestWait is after how long a receiver that waits for a packet finds out that the crew has stopped.
const longestWait = 10 * time.Millisecond

// receiveAll takes packets in batches until the crew stops.
func receiveAll(c *crew, fd int, pause time.Duration, count *counter) error {
	b := newBatch(vector, 2048)
	for {
		n, err := b.receive(fd)
		if err != nil {
			if !transient(err) {
				return err
			}
			if c.stop.Load() { // only now: what was queued is taken first, however long this thread had to wait
				return nil
			}
			if pause > 0 {
				rest(pause)
			} else {
				waitReadable(fd, longestWait)
			}
			continue
		}
		bytes := uint64(0)
		for i := range n {
			bytes += uint64(b.messages[i].length)
		}
		count.packets.Add(uint64(n))
		count.bytes.Add(bytes)
	}
}

// sender sends on its sockets in turn, a burst on each.
type sender struct {
	sockets  []int
	sizes    []int
	batch    *batch
	burst    int
	rate     float64
	sequence int // packets so far: the next size
}

func newSender(sockets, sizes []int, rate float64) *sender {
	const fewest = 4 // packets in a call, however many flows there are
	return &sender{sockets: sockets, sizes: sizes, batch: newBatch(vector, 2048), burst: max(fewest, vector/len(sockets)), rate: rate}
}

func (s *sender) run(c *crew, count *counter) error {
	pace := newPacer(s.rate)
	for turn := 0; !c.stop.Load(); turn++ {
		n := pace.due(time.Now(), s.burst)
		if n == 0 {
			rest(pace.pause())
			continue
		}
		sent, err := s.send(s.sockets[turn%len(s.sockets)], n)
		count.packets.Add(uint64(sent))
		pace.sent(sent)
		if err != nil && !transient(err) {
			return err
		}
	}
	return nil
}

func (s *sender) send(fd, n int) (int, error) {
	for i := range n {
		s.batch.buffers[i].SetLen(s.sizes[(s.sequence+i)%len(s.sizes)])
	}
	sent, err := s.batch.send(fd, n)
	s.sequence += sent
	return sent, err
}

// pacer says how many packets are due at a rate. What could not be sent for long is given up: a burst that no
// application would send must not follow a pause.
type pacer struct {
	interval float64 // nanoseconds for each packet; 0 is no pace
	next     time.Time
}

const (
	longestBacklog = 5 * time.Millisecond
	shortestPause  = 20 * time.Microsecond
)

func newPacer(rate float64) *pacer {
	if rate <= 0 {
		return &pacer{}
	}
	return &pacer{interval: float64(time.Second) / rate, next: time.Now()}
}

func (p *pacer) due(now time.Time, most int) int {
	if p.interval == 0 {
		return most
	}
	late := now.Sub(p.next)
	if late < 0 {
		return 0
	}
	if late > longestBacklog {
		p.next = now.Add(-longestBacklog)
		late = longestBacklog
	}
	return min(most, 1+int(float64(late)/p.interval))
}

func (p *pacer) sent(n int) { p.next = p.next.Add(time.Duration(float64(n) * p.interval)) }

func (p *pacer) pause() time.Duration { return max(shortestPause, time.Until(p.next)) }
