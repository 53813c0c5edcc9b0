// Package tunneltest has the two ends of a tunnel in memory, with faults that a test injects.
package tunneltest

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/tunnel"
)

// Device is a device with one queue for each worker. What a test puts in, the tunnel reads; what the tunnel writes, the
// test takes out.
type Device struct {
	queues []*Queue

	mu       sync.Mutex
	injected [][]byte
}

// NewDevice returns a device with n queues.
func NewDevice(n int) *Device {
	d := new(Device)
	for range n {
		d.queues = append(d.queues, &Queue{in: make(chan [][]byte, 1024)})
	}
	return d
}

// Queues implements tunnel.Device.
func (d *Device) Queues() []tunnel.Queue {
	out := make([]tunnel.Queue, len(d.queues))
	for i, q := range d.queues {
		out[i] = q
	}
	return out
}

// Queue returns queue i.
func (d *Device) Queue(i int) *Queue { return d.queues[i] }

// Inject implements tunnel.Device.
func (d *Device) Inject(packet []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.injected = append(d.injected, append([]byte(nil), packet...))
	return nil
}

// Injected returns what the tunnel injected so far.
func (d *Device) Injected() [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.injected
}

// Close implements tunnel.Device.
func (d *Device) Close() error { return nil }

// Queue is one queue of a Device.
type Queue struct {
	in   chan [][]byte
	bell bell
	end  end

	// Offload is the metadata of every packet that the tunnel reads; TakesSupers makes it write super-packets whole.
	Offload     encap.Offload
	TakesSupers bool

	// Refuse, when set, says for each written packet whether the device refuses it. Gone, when set, ends Write with it, Unreadable Read.
	Refuse     func(packet []byte) bool
	Gone       error
	Unreadable error

	mu       sync.Mutex
	written  [][]byte
	offloads []encap.Offload
}

// Put hands packets to the tunnel as one batch.
func (q *Queue) Put(packets ...[]byte) {
	q.in <- packets
	q.bell.ring()
}

// Read implements tunnel.Queue.
func (q *Queue) Read(b *tunnel.Batch) error {
	if q.end.drained {
		return nil
	}
	select {
	case packets := <-q.in:
		for _, p := range packets {
			b.Add(copy(b.Space()[tunnel.Headroom:], p), q.Offload)
		}
	default:
		q.end.exhausted()
	}
	return q.Unreadable
}

// Joins implements tunnel.Queue.
func (q *Queue) Joins(encap.GSO) bool { return q.TakesSupers }

// Write implements tunnel.Queue. Super-packets are kept whole and count as what they stand for; a checksum that was left
// to the device is finished in others.
func (q *Queue) Write(packets []tunnel.Packet) error {
	if q.Gone != nil {
		return q.Gone
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range packets {
		p := &packets[i]
		p.Sent = 0
		if q.Refuse != nil && q.Refuse(p.Data) {
			continue
		}
		kept := append([]byte(nil), p.Data...)
		for _, part := range p.Parts {
			kept = append(kept, part...)
		}
		if p.Offload.NeedsChecksum && !p.Offload.IsSuper() {
			p.Offload.FinishChecksum(kept)
		}
		q.written = append(q.written, kept)
		q.offloads = append(q.offloads, p.Offload)
		p.Sent = p.Count
	}
	return nil
}

// Offloads returns the metadata of what the tunnel wrote so far.
func (q *Queue) Offloads() []encap.Offload {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.offloads
}

// Written returns what the tunnel wrote so far.
func (q *Queue) Written() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.written
}

// Underlay is an underlay with one receiver for each worker.
type Underlay struct {
	receivers []*Receiver

	mu   sync.Mutex
	sent []tunnel.Datagram
	// Refuse, when set, says for each datagram why it cannot be sent; encap.None sends it.
	Refuse func(tunnel.Datagram) encap.Reason
	// CarryWhole, when set, lets super-packets go as Datagram.Packet, so many as WholeLeft says.
	CarryWhole bool
	WholeLeft  int
}

// NewUnderlay returns an underlay for n workers.
func NewUnderlay(n int) *Underlay {
	u := new(Underlay)
	for range n {
		u.receivers = append(u.receivers, &Receiver{in: make(chan []tunnel.Datagram, 1024)})
	}
	return u
}

// NewSender implements tunnel.Underlay.
func (u *Underlay) NewSender() tunnel.Sender { return u }

