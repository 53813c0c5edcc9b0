package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/cmd/internal/vtep"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/routing/flannel"
	"github.com/vxlane/vxlane/routing/static"
)

// tunnelNetwork is a running network whose dataplane is vxlane's.
type tunnelNetwork struct {
	backend.SimpleNetwork
	node    *node
	manager subnet.Manager
	mtu     int
	peer    func(l *lease.Lease) (routing.Peer, bool, error)

	vtep   *vtep.VTEP
	socket net.Listener
	mu     sync.Mutex
	ready  bool
}

// MTU implements backend.Network.
func (nw *tunnelNetwork) MTU() int { return nw.mtu }

// open makes the device that c describes, or takes over the one that a process before this one left, and the sockets. The
// device has the network's route, or one for each peer when network is not valid.
func (nw *tunnelNetwork) open(c static.Tunnel, network netip.Prefix) (err error) {
	if nw.vtep, err = vtep.Open(c, "flannel", vtep.Options{Keep: true, Network: network}, nw.node.log); err != nil {
		return err
	}
	vtep.ReserveThreads(nw.vtep.Config.Device.Queues)
	path, err := control.SocketPath(c.Device.Name)
	if err == nil {
		control.Sweep()
		nw.socket, err = control.Listen(path)
	}
	if err != nil {
		return errors.Join(err, nw.vtep.Close())
	}
	return nil
}

// start moves packets, and returns once it does; what fails later ends the daemon.
func (nw *tunnelNetwork) start(ctx context.Context) error {
	ready, ended := make(chan struct{}), make(chan error, 1)
	nw.node.spawn(func() error {
		err := nw.vtep.Run(ctx, func() { close(ready) })
		ended <- err
		return err
	})
	nw.node.spawn(func() error { return control.Serve(ctx, nw.socket, nw, nw.node.log) })
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
func (nw *tunnelNetwork) Run(ctx context.Context) {
	s := flannel.Source{Leases: nw.manager, Own: *nw.SubnetLease, Log: nw.node.log, Peer: nw.peer}
	s.Run(ctx, nw.vtep.SetPeers)
}

// local returns the interface's IPv4 address, which datagrams are sent from, and the one that other nodes know.
func local(external *backend.ExternalInterface) (own, public netip.Addr, err error) {
	own, ok1 := netip.AddrFromSlice(external.IfaceAddr)
	public, ok2 := netip.AddrFromSlice(external.ExtAddr)
	if !ok1 || !ok2 {
		return own, public, fmt.Errorf("interface %s has no IPv4 address, and the tunnel needs one", external.IfaceName)
	}
	return own.Unmap(), public.Unmap(), nil
}

// describe parses what would be the configuration of a tunnel of vxlane.
func describe(format string, args ...any) (static.Tunnel, error) {
	c, err := static.Parse("network configuration", fmt.Appendf(nil, "version: 1\ntunnels:\n"+format, args...))
	if err != nil {
		return static.Tunnel{}, err
	}
	return c.Tunnels[0], nil
}

// address returns the device's address: the lease's own network address, as one host, so that no broadcast route comes of it.
func address(l *lease.Lease) netip.Prefix { return netip.PrefixFrom(flannel.Addr(l.Subnet.IP), 32) }

var _ control.Handler = (*tunnelNetwork)(nil)

// Status implements control.Handler.
func (nw *tunnelNetwork) Status() control.Status {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	return nw.vtep.Status(nw.ready)
}

// Peers implements control.Handler.
func (nw *tunnelNetwork) Peers() control.Peers { return nw.vtep.Peers() }

// Stats implements control.Handler.
func (nw *tunnelNetwork) Stats() control.Stats { return nw.vtep.Stats() }

// Trace implements control.Handler.
func (nw *tunnelNetwork) Trace(req control.TraceRequest) (control.Trace, error) {
	return nw.vtep.Trace(req)
}

var errLeases = &control.UsageError{Err: errors.New("the peers of this tunnel are flannel's leases: change them there")}

// Apply implements control.Handler.
func (nw *tunnelNetwork) Apply(string, []byte) (control.Change, error) {
	return control.Change{}, errLeases
}

// Reload implements control.Handler.
func (nw *tunnelNetwork) Reload(context.Context) (control.Change, error) {
	return control.Change{}, errLeases
}

// cleanup removes the devices that are left behind for the next start, with their addresses and routes.
func cleanup() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		inUse := l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
		if l.Type() != "tuntap" || !ours(l.Attrs().Name) || inUse {
			continue
		}
		if err := netlink.LinkDel(l); err != nil {
			errs = append(errs, fmt.Errorf("remove device %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// ours reports whether a TUN device of that name is one that this program leaves.
func ours(name string) bool {
	var vni uint32
	if name == udpDevice {
		return true
	}
	n, err := fmt.Sscanf(name, vxlanDevice, &vni)
	return err == nil && n == 1 && name == fmt.Sprintf(vxlanDevice, vni)
}
