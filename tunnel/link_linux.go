package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// Link configures a device as the host sees it: MTU, state, addresses, routes. It remembers what it added, and Undo
// takes just that away again.
type Link struct {
	Replace bool // routes that others have to a prefix, instead of failing over them; set before use

	name   string
	index  int
	log    *slog.Logger
	mu     sync.Mutex
	addrs  []netip.Prefix
	routes map[netip.Prefix]bool
}

// OpenLink finds the device called name.
func OpenLink(name string, log *slog.Logger) (*Link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	return &Link{name: name, index: l.Attrs().Index, log: log, routes: make(map[netip.Prefix]bool)}, nil
}

// txQueueLen is how many packets the device keeps for its reader. A TUN device drops what does not fit, and tells the
// sender nothing: with the default of 500, one TCP stream loses a percent of its packets (drivers/net/tun.c, tun_net_xmit).
const txQueueLen = 4096

// SetMAC gives the device an Ethernet address.
func (l *Link) SetMAC(mac encap.MAC) error {
	if err := netlink.LinkSetHardwareAddr(l.handle(), mac[:]); err != nil {
		return fmt.Errorf("set mac of %s to %s: %w", l.name, mac, err)
	}
	return nil
}

// Up sets the MTU, in bytes, and the queue length, leaves all queueing to the device, and brings it up. The size of super-packets is left alone: what is
// forwarded to a device that takes smaller ones is segmented all the way (net/core/dev.c, gso_features_check).
func (l *Link) Up(mtu int) error {
	link, err := netlink.LinkByIndex(l.index)
	if err != nil {
		return fmt.Errorf("find device %s: %w", l.name, err)
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set mtu of %s to %d: %w", l.name, mtu, err)
	}
	if err := netlink.LinkSetTxQLen(link, txQueueLen); err != nil {
		return fmt.Errorf("set txqueuelen of %s to %d: %w", l.name, txQueueLen, err)
	}
	l.leaveQueueing()
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", l.name, err)
	}
	return nil
}

// leaveQueueing leaves all queueing to the device.
func (l *Link) leaveQueueing() {
	if err := l.dropQdisc(); err != nil {
		l.log.Info("device keeps its queueing discipline: small packets cost their senders more", "device", l.name, "err", err)
	}
}

// dropQdisc leaves the device without a queueing discipline, as the kernel's vxlan device is: nothing would wait in one for want of room, since
// a TUN device drops what it has no room for (drivers/net/tun.c, tun_net_xmit). One that somebody set, which has a handle, stays; that of
// net.core.default_qdisc has none.
func (l *Link) dropQdisc() error {
	qdiscs, err := netlink.QdiscList(l.handle())
	if err != nil {
		return fmt.Errorf("list queueing disciplines: %w", err)
	}
	for _, q := range qdiscs {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Handle != netlink.HANDLE_NONE {
			return nil
		}
	}
	none := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.index, Parent: netlink.HANDLE_ROOT}, QdiscType: "noqueue"}
	if err := netlink.QdiscReplace(none); err != nil {
		return fmt.Errorf("set queueing discipline noqueue: %w", err)
	}
	return nil
}

// AddAddresses gives the device its addresses.
func (l *Link) AddAddresses(addrs []netip.Prefix) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addrs {
		if err := netlink.AddrReplace(l.handle(), l.addr(a)); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, l.name, explainIPv6(a.Addr(), err))
		}
		if !slices.Contains(l.addrs, a) {
			l.addrs = append(l.addrs, a)
		}
	}
	return nil
}

// DropAddresses removes all addresses from the device but the given ones, and those that the kernel gives by itself.
func (l *Link) DropAddresses(but []netip.Prefix) error {
	list, err := netlink.AddrList(l.handle(), netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", l.name, err)
	}
	var errs []error
	for _, a := range list {
		p, ok := prefixFromNet(a.IPNet)
		if !ok || p.Addr().IsLinkLocalUnicast() || slices.Contains(but, p) {
			continue
		}
		if err := netlink.AddrDel(l.handle(), &a); err != nil {
			errs = append(errs, fmt.Errorf("remove address %s from %s: %w", p, l.name, err))
		}
	}
	return errors.Join(errs...)
}

// ErrNoIPv6 says that IPv6 is switched off.
var ErrNoIPv6 = errors.New("IPv6 is off here; see sysctl net.ipv6.conf.all.disable_ipv6, or leave IPv6 addresses out")

// explainIPv6 knows what the kernel answers when IPv6 is disabled by sysctl (EACCES) or at boot (EOPNOTSUPP).
func explainIPv6(a netip.Addr, err error) error {
	if a.Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP)) {
		return fmt.Errorf("%w: %w", err, ErrNoIPv6)
	}
	return err
}

func (l *Link) handle() netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: l.name}}
}

func (l *Link) addr(a netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: ipNet(a)}
	if a.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // the tunnel answers for the address itself
	}
	return addr
}

// SetRoutes makes the device's routes those for prefixes: missing ones are added, and those that Link added and that are
// not wanted any more removed. What is there is asked of the kernel each time, which drops routes when a device goes
// down. A prefix that one of the device's own addresses covers exactly has its route already. All prefixes are tried;
// the error joins what could not be done.
func (l *Link) SetRoutes(prefixes []netip.Prefix) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	present, err := l.presentRoutes()
	if err != nil {
		return err
	}
	wanted := make(map[netip.Prefix]bool, len(prefixes))
	var errs []error
	for _, p := range prefixes {
		if slices.ContainsFunc(l.addrs, func(a netip.Prefix) bool { return a.Masked() == p && !a.IsSingleIP() }) {
			continue
		}
		wanted[p] = true
		if l.routes[p] && present[p] {
			continue
		}
		add := netlink.RouteAdd
		if l.Replace {
			add = netlink.RouteReplace
		}
		if err := add(l.route(p)); err != nil {
			errs = append(errs, l.explainRoute(p, err))
			continue
		}
		l.routes[p] = true
	}
	for p := range l.routes {
		if !wanted[p] {
			errs = append(errs, l.deleteRoute(p))
		}
	}
	return errors.Join(errs...)
}

