package tunnel

import (
	"slices"
	"time"

	"github.com/vxlane/vxlane/routing"
)

// Stats is a tunnel's counters, added up over its workers.
type Stats struct {
	Encap     Flow      `json:"encap"`
	Decap     Flow      `json:"decap"`
	Generated Generated `json:"generated"`
}

// Stats adds up the counters. They are read while they move: sums are exact once traffic rests.
func (t *Tunnel) Stats() Stats {
	var s Stats
	for _, w := range t.workers {
		s.Encap.add(w.transmit.count)
		s.Decap.add(w.receive.count)
	}
	s.Encap.add(t.neighbours.out.count)
	if t.strays.count != nil {
		s.Decap.add(t.strays.count)
	}
	s.Encap.Held = uint64(t.neighbours.held())
	s.Encap.finish()
	s.Decap.finish()
	s.Generated = t.slow.generated.load()
	return s
}

// PeerStatus is what is known of one peer now.
type PeerStatus struct {
	Peer  *routing.Peer
	State NeighbourState
	routing.PeerTotals
	LastReceive time.Time // zero when nothing was received
	PathMTU     int       // largest outer packet that is known to reach it, in bytes; 0 when nothing is known
	BlackHole   bool      // larger ones vanish without an ICMP error
	Echo        routing.Echo
}

// Up reports whether packets can be sent to the peer: its MAC is known, or none is needed.
func (p PeerStatus) Up() bool { return p.State != NeighbourIncomplete && p.State != NeighbourStale }

// PeerStatus returns every peer of the snapshot in force, in its order, and then, in Ethernet mode, the multicast group and the VTEPs
// that are no peers but have stations behind them.
func (t *Tunnel) PeerStatus() []PeerStatus {
	snapshot := t.table.Load()
	peers := slices.Clip(snapshot.Peers())
	if t.fdb != nil {
		for _, p := range t.fdb.others() {
			if snapshot.LookupName(p.Name) == nil { // one name, one series
				peers = append(peers, p)
			}
		}
	}
	out := make([]PeerStatus, len(peers))
	for i, p := range peers {
		out[i] = PeerStatus{Peer: p, State: t.neighbours.state(p), PeerTotals: p.State().Totals(), Echo: p.State().Path.Echo()}
		out[i].PathMTU, out[i].BlackHole = p.State().Path.MTU()
		if sec := p.State().LastReceive(); sec > 0 {
			out[i].LastReceive = time.Unix(sec, 0)
		}
	}
	return out
}

// Started returns when the tunnel was made.
func (t *Tunnel) Started() time.Time { return t.started }
