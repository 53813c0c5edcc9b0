package tunnel

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// FDBConfig is how a tunnel's forwarding database behaves.
type FDBConfig struct {
	Learning  bool
	Ageing    time.Duration // of learned entries that are not heard of
	Limit     int           // learned entries
	PeerLimit int           // learned entries of one peer
	Flood     []string      // names of the peers that get what is for all, or for nobody known; nil is all, or with Group none
	Group     netip.Addr    // when valid, a multicast group that gets it; the underlay's as well (UDPConfig)
	NoFlood   bool          // nobody gets it
	Suppress  Suppression
}

// FDBKey is what a frame is looked up by: a station, in a VLAN (0 is none).
type FDBKey struct {
	MAC  encap.MAC
	VLAN uint16
}

// FDBKind is where an entry comes from.
type FDBKind string

// The kinds of entry.
const (
	FDBPeer    FDBKind = "peer"    // the peer's own MAC, as configured
	FDBStatic  FDBKind = "static"  // added by hand
	FDBLearned FDBKind = "learned" // from a frame that came from the peer
	FDBFlood   FDBKind = "flood"   // no station: a peer, or the group, that gets what is for all
)

// fdb is a tunnel's forwarding database in Ethernet mode: which peer a station is behind. Readers load it once per batch and take
// no lock; learning hands what it saw to one goroutine, and never waits.
type fdb struct {
	cfg     FDBConfig
	log     *slog.Logger
	now     func() time.Time
	current atomic.Pointer[fdbView]
	seen    chan sighting
	detach  func(netip.Addr) *routing.Peer // makes one that is in no snapshot
	group   *routing.Peer                  // nil without FDBConfig.Group

	mu       sync.Mutex // held by writers
	peers    *routing.Snapshot
	remotes  map[netip.Addr]*routing.Peer // VTEPs that are no peers, but that some station is behind
	moves    bucket
	watchers map[chan FDBEvent]struct{}

	moved, full, restless, missed atomic.Uint64
}

// fdbView is an immutable state of it, but for the time that each entry was last heard of.
type fdbView struct {
	entries map[FDBKey]*fdbEntry
	flood   []*routing.Peer
}

type fdbEntry struct {
	peer  *routing.Peer
	kind  FDBKind
	heard atomic.Int64 // seconds since 1970
}

// sighting is a frame's source that the database does not have so.
type sighting struct {
	key  FDBKey
	peer *routing.Peer // nil: from is the address of none
	from netip.Addr
}

// has reports whether an entry leads to where a sighting was.
func (e *fdbEntry) has(peer *routing.Peer, from netip.Addr) bool {
	if peer == nil {
		return e.peer.Endpoint.Addr() == from
	}
	return e.peer.State() == peer.State()
}

const (
	sightings      = 1024 // that wait to be learned; more are seen again
	learnBatch     = 5 * time.Millisecond
	movesPerSecond = 100
	// copiesPerSecond is how many further copies of frames flooding sends, for each queue: a storm in the overlay is not to be one
	// for each peer on the underlay.
	copiesPerSecond = 50_000
)

func newFDB(cfg FDBConfig, detach func(netip.Addr) *routing.Peer, log *slog.Logger) *fdb {
	f := &fdb{
		cfg: cfg, log: log, now: time.Now, seen: make(chan sighting, sightings), detach: detach, peers: new(routing.Snapshot),
		remotes: make(map[netip.Addr]*routing.Peer), watchers: make(map[chan FDBEvent]struct{}),
	}
	if cfg.Group.IsValid() {
		f.group = detach(cfg.Group)
	}
	f.current.Store(&fdbView{})
	return f
}

// lookup returns the peer that a station is behind, nil when that is not known.
func (v *fdbView) lookup(key FDBKey) *routing.Peer {
	if v == nil {
		return nil
	}
	if e := v.entries[key]; e != nil {
		return e.peer
	}
	return nil
}

// everyone returns the peers that get what is for all.
func (v *fdbView) everyone() []*routing.Peer {
	if v == nil {
		return nil
	}
	return v.flood
}

// observe notes that a frame of a station came from a peer or, when peer is nil, from an address of none. It never blocks; what does
// not fit is seen again with the next frame.
func (f *fdb) observe(view View, key FDBKey, peer *routing.Peer, from netip.Addr, now int64) {
	if !f.cfg.Learning || view.Peers.LookupMAC(key.MAC) != nil {
		return
	}
	if e := view.Stations.entries[key]; e != nil && (e.kind != FDBLearned || e.has(peer, from)) {
		if e.heard.Load() != now {
			e.heard.Store(now)
		}
		return
	}
	select {
	case f.seen <- sighting{key, peer, from}:
	default:
		f.missed.Add(1)
	}
}

// run learns and ages until ctx ends.
func (f *fdb) run(ctx context.Context) {
	if !f.cfg.Learning {
		return
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-f.seen:
			f.learn(s)
		case <-ticker.C:
			f.age()
		}
	}
}

// learn takes in a sighting and those that come right after it: one copy of the table for all.
func (f *fdb) learn(first sighting) {
	time.Sleep(learnBatch)
	if !f.acceptable(first) && len(f.seen) == 0 {
		return
	}
	f.change(func(entries map[FDBKey]*fdbEntry) {
		learned := make(map[*routing.State]int) // entries by peer; nil is all of them
		for _, e := range entries {
			if e.kind == FDBLearned {
				learned[nil]++
				learned[e.peer.State()]++
			}
		}
		f.learnOne(entries, learned, first)
		for range cap(f.seen) {
			select {
			case s := <-f.seen:
				f.learnOne(entries, learned, s)
			default:
				return
			}
		}
	})
}

