package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vxlane/vxlane/routing"
)

// others returns the group and the VTEPs that are no peers, by address.
func (f *fdb) others() (all []*routing.Peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.group != nil {
		all = append(all, f.group)
	}
	return append(all, slices.SortedFunc(maps.Values(f.remotes), func(a, b *routing.Peer) int { return a.Endpoint.Compare(b.Endpoint) })...)
}

// FDBEntry is one entry as it is shown.
type FDBEntry struct {
	MAC      string     `json:"mac"`
	VLAN     uint16     `json:"vlan,omitempty"`
	Peer     string     `json:"peer"`
	Endpoint string     `json:"endpoint"`
	Kind     FDBKind    `json:"kind"`
	Heard    *time.Time `json:"heard,omitempty"` // learned entries: the last frame
}

// FDBEvent is a change: new, move, age, add or del.
type FDBEvent struct {
	Op    string   `json:"op"`
	Entry FDBEntry `json:"entry"`
	From  string   `json:"from,omitempty"` // move: the peer that it was behind
}

// FDBStats is what the database counted.
type FDBStats struct {
	Moves    uint64 `json:"moves"`
	Full     uint64 `json:"refused_limit"` // sightings of stations that were not learned: a limit is reached
	Restless uint64 `json:"refused_moves"` // moves that were not followed: there were too many
	Missed   uint64 `json:"missed"`        // sightings that came faster than they are learned
}

func describeEntry(key FDBKey, p *routing.Peer, kind FDBKind) FDBEntry {
	return FDBEntry{MAC: key.MAC.String(), VLAN: key.VLAN, Peer: p.Name, Endpoint: p.Endpoint.String(), Kind: kind}
}

// errNoFDB says that a tunnel forwards by address.
var errNoFDB = errors.New("this tunnel carries IP packets and has no forwarding database: see vxlane peer list")

// FDB returns every entry, by MAC and VLAN, and the counters. Those who get what is for all have the MAC of zeros, as bridge(8) shows
// them.
func (t *Tunnel) FDB() ([]FDBEntry, FDBStats, error) {
	f := t.fdb
	if f == nil {
		return nil, FDBStats{}, errNoFDB
	}
	all := []FDBEntry{}
	for _, p := range t.table.Load().Peers() {
		if !p.MAC.IsZero() {
			all = append(all, describeEntry(FDBKey{MAC: p.MAC}, p, FDBPeer))
		}
	}
	current := f.current.Load()
	for _, p := range current.flood {
		all = append(all, describeEntry(FDBKey{}, p, FDBFlood))
	}
	for key, e := range current.entries {
		entry := describeEntry(key, e.peer, e.kind)
		if e.kind == FDBLearned {
			heard := time.Unix(e.heard.Load(), 0)
			entry.Heard = &heard
		}
		all = append(all, entry)
	}
	slices.SortFunc(all, func(a, b FDBEntry) int {
		return cmp.Or(cmp.Compare(a.MAC, b.MAC), cmp.Compare(a.VLAN, b.VLAN), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return all, FDBStats{f.moved.Load(), f.full.Load(), f.restless.Load(), f.missed.Load()}, nil
}

// AddFDB adds a static entry, or makes a learned one static. Learning never moves it.
func (t *Tunnel) AddFDB(key FDBKey, peer string) error {
	f := t.fdb
	if f == nil {
		return errNoFDB
	}
	if !key.MAC.IsUnicast() {
		return fmt.Errorf("mac %s: want the address of one station", key.MAC)
	}
	if owner := t.table.Load().LookupMAC(key.MAC); owner != nil {
		return fmt.Errorf("mac %s is that of peer %s itself, as configured", key.MAC, owner.Name)
	}
	var err error
	f.change(func(entries map[FDBKey]*fdbEntry) {
		p := f.peers.LookupName(peer)
		if p == nil {
			err = fmt.Errorf("peer %q: there is none of that name; see vxlane peer list", peer)
			return
		}
		entries[key] = &fdbEntry{peer: p, kind: FDBStatic}
		f.tell(FDBEvent{Op: "add", Entry: describeEntry(key, p, FDBStatic)})
	})
	return err
}

// DeleteFDB removes the entries that match: those with the key, those of the peer, those that were learned. It returns how many
// there were.
func (t *Tunnel) DeleteFDB(match func(FDBKey, FDBEntry) bool) (n int, err error) {
	f := t.fdb
	if f == nil {
		return 0, errNoFDB
	}
	f.change(func(entries map[FDBKey]*fdbEntry) {
		for key, e := range entries {
			entry := describeEntry(key, e.peer, e.kind)
			if match(key, entry) {
				delete(entries, key)
				f.tell(FDBEvent{Op: "del", Entry: entry})
				n++
			}
		}
	})
	return n, nil
}

// WatchFDB sends changes until ctx ends; a watcher that is too slow misses some.
func (t *Tunnel) WatchFDB(ctx context.Context) (<-chan FDBEvent, error) {
	f := t.fdb
	if f == nil {
		return nil, errNoFDB
	}
	const behind = 256
	ch := make(chan FDBEvent, behind)
	f.mu.Lock()
	f.watchers[ch] = struct{}{}
	f.mu.Unlock()
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, ch)
		close(ch)
	})
	return ch, nil
}

// tell sends an event to those who watch; the caller holds mu.
func (f *fdb) tell(e FDBEvent) {
	for ch := range f.watchers {
		select {
		case ch <- e:
		default:
		}
	}
}
