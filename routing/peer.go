package routing

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/vxlane/vxlane/encap"
)

// Peer is a remote tunnel endpoint (VTEP). Once part of a Snapshot it is immutable, but for its State.
type Peer struct {
	// Name identifies the peer across snapshots; unique within a tunnel.
	Name string
	// Endpoint is the underlay address and port that datagrams for the peer go to; the address is unmapped.
	Endpoint netip.AddrPort
	// MAC is the VTEP's MAC as configured; zero means that it is asked for.
	MAC encap.MAC
	// AllowedIPs are the inner prefixes behind the peer, masked, in the order of the configuration.
	AllowedIPs []netip.Prefix
	// Segmented is of one that takes no datagram larger than the path to it: what goes there is cut first, whatever the tier.
	Segmented bool

	state *State
}

// State returns what survives a change of the peer's other attributes. It is set once the peer's snapshot is in a Table.
func (p *Peer) State() *State { return p.state }

// LinkAddr returns the MAC to send to: the configured one, else the resolved one; zero when there is neither.
func (p *Peer) LinkAddr() encap.MAC {
	if !p.MAC.IsZero() {
		return p.MAC
	}
	return p.state.ResolvedMAC()
}

// ResolveAddr returns the address to ask for the peer's MAC with: the first single host in AllowedIPs.
func (p *Peer) ResolveAddr() (netip.Addr, bool) {
	for _, prefix := range p.AllowedIPs {
		if prefix.IsSingleIP() {
			return prefix.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// sameAs reports whether two peers of one name say the same.
func (p *Peer) sameAs(o *Peer) bool {
	return p.Endpoint == o.Endpoint && p.MAC == o.MAC && p.Segmented == o.Segmented && slices.Equal(p.AllowedIPs, o.AllowedIPs)
}

// State is what a Table keeps of a peer, by name, from one snapshot to the next: counters, the resolved MAC, path MTU.
// All methods are safe for concurrent use, but each counter has one writer.
type State struct {
	// Path is about the way to the peer.
	Path Path

	mac    atomic.Uint64
	heard  atomic.Int64
	shards []PeerCounters
}

// ResolvedMAC returns the MAC that the peer was last heard to have, zero when it was not.
func (s *State) ResolvedMAC() encap.MAC { return encap.MACFromUint64(s.mac.Load()) }

// SetResolvedMAC stores the peer's MAC; the zero MAC forgets it.
func (s *State) SetResolvedMAC(m encap.MAC) { s.mac.Store(m.Uint64()) }

// LastReceive returns when the last packet of the peer was accepted, in seconds since 1970; 0 when none was.
func (s *State) LastReceive() int64 { return s.heard.Load() }

// SetLastReceive stores the time of an accepted packet, in seconds since 1970.
func (s *State) SetLastReceive(unix int64) {
	if s.heard.Load() != unix {
		s.heard.Store(unix)
	}
}

// Counters returns the counters that worker alone writes, those of each direction from one thread at a time.
func (s *State) Counters(worker int) *PeerCounters { return &s.shards[worker] }

// Totals adds up the counters of all workers.
func (s *State) Totals() PeerTotals {
	var t PeerTotals
	for i := range s.shards {
		c := &s.shards[i]
		t.EncapPackets += c.EncapPackets.Load()
		t.EncapBytes += c.EncapBytes.Load()
		t.DecapPackets += c.DecapPackets.Load()
		t.DecapBytes += c.DecapBytes.Load()
	}
	return t
}

// PeerTotals are a peer's counters, added up: inner packets and their bytes, to the peer (encap) and from it (decap).
type PeerTotals struct {
	EncapPackets, EncapBytes, DecapPackets, DecapBytes uint64
}

// PeerCounters is one worker's share of a peer's counters, a cache line to itself.
type PeerCounters struct {
	EncapPackets, EncapBytes, DecapPackets, DecapBytes Counter
	_                                                  [32]byte
}

// Counter counts events with one writer and any number of readers; adding needs no loop, and no lock but what a store is on amd64 (XCHG). The zero value is 0.
type Counter struct{ v atomic.Uint64 }

// Add adds n. Only one goroutine at a time may call it.
func (c *Counter) Add(n uint64) { c.v.Store(c.v.Load() + n) }

// Load returns the count.
func (c *Counter) Load() uint64 { return c.v.Load() }