// acceptable reports whether a sighting would change anything, without a copy of the table; what would not is counted. Stations
// that are refused are seen again with each of their frames.
func (f *fdb) acceptable(s sighting) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries := f.current.Load().entries
	if e := entries[s.key]; e != nil {
		return true // a move has a limit of its own
	}
	all, own := 0, 0
	for _, e := range entries {
		if e.kind == FDBLearned {
			all++
			if e.has(s.peer, s.from) {
				own++
			}
		}
	}
	if all < f.cfg.Limit && own < f.cfg.PeerLimit {
		return true
	}
	f.full.Add(1)
	return false
}

func (f *fdb) learnOne(entries map[FDBKey]*fdbEntry, learned map[*routing.State]int, s sighting) {
	peer := f.origin(s)
	if peer == nil || f.peers.LookupMAC(s.key.MAC) != nil {
		return // it left meanwhile
	}
	e := entries[s.key]
	switch {
	case (e == nil && learned[nil] >= f.cfg.Limit) || (e == nil || e.peer.State() != peer.State()) && learned[peer.State()] >= f.cfg.PeerLimit:
		f.full.Add(1)
		return
	case e == nil:
		learned[nil]++
		learned[peer.State()]++
		f.tell(FDBEvent{Op: "new", Entry: describeEntry(s.key, peer, FDBLearned)})
	case e.kind != FDBLearned || e.peer.State() == peer.State():
		return
	case !f.moves.take(f.now(), movesPerSecond, movesPerSecond):
		f.restless.Add(1)
		return
	default:
		f.moved.Add(1)
		learned[e.peer.State()]--
		learned[peer.State()]++
		f.tell(FDBEvent{Op: "move", Entry: describeEntry(s.key, peer, FDBLearned), From: e.peer.Name})
	}
	e = &fdbEntry{peer: peer, kind: FDBLearned}
	e.heard.Store(f.now().Unix())
	entries[s.key] = e
}

// origin returns who a sighting was of, as of now; nil when that peer left.
func (f *fdb) origin(s sighting) *routing.Peer {
	if s.peer != nil {
		return successor(s.peer, f.peers)
	}
	if peer := f.peers.LookupSource(s.from); peer != nil {
		return peer
	}
	if f.remotes[s.from] == nil {
		f.remotes[s.from] = f.detach(s.from)
	}
	return f.remotes[s.from]
}

// successor returns what a peer is in another set, nil when it is not in it.
func successor(p *routing.Peer, peers *routing.Snapshot) *routing.Peer {
	if next := peers.LookupName(p.Name); next != nil && next.State() == p.State() {
		return next
	}
	return nil
}

// age forgets learned entries that were not heard of for long.
func (f *fdb) age() {
	oldest := f.now().Add(-f.cfg.Ageing).Unix()
	old := func(e *fdbEntry) bool { return e.kind == FDBLearned && e.heard.Load() < oldest }
	if !slices.ContainsFunc(slices.Collect(maps.Values(f.current.Load().entries)), old) {
		return
	}
	f.change(func(entries map[FDBKey]*fdbEntry) {
		for key, e := range entries {
			if old(e) {
				f.tell(FDBEvent{Op: "age", Entry: describeEntry(key, e.peer, e.kind)})
				delete(entries, key)
			}
		}
	})
}

// change puts a changed copy of the table in force.
func (f *fdb) change(edit func(entries map[FDBKey]*fdbEntry)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.current.Load()
	next := &fdbView{entries: maps.Clone(now.entries), flood: now.flood}
	if next.entries == nil {
		next.entries = make(map[FDBKey]*fdbEntry)
	}
	edit(next.entries)
	f.forgetRemotes(next.entries)
	f.current.Store(next)
}

// forgetRemotes drops the VTEPs that no station is behind any more.
func (f *fdb) forgetRemotes(entries map[FDBKey]*fdbEntry) {
	if len(f.remotes) == 0 {
		return
	}
	inUse := make(map[*routing.Peer]bool)
	for _, e := range entries {
		inUse[e.peer] = true
	}
	maps.DeleteFunc(f.remotes, func(_ netip.Addr, p *routing.Peer) bool { return !inUse[p] })
}

// follow brings the database in line with a new set of peers: entries of those that left are gone, the others lead to the peers as
// they are now.
func (f *fdb) follow(peers *routing.Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peers = peers
	next := &fdbView{entries: make(map[FDBKey]*fdbEntry), flood: f.floodTo(peers)}
	for key, e := range f.current.Load().entries {
		p := successor(e.peer, peers)
		if a := e.peer.Endpoint.Addr(); f.remotes[a] == e.peer {
			p = cmp.Or(peers.LookupSource(a), e.peer)
		}
		if p == nil || peers.LookupMAC(key.MAC) != nil {
			f.tell(FDBEvent{Op: "del", Entry: describeEntry(key, e.peer, e.kind)})
			continue
		}
		moved := &fdbEntry{peer: p, kind: e.kind}
		moved.heard.Store(e.heard.Load())
		next.entries[key] = moved
	}
	f.forgetRemotes(next.entries)
	f.current.Store(next)
}

// floodTo returns the peers that get what is for all.
func (f *fdb) floodTo(peers *routing.Snapshot) (to []*routing.Peer) {
	if f.cfg.NoFlood {
		return nil
	}
	if f.group != nil {
		to = append(to, f.group)
	}
	for _, p := range peers.Peers() {
		if f.cfg.Flood == nil && f.group == nil || slices.Contains(f.cfg.Flood, p.Name) {
			to = append(to, p)
		}
	}
	return to
}
