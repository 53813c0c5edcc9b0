// Package flannel makes snapshots of peers out of flannel's leases, wherever these are kept: flannel's own subnet managers
// (etcd, Kubernetes) tell of them.
package flannel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flannel-io/flannel/pkg/lease"

	"github.com/vxlane/vxlane/routing"
)

// Watcher is the part of flannel's subnet.Manager that tells of leases.
type Watcher interface {
	// WatchLeases sends what changes, and at times everything, until ctx ends; then it closes the channel.
	WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error
}

// Source follows the leases of a cluster.
type Source struct {
	Leases Watcher
	Own    lease.Lease // this node's, which is no peer
	Views  []View      // of the leases, each for a tunnel of its own
	Log    *slog.Logger
	// Check, when not nil, is asked now and then whether who has the leases can be reached: a watch says nothing of that.
	Check      func(ctx context.Context) error
	CheckEvery time.Duration

	doubted map[string]bool        // leases that the last list lacked, and that have not expired
	known   map[string]lease.Lease // by subnet; kept when a watch fails
	bad     map[string]string      // leases that make no peer, and why
	mu      sync.Mutex
	state   State
}

// View is the peers that one tunnel sees in the leases.
type View struct {
	// Peer makes a peer of one lease. ok is false for leases that are none of this tunnel's.
	Peer func(l *lease.Lease) (p routing.Peer, ok bool, err error)
	// Set takes complete sets of peers.
	Set func([]routing.Peer) (routing.Change, error)
}

// State is how it goes with the leases.
type State struct {
	Leases   int       // known, this node's own included
	Bad      int       // of them, that make no peer though they should
	Applied  time.Time // when a set of peers was last handed over; zero when none was
	Failures uint64    // watches that failed and were begun again
	Err      error     // of the watch that failed last; nil once a set of peers came after it
	Expires  time.Time // this node's lease, zero when it does not or that is not known
}

// State returns how it goes. It may be called at any time.
func (s *Source) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

const (
	// gather is how long changes are collected before the set of peers is replaced.
	gather = 100 * time.Millisecond
	// retry is how long to wait before a watch that failed is begun again.
	retry = time.Second
)

// Run hands complete sets of peers to the views until ctx ends: whenever leases changed, and once at the beginning. A lease
// that makes no peer is named and left out; the others count.
func (s *Source) Run(ctx context.Context) {
	s.known, s.bad = make(map[string]lease.Lease), make(map[string]string)
	if s.Check != nil {
		go s.keepChecking(ctx)
	}
	for {
		err := s.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		s.note(err)
		s.Log.Error("cannot watch leases, trying again", "err", err, "in", retry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

// note books a failure.
func (s *Source) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Failures++
	s.state.Err = err
}

// keepChecking asks Check until ctx ends, and says when that changes.
func (s *Source) keepChecking(ctx context.Context) {
	ticker := time.NewTicker(s.CheckEvery)
	defer ticker.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		asking, cancel := context.WithTimeout(ctx, s.CheckEvery)
		err := s.Check(asking)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			s.Log.Error("the leases cannot be reached, the peers of before stay in force", "err", err)
			s.note(err)
		case err == nil && failing:
			s.Log.Info("the leases can be reached again")
			s.mu.Lock()
			s.state.Err = nil
			s.mu.Unlock()
		}
		failing = err != nil
	}
}

// endGrace is how long a watch may take to end with the source: flannel's etcd watch may try again first (pkg/subnet/etcd/registry.go).
const endGrace = time.Second

// watch follows one watch, and returns when nothing of it is left, or a while after ctx ended.
func (s *Source) watch(ctx context.Context) error {
	results := make(chan []lease.LeaseWatchResult)
	failed, ended := make(chan error, 1), make(chan struct{})
	watching, cancel := context.WithCancel(ctx)
	go func() {
		defer close(ended)
		failed <- s.Leases.WatchLeases(watching, results)
	}()
	err := s.follow(ctx, results, failed)
	cancel()
	var patience <-chan time.Time
	if ctx.Err() != nil {
		patience = time.After(endGrace)
	}
	for {
		select {
		case <-ended:
			return err
		case <-patience:
			return err
		case <-results: // it may be about to send, whatever it was told
		}
	}
}

// follow takes in what one watch sends, until it ends.
func (s *Source) follow(ctx context.Context, results <-chan []lease.LeaseWatchResult, failed <-chan error) error {
	var due <-chan time.Time
	defer func() {
		if due != nil && ctx.Err() == nil {
			s.apply() // what came before the watch ended
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return cmp.Or(err, errEnded)
		case batch, ok := <-results:
			if !ok {
				return errEnded
			}
			for i := range batch {
				if err := s.take(&batch[i]); err != nil {
					return err
				}
			}
			if due == nil {
				due = time.After(gather)
			}
		case <-due:
			due = nil
			s.apply()
		}
	}
}