// Send implements tunnel.Sender.
func (u *Underlay) Send(batch []tunnel.Datagram) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range batch {
		d := &batch[i]
		d.Sent, d.Reason, d.Refused = d.Count, encap.None, false
		if d.Packet != nil {
			if u.WholeLeft--; u.WholeLeft < 0 {
				u.CarryWhole, d.Refused, d.Sent = false, true, 0
				continue
			}
		}
		if u.Refuse != nil {
			d.Reason = u.Refuse(*d)
		}
		if d.Reason != encap.None {
			d.Sent = 0
			continue
		}
		kept := *d
		kept.Data = append([]byte(nil), d.Data...)
		for _, p := range d.Parts {
			kept.Data = append(kept.Data, p...)
		}
		u.sent = append(u.sent, kept)
	}
}

// Carries implements tunnel.Sender, as CarryWhole says.
func (u *Underlay) Carries(*tunnel.Packet) bool { return u.CarryWhole }

// Sent returns what the tunnel sent so far.
func (u *Underlay) Sent() []tunnel.Datagram {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sent
}

// Receivers implements tunnel.Underlay.
func (u *Underlay) Receivers() []tunnel.Receiver {
	out := make([]tunnel.Receiver, len(u.receivers))
	for i, r := range u.receivers {
		out[i] = r
	}
	return out
}

// Receiver returns receiver i.
func (u *Underlay) Receiver(i int) *Receiver { return u.receivers[i] }

// Close implements tunnel.Underlay.
func (u *Underlay) Close() error { return nil }

// Receiver is one receiver of an Underlay.
type Receiver struct {
	in   chan []tunnel.Datagram
	bell bell
	end  end

	// Endless, when set, is received whenever there is nothing else.
	Endless func() []tunnel.Datagram
}

// Put hands datagrams to the tunnel as one batch.
func (r *Receiver) Put(datagrams ...tunnel.Datagram) {
	r.in <- datagrams
	r.bell.ring()
}

// From returns a datagram from addr with port 8472.
func From(addr string, data []byte) tunnel.Datagram {
	return tunnel.Datagram{Data: data, Count: 1, Remote: netip.AddrPortFrom(netip.MustParseAddr(addr).Unmap(), 8472)}
}

// Receive implements tunnel.Receiver.
func (r *Receiver) Receive() ([]tunnel.Datagram, error) {
	if r.end.drained {
		return nil, nil
	}
	select {
	case datagrams := <-r.in:
		return datagrams, nil
	default:
		if r.Endless != nil {
			return r.Endless(), nil
		}
		r.end.exhausted()
		return nil, nil
	}
}

// end is one that looks for packets no more when it had none, until a waiter says otherwise.
type end struct{ watched, drained bool }

func (e *end) exhausted() { e.drained = e.watched }

// bell is what an end rings when there is something. All waiters that were told of it hear it.
type bell struct {
	mu    sync.Mutex
	heard []*waiter
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.heard {
		w.Wake()
	}
}

func (b *bell) tell(w *waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard = append(b.heard, w)
}

// waiter sleeps until a bell rings.
type waiter struct {
	rung chan struct{}
	ends []*end
}

func (w *waiter) watch(b *bell, e *end) {
	b.tell(w)
	e.watched = true
	w.ends = append(w.ends, e)
}

// NewWaiter makes a waiter for a Queue, a Receiver, or both.
func NewWaiter(q tunnel.Queue, r tunnel.Receiver) (tunnel.Waiter, error) {
	w := &waiter{rung: make(chan struct{}, 1)}
	if q != nil {
		w.watch(&q.(*Queue).bell, &q.(*Queue).end)
	}
	if r != nil {
		w.watch(&r.(*Receiver).bell, &r.(*Receiver).end)
	}
	return w, nil
}

// Wait implements tunnel.Waiter. A brief one ends after a while, as the kernel's does.
func (w *waiter) Wait(brief bool) error {
	var enough <-chan time.Time
	if brief {
		enough = time.After(8 * time.Millisecond)
	}
	select {
	case <-w.rung:
	case <-enough:
	}
	w.Look()
	return nil
}

// Drained implements tunnel.Waiter.
func (w *waiter) Drained() bool {
	for _, e := range w.ends {
		if !e.drained {
			return false
		}
	}
	return true
}

// Look implements tunnel.Waiter.
func (w *waiter) Look() {
	for _, e := range w.ends {
		e.drained = false
	}
}

// Wake implements tunnel.Waiter.
func (w *waiter) Wake() {
	select {
	case w.rung <- struct{}{}:
	default:
	}
}

// Close implements tunnel.Waiter.
func (w *waiter) Close() error { return nil }

// ErrGone stands for a device that was removed.
var ErrGone = errors.New("device gone")