// AdoptRoutes takes the routes that a process before this one left on the device for Link's own.
func (l *Link) AdoptRoutes() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	present, err := l.presentRoutes()
	for p := range present {
		l.routes[p] = true
	}
	return err
}

// presentRoutes returns the prefixes that have a route through the device as Link adds them.
func (l *Link) presentRoutes() (map[netip.Prefix]bool, error) {
	filter := &netlink.Route{LinkIndex: l.index, Protocol: unix.RTPROT_STATIC}
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes of %s: %w", l.name, err)
	}
	present := make(map[netip.Prefix]bool, len(list))
	for _, route := range list {
		if p, ok := prefixFromNet(route.Dst); ok {
			present[p] = true
		}
	}
	return present, nil
}

func (l *Link) explainRoute(p netip.Prefix, err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add route %s dev %s: %w: another route to it is there (ip route show %s); remove that, or set routes: false and add routes yourself", p, l.name, err, p)
	}
	return fmt.Errorf("add route %s dev %s: %w", p, l.name, err)
}

// deleteRoute removes a route that Link added. That it is gone already, or its device is, is fine.
func (l *Link) deleteRoute(p netip.Prefix) error {
	delete(l.routes, p)
	err := netlink.RouteDel(l.route(p))
	if err == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("remove route %s dev %s: %w", p, l.name, err)
}

func (l *Link) route(p netip.Prefix) *netlink.Route {
	r := &netlink.Route{LinkIndex: l.index, Dst: ipNet(p), Protocol: unix.RTPROT_STATIC}
	if p.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// Undo removes the routes and addresses that Link added. A device that is gone took them along.
func (l *Link) Undo() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for p := range l.routes {
		errs = append(errs, l.deleteRoute(p))
	}
	for _, a := range l.addrs {
		err := netlink.AddrDel(l.handle(), l.addr(a))
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove address %s from %s: %w", a, l.name, err))
		}
	}
	l.addrs = nil
	return errors.Join(errs...)
}

// Addresses returns the addresses that the device has now, whoever gave them to it.
func (l *Link) Addresses() ([]netip.Prefix, error) {
	list, err := netlink.AddrList(l.handle(), netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.name, err)
	}
	prefixes := make([]netip.Prefix, 0, len(list))
	for _, a := range list {
		if p, ok := prefixFromNet(a.IPNet); ok {
			prefixes = append(prefixes, p)
		}
	}
	return prefixes, nil
}

// Reaches reports whether this host would send to dst through the device.
func (l *Link) Reaches(dst netip.Addr) (bool, error) {
	routes, err := netlink.RouteGet(dst.AsSlice())
	if err != nil {
		return false, fmt.Errorf("look up route to %s: %w", dst, err)
	}
	return slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.LinkIndex == l.index }), nil
}

// IsUp reports whether the device is there and up.
func (l *Link) IsUp() bool {
	up, err := l.state()
	return err == nil && up
}

// state is IsUp, and an error when that could not be found out.
func (l *Link) state() (up bool, err error) {
	link, err := netlink.LinkByIndex(l.index)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("find device %s: %w", l.name, err)
	}
	return link.Attrs().Flags&net.FlagUp != 0, nil
}

// UnderlayDevice is a device of the underlay: that has the tunnel's address, or that datagrams leave through.
type UnderlayDevice struct {
	Name  string
	Index int
	MTU   int // bytes
	// Loopback: datagrams to other hosts leave through another device.
	Loopback bool
	// Ethernet: its packets are Ethernet frames.
	Ethernet bool
}

// RouteLink returns the device that datagrams to an underlay address, or to a group, leave through.
func RouteLink(to netip.Addr) (UnderlayDevice, error) {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil {
		return UnderlayDevice{}, fmt.Errorf("look up route to %s: %w", to, err)
	}
	if len(routes) == 0 {
		return UnderlayDevice{}, fmt.Errorf("look up route to %s: there is none", to)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return UnderlayDevice{}, fmt.Errorf("find the device of the route to %s: %w", to, err)
	}
	return describeUnderlay(link), nil
}

// UnderlayLink returns the device that has addr.
func UnderlayLink(addr netip.Addr) (UnderlayDevice, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return UnderlayDevice{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		p, ok := prefixFromNet(a.IPNet)
		if !ok || p.Addr() != addr {
			continue
		}
		link, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			return UnderlayDevice{}, fmt.Errorf("find the device of %s: %w", addr, err)
		}
		return describeUnderlay(link), nil
	}
	if addr.IsLoopback() && addr.Is4() {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return UnderlayDevice{}, fmt.Errorf("find the device of %s: %w", addr, err)
		}
		return describeUnderlay(lo), nil
	}
	return UnderlayDevice{}, fmt.Errorf("underlay.local %s: %w: no device here has this address; see ip address", addr, unix.EADDRNOTAVAIL)
}

func describeUnderlay(l netlink.Link) UnderlayDevice {
	a := l.Attrs()
	return UnderlayDevice{Name: a.Name, Index: a.Index, MTU: a.MTU, Loopback: a.Flags&net.FlagLoopback != 0, Ethernet: a.EncapType == "ether"}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixFromNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), true
}