var (
	errEnded   = errors.New("the watch ended")
	errPartial = errors.New("a list of leases without this node's own: something was left out")
	errDoubted = errors.New("a list of leases without some that have not expired: listing again to be sure")
)

// take books one result. A snapshot is everyone, whatever was known; but flannel's etcd watch sends an empty one for an event
// that it cannot read, and leaves out leases whose time to live it was not told (pkg/subnet/etcd/registry.go): then it is
// asked again.
func (s *Source) take(r *lease.LeaseWatchResult) error {
	if len(r.Events) == 0 {
		own := func(l lease.Lease) bool { return key(&l) == key(&s.Own) }
		if !slices.ContainsFunc(r.Snapshot, own) {
			return errPartial
		}
		if s.doubt(r.Snapshot) {
			return errDoubted
		}
		clear(s.known)
		for _, l := range r.Snapshot {
			s.known[key(&l)] = l
		}
		return nil
	}
	for _, e := range r.Events {
		switch e.Type {
		case lease.EventAdded:
			s.known[key(&e.Lease)] = e.Lease
		case lease.EventRemoved:
			delete(s.known, key(&e.Lease))
		}
	}
	return nil
}

// doubt reports whether a list lacks leases that should still be there, and that the list before it did not lack as well.
func (s *Source) doubt(list []lease.Lease) bool {
	missing := make(map[string]bool)
	for k, l := range s.known {
		if l.Expiration.After(time.Now()) && !slices.ContainsFunc(list, func(o lease.Lease) bool { return key(&o) == k }) {
			missing[k] = true
		}
	}
	agreed := true
	for k := range missing {
		agreed = agreed && s.doubted[k]
	}
	if s.doubted = missing; agreed {
		s.doubted = nil
	}
	return !agreed
}

func key(l *lease.Lease) string { return l.Subnet.String() + " " + l.IPv6Subnet.String() }

// apply hands over the peers of all leases.
func (s *Source) apply() {
	bad := make(map[string]string)
	var failure error
	for _, v := range s.Views {
		peers := s.peers(v, bad)
		if change, err := v.Set(peers); err != nil {
			failure = fmt.Errorf("the leases' peers are refused, what was before stays: %w", err)
			s.Log.Error("the leases' peers are refused, what was before stays", "err", err)
		} else if change.Any() || s.state.Applied.IsZero() {
			s.Log.Info("leases", "peers", len(peers), "result", change.String())
		}
	}
	s.complain(bad)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Leases, s.state.Bad, s.state.Err = len(s.known), len(bad), failure
	if failure == nil {
		s.state.Applied = time.Now()
	}
	s.state.Expires = s.known[key(&s.Own)].Expiration
}

// peers makes peers of all leases but this node's. Leases of one endpoint are one peer, as the one that expires last says: a
// node that got another subnet keeps its old lease until that expires. bad gets the leases that make none, and why.
func (s *Source) peers(v View, bad map[string]string) []routing.Peer {
	merged := make(map[netip.AddrPort]*routing.Peer)
	claimed := make(map[string]string) // prefixes and MACs, by whom
	newestFirst := func(a, b string) int {
		return cmp.Or(s.known[b].Expiration.Compare(s.known[a].Expiration), cmp.Compare(a, b))
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.known), newestFirst) {
		l := s.known[k]
		if k == key(&s.Own) {
			continue
		}
		p, ok, err := v.Peer(&l)
		if ok && err == nil {
			err = claim(claimed, &p)
		}
		switch {
		case err != nil:
			bad[k] = err.Error()
		case !ok:
		case merged[p.Endpoint] == nil:
			merged[p.Endpoint] = &p
		default:
			first := merged[p.Endpoint]
			first.AllowedIPs = append(first.AllowedIPs, p.AllowedIPs...)
		}
	}
	peers := make([]routing.Peer, 0, len(merged))
	for _, p := range merged {
		peers = append(peers, *p)
	}
	slices.SortFunc(peers, func(a, b routing.Peer) int { return cmp.Compare(a.Name, b.Name) })
	return peers
}

// claim books a peer's prefixes and MAC, or says who has them already: one lease too many must not cost the others.
func claim(claimed map[string]string, p *routing.Peer) error {
	var claims []string
	for _, a := range p.AllowedIPs {
		claims = append(claims, a.String())
	}
	if !p.MAC.IsZero() {
		claims = append(claims, p.MAC.String())
	}
	for _, c := range claims {
		if by, ok := claimed[c]; ok && by != p.Endpoint.String() {
			return fmt.Errorf("%s is that of the node at %s already", c, by)
		}
	}
	for _, c := range claims {
		claimed[c] = p.Endpoint.String()
	}
	return nil
}

// complain names bad leases, each once.
func (s *Source) complain(bad map[string]string) {
	for k, why := range bad {
		if s.bad[k] != why {
			s.Log.Warn("a lease makes no peer and is left out", "lease", k, "reason", why)
		}
	}
	s.bad = bad
}
