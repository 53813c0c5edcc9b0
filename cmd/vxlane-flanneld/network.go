package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/cmd/internal/vtep"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/routing/flannel"
	"github.com/vxlane/vxlane/routing/flannel/nodes"
	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// ourBackend is what backends of vxlane's dataplane have in common.
type ourBackend struct {
	node     *node
	manager  subnet.Manager
	external *backend.ExternalInterface
}

// acquire takes a lease. When another node was faster with the same subnet, it tries again: flannel's manager gives up, because it
// looks for another error than its registry returns (pkg/subnet/etcd, errSubnetAlreadyexists).
func (b *ourBackend) acquire(ctx context.Context, attrs *lease.LeaseAttrs) (l *lease.Lease, err error) {
	const tries = 10
	for range tries {
		if l, err = b.manager.AcquireLease(ctx, attrs); err == nil || !strings.Contains(err.Error(), "subnet already exists") {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("acquire lease: %w", err)
	}
	return l, nil
}

// tunnelNetwork is a running network whose dataplane is vxlane's, with a tunnel for each address family.
type tunnelNetwork struct {
	backend.SimpleNetwork
	node   *node
	mtu    int
	ends   []*end
	leases flannel.Source
}

// network returns a network without tunnels yet, for which the lease was taken.
func (b *ourBackend) network(l *lease.Lease) *tunnelNetwork {
	return &tunnelNetwork{SimpleNetwork: backend.SimpleNetwork{SubnetLease: l, ExtIface: b.external}, node: b.node}
}

// MTU implements backend.Network.
func (nw *tunnelNetwork) MTU() int { return nw.mtu }

// makePeer makes a peer of a lease, as flannel.View has it.
type makePeer = func(l *lease.Lease) (routing.Peer, bool, error)

// open makes the device that c describes, or takes over the one that a process before this one left, and the sockets.
func (nw *tunnelNetwork) open(c static.Tunnel, o vtep.Options, peer makePeer) error {
	o.Keep = true
	e := &end{network: nw, peer: peer}
	err := e.open(c, o)
	if err != nil {
		for _, before := range nw.ends {
			err = errors.Join(err, before.vtep.Close(), before.socket.Close())
		}
		return err
	}
	nw.ends = append(nw.ends, e)
	if mtu := e.vtep.Config.Device.MTU; nw.mtu == 0 || mtu < nw.mtu {
		nw.mtu = mtu
	}
	return nil
}

// start moves packets, and returns once it does; what fails later ends the daemon.
func (nw *tunnelNetwork) start(ctx context.Context) error {
	queues := 0
	for _, e := range nw.ends {
		queues += e.vtep.Config.Device.Queues
	}
	vtep.ReserveThreads(queues)
	nw.leases = flannel.Source{Own: *nw.SubnetLease, Log: nw.node.log}
	for _, e := range nw.ends {
		if err := e.start(ctx); err != nil {
			return err
		}
		nw.leases.Views = append(nw.leases.Views, flannel.View{Peer: e.peer, Set: e.vtep.SetPeers})
	}
	return nil
}

// Run implements backend.Network: it follows the leases until ctx ends.
func (nw *tunnelNetwork) Run(ctx context.Context) {
	nw.dropUnused()
	if err := nw.follow(ctx); err != nil { // it worked for flannel's manager
		nw.node.fail(err)
		return
	}
	go nw.keepRoutes(ctx)
	nw.leases.Run(ctx)
}

// routeRetry is how long after a route could not be added it is tried again.
const routeRetry = 5 * time.Second

// keepRoutes tries again what routes could not be added: with the next change of the leases, that might be hours.
func (nw *tunnelNetwork) keepRoutes(ctx context.Context) {
	ticker := time.NewTicker(routeRetry)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			for _, e := range nw.ends {
				e.vtep.RetryRoutes()
			}
		}
	}
}

