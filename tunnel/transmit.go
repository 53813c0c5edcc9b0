package tunnel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// transmitter is one worker's loop from the device to the underlay. All it touches belongs to it, but the table.
type transmitter struct {
	t      *Tunnel
	worker int
	queue  Queue
	sender Sender
	count  *counters

	packets   []Packet   // what Read fills
	datagrams []Datagram // what goes to the sender, in order
	origin    []sent     // who each datagram is for
}

// sent remembers what a datagram came from until its fate is known.
type sent struct {
	peer  *routing.Peer
	bytes int
}

func newTransmitter(t *Tunnel, worker int, q Queue, s Sender) *transmitter {
	return &transmitter{
		t: t, worker: worker, queue: q, sender: s, count: new(counters),
		packets:   NewPackets(BatchSize),
		datagrams: make([]Datagram, 0, BatchSize),
		origin:    make([]sent, 0, BatchSize),
	}
}

// run moves batches until the device is closed.
func (x *transmitter) run() error {
	for {
		n, err := x.queue.Read(x.packets)
		if errors.Is(err, ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from device: %w", err)
		}
		x.step(x.packets[:n])
	}
}

// step moves one batch: one load of the table, a verdict and a header for each packet, one send.
func (x *transmitter) step(batch []Packet) {
	x.count.countBatch(len(batch))
	view := x.t.view()
	x.datagrams, x.origin = x.datagrams[:0], x.origin[:0]
	for i := range batch {
		p := &batch[i]
		x.count.received.Add(uint64(p.Count))
		if r := x.encapsulate(view, p); r != encap.None {
			x.count.drop(r, p.Count)
		}
	}
	if len(x.datagrams) == 0 {
		return
	}
	x.sender.Send(x.datagrams)
	x.account()
}

// encapsulate makes a datagram of p, hands it to the neighbour table to wait for a MAC, or says why it is dropped.
func (x *transmitter) encapsulate(view View, p *Packet) encap.Reason {
	v := DecideTransmit(&x.t.rules, view, p.Data, &p.Headers)
	if v.Reason != encap.None {
		x.explain(v.Reason, p)
		return v.Reason
	}
	x.t.hints.learn(p.Data, &p.Headers)
	link := encap.Link{Src: x.t.rules.MAC}
	if x.t.rules.Ethernet {
		if link.Dst = v.Peer.LinkAddr(); link.Dst.IsZero() {
			mac, fate := x.t.neighbours.hold(v.Peer, p)
			if mac.IsZero() {
				return fate
			}
			link.Dst = mac
		}
	}
	header, whole := p.withHeader(x.t.rules.Codec.Headroom())
	if r := x.t.rules.Codec.Encap(header, p.Data, &p.Headers, link); r != encap.None {
		x.explain(r, p)
		return r
	}
	x.datagrams = append(x.datagrams, x.t.datagram(whole, &p.Headers, v.Peer.Endpoint))
	x.origin = append(x.origin, sent{v.Peer, len(p.Data)})
	return encap.None
}

// account books what Send reports.
func (x *transmitter) account() {
	for i := range x.datagrams {
		d, o := &x.datagrams[i], &x.origin[i]
		if d.Reason != encap.None {
			x.count.drop(d.Reason, 1)
			continue
		}
		x.count.delivered.Add(1)
		x.count.bytes.Add(uint64(o.bytes))
		c := o.peer.State().Counters(x.worker)
		c.EncapPackets.Add(1)
		c.EncapBytes.Add(uint64(o.bytes))
	}
}

// explain answers a dropped packet with an ICMP error, where its sender can use one and the limits allow it.
func (x *transmitter) explain(r encap.Reason, p *Packet) {
	var u encap.Unreachable
	switch {
	case r == encap.TTLExpired:
		u = encap.TimeExceeded
	case r != encap.NoTXTarget:
		return
	case x.t.rules.Ethernet:
		u = encap.HostUnreachable
	default:
		u = encap.NetUnreachable
	}
	if encap.MayAnswerWithError(p.Data, &p.Headers) {
		x.t.injectError(u, p)
	}
}

// datagram describes one datagram that carries a packet to remote.
func (t *Tunnel) datagram(data []byte, h *encap.Headers, remote netip.AddrPort) Datagram {
	d := Datagram{Data: data, Remote: remote, Flow: h.FlowHash()}
	d.DF = h.DF || h.Kind == encap.KindIPv6 // as the kernel's df inherit (drivers/net/vxlan/vxlan_core.c, vxlan_xmit_one)
	d.TOS = encap.OuterTOS(h.TOS, t.cfg.TOSInherit, t.cfg.TOS)
	if t.cfg.TTLInherit {
		d.TTL = max(h.TTL, 1)
	}
	return d
}

// injectError writes an ICMP error about p to the device, as from the address that p was for: the kernel takes nothing
// from a device whose source is one of its own addresses (net/ipv4/fib_frontend.c, __fib_validate_source), and the route
// back to this one leads to the device.
func (t *Tunnel) injectError(u encap.Unreachable, p *Packet) {
	t.slow.mu.Lock()
	defer t.slow.mu.Unlock()
	if !t.slow.limit.allow(p.Headers.Src) {
		return
	}
	t.slow.buf = encap.AppendUnreachable(t.slow.buf[:0], u, p.Headers.Dst, p.Data, &p.Headers)
	if t.device.Inject(t.slow.buf) == nil {
		t.slow.generated.icmpErrors.Add(1)
	}
}
