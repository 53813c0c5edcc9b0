package tunnel

import (
	"fmt"
	"net/netip"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// TraceRequest is a packet to be judged without being sent.
type TraceRequest struct {
	// Direction is Encap for a packet as the device would give it, Decap for a datagram as the underlay would.
	Direction Direction
	// Data is the packet, in Ethernet mode the frame, or the payload of the datagram with its header.
	Data []byte
	// Bare: Data is the packet alone, to be framed as the peer at Outer would frame it (Decap), or in Ethernet mode as a station
	// would.
	Bare bool
	// From and To are the stations of a frame that is made so, and VLAN its tag, in Ethernet mode. What is zero follows from the
	// configuration, where it does.
	From, To encap.MAC
	VLAN     uint16
	// Frame: Data is an Ethernet frame without its VXLAN header; Decap only.
	Frame bool
	// Outer and OuterTOS are the datagram's outer source address and TOS; Decap only.
	Outer    netip.Addr
	OuterTOS uint8
}

// TraceResult says what would happen to a packet, and why.
type TraceResult struct {
	Direction string      `json:"direction"`
	Packet    string      `json:"packet"`  // in one line
	Verdict   string      `json:"verdict"` // deliver, consume or drop
	Reason    string      `json:"reason,omitempty"`
	Why       string      `json:"why"`
	Peer      string      `json:"peer,omitempty"`
	Endpoint  string      `json:"endpoint,omitempty"`
	Steps     []TraceStep `json:"steps"`
}

// TraceStep is one thing that was looked at.
type TraceStep struct {
	Step   string `json:"step"`
	Result string `json:"result"`
}

// Trace judges a packet with the function that the loops use, against the peers in force, and explains the verdict. It
// sends nothing, counts nothing and changes nothing.
func (t *Tunnel) Trace(req TraceRequest) (TraceResult, error) {
	tr := tracer{t: t, view: t.view(), TraceResult: TraceResult{Direction: req.Direction.String()}}
	if t.rules.Bridge && req.Bare {
		frame, err := tr.stationFrame(&req)
		if err != nil {
			return TraceResult{}, err
		}
		req.Data, req.Bare, req.Frame = frame, false, true
	}
	switch {
	case req.Direction == Decap:
		tr.decap(req)
	case t.rules.Bridge:
		tr.encapFrame(req.Data)
	default:
		tr.encap(req.Data)
	}
	return tr.TraceResult, nil
}

type tracer struct {
	TraceResult
	t    *Tunnel
	view View
	h    encap.Headers

	outer netip.Addr // of a datagram
}

func (tr *tracer) step(name, format string, args ...any) {
	tr.Steps = append(tr.Steps, TraceStep{name, fmt.Sprintf(format, args...)})
}

func (tr *tracer) drop(r encap.Reason, why string) {
	tr.Verdict, tr.Reason, tr.Why = "drop", r.String(), r.Meaning()
	if why != "" {
		tr.Why = why
	}
}

func (tr *tracer) encap(packet []byte) {
	v := DecideTransmit(&tr.t.rules, tr.view, packet, &tr.h)
	tr.Packet = describe(packet, &tr.h)
	tr.step("parse", "%s", tr.Packet)
	if tr.h.Kind == encap.KindIPv4 || tr.h.Kind == encap.KindIPv6 {
		tr.route()
	}
	if v.Reason != encap.None {
		tr.drop(v.Reason, tr.whyNot(v.Reason))
		return
	}
	tr.setPeer(v.Peer)
	if tr.h.Len > tr.t.mtu {
		tr.step("mtu", "%d bytes do not fit the device's MTU of %d: the host sends them in smaller packets, or answers with an ICMP error", tr.h.Len, tr.t.mtu)
	} else {
		tr.step("mtu", "%d bytes fit the device's MTU of %d", tr.h.Len, tr.t.mtu)
	}
	if !tr.passes(v.Peer, &Packet{Data: packet, Headers: tr.h, Count: 1}) {
		return
	}
	if tr.t.rules.Ethernet && !tr.linkAddr(v.Peer) {
		return
	}
	scratch := append(make([]byte, 0, len(packet)), packet...)
	if r := tr.t.rules.Codec.Encap(make([]byte, tr.t.rules.Codec.Headroom()), scratch, &tr.h, encap.Link{}); r != encap.None {
		tr.drop(r, "")
		return
	}
	tr.step("encap", "%s, %d bytes of payload in front of which %d are added, flow hash %#x", tr.t.cfg.Framing, tr.h.Len, tr.t.rules.Codec.Headroom(), tr.h.FlowHash())
	tr.Verdict, tr.Why = "deliver", fmt.Sprintf("sent to peer %s at %s", v.Peer.Name, v.Peer.Endpoint)
}

// linkAddr reports whether the peer's MAC is known.
func (tr *tracer) linkAddr(p *routing.Peer) bool {
	state := tr.t.neighbours.state(p)
	if mac := p.LinkAddr(); !mac.IsZero() {
		tr.step("neighbour", "%s (%s)", mac, state)
		return true
	}
	ask, _ := p.ResolveAddr()
	tr.step("neighbour", "%s: %s has not said its MAC yet", state, ask)
	tr.drop(encap.NeighbourUnresolved, fmt.Sprintf("peer %s has not answered for %s: the packet would wait, for %d seconds at most; configure the peer's mac, or see whether the peer has %s", p.Name, ask, maxProbes, ask))
	return false
}

func (tr *tracer) route() {
	prefix, peer := tr.view.Peers.LookupPrefix(tr.h.Dst)
	if peer == nil {
		tr.step("route", "%s: in no peer's allowed_ips", tr.h.Dst)
		return
	}
	tr.step("route", "%s: %s of peer %s is the longest match", tr.h.Dst, prefix, peer.Name)
}

func (tr *tracer) setPeer(p *routing.Peer) {
	if p != nil {
		tr.Peer, tr.Endpoint = p.Name, p.Endpoint.String()
	}
}

func (tr *tracer) decap(req TraceRequest) {
	data := append([]byte(nil), req.Data...)
	switch {
	case req.Bare:
		data = tr.frame(req)
	case req.Frame:
		data = make([]byte, encap.VXLANHeaderLen, encap.VXLANHeaderLen+len(req.Data))
		encap.PutVXLAN(data, tr.t.cfg.VNI)
		data = append(data, req.Data...)
	}
	tr.outer = req.Outer.Unmap()
	packet, v := DecideReceive(&tr.t.rules, tr.view, data, tr.outer, &tr.h)
	tr.Packet = describe(packet, &tr.h)
	if tr.t.rules.Bridge && packet != nil {
		tr.Packet = describeFrame(packet, &tr.h)
	}
	tr.step("datagram", "%d bytes from %s", len(data), req.Outer)
	if p := tr.view.Peers.LookupSource(req.Outer.Unmap()); p != nil {
		tr.step("outer source", "%s is peer %s", req.Outer, p.Name)
	} else {
		tr.step("outer source", "%s is no peer's endpoint", req.Outer)
	}
	if packet != nil {
		tr.step("parse", "%s", tr.Packet)
	}
	if tr.t.rules.Bridge && packet != nil {
		tr.source()
	}
	if tr.h.Src.IsValid() && !v.Consumed && !tr.t.rules.Bridge {
		if prefix, p := tr.view.Peers.LookupPrefix(tr.h.Src); p != nil {
			tr.step("inner source", "%s: %s of peer %s is the longest match", tr.h.Src, prefix, p.Name)
		} else {
			tr.step("inner source", "%s: in no peer's allowed_ips", tr.h.Src)
		}
	}
	tr.setPeer(v.Peer)
	tr.concludeDecap(packet, v, req.OuterTOS)
}

// frame puts a packet into a datagram as the peer it is said to come from would.
func (tr *tracer) frame(req TraceRequest) []byte {
	codec := tr.t.rules.Codec
	data := append(make([]byte, codec.Headroom()), req.Data...)
	link := encap.Link{Dst: tr.t.rules.MAC, Src: encap.MAC{2}}
	if p := tr.view.Peers.LookupSource(req.Outer.Unmap()); p != nil && !p.LinkAddr().IsZero() {
		link.Src = p.LinkAddr()
	}
	h := encap.Headers{}
	if encap.ParseIP(req.Data, &h) == encap.None {
		codec.Encap(data[:codec.Headroom()], data[codec.Headroom():], &h, link)
	}
	return data
}

func (tr *tracer) concludeDecap(packet []byte, v Verdict, outerTOS uint8) {
	switch {
	case v.Reason != encap.None:
		tr.drop(v.Reason, tr.whyNot(v.Reason))
		return
	case v.Consumed:
		tr.Verdict, tr.Why = "consume", "ARP and neighbour discovery are answered by the tunnel itself"
		return
	}
	if _, ok := encap.DecapECN(outerTOS, tr.h.TOS); !ok && (tr.h.Kind == encap.KindIPv4 || tr.h.Kind == encap.KindIPv6) {
		tr.drop(encap.IPTunnelECN, "")
		return
	}
	if r := tr.t.rules.Codec.Forward(packet, &tr.h); r != encap.None {
		tr.drop(r, "")
		return
	}
	tr.Verdict, tr.Why = "deliver", "written to the device"
	if v.Suspect != encap.None {
		tr.step("source check", "suspect: %s, if the check enforced", v.Suspect)
		tr.Why = "written to the device, and counted as suspect"
	}
}

// whyNot says in terms of this packet why it is dropped; empty where the reason's own sentence is the best there is.
func (tr *tracer) whyNot(r encap.Reason) string {
	switch r {
	case encap.NoTXTarget:
		if tr.t.rules.Bridge {
			return fmt.Sprintf("nobody knows where %s is, and nobody gets what is for all: vxlane fdb add, or fdb.flood in the configuration", tr.h.Link.Dst)
		}
		return fmt.Sprintf("no peer's allowed_ips contain %s; add it to the peer that has it", tr.h.Dst)
	case encap.NestedTunnel:
		return fmt.Sprintf("it is itself a datagram of this tunnel, to %s port %d: a route sends the underlay's own traffic into the device", tr.h.Dst, tr.h.DstPort)
	case encap.InnerSourceNotAllowed:
		if owner := tr.view.Peers.LookupMAC(tr.h.Link.Src); tr.t.rules.Bridge && owner != nil && owner.Endpoint.Addr() != tr.outer {
			return fmt.Sprintf("%s is peer %s's own MAC, as configured, and the frame does not come from there", tr.h.Link.Src, owner.Name)
		}
		return fmt.Sprintf("%s is not in the allowed_ips of the peer that sent it; add it there, or turn off underlay.source_check.inner", tr.h.Src)
	case encap.InnerMartian:
		return fmt.Sprintf("%s cannot be behind a peer: it is this host's own address, or no address that a host can have", tr.h.Src)
	}
	return ""
}

// describe puts a packet into one line.
func describe(packet []byte, h *encap.Headers) string {
	switch h.Kind {
	case encap.KindOther:
		if packet == nil {
			return "nothing that can be read"
		}
		return fmt.Sprintf("not IP, %d bytes", len(packet))
	case encap.KindARP:
		if a, r := encap.ParseARP(packet); r == encap.None {
			return fmt.Sprintf("ARP, %s (%s) about %s", a.SenderIP, a.SenderMAC, a.TargetIP)
		}
		return "ARP"
	}
	src, dst := h.Src.String(), h.Dst.String()
	if h.HasPorts {
		src = netip.AddrPortFrom(h.Src, h.SrcPort).String()
		dst = netip.AddrPortFrom(h.Dst, h.DstPort).String()
	}
	return fmt.Sprintf("%s %s -> %s, %d bytes", protocolName(h), src, dst, h.Len)
}

func protocolName(h *encap.Headers) string {
	switch {
	case h.Fragment:
		return "fragment"
	case h.L4 == 0:
		return "unknown protocol"
	case h.Proto == encap.ProtoTCP:
		return "tcp"
	case h.Proto == encap.ProtoUDP:
		return "udp"
	case h.Proto == encap.ProtoICMP && h.Kind == encap.KindIPv4:
		return "icmp"
	case h.Proto == encap.ProtoICMPv6 && h.Kind == encap.KindIPv6:
		return "icmpv6"
	}
	return fmt.Sprintf("protocol %d", h.Proto)
}
