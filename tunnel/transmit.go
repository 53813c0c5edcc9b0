package tunnel

import (
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// transmitter is one worker's way from the device to the underlay. All it touches belongs to it, but the table.
type transmitter struct {
	t      *Tunnel
	worker int
	queue  Queue
	sender Sender
	count  *counters

	batch     *Batch
	datagrams []Datagram // what goes to the sender, in order
	origin    []sent     // who each datagram is for
	refused   []refusal  // what must be sent another way
	cutter    cutter
	floods    bucket // further copies that flooding may send
}

// sent remembers what a datagram came from until its fate is known.
type sent struct {
	peer  *routing.Peer
	bytes int  // of packets, headers of the underlay not included
	copy  bool // a further copy of a flooded frame, which is booked apart
}

// refusal is a packet that the sender had said it takes whole, and then did not.
type refusal struct {
	peer   *routing.Peer
	packet *Packet
}

func newTransmitter(t *Tunnel, worker int, q Queue, s Sender) *transmitter {
	return &transmitter{
		t: t, worker: worker, queue: q, sender: s, count: new(counters),
		datagrams: make([]Datagram, 0, BatchSize),
		origin:    make([]sent, 0, BatchSize),
		cutter:    newCutter(),
	}
}

// turn moves what the device has and reports how much that was.
func (x *transmitter) turn() (haul, error) {
	if x.batch == nil {
		x.batch = NewBatch()
	}
	x.batch.Reset()
	err := x.queue.Read(x.batch)
	if len(x.batch.packets) == 0 {
		return haul{}, err
	}
	moved := haul{packets: len(x.batch.packets)}
	for i := range x.batch.packets {
		moved.bytes += len(x.batch.packets[i].Data)
	}
	x.step(x.batch.packets)
	return moved, err
}

// step moves one batch: one load of the table, a verdict and a header for each packet, one send.
func (x *transmitter) step(batch []Packet) {
	x.count.countBatch(len(batch))
	view := x.t.view()
	received := 0
	for i := range batch {
		x.encapsulate(view, &batch[i])
		received += batch[i].Count
	}
	x.count.received.Add(uint64(received))
	x.flush()
}

// flush sends what was lined up and books what became of it. What the sender refuses goes once more, another way.
func (x *transmitter) flush() {
	for len(x.datagrams) > 0 {
		x.sender.Send(x.datagrams)
		x.account()
		x.datagrams, x.origin = x.datagrams[:0], x.origin[:0]
		x.cutter.reset()
		for _, r := range x.refused {
			if reason := x.lineUp(r.peer, r.packet, false); reason != encap.None {
				x.count.drop(reason, r.packet.Count)
			}
		}
		x.refused = x.refused[:0]
	}
}

// encapsulate makes a datagram of p, or a train, hands it to the neighbour table to wait for a MAC, or drops it.
func (x *transmitter) encapsulate(view View, p *Packet) {
	v := DecideTransmit(&x.t.rules, view, p.Data, &p.Headers)
	p.Count = p.Offload.Segments(p.Data, &p.Headers)
	r, answered := v.Reason, false
	if x.t.rules.Bridge && p.Count == 1 {
		var unanswered encap.Reason
		if answered, unanswered = x.t.suppress(view, p); unanswered != encap.None {
			r = unanswered
		}
	}
	switch {
	case answered:
		x.count.consumed.Add(1)
		return
	case r != encap.None:
	case v.Flood:
		v.Peer, r = x.flood(view.Stations.everyone(), p)
	case !x.t.fits(v.Peer, p):
		r = encap.PktTooBig
	case x.t.rules.Bridge:
		x.t.hints.learn(p.Data, &p.Headers)
		r = x.frame(v.Peer, p, encap.Link{}, true)
	default:
		x.t.hints.learn(p.Data, &p.Headers)
		r = x.address(v.Peer, p)
	}
	if r != encap.None {
		x.explain(r, v.Peer, p)
		x.count.drop(r, p.Count)
	}
}

// address finds what the frame around p needs and sends it on.
func (x *transmitter) address(peer *routing.Peer, p *Packet) encap.Reason {
	link := encap.Link{Src: x.t.rules.MAC}
	if x.t.rules.Ethernet {
		if link.Dst = peer.LinkAddr(); link.Dst.IsZero() {
			mac, fate := x.t.neighbours.hold(peer, p)
			if mac.IsZero() {
				return fate
			}
			link.Dst = mac
		}
	}
	return x.frame(peer, p, link, true)
}

// flood sends a frame to each of the peers: the headers are the same for all of them, but for the outer ones. A frame for a station
// that may be behind a peer which it cannot reach whole goes to nobody: its sender is told, and that peer returned.
func (x *transmitter) flood(peers []*routing.Peer, p *Packet) (narrow *routing.Peer, r encap.Reason) {
	for _, peer := range peers {
		if !p.Headers.Link.Dst.IsGroup() && !x.t.fits(peer, p) {
			return peer, encap.PktTooBig
		}
	}
	if copies := min((len(peers)-1)*p.Count, copiesPerSecond); copies > 0 && !x.floods.takeN(time.Now(), copies, copiesPerSecond, copiesPerSecond) {
		return nil, encap.FloodLimit
	}
	if len(peers) > 1 {
		x.cutter.open = none // what is copied begins with a train of its own
	}
	from := len(x.datagrams)
	if r := x.frame(peers[0], p, encap.Link{}, len(peers) == 1); r != encap.None {
		return nil, r
	}
	to := len(x.datagrams)
	for _, peer := range peers[1:] {
		for i := from; i < to; i++ {
			d, o := x.datagrams[i], x.origin[i]
			d.Remote, o.peer, o.copy = peer.Endpoint, peer, true
			x.line(d, o)
		}
	}
	return nil, encap.None
}

// frame puts the header in front of p, once, and lines it up for the sender; as a whole only when it may be.
func (x *transmitter) frame(peer *routing.Peer, p *Packet, link encap.Link, whole bool) encap.Reason {
	header, _ := p.withHeader(x.t.rules.Codec.Headroom())
	if p.Count == 1 {
		if p.Offload.NeedsChecksum && !p.Offload.FinishChecksum(p.Data) {
			return encap.NotIP
		}
		p.Offload = encap.Offload{}
	}
	if r := x.t.rules.Codec.Encap(header, p.Data, &p.Headers, link); r != encap.None {
		return r
	}
	whole = whole && !peer.Segmented && !peer.Endpoint.Addr().IsMulticast() // the outer TAP's redirect knows single hosts only
	return x.lineUp(peer, p, whole && x.sender.Carries(p))
}

// lineUp makes a datagram of p, which has its header in front, or cuts it into trains when the sender does not carry it.
func (x *transmitter) lineUp(peer *routing.Peer, p *Packet, carried bool) encap.Reason {
	if p.Count > 1 && !carried {
		return x.cut(peer, p)
	}
	d := x.t.datagram(&p.Headers, peer.Endpoint)
	_, d.Data = p.withHeader(x.t.rules.Codec.Headroom())
	d.Count = p.Count
	if carried {
		d.Packet = p
	}
	x.line(d, sent{peer: peer, bytes: p.wireBytes()})
	return encap.None
}

func (x *transmitter) line(d Datagram, o sent) {
	x.datagrams = append(x.datagrams, d)
	x.origin = append(x.origin, o)
}

// account books what Send reports.
func (x *transmitter) account() {
	var all, own tally // of the batch, and of one peer's datagrams in a row
	split := 0
	for i := range x.datagrams {
		d, o := &x.datagrams[i], &x.origin[i]
		if d.Refused {
			x.refused = append(x.refused, refusal{o.peer, d.Packet})
			continue
		}
		if d.Sent < d.Count {
			x.lost(d, o)
		}
		if d.Sent == 0 {
			continue
		}
		bytes := o.bytes
		if d.Sent < d.Count {
			bytes = bytes * d.Sent / d.Count
		}
		if o.copy {
			x.count.copies.Add(uint64(d.Sent))
		} else {
			all.add(d.Sent, bytes)
			if d.SegmentSize > 0 {
				split += d.Sent
			}
		}
		if o.peer != own.peer {
			own.addEncap(x.worker)
			own = tally{peer: o.peer}
		}
		own.add(d.Sent, bytes)
	}
	own.addEncap(x.worker)
	x.count.delivered.Add(uint64(all.packets))
	x.count.bytes.Add(uint64(all.bytes))
	x.count.split.Add(uint64(split))
}

// lost books what was not sent of a datagram.
func (x *transmitter) lost(d *Datagram, o *sent) {
	if d.Reason == encap.PktTooBig {
		x.t.paths.ask(o.peer)
	}
	if !o.copy {
		x.count.drop(d.Reason, d.Count-d.Sent)
	} else if d.Reason != encap.None {
		x.count.lost[d.Reason].Add(uint64(d.Count - d.Sent))
	}
}

// explain answers a dropped packet with an ICMP error, where its sender can use one and the limits allow it.
func (x *transmitter) explain(r encap.Reason, peer *routing.Peer, p *Packet) {
	var u encap.Unreachable
	mtu, src := 0, p.Headers.Dst
	switch {
	case r == encap.TTLExpired:
		u, src = encap.TimeExceeded, farEnd(peer, src)
	case r == encap.PktTooBig && peer != nil && x.t.knowsPath(peer):
		u, mtu = encap.TooBig, x.t.innerMTU(peer, p)
	case r != encap.NoTXTarget, !x.t.told.Load(), x.t.rules.Bridge:
		return
	case x.t.rules.Ethernet:
		u = encap.HostUnreachable
	default:
		u = encap.NetUnreachable
	}
	if encap.MayAnswerWithError(p.Data, &p.Headers) {
		x.t.injectError(u, src, mtu, p)
	}
}

// farEnd returns an address for a peer's end of the tunnel, by which traceroute shows it as a hop: the first that is behind it, as
// that is flannel's for its device. dst, which is behind it as well, stands in where there is none of its family.
func farEnd(peer *routing.Peer, dst netip.Addr) netip.Addr {
	for _, prefix := range peer.AllowedIPs {
		if prefix.Addr().Is4() == dst.Is4() {
			return prefix.Addr()
		}
	}
	return dst
}

// datagram describes a datagram that carries a packet to remote.
func (t *Tunnel) datagram(h *encap.Headers, remote netip.AddrPort) Datagram {
	d := Datagram{Remote: remote, Flow: h.FlowHash()}
	d.DF = h.DF || h.Kind == encap.KindIPv6 // as the kernel's df inherit (drivers/net/vxlan/vxlan_core.c, vxlan_xmit_one)
	d.TOS = encap.OuterTOS(h.TOS, t.cfg.TOSInherit, t.cfg.TOS)
	if t.cfg.TTLInherit && (h.Kind == encap.KindIPv4 || h.Kind == encap.KindIPv6) { // ARP has none to inherit
		d.TTL = max(h.TTL, 1)
	}
	return d
}

// injectError writes an ICMP error about p to the device, as from src, an address behind a peer: the kernel takes nothing
// from a device whose source is one of its own addresses (net/ipv4/fib_frontend.c, __fib_validate_source), and the route
// back to such a one leads to the device.
// In Ethernet mode it is a frame from the station that p was for, as the kernel's vxlan makes it (net/ipv4/ip_tunnel_core.c,
// iptunnel_pmtud_build_icmp).
func (t *Tunnel) injectError(u encap.Unreachable, src netip.Addr, mtu int, p *Packet) {
	t.slow.mu.Lock()
	defer t.slow.mu.Unlock()
	if !t.slow.limit.allow(p.Headers.Src) {
		return
	}
	t.slow.buf = t.slow.buf[:0]
	if t.rules.Bridge {
		link := p.Headers.Link
		t.slow.buf = append(append(append(t.slow.buf, link.Src[:]...), link.Dst[:]...), p.Data[12:p.Headers.L3]...)
	}
	start := len(t.slow.buf)
	message := encap.AppendUnreachable(t.slow.buf[start:], u, src, mtu, p.Data, &p.Headers)
	t.slow.buf = append(t.slow.buf[:start], message...)
	if t.device.Inject(t.slow.buf) == nil {
		t.slow.generated.icmpErrors.Add(1)
	}
}
