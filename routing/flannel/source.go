// Package flannel makes snapshots of peers out of flannel's leases, wherever these are kept: flannel's own subnet managers
// (etcd, Kubernetes) tell of them.
package flannel

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"

	"github.com/vxlane/vxlane/encap"
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
	// Peer makes a peer of one lease. ok is false for leases that are none of this backend's.
	Peer func(l *lease.Lease) (p routing.Peer, ok bool, err error)
	Log  *slog.Logger

	known map[string]lease.Lease // by subnet; kept when a watch fails
	bad   map[string]string      // leases that make no peer, and why
}

const (
	// gather is how long changes are collected before the set of peers is replaced.
	gather = 100 * time.Millisecond
	// retry is how long to wait before a watch that failed is begun again.
	retry = time.Second
)

// Run hands complete sets of peers to set until ctx ends: whenever leases changed, and once at the beginning. A lease that
// makes no peer is named and left out; the others count.
func (s *Source) Run(ctx context.Context, set func([]routing.Peer) (routing.Change, error)) {
	s.known, s.bad = make(map[string]lease.Lease), make(map[string]string)
	for {
		err := s.watch(ctx, set)
		if ctx.Err() != nil {
			return
		}
		s.Log.Error("cannot watch leases, trying again", "err", err, "in", retry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

// watch follows one watch, and returns when nothing of it is left.
func (s *Source) watch(ctx context.Context, set func([]routing.Peer) (routing.Change, error)) error {
	results := make(chan []lease.LeaseWatchResult)
	failed, ended := make(chan error, 1), make(chan struct{})
	watching, cancel := context.WithCancel(ctx)
	go func() {
		defer close(ended)
		failed <- s.Leases.WatchLeases(watching, results)
	}()
	err := s.follow(ctx, results, failed, set)
	cancel()
	for {
		select {
		case <-ended:
			return err
		case <-results: // it may be about to send, whatever it was told
		}
	}
}

// follow takes in what one watch sends, until it ends.
func (s *Source) follow(ctx context.Context, results <-chan []lease.LeaseWatchResult, failed <-chan error, set func([]routing.Peer) (routing.Change, error)) error {
	var due <-chan time.Time
	defer func() {
		if due != nil && ctx.Err() == nil {
			s.apply(set) // what came before the watch ended
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
			s.apply(set)
		}
	}
}

var (
	errEnded   = errors.New("the watch ended")
	errPartial = errors.New("a list of leases without this node's own: something was left out")
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

func key(l *lease.Lease) string { return l.Subnet.String() + " " + l.IPv6Subnet.String() }

// apply hands over the peers of all leases.
func (s *Source) apply(set func([]routing.Peer) (routing.Change, error)) {
	peers := s.peers()
	change, err := set(peers)
	if err != nil {
		s.Log.Error("the leases' peers are refused, what was before stays", "err", err)
		return
	}
	s.Log.Info("leases", "peers", len(peers), "result", change.String())
}

// peers makes peers of all leases but this node's. Leases of one endpoint are one peer, as the one that expires last says: a
// node that got another subnet keeps its old lease until that expires.
func (s *Source) peers() []routing.Peer {
	merged := make(map[netip.AddrPort]*routing.Peer)
	claimed := make(map[string]string) // prefixes and MACs, by whom
	bad := make(map[string]string)
	newestFirst := func(a, b string) int {
		return cmp.Or(s.known[b].Expiration.Compare(s.known[a].Expiration), cmp.Compare(a, b))
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.known), newestFirst) {
		l := s.known[k]
		if k == key(&s.Own) {
			continue
		}
		p, ok, err := s.Peer(&l)
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
	s.complain(bad)
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

// Prefix returns a lease's IPv4 subnet.
func Prefix(n ip.IP4Net) (netip.Prefix, error) {
	p := netip.PrefixFrom(Addr(n.IP), int(n.PrefixLen))
	if !p.IsValid() || p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("subnet %s: want a network without host bits", n)
	}
	return p, nil
}

// Addr returns an IPv4 address as the standard library has it.
func Addr(a ip.IP4) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}

// UDPPeer makes peers of leases of flannel's udp backend: as flannel's proxy has it, the port is this node's own, and any lease
// with a public address counts, whatever its backend.
func UDPPeer(local netip.Addr, port uint16) func(l *lease.Lease) (routing.Peer, bool, error) {
	return func(l *lease.Lease) (routing.Peer, bool, error) {
		p, err := peerOf(l, local, port)
		return p, err == nil, err
	}
}

// VXLANPeer makes peers of leases of flannel's vxlan backend, and of no others.
func VXLANPeer(local netip.Addr, port uint16) func(l *lease.Lease) (routing.Peer, bool, error) {
	return func(l *lease.Lease) (p routing.Peer, ok bool, err error) {
		if l.Attrs.BackendType != "vxlan" {
			return p, false, nil
		}
		var data struct{ VtepMAC string }
		if err := json.Unmarshal(l.Attrs.BackendData, &data); err != nil {
			return p, false, fmt.Errorf("backend data %q: %w", l.Attrs.BackendData, err)
		}
		mac, err := encap.ParseMAC(data.VtepMAC)
		if err != nil {
			return p, false, fmt.Errorf("backend data: VtepMAC: %w", err)
		}
		if !mac.IsUnicast() {
			return p, false, fmt.Errorf("backend data: VtepMAC %s: want the address of one station", mac)
		}
		if p, err = peerOf(l, local, port); err != nil {
			return p, false, err
		}
		p.MAC = mac
		return p, true, nil
	}
}

// peerOf returns what all leases say.
func peerOf(l *lease.Lease, local netip.Addr, port uint16) (p routing.Peer, err error) {
	prefix, err := Prefix(l.Subnet)
	if err != nil {
		return p, err
	}
	endpoint := Addr(l.Attrs.PublicIP)
	switch {
	case endpoint == local:
		return p, fmt.Errorf("public IP %s is this node's own: packets would loop", endpoint)
	case endpoint.IsUnspecified() || endpoint.IsMulticast() || endpoint.IsLoopback():
		return p, fmt.Errorf("public IP %s: want the address of one host", endpoint)
	}
	return routing.Peer{Name: prefix.String(), Endpoint: netip.AddrPortFrom(endpoint, port), AllowedIPs: []netip.Prefix{prefix}}, nil
}
