package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/vishvananda/netlink"

	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/cmd/internal/vtep"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/flannel"
	"github.com/vxlane/vxlane/routing/static"
)

// udpDevice is the device's name: the first that flannel asks the kernel for (flannel%d).
const udpDevice = "flannel0"

// udpOverhead is what the outer IPv4 and UDP headers add.
const udpOverhead = 20 + 8

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

// RegisterNetwork implements backend.Backend: it takes a lease and brings the tunnel up.
func (b *udpBackend) RegisterNetwork(ctx context.Context, _ *sync.WaitGroup, config *subnet.Config) (backend.Network, error) {
	c, err := b.parse(config)
	if err != nil {
		return nil, err
	}
	l, err := b.manager.AcquireLease(ctx, &lease.LeaseAttrs{PublicIP: ip.FromIP(b.external.ExtAddr)})
	if err != nil {
		return nil, fmt.Errorf("acquire lease: %w", err)
	}
	nw := &udpNetwork{SimpleNetwork: backend.SimpleNetwork{SubnetLease: l, ExtIface: b.external}, backend: b, config: c}
	if err := nw.open(config.Network); err != nil {
		return nil, err
	}
	return nw, nw.start(ctx)
}

// udpNetwork is a running network of the udp backend.
type udpNetwork struct {
	backend.SimpleNetwork
	backend *udpBackend
	config  udpConfig
	vtep    *vtep.VTEP
	socket  net.Listener
	mu      sync.Mutex
	ready   bool
}

// MTU implements backend.Network.
func (nw *udpNetwork) MTU() int { return nw.config.MTU - udpOverhead }

// open makes the device, or takes over the one that a process before this one left, and the sockets.
func (nw *udpNetwork) open(network ip.IP4Net) error {
	local, ok := netip.AddrFromSlice(nw.ExtIface.IfaceAddr)
	if !ok {
		return fmt.Errorf("interface %s has no IPv4 address, and flannel's udp backend needs one", nw.ExtIface.IfaceName)
	}
	whole, err := flannel.Prefix(network)
	if err != nil {
		return fmt.Errorf("network configuration: Network: %w", err)
	}
	c, err := nw.tunnel(local.Unmap())
	if err != nil {
		return err
	}
	if nw.vtep, err = vtep.Open(c, "flannel", vtep.Options{Keep: true, Network: whole}, nw.backend.node.log); err != nil {
		return err
	}
	path, err := control.SocketPath(udpDevice)
	if err == nil {
		control.Sweep()
		nw.socket, err = control.Listen(path)
	}
	if err != nil {
		return errors.Join(err, nw.vtep.Close())
	}
	return nil
}

// tunnel describes the tunnel as flannel's udp backend has it: the address is the subnet's own, so that no broadcast route
// comes of it; a stock node may send from an address that is not its lease's, so sources are not checked.
func (nw *udpNetwork) tunnel(local netip.Addr) (static.Tunnel, error) {
	address := netip.PrefixFrom(flannel.Addr(nw.SubnetLease.Subnet.IP), 32)
	text := fmt.Sprintf(`version: 1
tunnels:
  - device: {name: %s, addresses: [%s], mtu: %d}
    underlay: {encap: flannel-udp, local: %s, port: %d, source_check: {outer: false, inner: false}}
`, udpDevice, address, nw.MTU(), local, nw.config.Port)
	c, err := static.Parse("network configuration", []byte(text))
	if err != nil {
		return static.Tunnel{}, err
	}
	return c.Tunnels[0], nil
}

// start moves packets, and returns once it does; what fails later ends the daemon.
func (nw *udpNetwork) start(ctx context.Context) error {
	n := nw.backend.node
	ready, ended := make(chan struct{}), make(chan error, 1)
	n.spawn(func() error {
		err := nw.vtep.Run(ctx, func() { close(ready) })
		ended <- err
		return err
	})
	n.spawn(func() error { return control.Serve(ctx, nw.socket, nw, n.log) })
	select {
	case <-ready:
	case err := <-ended:
		return errors.Join(err, ctx.Err())
	}
	nw.mu.Lock()
	defer nw.mu.Unlock()
	nw.ready = true
	return nil
}

// Run implements backend.Network: it follows the leases until ctx ends.
func (nw *udpNetwork) Run(ctx context.Context) {
	public, _ := netip.AddrFromSlice(nw.ExtIface.ExtAddr)
	s := flannel.Source{
		Leases: nw.backend.manager, Own: *nw.SubnetLease, Log: nw.backend.node.log,
		Peer: flannel.UDPPeer(public.Unmap(), nw.config.Port),
	}
	s.Run(ctx, nw.vtep.SetPeers)
}

var _ control.Handler = (*udpNetwork)(nil)

// Status implements control.Handler.
func (nw *udpNetwork) Status() control.Status {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	return nw.vtep.Status(nw.ready)
}

// Peers implements control.Handler.
func (nw *udpNetwork) Peers() control.Peers { return nw.vtep.Peers() }

// Stats implements control.Handler.
func (nw *udpNetwork) Stats() control.Stats { return nw.vtep.Stats() }

// Trace implements control.Handler.
func (nw *udpNetwork) Trace(req control.TraceRequest) (control.Trace, error) {
	return nw.vtep.Trace(req)
}

var errLeases = &control.UsageError{Err: errors.New("the peers of this tunnel are flannel's leases: change them there")}

// Apply implements control.Handler.
func (nw *udpNetwork) Apply(string, []byte) (control.Change, error) {
	return control.Change{}, errLeases
}

// Reload implements control.Handler.
func (nw *udpNetwork) Reload(context.Context) (control.Change, error) {
	return control.Change{}, errLeases
}

// cleanup removes the device that the udp backend leaves behind for the next start, with its address and route.
func cleanup() error {
	l, err := netlink.LinkByName(udpDevice)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil && l.Type() != "tuntap" {
		err = fmt.Errorf("it is a %s device, not one of this program's", l.Type())
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", udpDevice, err)
	}
	return nil
}
