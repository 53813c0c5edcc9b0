package tunnel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// Rules are what verdicts depend on and never changes while a tunnel runs.
type Rules struct {
	Codec      encap.Codec
	Ethernet   bool       // packets are IP packets, and travel in Ethernet frames
	Bridge     bool       // packets are Ethernet frames: stations are looked up, not addresses
	MAC        encap.MAC  // this VTEP's, with Ethernet
	Local      netip.Addr // our underlay address
	Group      netip.Addr // our multicast group there, if any
	Port       uint16     // our underlay port
	OuterCheck Check
	InnerCheck Check
}

// Check says what becomes of a received packet whose source is not one that its peer may have.
type Check uint8

// The ways to check.
const (
	CheckOff     Check = iota // it is not looked at
	CheckCount                // it is delivered, and counted as suspect
	CheckEnforce              // it is dropped
)

// View is what verdicts depend on and may change between batches. Both parts are immutable.
type View struct {
	Peers    *routing.Snapshot
	Own      *Addresses
	Stations *fdbView // with Rules.Bridge
	VLANs    bool     // stations are looked up by VLAN, too
}

// station returns what a MAC of a frame is looked up by.
func (v *View) station(mac encap.MAC, h *encap.Headers) FDBKey {
	key := FDBKey{MAC: mac}
	if v.VLANs {
		key.VLAN = h.VLAN
	}
	return key
}

// Verdict says what happens to a packet.
type Verdict struct {
	// Peer is where the packet goes to (transmit) or came from (receive). It is nil when it is not known.
	Peer *routing.Peer
	// Reason is why the packet is dropped; encap.None when it is not.
	Reason encap.Reason
	// Suspect is why a check that counts would have dropped the packet, had it been one that enforces; encap.None when it
	// would not.
	Suspect encap.Reason
	// Flood: the frame is for all stations, or for one that nobody knows; it goes to each peer that gets such.
	Flood bool
	// Consumed: the packet is for the VTEP itself (ARP, neighbour discovery), not for the device.
	Consumed bool
}

func drop(r encap.Reason) Verdict { return Verdict{Reason: r} }

// DecideTransmit says what happens to a packet that the device gave. h receives the packet parsed. It changes nothing
// else: the loop, the trace command and the fuzzers share it.
func DecideTransmit(rules *Rules, view View, packet []byte, h *encap.Headers) Verdict {
	if rules.Bridge {
		return decideFrame(rules, view, packet, h)
	}
	if r := encap.ParseIP(packet, h); r != encap.None {
		return drop(r)
	}
	if !rules.Ethernet && h.Kind != encap.KindIPv4 {
		return drop(encap.NotIP)
	}
	if h.HasPorts && h.Proto == encap.ProtoUDP && view.Peers.IsEndpoint(h.Dst, h.DstPort) {
		return drop(encap.NestedTunnel)
	}
	peer := view.Peers.Lookup(h.Dst)
	if peer == nil {
		return drop(encap.NoTXTarget)
	}
	return Verdict{Peer: peer}
}

// decideFrame says what happens to a frame that the device gave.
func decideFrame(rules *Rules, view View, frame []byte, h *encap.Headers) Verdict {
	if r := encap.ParseAnyFrame(frame, h); r != encap.None {
		return drop(r)
	}
	if h.HasPorts && h.Proto == encap.ProtoUDP && h.Src == rules.Local && (view.Peers.IsEndpoint(h.Dst, h.DstPort) || h.Dst == rules.Group && h.DstPort == rules.Port) {
		return drop(encap.NestedTunnel) // our own datagrams, led into the device
	}
	if !h.Link.Dst.IsGroup() {
		if peer := view.Peers.LookupMAC(h.Link.Dst); peer != nil {
			return Verdict{Peer: peer}
		}
		if peer := view.Stations.lookup(view.station(h.Link.Dst, h)); peer != nil {
			return Verdict{Peer: peer}
		}
	}
	if len(view.Stations.everyone()) == 0 {
		return drop(encap.NoTXTarget)
	}
	return Verdict{Flood: true}
}

