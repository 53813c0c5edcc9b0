package tunnel

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// Timers and bounds of neighbour resolution, about those of the kernel's neighbour table (Documentation/networking/
// ip-sysctl.rst, neigh/default/*).
const (
	neighbourTick    = 250 * time.Millisecond
	retransTime      = time.Second      // between requests
	maxProbes        = 3                // requests before waiting packets are given up
	idleRetry        = 30 * time.Second // between requests that nobody waits for
	reachableTime    = 30 * time.Second // how long an answer is good for while traffic flows
	maxWaiting       = 64               // packets that wait for one peer's MAC
	maxWaitingTotal  = 4096
	answersPerSecond = 1000
)

// NeighbourState is what is known of a peer's MAC, in the words of ip-neighbour(8).
type NeighbourState string

// The states.
const (
	NeighbourNone       NeighbourState = "noarp"      // the framing needs no MAC
	NeighbourPermanent  NeighbourState = "permanent"  // configured
	NeighbourReachable  NeighbourState = "reachable"  // it answered
	NeighbourStale      NeighbourState = "stale"      // it answered once, but not the last requests; still in use
	NeighbourIncomplete NeighbourState = "incomplete" // asked for, not answered yet
)

// neighbours finds the MACs of peers that are configured without one, lets packets wait for them, and answers for our
// own addresses. Packets take this way only while a MAC is unknown; mu is never taken otherwise.
type neighbours struct {
	t       *Tunnel
	now     func() time.Time
	changed chan struct{} // tells run of new entries

	mu      sync.Mutex
	stopped bool // the sender may be used no more
	entries map[*routing.State]*neighbour
	waiting int
	answers bucket
	out     *transmitter // for packets that waited
	dgram   [1]Datagram
	buf     []byte
}

// neighbour is what is known of one peer whose MAC is asked for.
type neighbour struct {
	peer    *routing.Peer
	queue   []Packet  // copies
	since   time.Time // the oldest of them came
	probes  int       // unanswered requests
	asked   time.Time // last request
	heard   time.Time // last answer
	used    uint64    // packets sent to the peer when it was last heard
	present bool      // in the snapshot being synchronised
}

func newNeighbours(t *Tunnel, sender Sender) *neighbours {
	out := newTransmitter(t, t.slowWorker(), nil, sender)
	return &neighbours{t: t, now: time.Now, changed: make(chan struct{}, 1), entries: make(map[*routing.State]*neighbour), out: out}
}

// apply puts a new snapshot in force and follows it: peers that left are forgotten, those that came or moved hear of us
// and are asked at once. Packets that need to know wait for mu meanwhile, so that none meets half of it.
func (n *neighbours) apply(snapshot *routing.Snapshot) routing.Change {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.t.table.Load()
	change := n.t.table.Apply(snapshot)
	if !n.t.rules.Ethernet {
		return change
	}
	for _, e := range n.entries {
		e.present = false
	}
	for _, p := range snapshot.Peers() {
		old := before.LookupName(p.Name)
		moved := old == nil || old.Endpoint != p.Endpoint
		if moved {
			n.announce(p)
		}
		n.follow(p, moved || resolveAddr(old) != resolveAddr(p))
	}
	for state, e := range n.entries {
		if !e.present {
			n.giveUp(e)
			delete(n.entries, state)
		}
	}
	select {
	case n.changed <- struct{}{}:
	default:
	}
	return change
}

// follow brings the entry of one peer up to date. What is known of one that moved is its old host's.
func (n *neighbours) follow(p *routing.Peer, moved bool) {
	e := n.entries[p.State()]
	if !p.MAC.IsZero() {
		if e != nil { // it is configured with a MAC now: what waited can go
			e.peer = p
			n.releaseAll(e, p.MAC)
		}
		return
	}
	if e == nil {
		e, moved = new(neighbour), true
		n.entries[p.State()] = e
	}
	e.peer, e.present = p, true
	if moved {
		p.State().SetResolvedMAC(encap.MAC{})
		e.probes = 0
		n.ask(e)
	}
}

func resolveAddr(p *routing.Peer) netip.Addr {
	a, _ := p.ResolveAddr()
	return a
}

