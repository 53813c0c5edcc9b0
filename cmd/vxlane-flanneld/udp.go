package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"

	"github.com/vxlane/vxlane/cmd/internal/vtep"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/flannel"
	"github.com/vxlane/vxlane/routing/static"
)

// udpDevice is the device's name: the first that flannel asks the kernel for (flannel%d).
const udpDevice = "flannel0"

// udpBackend is the udp backend: leases and wire are those of flannel's, the dataplane is vxlane's.
type udpBackend struct{ ourBackend }

func (n *node) newUDPBackend(sm subnet.Manager, external *backend.ExternalInterface) (backend.Backend, error) {
	return &udpBackend{ourBackend{n, sm, external}}, nil
}

// udpConfig is the backend's part of the network configuration. Keys match in any case.
type udpConfig struct {
	Port        uint16
	MTU         int    // of the underlay, as for flannel's vxlan; 0 is the interface's
	SourceCheck string // enforce, count or off
}

func (b *udpBackend) parse(config *subnet.Config) (udpConfig, error) {
	c := udpConfig{Port: encap.FlannelUDPPort}
	if len(config.Backend) > 0 {
		if err := json.Unmarshal(config.Backend, &c); err != nil {
			return c, fmt.Errorf("network configuration: Backend: %w", err)
		}
	}
	if c.MTU == 0 {
		c.MTU = b.external.Iface.MTU
	}
	c.SourceCheck = strings.ToLower(c.SourceCheck)
	return c, nil
}

// udpChecks: a stock node may send from an address that is not its lease's, so offenders are only counted.
var udpChecks = static.SourceCheck{Outer: static.CheckCount, Inner: static.CheckCount}

// RegisterNetwork implements backend.Backend: it takes a lease and brings the tunnel up.
func (b *udpBackend) RegisterNetwork(ctx context.Context, _ *sync.WaitGroup, config *subnet.Config) (backend.Network, error) {
	c, err := b.parse(config)
	if err != nil {
		return nil, err
	}
	check, err := sourceCheck(c.SourceCheck, udpChecks)
	if err != nil {
		return nil, err
	}
	own, public, err := local(b.external, false)
	if err != nil {
		return nil, err
	}
	network, err := flannel.Prefix(config.Network)
	if err != nil {
		return nil, fmt.Errorf("network configuration: Network: %w", err)
	}
	l, err := b.acquire(ctx, &lease.LeaseAttrs{PublicIP: ip.FromIP(b.external.ExtAddr)})
	if err != nil {
		return nil, err
	}
	nw := b.network(l)
	if l.Subnet.Empty() {
		return nil, errors.New("the lease has no IPv4 subnet, and udp carries nothing else")
	}
	t, err := describe(`  - device: {name: %s, addresses: [%s/32], mtu: %d}
    underlay: {encap: flannel-udp, local: %s, port: %d, source_check: {outer: %s, inner: %s}}
`, udpDevice, flannel.Addr(l.Subnet.IP), c.MTU-encap.Overhead(encap.NewFlannelUDP(), false), own, c.Port, check.Outer, check.Inner)
	if err == nil {
		err = nw.open(t, vtep.Options{Network: network}, flannel.UDPPeer(public, c.Port))
	}
	if err != nil {
		return nil, err
	}
	return nw, nw.start(ctx)
}

// hostPrefix returns the device's address: the lease's own network address, as one host, so that no broadcast route comes of it.
func hostPrefix(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Addr(), subnet.Addr().BitLen())
}