// dropUnused removes the devices of this node's lease that another backend kept, whose routes would lead into them.
func (nw *tunnelNetwork) dropUnused() {
	links, err := netlink.LinkList()
	if err != nil {
		klog.Errorf("look for devices of another backend: %v", err)
		return
	}
	for _, l := range links {
		used := slices.ContainsFunc(nw.ends, func(e *end) bool { return e.vtep.Config.Device.Name == l.Attrs().Name })
		if used || !left(l) || !nw.hasLease(l) {
			continue
		}
		klog.Infof("device %s was left by another backend: it is removed", l.Attrs().Name)
		if err := netlink.LinkDel(l); err != nil {
			klog.Errorf("remove device %s: %v", l.Attrs().Name, err)
		}
	}
}

// hasLease reports whether a device has the address that a device of this node's lease has: there may be other daemons here.
func (nw *tunnelNetwork) hasLease(l netlink.Link) bool {
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	return err == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return slices.ContainsFunc(nw.ends, func(e *end) bool {
			return slices.ContainsFunc(e.vtep.Config.Device.Addresses, func(own netip.Prefix) bool { return a.IPNet.String() == own.String() })
		})
	})
}

// left reports whether a device is one that this program made, and that no process has now.
func left(l netlink.Link) bool {
	return l.Type() == "tuntap" && ours(l.Attrs().Name) && l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0
}

// follow says who tells of the leases, always all of them: flannel's manager for etcd, our own for Kubernetes.
func (nw *tunnelNetwork) follow(ctx context.Context) error {
	n := nw.node
	if !n.o.kubeSubnetMgr {
		nw.leases.Leases, nw.leases.CheckEvery = etcdLeases{n.o}, 10*time.Second
		nw.leases.Check = func(ctx context.Context) error { _, err := n.manager.GetNetworkConfig(ctx); return err }
		return nil
	}
	client, err := nodes.Connect(n.o.kubeAPIURL, n.o.kubeConfigFile)
	if err != nil {
		return err
	}
	go func() { // flannel's manager collects events for somebody, and logs when nobody takes them
		events := make(chan []lease.LeaseWatchResult)
		go func() { _ = n.manager.WatchLeases(ctx, events) }()
		for range events {
		}
	}()
	own := *nw.SubnetLease
	own.Expiration = time.Time{} // a date that flannel makes up
	nw.leases.Leases, nw.leases.CheckEvery = &nodes.Watcher{Client: client, Prefix: n.o.kubeAnnotationPrefix, Own: own, Log: n.log}, time.Minute
	nw.leases.Check = func(context.Context) error { _, err := client.Discovery().ServerVersion(); return err }
	return nil
}

// etcdLeases watches leases in etcd, each watch with a client of its own: flannel's manager closes its client when a watch
// ends (pkg/subnet/etcd/registry.go), and with it the one that renews this node's lease.
type etcdLeases struct{ o *options }

// WatchLeases implements flannel.Watcher.
func (e etcdLeases) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	m, err := etcd.NewLocalManager(ctx, e.o.etcdConfig(), ip.IP4Net{}, ip.IP6Net{}, e.o.subnetLeaseRenewMargin)
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", err)
	}
	return m.WatchLeases(ctx, receiver)
}

