package tunnel

import (
	"net/netip"
	"slices"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// suppress answers a question that a frame of the device asks everyone, for the MAC of an address, when the peers' configuration
// says what it is, and reports whether it did: then the frame goes nowhere (RFC 9161 calls it that).
func (t *Tunnel) suppress(view View, p *Packet) bool {
	frame, ok := t.answerTo(view, p)
	if !ok {
		return false
	}
	counter := &t.slow.generated.arpReplies
	if p.Headers.Kind == encap.KindIPv6 {
		counter = &t.slow.generated.advertisements
	}
	return t.neighbours.answer(frame, counter)
}

// answerTo returns the frame that answers p, where the configuration knows what it asks for.
func (t *Tunnel) answerTo(view View, p *Packet) (frame []byte, ok bool) {
	if !t.cfg.FDB.Suppress || !p.Headers.Link.Dst.IsGroup() || t.cfg.VLANs && p.Headers.VLANs > 0 { // peers are configured without a VLAN
		return nil, false
	}
	packet := p.Data[p.Headers.L3:]
	var answer []byte
	var to encap.MAC
	var owner encap.MAC
	switch p.Headers.Kind {
	case encap.KindARP:
		answer, to, owner = answerARP(view, packet)
	case encap.KindIPv6:
		answer, to, owner = answerND(view, packet)
	}
	if answer == nil {
		return nil, false
	}
	frame = append(make([]byte, 0, p.Headers.L3+len(answer)), to[:]...)
	frame = append(frame, owner[:]...)
	frame = append(frame, p.Data[12:p.Headers.L3]...) // tags, and the type
	return append(frame, answer...), true
}

// ownerOf returns the peer whose MAC the configuration gives an address, as it has that as a single host; nil when there is none.
func ownerOf(view View, a netip.Addr) *routing.Peer {
	prefix, peer := view.Peers.LookupPrefix(a)
	if peer == nil || peer.MAC.IsZero() || !prefix.IsSingleIP() {
		return nil
	}
	return peer
}

// routes reports whether there are networks behind a peer: it is a router, and must not be said to be none (RFC 4861 section 7.2.5:
// hosts would drop their default route).
func routes(p *routing.Peer) bool {
	return slices.ContainsFunc(p.AllowedIPs, func(prefix netip.Prefix) bool { return !prefix.IsSingleIP() })
}

// answerARP returns the answer to an ARP request (RFC 826), whom it goes to and whose it is; nil when there is none to give.
func answerARP(view View, packet []byte) (answer []byte, to, owner encap.MAC) {
	a, r := encap.ParseARP(packet)
	if r != encap.None || a.Op != encap.ARPRequest || a.SenderIP == a.TargetIP { // the last announces itself
		return nil, to, owner
	}
	peer := ownerOf(view, a.TargetIP)
	if peer == nil {
		return nil, to, owner
	}
	owner = peer.MAC
	reply := encap.ARP{Op: encap.ARPReply, SenderMAC: owner, SenderIP: a.TargetIP, TargetMAC: a.SenderMAC, TargetIP: a.SenderIP}
	return reply.Append(nil), a.SenderMAC, owner
}

// answerND returns the answer to a neighbour solicitation (RFC 4861 section 7.2.3). Duplicate address detection is left to those
// who have the address.
func answerND(view View, packet []byte) (answer []byte, to, owner encap.MAC) {
	var h encap.Headers
	if encap.ParseIP(packet, &h) != encap.None || !encap.IsND(packet, &h) {
		return nil, to, owner
	}
	nd, r := encap.ParseND(packet, &h)
	if r != encap.None || nd.Type != encap.NeighbourSolicitation || nd.Src.IsUnspecified() || nd.LinkAddr.IsZero() {
		return nil, to, owner
	}
	peer := ownerOf(view, nd.Target)
	if peer == nil {
		return nil, to, owner
	}
	owner = peer.MAC
	reply := encap.ND{
		Type: encap.NeighbourAdvertisement, Src: nd.Target, Dst: nd.Src, Target: nd.Target, LinkAddr: owner,
		Router: routes(peer), Solicited: true, Override: true,
	}
	return reply.Append(nil), nd.LinkAddr, owner
}

// answer gives the host an answer, within the limit, and counts it.
func (n *neighbours) answer(frame []byte, counter *routing.Counter) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.mayAnswer() || n.t.device.Inject(frame) != nil {
		return false
	}
	counter.Add(1)
	return true
}
