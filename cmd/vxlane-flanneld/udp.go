package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/flannel"
)

// udpDevice is the device's name: the first that flannel asks the kernel for (flannel%d).
const udpDevice = "flannel0"

// udpBackend is the udp backend: leases and wire are those of flannel's, the dataplane is vxlane's.
type udpBackend struct {
	node     *node
	manager  subnet.Manager
	external *backend.ExternalInterface
}

func (n *node) newUDPBackend(sm subnet.Manager, external *backend.ExternalInterface) (backend.Backend, error) {
	return &udpBackend{n, sm, external}, nil
}

// udpConfig is the backend's part of the network configuration. Keys match in any case.
type udpConfig struct {
	Port uint16
	MTU  int // of the underlay, as for flannel's vxlan; 0 is the interface's
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
	return c, nil
}

// RegisterNetwork implements backend.Backend: it takes a lease and brings the tunnel up. A stock node may send from an address
// that is not its lease's, so sources are not checked.
func (b *udpBackend) RegisterNetwork(ctx context.Context, _ *sync.WaitGroup, config *subnet.Config) (backend.Network, error) {
	c, err := b.parse(config)
	if err != nil {
		return nil, err
	}
	own, public, err := local(b.external)
	if err != nil {
		return nil, err
	}
	network, err := flannel.Prefix(config.Network)
	if err != nil {
		return nil, fmt.Errorf("network configuration: Network: %w", err)
	}
	l, err := b.manager.AcquireLease(ctx, &lease.LeaseAttrs{PublicIP: ip.FromIP(b.external.ExtAddr)})
	if err != nil {
		return nil, fmt.Errorf("acquire lease: %w", err)
	}
	nw := &tunnelNetwork{
		SimpleNetwork: backend.SimpleNetwork{SubnetLease: l, ExtIface: b.external},
		node:          b.node, manager: b.manager, mtu: c.MTU - encap.Overhead(encap.NewFlannelUDP(), false),
		peer: flannel.UDPPeer(public, c.Port),
	}
	t, err := describe(`  - device: {name: %s, addresses: [%s], mtu: %d}
    underlay: {encap: flannel-udp, local: %s, port: %d, source_check: {outer: false, inner: false}}
`, udpDevice, address(l), nw.mtu, own, c.Port)
	if err == nil {
		err = nw.open(t, network)
	}
	if err != nil {
		return nil, err
	}
	return nw, nw.start(ctx)
}
