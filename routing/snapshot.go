package routing

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/vxlane/vxlane/encap"
)

// Snapshot is an immutable set of peers with the lookups that the dataplane needs. All methods are safe for concurrent
// use and allocate nothing. The zero value holds no peer.
type Snapshot struct {
	peers    []*Peer
	prefixes bart.Fast[*Peer]
	macs     map[encap.MAC]*Peer
	sources  map[netip.Addr]*Peer
	names    map[string]*Peer
	ports    []uint16 // of all endpoints, each once
}

// Conflict says that two peers claim the same thing. First and Second are indexes into the peers given to NewSnapshot.
type Conflict struct {
	What          string // "name", "endpoint", "mac" or "prefix"
	Value         string
	First, Second int
	FirstName     string
	SecondName    string
}

func (c *Conflict) Error() string {
	if c.FirstName == c.SecondName {
		return fmt.Sprintf("%s %s: given twice for peer %q", c.What, c.Value, c.FirstName)
	}
	return fmt.Sprintf("%s %s: given for peer %q and for peer %q", c.What, c.Value, c.FirstName, c.SecondName)
}

// NewSnapshot makes a snapshot of peers, which it copies. The same name, endpoint, MAC or prefix twice is refused: the
// error joins a *Conflict for each. Nested prefixes are fine, the longest wins.
func NewSnapshot(peers []Peer) (*Snapshot, error) {
	s := &Snapshot{
		peers:   make([]*Peer, 0, len(peers)),
		macs:    make(map[encap.MAC]*Peer),
		sources: make(map[netip.Addr]*Peer, len(peers)),
		names:   make(map[string]*Peer, len(peers)),
	}
	b := builder{snapshot: s, peers: peers, claims: make(map[string]int)}
	for i := range peers {
		b.add(i)
	}
	if len(b.conflicts) > 0 {
		return nil, errors.Join(b.conflicts...)
	}
	return s, nil
}

type builder struct {
	snapshot  *Snapshot
	peers     []Peer
	claims    map[string]int // "what value" -> index of the peer that has it
	conflicts []error
}

func (b *builder) add(i int) {
	p := b.peers[i]
	s := b.snapshot
	s.peers = append(s.peers, &p)
	if b.claim("name", p.Name, i) {
		s.names[p.Name] = &p
	}
	b.claim("endpoint", p.Endpoint.String(), i)
	if !slices.Contains(s.ports, p.Endpoint.Port()) {
		s.ports = append(s.ports, p.Endpoint.Port())
	}
	if _, taken := s.sources[p.Endpoint.Addr()]; !taken {
		s.sources[p.Endpoint.Addr()] = &p
	}
	if !p.MAC.IsZero() && b.claim("mac", p.MAC.String(), i) {
		s.macs[p.MAC] = &p
	}
	for _, prefix := range p.AllowedIPs {
		if b.claim("prefix", prefix.String(), i) {
			s.prefixes.Insert(prefix, &p)
		}
	}
}

// claim notes that peer i has a value, and reports whether it is the first to.
func (b *builder) claim(what, value string, i int) bool {
	key := what + " " + value
	first, taken := b.claims[key]
	if !taken {
		b.claims[key] = i
		return true
	}
	b.conflicts = append(b.conflicts, &Conflict{
		What: what, Value: value, First: first, Second: i,
		FirstName: b.peers[first].Name, SecondName: b.peers[i].Name,
	})
	return false
}

// Peers returns all peers in the order given. The slice is borrowed and must not be changed.
func (s *Snapshot) Peers() []*Peer { return s.peers }

// Lookup returns the peer whose AllowedIPs hold addr by the longest match, nil when there is none.
func (s *Snapshot) Lookup(addr netip.Addr) *Peer {
	p, _ := s.prefixes.Lookup(addr)
	return p
}

// LookupPrefix is Lookup that also tells which prefix matched; it is not for the packet path.
func (s *Snapshot) LookupPrefix(addr netip.Addr) (netip.Prefix, *Peer) {
	if !addr.IsValid() {
		return netip.Prefix{}, nil
	}
	prefix, p, _ := s.prefixes.LookupPrefixLPM(netip.PrefixFrom(addr, addr.BitLen()))
	return prefix, p
}

// LookupMAC returns the peer configured with exactly mac, nil when there is none.
func (s *Snapshot) LookupMAC(mac encap.MAC) *Peer { return s.macs[mac] }

// LookupSource returns the peer whose endpoint has addr, an outer source address, nil when there is none. When several
// peers share the address on different ports it is the first of them: compare addresses, not peers.
func (s *Snapshot) LookupSource(addr netip.Addr) *Peer { return s.sources[addr] }

// IsEndpoint reports whether some peer's endpoint is at addr with port or, should peers share addr, with another.
func (s *Snapshot) IsEndpoint(addr netip.Addr, port uint16) bool {
	return slices.Contains(s.ports, port) && s.sources[addr] != nil
}

// LookupName returns the peer called name, nil when there is none.
func (s *Snapshot) LookupName(name string) *Peer { return s.names[name] }
