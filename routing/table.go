package routing

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
)

// Table holds the snapshot in force. Readers load it once per batch and keep it for that batch; writers replace it whole.
type Table struct {
	current atomic.Pointer[Snapshot]
	mu      sync.Mutex // held by writers only
	workers int
}

// NewTable returns a table without peers whose per-peer counters have workers shares.
func NewTable(workers int) *Table {
	t := &Table{workers: workers}
	t.current.Store(new(Snapshot))
	return t
}

// Load returns the snapshot in force, never nil. It stays valid for as long as the caller keeps it.
func (t *Table) Load() *Snapshot { return t.current.Load() }

// Apply puts next, which must not be in a table yet, in the place of the snapshot in force and says what changed. Peers
// that were there under the same name keep their State.
func (t *Table) Apply(next *Snapshot) Change {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.current.Load()
	c := Change{Added: []string{}, Changed: []string{}, Removed: []string{}}
	for _, p := range next.peers {
		before := old.names[p.Name]
		switch {
		case before == nil:
			p.state = &State{shards: make([]PeerCounters, t.workers)}
			c.Added = append(c.Added, p.Name)
		case before.sameAs(p):
			p.state = before.state
			c.Unchanged++
		default:
			p.state = before.state
			c.Changed = append(c.Changed, p.Name)
		}
	}
	for _, p := range old.peers {
		if next.names[p.Name] == nil {
			c.Removed = append(c.Removed, p.Name)
		}
	}
	t.current.Store(next)
	return c
}

// Detached returns a peer that is in no snapshot, with a State of its own for the same workers: an underlay multicast group, or a
// VTEP that is only heard of.
func (t *Table) Detached(endpoint netip.AddrPort) *Peer {
	return &Peer{Name: endpoint.Addr().String(), Endpoint: endpoint, state: &State{shards: make([]PeerCounters, t.workers)}}
}

// Change is the difference between two snapshots, by peer name.
type Change struct {
	Added     []string `json:"added"`
	Changed   []string `json:"changed"`
	Removed   []string `json:"removed"`
	Unchanged int      `json:"unchanged"`
}

// Any reports whether anything changed.
func (c Change) Any() bool { return len(c.Added)+len(c.Changed)+len(c.Removed) > 0 }

// String returns a sentence such as "2 peers added, 1 removed, 497 unchanged".
func (c Change) String() string {
	var parts []string
	for _, p := range []struct {
		n    int
		word string
	}{{len(c.Added), "added"}, {len(c.Changed), "changed"}, {len(c.Removed), "removed"}, {c.Unchanged, "unchanged"}} {
		if p.n == 0 {
			continue
		}
		unit := ""
		if len(parts) == 0 {
			unit = " peers"
			if p.n == 1 {
				unit = " peer"
			}
		}
		parts = append(parts, fmt.Sprintf("%d%s %s", p.n, unit, p.word))
	}
	if parts == nil {
		return "no peers"
	}
	return strings.Join(parts, ", ")
}

// Source is a control plane: it says who the peers are, always whole sets ("this is everyone"), never single events.
type Source interface {
	// Run calls deliver with each new set until ctx ends, and then returns nil. deliver refuses a set with an error and
	// nothing changes; the source says so and goes on. The slice is the callee's.
	Run(ctx context.Context, deliver func(peers []Peer) (Change, error)) error
}
