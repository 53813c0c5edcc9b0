package tunnel

import (
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// receiver is one worker's way from the underlay to the device. All it touches belongs to it, but the table.
type receiver struct {
	t        *Tunnel
	worker   int
	queue    Queue
	underlay Receiver
	count    *counters

	packets []Packet        // what was received, in order
	origin  []*routing.Peer // of each of packets
	joined  []Packet        // what goes to the device, when the queue takes super-packets
	first   []int           // of each of joined: the first of packets in it
	joiner  *encap.Coalescer
	last    *lastDatagram
	peek    encap.Headers // what carriesSuper looks at
	batch   batchState
}

// batchState is what is known for one batch.
type batchState struct {
	received int        // packets
	host     netip.Addr // that limit was asked about last
	limit    int        // the longest packet for it, in bytes
	now      int64      // in seconds since 1970, in Ethernet mode
}

// lastDatagram is the datagram before the current one, in the same batch: the next one of its flow has the same verdict.
type lastDatagram struct {
	valid   bool
	remote  netip.AddrPort
	head    [Headroom]byte // as it was received: the packet itself may have been changed since
	headers encap.Headers
	verdict Verdict
}

func newReceiver(t *Tunnel, worker int, q Queue, u Receiver) *receiver {
	return &receiver{
		t: t, worker: worker, queue: q, underlay: u, count: new(counters),
		packets: make([]Packet, 0, 2*receivePackets),
		origin:  make([]*routing.Peer, 0, 2*receivePackets),
		joined:  make([]Packet, 0, 2*receivePackets),
		first:   make([]int, 0, 2*receivePackets),
		joiner:  encap.NewCoalescer(2 * receivePackets),
		last:    new(lastDatagram),
	}
}

// turn moves what the underlay has and reports how much that was, each datagram of a train counted: small ones are a stream in few trains, too.
func (x *receiver) turn() (haul, error) {
	batch, err := x.underlay.Receive()
	if len(batch) == 0 {
		return haul{}, err
	}
	moved := haul{}
	for i := range batch {
		moved.packets += batch[i].Count
		moved.bytes += len(batch[i].Data)
	}
	if writeErr := x.step(batch); err == nil {
		err = writeErr
	}
	return moved, err
}

// step moves one batch: one load of the table, a verdict for each datagram, super-packets made of what belongs together,
// one write.
func (x *receiver) step(batch []Datagram) error {
	view := x.t.view()
	x.packets, x.origin = x.packets[:0], x.origin[:0]
	x.last.valid, x.batch = false, batchState{}
	if x.t.fdb != nil {
		x.batch.now = time.Now().Unix()
	}
	for i := range batch {
		x.unpack(view, &batch[i])
	}
	x.count.countBatch(len(batch))
	x.count.received.Add(uint64(x.batch.received))
	if len(x.packets) == 0 {
		return nil
	}
	packets := x.packets
	join := len(packets) > 1 && (x.queue.Joins(encap.GSOTCP) || x.queue.Joins(encap.GSOUDP))
	if join {
		x.join()
		packets = x.joined
	}
	err := x.queue.Write(packets)
	x.account(packets, join)
	return err
}

// unpack takes the packets out of one datagram, or out of each of a train.
func (x *receiver) unpack(view View, d *Datagram) {
	if d.Reason != encap.None {
		x.batch.received += d.Count
		x.count.drop(d.Reason, d.Count)
		return
	}
	if d.SegmentSize == 0 || len(d.Data) <= d.SegmentSize {
		x.decapsulate(view, d, d.Data, 0)
		return
	}
	if d.Whole || x.carriesSuper(d) {
		x.decapsulate(view, d, d.Data, d.SegmentSize)
		return
	}
	for data := d.Data; len(data) > 0; {
		n := min(d.SegmentSize, len(data))
		x.decapsulate(view, d, data[:n:n], 0)
		data = data[n:]
	}
}

// carriesSuper tells a train from one datagram that carries a UDP super-packet: when a kernel vxlan peer on this machine
// sends one, the size that comes with it is that of the payloads within (net/ipv4/udp.c, udp_cmsg_recv). Then the packet that begins
// in it is as long as all of it.
func (x *receiver) carriesSuper(d *Datagram) bool {
	if len(d.Data) < encap.VXLANHeaderLen || !x.t.rules.Ethernet && !x.t.rules.Bridge {
		return false
	}
	frame, h := d.Data[encap.VXLANHeaderLen:], &x.peek
	return encap.ParseFrame(frame, h) == encap.None && h.Proto == encap.ProtoUDP && h.Len == len(frame)
}

// decapsulate takes the packet out of one datagram and lines it up for the device, consumes it, or drops it. When it is a
// UDP super-packet, segment is the payload of each packet that it stands for.
func (x *receiver) decapsulate(view View, d *Datagram, data []byte, segment int) {
	if x.t.cfg.Shared != nil && x.t.cfg.Shared.deliver(x.t.cfg.VNI, Datagram{Data: data, SegmentSize: segment, Whole: d.Whole, Count: 1, Remote: d.Remote, TOS: d.TOS}) {
		return
	}
	x.packets = append(x.packets, Packet{Count: 1})
	p := &x.packets[len(x.packets)-1]
	packet, v := x.decide(view, d, data, &p.Headers)
	p.Data = packet
	switch {
	case v.Reason != encap.None:
	case v.Consumed:
		v.Reason = x.t.neighbours.consume(v.Peer, packet, &p.Headers)
	default:
		v.Reason = x.finish(p, d.TOS, segment)
	}
	x.batch.received += p.Count
	switch {
	case v.Reason != encap.None:
		x.count.drop(v.Reason, p.Count)
		if v.Reason == encap.TTLExpired && v.Peer != nil && encap.MayAnswerWithError(p.Data, &p.Headers) {
			x.t.neighbours.sendTimeExceeded(v.Peer, p)
		}
	case v.Consumed:
		x.count.consumed.Add(uint64(p.Count))
	default:
		if x.t.fdb != nil {
			x.t.fdb.observe(view, view.station(p.Headers.Link.Src, &p.Headers), v.Peer, d.Remote.Addr(), x.batch.now)
		}
		if v.Suspect != encap.None {
			x.count.suspect[v.Suspect].Add(uint64(p.Count))
		}
		x.origin = append(x.origin, v.Peer)
		return
	}
	x.packets = x.packets[:len(x.packets)-1]
}

// decide is DecideReceive, which it asks only when the datagram is not the next one of the flow of the one before.
func (x *receiver) decide(view View, d *Datagram, data []byte, h *encap.Headers) (packet []byte, v Verdict) {
	l, n := x.last, x.t.rules.Codec.Headroom()
	if l.valid && len(data) > n && d.Remote == l.remote && string(data[:n]) == string(l.head[:n]) {
		if again, ok := l.headers.Again(l.head[n:], data[n:]); ok {
			*h = again
			return data[n : n+h.Len], l.verdict
		}
	}
	packet, v = DecideReceive(&x.t.rules, view, data, d.Remote.Addr(), h)
	if l.valid = v.Reason == encap.None && !v.Consumed; l.valid {
		l.remote, l.headers, l.verdict = d.Remote, *h, v
		copy(l.head[:], data)
	}
	return packet, v
}

// finish does what this end of the tunnel owes a packet: offload metadata for what a sender on this machine left to a
// device, the congestion mark, and the TTL.
func (x *receiver) finish(p *Packet, outerTOS uint8, segment int) encap.Reason {
	h := &p.Headers
	partial := encap.HasPartialChecksum(p.Data, h)
	o, super := x.super(p, segment, partial)
	if (super || partial) && h.Len > 0 {
		p.Data = p.Data[:h.Len] // padding of a frame would become payload of what it is cut into
	}
	switch {
	case super:
		p.Offload = o
		p.Count = o.Segments(p.Data, h)
	case partial:
		p.Offload = encap.PartialOffload(h)
	}
	if h.Kind != encap.KindIPv4 && h.Kind != encap.KindIPv6 {
		return encap.None // a frame without a congestion mark (include/net/inet_ecn.h, IP_ECN_decapsulate)
	}
	if encap.OddECN(outerTOS, h.TOS) {
		x.count.oddECN.Add(uint64(p.Count))
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

// super returns the metadata of a super-packet that a sender on this machine left unsegmented. A finished packet that fits the device is
// none, nor is one with a checksum that is neither whole nor the pseudo-header's: a new checksum would hide the damage.
func (x *receiver) super(p *Packet, segment int, partial bool) (encap.Offload, bool) {
	h := &p.Headers
	if segment > 0 {
		return encap.SuperOffload(h, segment), partial
	}
	if h.Proto != encap.ProtoTCP || !partial && h.Len-h.L3 <= x.t.mtu {
		return encap.Offload{}, false
	}
	if h.Dst != x.batch.host {
		x.batch.host, x.batch.limit = h.Dst, min(x.t.mtu, x.t.hints.limit(h.Dst))
	}
	o, ok := encap.SuperTCP(p.Data, h, x.batch.limit)
	if ok && !partial {
		ok = encap.InspectChecksum(p.Data, h) == encap.ChecksumWhole
		if ok {
			encap.LeaveChecksum(p.Data, h)
		}
	}
	return o, ok
}

// join makes super-packets of the packets that continue each other, within this batch.
func (x *receiver) join() {
	x.joined, x.first = x.joined[:0], x.first[:0]
	x.joiner.Reset()
	for i := range x.packets {
		p := &x.packets[i]
		x.joiner.Add(p.Data, &p.Headers, x.mayJoin(p))
	}
	for s := range x.joiner.All {
		p := &x.packets[s.First]
		if s.Packets > 1 {
			p.Data, p.Parts, p.Offload, p.Count = s.Header, s.Payload, s.Offload, s.Packets
			p.Headers.Len = len(s.Header)
			for _, part := range s.Payload {
				p.Headers.Len += len(part)
			}
		}
		x.joined = append(x.joined, *p)
		x.first = append(x.first, s.First)
	}
}

// mayJoin reports whether p can be a part of a super-packet: the queue takes such super-packets, and the checksum is known to
// be good, so that it need not travel along.
func (x *receiver) mayJoin(p *Packet) bool {
	kind := encap.GSOTCP
	if p.Headers.Proto == encap.ProtoUDP {
		kind = encap.GSOUDP
	}
	if p.Offload.IsSuper() || !x.queue.Joins(kind) {
		return false
	}
	return p.Offload.NeedsChecksum || encap.InspectChecksum(p.Data, &p.Headers) == encap.ChecksumWhole
}

// account books what Write reports. joined says that packets are not those of origin, but what became of them.
func (x *receiver) account(packets []Packet, joined bool) {
	var all, own tally // of the batch, and of one peer's packets in a row
	now, split := time.Now().Unix(), 0
	for i := range packets {
		p, from := &packets[i], i
		if joined {
			from = x.first[i]
		}
		x.count.drop(encap.TUNWrite, p.Count-p.Sent)
		if p.Sent == 0 {
			continue
		}
		if p.Offload.IsSuper() && !x.queue.Joins(p.Offload.GSO) {
			split += p.Sent
		}
		bytes := p.wireBytes() * p.Sent / p.Count
		all.add(p.Sent, bytes)
		if peer := x.origin[from]; peer != own.peer {
			own.addDecap(x.worker, now)
			own = tally{peer: peer}
		}
		own.add(p.Sent, bytes)
	}
	own.addDecap(x.worker, now)
	x.count.delivered.Add(uint64(all.packets))
	x.count.bytes.Add(uint64(all.bytes))
	x.count.split.Add(uint64(split))
}