// announce tells a peer our MAC, which it may know otherwise: another device had our addresses before, or we had another
// MAC (RFC 5227 section 2.3, RFC 4861 section 7.2.6).
func (n *neighbours) announce(p *routing.Peer) {
	for _, prefix := range n.t.own.Load().prefixes {
		switch a := prefix.Addr(); {
		case a.Is4():
			n.sendARPRequest(p, encap.MAC{}, a, a)
		case !a.IsLinkLocalUnicast():
			all := netip.IPv6LinkLocalAllNodes()
			nd := encap.ND{Type: encap.NeighbourAdvertisement, Src: a, Dst: all, Target: a, LinkAddr: n.t.rules.MAC, Override: true}
			if n.send(p, encap.MulticastMAC(all), encap.KindIPv6, nd.Append) {
				n.t.slow.generated.advertisements.Add(1)
			}
		}
	}
}

// run asks again where there was no answer, until ctx ends.
func (n *neighbours) run(ctx context.Context) {
	if !n.t.rules.Ethernet {
		return
	}
	ticker := time.NewTicker(neighbourTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			n.stop()
			return
		case <-n.changed:
			ticker.Reset(neighbourTick)
		case <-ticker.C:
			if !n.tick() {
				ticker.Stop() // nobody to ask: an idle tunnel sleeps
			}
		}
	}
}

// stop drops what still waits.
func (n *neighbours) stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopped = true
	for _, e := range n.entries {
		n.giveUp(e)
	}
}

// tick looks at every entry, and reports whether there is one.
func (n *neighbours) tick() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	for _, e := range n.entries {
		n.revisit(e, now)
	}
	return len(n.entries) > 0
}

// revisit decides whether e is due for another request, or its waiting packets for giving up.
func (n *neighbours) revisit(e *neighbour, now time.Time) {
	if len(e.queue) > 0 && now.Sub(e.since) >= maxProbes*retransTime {
		n.giveUp(e)
	}
	since := now.Sub(e.asked)
	if since < retransTime {
		return
	}
	known := !e.peer.State().ResolvedMAC().IsZero()
	switch {
	case known && e.probes == 0:
		// Good until it is old and in use.
		if now.Sub(e.heard) >= reachableTime && e.peer.State().Totals().EncapPackets != e.used {
			n.ask(e)
		}
	case e.probes < maxProbes, since >= idleRetry:
		n.ask(e)
	}
}

// giveUp drops the packets that wait for e.
func (n *neighbours) giveUp(e *neighbour) {
	n.out.count.drop(encap.NeighbourUnresolved, e.waiting())
	n.waiting -= e.waiting()
	e.queue = nil
}

// waiting returns how many packets wait.
func (e *neighbour) waiting() (n int) {
	for i := range e.queue {
		n += e.queue[i].Count
	}
	return n
}

// hold keeps a copy of p until its peer's MAC is known. When that has become known meanwhile, it is returned and p is
// still the caller's; otherwise the reason is None when p waits, or why it cannot.
func (n *neighbours) hold(peer *routing.Peer, p *Packet) (encap.MAC, encap.Reason) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if mac := peer.LinkAddr(); !mac.IsZero() {
		return mac, encap.None
	}
	e := n.entries[peer.State()]
	if e == nil || n.stopped || e.waiting()+p.Count > maxWaiting || n.waiting+p.Count > maxWaitingTotal {
		return encap.MAC{}, encap.NeighbourUnresolved
	}
	if len(e.queue) == 0 {
		e.since = n.now()
		if e.since.Sub(e.asked) >= retransTime {
			e.probes = 0
			n.ask(e)
		}
	}
	e.queue = append(e.queue, p.clone())
	n.waiting += p.Count
	return encap.MAC{}, encap.None
}

// held returns how many packets wait.
func (n *neighbours) held() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.waiting
}