// DecideReceive says what happens to a datagram from outer, an underlay address. h receives the packet in it parsed;
// packet is a part of datagram, nil when there is none to speak of. It changes nothing else.
func DecideReceive(rules *Rules, view View, datagram []byte, outer netip.Addr, h *encap.Headers) (packet []byte, v Verdict) {
	peer := view.Peers.LookupSource(outer)
	if peer == nil && rules.OuterCheck == CheckEnforce {
		*h = encap.Headers{}
		return nil, drop(encap.PeerUnknown)
	}
	packet, r := rules.Codec.Decap(datagram, h)
	if r == encap.None && rules.Ethernet {
		r = checkFrame(rules, h)
	}
	if r != encap.None {
		return nil, Verdict{Peer: peer, Reason: r}
	}
	if rules.Bridge {
		return packet, decideStation(rules, view, peer, h)
	}
	if h.Kind == encap.KindARP || encap.IsND(packet, h) {
		return packet, decideNeighbour(peer)
	}
	return packet, decideInner(rules, view, outer, peer, h)
}

// decideNeighbour: ARP and neighbour discovery are the VTEP's own business, but an unknown source gets no answer.
func decideNeighbour(peer *routing.Peer) Verdict {
	if peer == nil {
		return drop(encap.PeerUnknown)
	}
	return Verdict{Peer: peer, Consumed: true}
}

// decideStation judges the source of a received frame: its MAC, and where the peer has allowed_ips, its IP address.
func decideStation(rules *Rules, view View, peer *routing.Peer, h *encap.Headers) Verdict {
	if owner := view.Peers.LookupMAC(h.Link.Src); owner != nil && peer != nil && owner.Endpoint.Addr() == peer.Endpoint.Addr() {
		peer = owner // of those that share an underlay address
	}
	v := Verdict{Peer: peer}
	switch {
	case !h.Link.Src.IsUnicast():
		v.Reason = encap.MACInvalidSource
		return v
	case h.Link.Src == rules.MAC:
		v.Reason = encap.LocalMAC
		return v
	case (h.Kind == encap.KindIPv4 || h.Kind == encap.KindIPv6) && reachesOwnSocket(rules, h):
		v.Reason = encap.NestedTunnel
		return v
	case peer == nil && rules.OuterCheck == CheckCount:
		v.Suspect = encap.PeerUnknown
	}
	if rules.InnerCheck == CheckOff || mayBeFrom(view, peer, h) {
		return v
	}
	if rules.InnerCheck == CheckEnforce {
		v.Reason = encap.InnerSourceNotAllowed
	} else if v.Suspect == encap.None {
		v.Suspect = encap.InnerSourceNotAllowed
	}
	return v
}

// mayBeFrom reports whether a frame's source can be behind a peer: its MAC is not configured to be elsewhere and, when the peer
// has allowed_ips and the frame carries IP, its address is in them.
func mayBeFrom(view View, peer *routing.Peer, h *encap.Headers) bool {
	if owner := view.Peers.LookupMAC(h.Link.Src); owner != nil && (peer == nil || owner.Endpoint.Addr() != peer.Endpoint.Addr()) {
		return false
	}
	if peer == nil || len(peer.AllowedIPs) == 0 || h.Kind != encap.KindIPv4 && h.Kind != encap.KindIPv6 {
		return true
	}
	if h.Src.IsUnspecified() || h.Src.IsLinkLocalUnicast() {
		return true // a host that has no address yet, or one of this link alone
	}
	from := view.Peers.Lookup(h.Src)
	return from != nil && from.Endpoint.Addr() == peer.Endpoint.Addr()
}

// checkFrame judges the Ethernet header of a received frame as a host's network card would.
func checkFrame(rules *Rules, h *encap.Headers) encap.Reason {
	switch {
	case !h.Link.Src.IsUnicast():
		return encap.MACInvalidSource
	case h.Link.Src == rules.MAC:
		return encap.LocalMAC
	case h.Link.Dst != rules.MAC && !h.Link.Dst.IsGroup():
		return encap.OtherHost
	case h.VLANs > 0, h.Kind == encap.KindOther:
		return encap.NotIP
	}
	return encap.None
}

