// Package tunneltest has the two ends of a tunnel in memory, with faults that a test injects.
package tunneltest

import (
	"errors"
	"net/netip"
	"sync"

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
		d.queues = append(d.queues, &Queue{in: make(chan [][]byte, 1024), closed: make(chan struct{})})
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
func (d *Device) Close() error {
	for _, q := range d.queues {
		q.close()
	}
	return nil
}

// Queue is one queue of a Device.
type Queue struct {
	in     chan [][]byte
	once   sync.Once
	closed chan struct{}

	// Refuse, when set, says for each written packet whether the device refuses it. Gone, when set, ends Write with it.
	Refuse func(packet []byte) bool
	Gone   error

	mu      sync.Mutex
	written [][]byte
}

func (q *Queue) close() { q.once.Do(func() { close(q.closed) }) }

// Put hands packets to the tunnel as one batch.
func (q *Queue) Put(packets ...[]byte) { q.in <- packets }

// Read implements tunnel.Queue.
func (q *Queue) Read(batch []tunnel.Packet) (int, error) {
	select {
	case packets := <-q.in:
		for i, p := range packets {
			batch[i].Data = batch[i].Space()[:copy(batch[i].Space(), p)]
			batch[i].Offload, batch[i].Count = encap.Offload{}, 1
		}
		return len(packets), nil
	case <-q.closed:
		return 0, tunnel.ErrClosed
	}
}

// Write implements tunnel.Queue. Super-packets are kept whole and count as what they stand for.
func (q *Queue) Write(batch []tunnel.Packet) error {
	if q.Gone != nil {
		return q.Gone
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range batch {
		p := &batch[i]
		p.Sent = 0
		if q.Refuse == nil || !q.Refuse(p.Data) {
			q.written = append(q.written, append([]byte(nil), p.Data...))
			p.Sent = p.Count
		}
	}
	return nil
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
}

// NewUnderlay returns an underlay for n workers.
func NewUnderlay(n int) *Underlay {
	u := new(Underlay)
	for range n {
		u.receivers = append(u.receivers, &Receiver{in: make(chan []tunnel.Datagram, 1024), closed: make(chan struct{})})
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
		d.Sent, d.Reason = 1, encap.None
		if u.Refuse != nil {
			d.Reason = u.Refuse(*d)
		}
		if d.Reason != encap.None {
			d.Sent = 0
			continue
		}
		kept := *d
		kept.Data = append([]byte(nil), d.Data...)
		u.sent = append(u.sent, kept)
	}
}

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
func (u *Underlay) Close() error {
	for _, r := range u.receivers {
		r.once.Do(func() { close(r.closed) })
	}
	return nil
}

// Receiver is one receiver of an Underlay.
type Receiver struct {
	in     chan []tunnel.Datagram
	once   sync.Once
	closed chan struct{}
}

// Put hands datagrams to the tunnel as one batch.
func (r *Receiver) Put(datagrams ...tunnel.Datagram) { r.in <- datagrams }

// From returns a datagram from addr with port 8472.
func From(addr string, data []byte) tunnel.Datagram {
	return tunnel.Datagram{Data: data, Remote: netip.AddrPortFrom(netip.MustParseAddr(addr), 8472)}
}

// Receive implements tunnel.Receiver.
func (r *Receiver) Receive(batch []tunnel.Datagram) (int, error) {
	select {
	case datagrams := <-r.in:
		return copy(batch, datagrams), nil
	case <-r.closed:
		return 0, tunnel.ErrClosed
	}
}

// ErrGone stands for a device that was removed.
var ErrGone = errors.New("device gone")
