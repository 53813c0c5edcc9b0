package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// encapFrame judges a frame that the device would give.
func (tr *tracer) encapFrame(frame []byte) {
	v := DecideTransmit(&tr.t.rules, tr.view, frame, &tr.h)
	tr.Packet = describeFrame(frame, &tr.h)
	tr.step("parse", "%s", tr.Packet)
	if v.Reason == encap.PktTooSmall {
		tr.drop(v.Reason, "")
		return
	}
	p := &Packet{Data: frame, Headers: tr.h, Count: 1}
	switch answer, question := tr.t.answerTo(tr.view, p); {
	case answer != nil:
		tr.step("suppression", "the configuration has the answer (fdb.suppress)")
		tr.Verdict, tr.Why = "consume", "the tunnel answers for the station, and the frame goes nowhere"
		return
	case question && tr.t.cfg.FDB.Suppress == SuppressAll:
		tr.drop(encap.NeighbourUnresolved, "it asks for an address whose MAC the configuration does not give, and such questions are dropped (fdb.suppress: drop)")
		return
	}
	tr.destination()
	switch {
	case v.Reason != encap.None:
		tr.drop(v.Reason, tr.whyNot(v.Reason))
	case v.Flood:
		tr.flooded(p)
	default:
		tr.setPeer(v.Peer)
		if tr.passes(v.Peer, p) {
			tr.Verdict, tr.Why = "deliver", fmt.Sprintf("sent to peer %s at %s", v.Peer.Name, v.Peer.Endpoint)
		}
	}
}

// destination says where a frame's station is.
func (tr *tracer) destination() {
	dst := tr.h.Link.Dst
	key := tr.view.station(dst, &tr.h)
	switch owner, entry := tr.view.Peers.LookupMAC(dst), tr.view.Stations.entries[key]; {
	case dst.IsGroup():
		tr.step("station", "%s is for all", dst)
	case owner != nil:
		tr.step("station", "%s is peer %s's own MAC, as configured", dst, owner.Name)
	case entry != nil:
		tr.step("station", "%s is behind %s (%s)", describeKey(key), entry.peer.Name, entry.kind)
	default:
		tr.step("station", "%s: nobody knows where it is", describeKey(key))
	}
}

// source says what the forwarding database has of a received frame's source.
func (tr *tracer) source() {
	src := tr.h.Link.Src
	key := tr.view.station(src, &tr.h)
	switch owner, entry := tr.view.Peers.LookupMAC(src), tr.view.Stations.entries[key]; {
	case owner != nil:
		tr.step("station", "%s is peer %s's own MAC, as configured", src, owner.Name)
	case entry != nil:
		tr.step("station", "%s is known to be behind %s (%s)", describeKey(key), entry.peer.Name, entry.kind)
	case tr.t.fdb.cfg.Learning:
		tr.step("station", "%s is not known yet, and would be learned", describeKey(key))
	default:
		tr.step("station", "%s is not known", describeKey(key))
	}
}

func describeKey(key FDBKey) string {
	if key.VLAN == 0 {
		return key.MAC.String()
	}
	return fmt.Sprintf("%s in VLAN %d", key.MAC, key.VLAN)
}

// flooded concludes with those who get a frame that is for all.
func (tr *tracer) flooded(p *Packet) {
	var names []string
	for _, peer := range tr.view.Stations.everyone() {
		if !tr.h.Link.Dst.IsGroup() && !tr.passes(peer, p) {
			return
		}
		names = append(names, peer.Name)
	}
	const most = 10
	list := strings.Join(names[:min(len(names), most)], ", ")
	if more := len(names) - most; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	tr.Verdict, tr.Why = "deliver", fmt.Sprintf("flooded to %d: %s", len(names), list)
}

// passes reports whether a frame can reach a peer whole, where it must; else it concludes.
func (tr *tracer) passes(peer *routing.Peer, p *Packet) bool {
	path, size := &peer.State().Path, tr.t.overhead+p.longest()
	mtu, _ := path.MTU()
	if mtu == 0 || tr.t.cutOnTheWay(p) {
		return true
	}
	if tr.t.reaches(path, p, size) {
		tr.step("path", "%d bytes with the outer headers; %d reach peer %s whole", size, mtu, peer.Name)
		return true
	}
	tr.drop(encap.PktTooBig, fmt.Sprintf("it would be %d bytes with the outer headers, and no more than %d reach peer %s; its sender is told to send packets of %d", size, mtu, peer.Name, tr.t.innerMTU(peer, p)))
	return false
}

// stationFrame makes a frame of a packet: as a station on this side would (encap), or one behind the peer (decap).
func (tr *tracer) stationFrame(req *TraceRequest) ([]byte, error) {
	var h encap.Headers
	if r := encap.ParseIP(req.Data, &h); r != encap.None {
		return nil, fmt.Errorf("packet: %s", r.Meaning())
	}
	from, to := req.From, req.To
	if req.Direction == Decap {
		if p := tr.view.Peers.LookupSource(req.Outer.Unmap()); from.IsZero() && p != nil {
			from = p.MAC
		}
		if to.IsZero() {
			to = tr.t.rules.MAC
		}
	} else if from.IsZero() {
		from = tr.t.rules.MAC
	}
	if to.IsZero() {
		to = tr.stationOf(h.Dst)
	}
	if from.IsZero() || to.IsZero() {
		return nil, errors.New("which stations? the tunnel carries frames: say --mac for the destination's MAC, and --from-mac for the source's when it comes from a peer without one")
	}
	etherType := uint16(encap.EtherTypeIPv4)
	if h.Kind == encap.KindIPv6 {
		etherType = encap.EtherTypeIPv6
	}
	frame := slices.Concat(to[:], from[:])
	if req.VLAN != 0 {
		frame = binary.BigEndian.AppendUint16(append(frame, 0x81, 0), req.VLAN)
	}
	return append(binary.BigEndian.AppendUint16(frame, etherType), req.Data...), nil
}

// stationOf returns the MAC that the configuration, or the kind of address, gives a destination; zero when neither does.
func (tr *tracer) stationOf(a netip.Addr) encap.MAC {
	switch {
	case a == broadcastIPv4:
		return encap.Broadcast
	case a.IsMulticast():
		return encap.MulticastMAC(a)
	}
	if p := ownerOf(tr.view, a); p != nil {
		return p.MAC
	}
	return encap.MAC{}
}

// describeFrame puts a frame into one line.
func describeFrame(frame []byte, h *encap.Headers) string {
	if len(frame) < encap.EthernetHeaderLen {
		return fmt.Sprintf("%d bytes, too short for a frame", len(frame))
	}
	line := fmt.Sprintf("%s -> %s", h.Link.Src, h.Link.Dst)
	if h.VLANs > 0 {
		line += fmt.Sprintf(", VLAN %d", h.VLAN)
	}
	switch h.Kind {
	case encap.KindIPv4, encap.KindIPv6, encap.KindARP:
		return line + ": " + describe(frame[h.L3:], h)
	}
	return fmt.Sprintf("%s: not IP, %d bytes", line, len(frame))
}
