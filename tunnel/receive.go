package tunnel

import (
	"errors"
	"fmt"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// receiver is one worker's loop from the underlay to the device. All it touches belongs to it, but the table.
type receiver struct {
	t        *Tunnel
	worker   int
	queue    Queue
	underlay Receiver
	count    *counters

	datagrams []Datagram // what Receive fills
	packets   []Packet   // what goes to the device, in order
	origin    []*routing.Peer
}

func newReceiver(t *Tunnel, worker int, q Queue, u Receiver) *receiver {
	return &receiver{
		t: t, worker: worker, queue: q, underlay: u, count: new(counters),
		datagrams: make([]Datagram, BatchSize),
		packets:   make([]Packet, 0, BatchSize),
		origin:    make([]*routing.Peer, 0, BatchSize),
	}
}

// run moves batches until the underlay is closed.
func (x *receiver) run() error {
	for {
		n, err := x.underlay.Receive(x.datagrams)
		if errors.Is(err, ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive from underlay: %w", err)
		}
		switch err := x.step(x.datagrams[:n]); {
		case errors.Is(err, ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("write to device: %w", err)
		}
	}
}

// step moves one batch: one load of the table, a verdict for each datagram, one write.
func (x *receiver) step(batch []Datagram) error {
	x.count.countBatch(len(batch))
	view := x.t.view()
	x.packets, x.origin = x.packets[:0], x.origin[:0]
	for i := range batch {
		x.decapsulate(view, &batch[i])
	}
	if len(x.packets) == 0 {
		return nil
	}
	err := x.queue.Write(x.packets)
	x.account(time.Now().Unix())
	return err
}

// decapsulate takes the packet out of d and lines it up for the device, consumes it, or drops it.
func (x *receiver) decapsulate(view View, d *Datagram) {
	x.packets = x.packets[:len(x.packets)+1]
	p := &x.packets[len(x.packets)-1]
	*p = Packet{Count: 1}
	packet, v := DecideReceive(&x.t.rules, view, d.Data, d.Remote.Addr().Unmap(), &p.Headers)
	p.Data = packet
	switch {
	case v.Reason != encap.None:
	case v.Consumed:
		v.Reason = x.t.neighbours.consume(v.Peer, packet, &p.Headers)
	default:
		v.Reason = x.finish(p, d.TOS)
	}
	x.count.received.Add(uint64(p.Count))
	switch {
	case v.Reason != encap.None:
		x.count.drop(v.Reason, p.Count)
	case v.Consumed:
		x.count.consumed.Add(uint64(p.Count))
	default:
		x.origin = append(x.origin, v.Peer)
		return
	}
	x.packets = x.packets[:len(x.packets)-1]
}

// finish does what this end of the tunnel owes a packet: the congestion mark, the TTL, and a checksum that a sender on
// this machine left to a device.
func (x *receiver) finish(p *Packet, outerTOS uint8) encap.Reason {
	h := &p.Headers
	limit := min(x.t.mtu, x.t.hints.limit(h.Dst))
	partial := encap.HasPartialChecksum(p.Data, h)
	if o, ok := encap.SuperTCP(p.Data, h, limit); ok && (partial || encap.InspectChecksum(p.Data, h) == encap.ChecksumWhole) {
		p.Offload = o
		p.Count = o.Segments(p.Data, h)
	} else if partial {
		encap.FinishChecksum(p.Data, h)
	}
	ecn, ok := encap.DecapECN(outerTOS, h.TOS)
	if !ok {
		return encap.IPTunnelECN
	}
	if r := x.t.rules.Codec.Forward(p.Data, h); r != encap.None {
		return r
	}
	encap.SetECN(p.Data, h, ecn)
	return encap.None
}

// account books what Write reports.
func (x *receiver) account(now int64) {
	for i := range x.packets {
		p, peer := &x.packets[i], x.origin[i]
		x.count.drop(encap.TUNWrite, p.Count-p.Sent)
		if p.Offload.IsSuper() {
			x.count.split.Add(uint64(p.Sent))
		}
		if p.Sent == 0 {
			continue
		}
		x.count.delivered.Add(uint64(p.Sent))
		x.count.bytes.Add(uint64(len(p.Data)))
		if peer == nil {
			continue
		}
		state := peer.State()
		state.SetLastReceive(now)
		c := state.Counters(x.worker)
		c.DecapPackets.Add(uint64(p.Sent))
		c.DecapBytes.Add(uint64(len(p.Data)))
	}
}