// decideInner judges the addresses of a received IP packet. peer is who the outer source is, nil when that is unknown.
func decideInner(rules *Rules, view View, outer netip.Addr, peer *routing.Peer, h *encap.Headers) Verdict {
	if isMartian(h.Src) || h.Src == rules.Local || view.Own.Has(h.Src) {
		return Verdict{Peer: peer, Reason: encap.InnerMartian}
	}
	if reachesOwnSocket(rules, h) {
		return Verdict{Peer: peer, Reason: encap.NestedTunnel}
	}
	if rules.Ethernet && h.Link.Dst.IsGroup() && !view.Own.Takes(h.Dst) {
		return Verdict{Peer: peer, Reason: encap.OtherHost}
	}
	v := Verdict{Peer: peer}
	if peer == nil && rules.OuterCheck == CheckCount {
		v.Suspect = encap.PeerUnknown
	}
	if rules.InnerCheck == CheckOff {
		return v
	}
	from := view.Peers.Lookup(h.Src)
	switch {
	case from != nil && (peer == nil || from.Endpoint.Addr() == outer):
		v.Peer = from
	case rules.InnerCheck == CheckEnforce:
		v.Reason = encap.InnerSourceNotAllowed
	case v.Suspect == encap.None:
		v.Suspect = encap.InnerSourceNotAllowed
	}
	return v
}

// reachesOwnSocket reports whether a packet is a datagram for our own socket, or may be one: its transport header could
// not be found.
func reachesOwnSocket(rules *Rules, h *encap.Headers) bool {
	if h.Dst != rules.Local {
		return false
	}
	if h.HasPorts {
		return h.Proto == encap.ProtoUDP && h.DstPort == rules.Port
	}
	return h.L4 == 0 && !h.Later
}

// isMartian reports whether no packet can have a as its source (RFC 1812 section 5.3.7, RFC 4291 section 2.7).
func isMartian(a netip.Addr) bool {
	return a.IsMulticast() || a.IsLoopback() || a.IsUnspecified() || a.Is4In6() || a == broadcastIPv4
}

var broadcastIPv4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Addresses is an immutable set of this host's addresses on the device, in the order of the kernel's list.
type Addresses struct {
	prefixes []netip.Prefix
	set      map[netip.Addr]struct{}
}

// NewAddresses returns the set of the addresses in prefixes.
func NewAddresses(prefixes []netip.Prefix) *Addresses {
	a := &Addresses{prefixes: prefixes, set: make(map[netip.Addr]struct{}, len(prefixes))}
	for _, p := range prefixes {
		a.set[p.Addr()] = struct{}{}
	}
	return a
}

// Has reports whether addr is one of them. The nil set has none.
func (a *Addresses) Has(addr netip.Addr) bool {
	if a == nil {
		return false
	}
	_, ok := a.set[addr]
	return ok
}

// Takes reports whether a packet to dst that was sent to a group of stations is for this host: it would not forward one
// that is not (net/ipv4/ip_forward.c, pkt_type), but a TUN device has no way to say that a packet came so.
func (a *Addresses) Takes(dst netip.Addr) bool {
	if dst.IsMulticast() || dst == broadcastIPv4 || a.Has(dst) {
		return true
	}
	return a != nil && slices.ContainsFunc(a.prefixes, func(p netip.Prefix) bool { return dst == lastAddr(p) })
}

// lastAddr returns the broadcast address of an IPv4 prefix, the zero address for others.
func lastAddr(p netip.Prefix) netip.Addr {
	if !p.Addr().Is4() {
		return netip.Addr{}
	}
	a := p.Addr().As4()
	host := uint32(1)<<(32-p.Bits()) - 1
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|host)
	return netip.AddrFrom4(a)
}

// SourceFor returns the address to speak to dst with: one whose prefix holds dst, else one of the same family, global
// before link-local.
func (a *Addresses) SourceFor(dst netip.Addr) (best netip.Addr, ok bool) {
	if a == nil {
		return netip.Addr{}, false
	}
	for _, p := range a.prefixes {
		switch {
		case p.Addr().Is4() != dst.Is4():
		case p.Contains(dst):
			return p.Addr(), true
		case !best.IsValid() || best.IsLinkLocalUnicast():
			best = p.Addr()
		}
	}
	return best, best.IsValid()
}