// state says what is known of a peer's MAC.
func (n *neighbours) state(p *routing.Peer) NeighbourState {
	switch {
	case !n.t.rules.Ethernet:
		return NeighbourNone
	case !p.MAC.IsZero():
		return NeighbourPermanent
	case p.State().ResolvedMAC().IsZero():
		return NeighbourIncomplete
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.entries[p.State()]; e != nil && e.probes >= maxProbes {
		return NeighbourStale
	}
	return NeighbourReachable
}

// ask sends a request for e's MAC: to the MAC it had, when it is only to be confirmed, else to all.
func (n *neighbours) ask(e *neighbour) {
	target, ok := e.peer.ResolveAddr()
	if !ok {
		return
	}
	dst := encap.MAC{}
	if e.probes == 0 {
		dst = e.peer.State().ResolvedMAC()
	}
	e.asked = n.now()
	e.probes++
	src, ok := n.t.own.Load().SourceFor(target)
	switch {
	case target.Is4():
		if !ok {
			src = netip.IPv4Unspecified() // a probe, RFC 5227
		}
		n.sendARPRequest(e.peer, dst, src, target)
	case ok: // a solicitation from :: would be duplicate address detection
		n.sendSolicitation(e.peer, dst, src, target)
	}
}

func (n *neighbours) sendARPRequest(p *routing.Peer, dst encap.MAC, src, target netip.Addr) {
	if dst.IsZero() {
		dst = encap.Broadcast
	}
	a := encap.ARP{Op: encap.ARPRequest, SenderMAC: n.t.rules.MAC, SenderIP: src, TargetIP: target}
	if n.send(p, dst, encap.KindARP, a.Append) {
		n.t.slow.generated.arpRequests.Add(1)
	}
}

func (n *neighbours) sendSolicitation(p *routing.Peer, dst encap.MAC, src, target netip.Addr) {
	nd := encap.ND{Type: encap.NeighbourSolicitation, Src: src, Dst: target, Target: target, LinkAddr: n.t.rules.MAC}
	if dst.IsZero() {
		nd.Dst = encap.SolicitedNode(target)
		dst = encap.MulticastMAC(nd.Dst)
	}
	if n.send(p, dst, encap.KindIPv6, nd.Append) {
		n.t.slow.generated.solicitations.Add(1)
	}
}

// consume takes in an ARP or neighbour discovery packet from a known peer, and answers it when it asks for one of our
// addresses. The reason is not None when the packet is malformed, or when more is asked than is answered.
func (n *neighbours) consume(peer *routing.Peer, packet []byte, h *encap.Headers) encap.Reason {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.Kind == encap.KindARP {
		a, r := encap.ParseARP(packet)
		if r != encap.None {
			return r
		}
		return n.consumeARP(n.speaker(peer, a.SenderIP), a)
	}
	nd, r := encap.ParseND(packet, h)
	if r != encap.None {
		return r
	}
	return n.consumeND(n.speaker(peer, nd.Src), nd, h.Link.Src)
}

func (n *neighbours) consumeARP(peer *routing.Peer, a encap.ARP) encap.Reason {
	n.learn(a.SenderIP, peer, a.SenderMAC)
	if a.Op != encap.ARPRequest || !n.t.own.Load().Has(a.TargetIP) {
		return encap.None
	}
	if !n.mayAnswer() {
		return encap.RateLimited
	}
	reply := encap.ARP{Op: encap.ARPReply, SenderMAC: n.t.rules.MAC, SenderIP: a.TargetIP, TargetMAC: a.SenderMAC, TargetIP: a.SenderIP}
	if n.send(peer, a.SenderMAC, encap.KindARP, reply.Append) {
		n.t.slow.generated.arpReplies.Add(1)
	}
	return encap.None
}

func (n *neighbours) consumeND(peer *routing.Peer, nd encap.ND, sender encap.MAC) encap.Reason {
	if nd.Type == encap.NeighbourAdvertisement {
		if nd.LinkAddr.IsZero() {
			nd.LinkAddr = sender // RFC 4861 section 4.4: may be left out when the request was unicast
		}
		n.learn(nd.Target, peer, nd.LinkAddr)
		return encap.None
	}
	if !nd.LinkAddr.IsZero() {
		n.learn(nd.Src, peer, nd.LinkAddr)
	}
	if !n.t.own.Load().Has(nd.Target) {
		return encap.None
	}
	if !n.mayAnswer() {
		return encap.RateLimited
	}
	answer := encap.ND{
		Type: encap.NeighbourAdvertisement, Src: nd.Target, Dst: nd.Src, Target: nd.Target,
		LinkAddr: n.t.rules.MAC, Solicited: true, Override: true,
	}
	dst := nd.LinkAddr
	switch {
	case nd.Src.IsUnspecified(): // duplicate address detection (RFC 4861 section 7.2.4): everyone is told
		answer.Dst, answer.Solicited = netip.IPv6LinkLocalAllNodes(), false
		dst = encap.MulticastMAC(answer.Dst)
	case dst.IsZero():
		dst = sender
	}
	if n.send(peer, dst, encap.KindIPv6, answer.Append) {
		n.t.slow.generated.advertisements.Add(1)
	}
	return encap.None
}

// speaker tells apart peers that share an underlay address: the one that addr, an inner address, is behind.
func (n *neighbours) speaker(peer *routing.Peer, addr netip.Addr) *routing.Peer {
	if p := n.t.table.Load().Lookup(addr); p != nil && p.Endpoint.Addr() == peer.Endpoint.Addr() {
		return p
	}
	return peer
}

func (n *neighbours) mayAnswer() bool {
	return n.answers.take(n.now(), answersPerSecond, answersPerSecond)
}

// learn notes that addr has mac, when addr is what a peer is asked for, from is that peer, and it is configured without
// a MAC; then the packets that waited go out before any later one can see the MAC.
func (n *neighbours) learn(addr netip.Addr, from *routing.Peer, mac encap.MAC) {
	peer := n.t.table.Load().Lookup(addr)
	if peer == nil || peer.Endpoint.Addr() != from.Endpoint.Addr() || mac == n.t.rules.MAC {
		return
	}
	e := n.entries[peer.State()]
	if target, ok := peer.ResolveAddr(); e == nil || !ok || target != addr {
		return
	}
	e.probes, e.heard, e.used = 0, n.now(), peer.State().Totals().EncapPackets
	e.peer = peer
	n.releaseAll(e, mac)
	peer.State().SetResolvedMAC(mac)
}

// releaseAll sends what waits for e.
func (n *neighbours) releaseAll(e *neighbour, mac encap.MAC) {
	n.waiting -= e.waiting()
	for i := range e.queue {
		p := &e.queue[i]
		n.out.count.drop(n.out.frame(e.peer, p, encap.Link{Src: n.t.rules.MAC, Dst: mac}, true), p.Count)
	}
	n.out.flush()
	e.queue = nil
}

// sendTimeExceeded tells the sender of a packet from a peer, through the tunnel, that its TTL was used up at this end.
func (n *neighbours) sendTimeExceeded(peer *routing.Peer, p *Packet) {
	src, ok := n.t.own.Load().SourceFor(p.Headers.Src)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.t.slow.mu.Lock()
	defer n.t.slow.mu.Unlock()
	if !n.t.slow.limit.allow(p.Headers.Src) {
		return
	}
	sent := n.send(peer, peer.LinkAddr(), p.Headers.Kind, func(b []byte) []byte {
		return encap.AppendUnreachable(b, encap.TimeExceeded, src, 0, p.Data, &p.Headers)
	})
	if sent {
		n.t.slow.generated.icmpErrors.Add(1)
	}
}

// send encapsulates what appendTo appends and sends it to p.
func (n *neighbours) send(p *routing.Peer, dst encap.MAC, kind encap.Kind, appendTo func([]byte) []byte) bool {
	if n.stopped {
		return false
	}
	codec := n.t.rules.Codec
	n.buf = slices.Grow(n.buf[:0], codec.Headroom())[:codec.Headroom()]
	n.buf = appendTo(n.buf)
	header, packet := n.buf[:codec.Headroom()], n.buf[codec.Headroom():]
	h := encap.Headers{Kind: kind, Link: encap.Link{Src: n.t.rules.MAC, Dst: dst}}
	if codec.Encap(header, packet, &h, h.Link) != encap.None {
		return false
	}
	n.dgram[0] = Datagram{Data: n.buf, Count: 1, Remote: p.Endpoint, Flow: h.FlowHash(), TOS: n.t.cfg.TOS}
	n.out.sender.Send(n.dgram[:])
	return n.dgram[0].Reason == encap.None
}
