package tunnel

import (
	"net/netip"
	"slices"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// Suppression says what becomes of ARP and neighbour discovery (RFC 9161 calls it that).
type Suppression uint8

// The ways to treat questions for the MAC of an address.
const (
	SuppressNone  Suppression = iota // they are flooded
	SuppressKnown                    // those that the configuration answers are answered here, others flooded
	SuppressAll                      // those that it does not answer are dropped
)

// suppress answers a question that a frame of the device asks everyone, for the MAC of an address, when the peers' configuration
// says what it is, and reports whether it did: then the frame goes nowhere. The reason is not None when it is to be dropped.
func (t *Tunnel) suppress(view View, p *Packet) (answered bool, r encap.Reason) {
	frame, question := t.answerTo(view, p)
	if frame == nil {
		if question && t.cfg.FDB.Suppress == SuppressAll {
			r = encap.NeighbourUnresolved
		}
		return false, r
	}
	counter := &t.slow.generated.arpReplies
	if p.Headers.Kind == encap.KindIPv6 {
		counter = &t.slow.generated.advertisements
	}
	return t.neighbours.answer(frame, counter), encap.None
}

// answerTo returns the frame that answers p, nil where the configuration does not know what it asks for, and whether it asks at all.
func (t *Tunnel) answerTo(view View, p *Packet) (frame []byte, question bool) {
	if t.cfg.FDB.Suppress == SuppressNone || !p.Headers.Link.Dst.IsGroup() || t.cfg.VLANs && p.Headers.VLANs > 0 { // peers are configured without a VLAN
		return nil, false
	}
	packet := p.Data[p.Headers.L3:]
	var answer []byte
	var link encap.Link
	switch p.Headers.Kind {
	case encap.KindARP:
		answer, link, question = answerARP(view, packet)
	case encap.KindIPv6:
		answer, link, question = answerND(view, packet)
	}
	if answer == nil {
		return nil, question
	}
	frame = append(make([]byte, 0, p.Headers.L3+len(answer)), link.Dst[:]...)
	frame = append(frame, link.Src[:]...)
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

// isRouter reports whether there are networks behind a peer; it must not be said to be none (RFC 4861 section 7.2.5:
// hosts would drop their default route).
func isRouter(p *routing.Peer) bool {
	return slices.ContainsFunc(p.AllowedIPs, func(prefix netip.Prefix) bool { return !prefix.IsSingleIP() })
}

// answerARP returns the answer to an ARP request (RFC 826) and between whom it goes, nil when there is none to give, and whether the
// packet is a question: announcements and probes of one's own address are none (RFC 5227).
func answerARP(view View, packet []byte) (answer []byte, link encap.Link, question bool) {
	a, r := encap.ParseARP(packet)
	if r != encap.None || a.Op != encap.ARPRequest || a.SenderIP == a.TargetIP || a.SenderIP.IsUnspecified() {
		return nil, link, false
	}
	peer := ownerOf(view, a.TargetIP)
	if peer == nil {
		return nil, link, true
	}
	reply := encap.ARP{Op: encap.ARPReply, SenderMAC: peer.MAC, SenderIP: a.TargetIP, TargetMAC: a.SenderMAC, TargetIP: a.SenderIP}
	return reply.Append(nil), encap.Link{Dst: a.SenderMAC, Src: peer.MAC}, true
}

// answerND is answerARP for neighbour solicitations (RFC 4861 section 7.2.3). Duplicate address detection is left to those who have
// the address.
func answerND(view View, packet []byte) (answer []byte, link encap.Link, question bool) {
	var h encap.Headers
	if encap.ParseIP(packet, &h) != encap.None || !encap.IsND(packet, &h) {
		return nil, link, false
	}
	nd, r := encap.ParseND(packet, &h)
	if r != encap.None || nd.Type != encap.NeighbourSolicitation || nd.Src.IsUnspecified() || nd.LinkAddr.IsZero() {
		return nil, link, false
	}
	peer := ownerOf(view, nd.Target)
	if peer == nil {
		return nil, link, true
	}
	reply := encap.ND{
		Type: encap.NeighbourAdvertisement, Src: nd.Target, Dst: nd.Src, Target: nd.Target, LinkAddr: peer.MAC,
		Router: isRouter(peer), Solicited: true, Override: true,
	}
	return reply.Append(nil), encap.Link{Dst: nd.LinkAddr, Src: peer.MAC}, true
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
