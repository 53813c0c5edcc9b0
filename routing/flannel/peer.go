package flannel

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/netip"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// share is what a lease says of one address family.
type share struct {
	subnet netip.Prefix
	public netip.Addr
	data   json.RawMessage // of the backend
}

// shareOf returns a lease's share of a family. ok is false when the node has none.
func shareOf(l *lease.Lease, v6 bool) (s share, ok bool, err error) {
	if !v6 {
		if l.Subnet.Empty() {
			return s, false, nil
		}
		s.subnet, err = Prefix(l.Subnet)
		return share{s.subnet, Addr(l.Attrs.PublicIP), l.Attrs.BackendData}, err == nil, err
	}
	if l.IPv6Subnet.Empty() || l.Attrs.PublicIPv6 == nil {
		return s, false, nil
	}
	s.subnet, err = Prefix6(l.IPv6Subnet)
	return share{s.subnet, addr6(l.Attrs.PublicIPv6), l.Attrs.BackendV6Data}, err == nil, err
}

// Prefix returns an IPv4 network of flannel's as the standard library has it.
func Prefix(n ip.IP4Net) (netip.Prefix, error) {
	return network(netip.PrefixFrom(Addr(n.IP), int(n.PrefixLen)), n.String())
}

// Prefix6 is Prefix for IPv6.
func Prefix6(n ip.IP6Net) (netip.Prefix, error) {
	return network(netip.PrefixFrom(addr6(n.IP), int(n.PrefixLen)), n.String())
}

func network(p netip.Prefix, text string) (netip.Prefix, error) {
	if !p.IsValid() || p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("subnet %s: want a network without host bits", text)
	}
	return p, nil
}

// Addr returns an IPv4 address as the standard library has it.
func Addr(a ip.IP4) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}

func addr6(a *ip.IP6) netip.Addr {
	n := (*big.Int)(a)
	if a == nil || n.Sign() < 0 || n.BitLen() > 128 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(n.FillBytes(make([]byte, 16))))
}

// UDPPeer makes peers of leases of flannel's udp backend: as flannel's proxy has it, the port is this node's own, and any lease
// with a public address counts, whatever its backend. local is this node's public address.
func UDPPeer(local netip.Addr, port uint16) func(l *lease.Lease) (routing.Peer, bool, error) {
	return func(l *lease.Lease) (routing.Peer, bool, error) {
		s, ok, err := shareOf(l, false)
		if !ok {
			return routing.Peer{}, false, err
		}
		p, err := peerOf(s, local, port)
		return p, err == nil, err
	}
}

// VXLANPeer makes peers of leases of flannel's vxlan backend, and of no others; of their IPv6 half when local, this node's
// public address, is an IPv6 address.
func VXLANPeer(local netip.Addr, port uint16) func(l *lease.Lease) (routing.Peer, bool, error) {
	return func(l *lease.Lease) (p routing.Peer, ok bool, err error) {
		if l.Attrs.BackendType != "vxlan" {
			return p, false, nil
		}
		s, ok, err := shareOf(l, local.Is6())
		if !ok {
			return p, false, err
		}
		mac, err := vtepMAC(s.data)
		if err != nil {
			return p, false, err
		}
		if p, err = peerOf(s, local, port); err != nil {
			return p, false, err
		}
		p.MAC = mac
		return p, true, nil
	}
}

// vtepMAC reads what the vxlan backend says of a VTEP.
func vtepMAC(text json.RawMessage) (mac encap.MAC, err error) {
	var data struct{ VtepMAC string }
	if err := json.Unmarshal(text, &data); err != nil {
		return mac, fmt.Errorf("backend data %q: %w", text, err)
	}
	if mac, err = encap.ParseMAC(data.VtepMAC); err != nil {
		return mac, fmt.Errorf("backend data: VtepMAC: %w", err)
	}
	if !mac.IsUnicast() {
		return mac, fmt.Errorf("backend data: VtepMAC %s: want the address of one station", mac)
	}
	return mac, nil
}

// peerOf returns what leases of all backends say.
func peerOf(s share, local netip.Addr, port uint16) (p routing.Peer, err error) {
	switch {
	case s.public == local:
		return p, fmt.Errorf("public IP %s is this node's own: packets would loop", s.public)
	case !s.public.IsValid() || s.public.IsUnspecified() || s.public.IsMulticast() || s.public.IsLoopback() || s.public.Is4In6():
		return p, fmt.Errorf("public IP %s: want the address of one host", s.public)
	}
	return routing.Peer{Name: s.subnet.String(), Endpoint: netip.AddrPortFrom(s.public, port), AllowedIPs: []netip.Prefix{s.subnet}}, nil
}