// local returns the interface's address of a family, which datagrams are sent from, and the one that other nodes know.
func local(external *backend.ExternalInterface, v6 bool) (own, public netip.Addr, err error) {
	from, to, family := external.IfaceAddr, external.ExtAddr, "IPv4"
	if v6 {
		from, to, family = external.IfaceV6Addr, external.ExtV6Addr, "IPv6"
	}
	own, ok1 := netip.AddrFromSlice(from)
	public, ok2 := netip.AddrFromSlice(to)
	if !ok1 || !ok2 {
		return own, public, fmt.Errorf("interface %s has no %s address, and the tunnel needs one", external.IfaceName, family)
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

// sourceCheck is what a backend's key SourceCheck says, in any case; defaults when it says nothing.
func sourceCheck(word string, defaults static.SourceCheck) (static.SourceCheck, error) {
	for w, check := range map[string]static.Check{"enforce": static.CheckEnforce, "count": static.CheckCount, "off": static.CheckOff} {
		if word == w {
			return static.SourceCheck{Outer: check, Inner: check}, nil
		}
	}
	if word != "" {
		return defaults, fmt.Errorf("network configuration: Backend.SourceCheck: %q: want enforce, count or off", word)
	}
	return defaults, nil
}

// end is one tunnel of this node.
type end struct {
	network *tunnelNetwork
	peer    makePeer
	vtep    *vtep.VTEP
	socket  net.Listener
	ready   atomic.Bool
}

func (e *end) open(c static.Tunnel, o vtep.Options) (err error) {
	if e.vtep, err = vtep.Open(c, "flannel", o, e.network.node.log); err != nil {
		return explainDevice(err)
	}
	path, err := control.SocketPath(c.Device.Name)
	if err == nil {
		control.Sweep()
		e.socket, err = control.Listen(path)
	}
	if err != nil {
		return errors.Join(err, e.vtep.Close())
	}
	return nil
}

func (e *end) start(ctx context.Context) error {
	n := e.network.node
	ready, ended := make(chan struct{}), make(chan error, 1)
	n.spawn(func() error {
		err := e.vtep.Run(ctx, func() { close(ready) })
		ended <- err
		return err
	})
	n.spawn(func() error { return control.Serve(ctx, e.socket, e, n.log) })
	select {
	case <-ready:
	case err := <-ended:
		return errors.Join(err, ctx.Err())
	}
	e.ready.Store(true)
	e.vtep.LogCapabilities()
	return nil
}

var _ control.Handler = (*end)(nil)

// Status implements control.Handler.
func (e *end) Status() control.Status {
	s := e.vtep.Status(e.ready.Load())
	if err := e.network.leases.State().Err; err != nil {
		s.Degraded = append(s.Degraded, "the leases cannot be watched, the peers of before are in force: "+err.Error())
	}
	return s
}

// Peers implements control.Handler.
func (e *end) Peers() control.Peers { return e.vtep.Peers() }

// Stats implements control.Handler.
func (e *end) Stats() control.Stats { return e.vtep.Stats() }

// FDB implements control.Handler.
func (e *end) FDB() (control.FDB, error) { return e.vtep.FDB() }

// ChangeFDB implements control.Handler.
func (e *end) ChangeFDB(req control.FDBRequest) (control.FDBChange, error) {
	return e.vtep.ChangeFDB(req)
}

// WatchFDB implements control.Handler.
func (e *end) WatchFDB(ctx context.Context) (<-chan tunnel.FDBEvent, error) {
	return e.vtep.WatchFDB(ctx)
}

// Trace implements control.Handler.
func (e *end) Trace(req control.TraceRequest) (control.Trace, error) { return e.vtep.Trace(req) }

var errLeases = &control.UsageError{Err: errors.New("the peers of this tunnel are flannel's leases: change them there")}

// Apply implements control.Handler.
func (e *end) Apply(string, []byte) (control.Change, error) { return control.Change{}, errLeases }

// Reload implements control.Handler.
func (e *end) Reload(context.Context) (control.Change, error) { return control.Change{}, errLeases }

// cleanup removes what is left behind for the next start: devices, with their addresses and routes, and direct routes.
func cleanup() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	busy := false
	for _, l := range links {
		if !left(l) {
			busy = busy || l.Type() == "tuntap" && ours(l.Attrs().Name)
			continue
		}
		if err := netlink.LinkDel(l); err != nil {
			errs = append(errs, fmt.Errorf("remove device %s: %w", l.Attrs().Name, err))
		}
	}
	if !busy {
		errs = append(errs, vtep.RemoveDirect())
	}
	return errors.Join(errs...)
}

// ours reports whether a TUN device of that name is one that this program leaves.
func ours(name string) bool {
	if name == udpDevice {
		return true
	}
	for _, pattern := range vxlanDevices {
		var vni uint32
		if n, err := fmt.Sscanf(name, pattern, &vni); err == nil && n == 1 && name == fmt.Sprintf(pattern, vni) {
			return true
		}
	}
	return false
}
