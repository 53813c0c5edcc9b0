package vtep

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/routing"
)

// directProtocol marks the routes of this file among the host's (rtnetlink(7), rtm_protocol; none of iproute2's names has it).
const directProtocol netlink.RouteProtocol = 86

// directRoutes are routes past the tunnel: to the prefixes of peers that the underlay reaches without a router.
type directRoutes struct {
	within  netip.Prefix // where all of them lead to: others' routes are left alone
	through map[netip.Prefix]netip.Addr
}

// adoptDirect takes the routes that a process before this one left for its own.
func adoptDirect(within netip.Prefix) (*directRoutes, error) {
	d := &directRoutes{within: within, through: make(map[netip.Prefix]netip.Addr)}
	family := netlink.FAMILY_V4
	if within.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: directProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return d, fmt.Errorf("list direct routes: %w", err)
	}
	for _, r := range list {
		gateway, ok := netip.AddrFromSlice(r.Gw)
		if r.Dst == nil || !ok {
			continue
		}
		to, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if p := netip.PrefixFrom(to.Unmap(), ones); ok && within.Overlaps(p) {
			d.through[p] = gateway.Unmap()
		}
	}
	return d, nil
}

// set makes the routes those of peers; a route of somebody else's to the same prefix is replaced, as flannel replaces it.
func (d *directRoutes) set(peers []*routing.Peer) error {
	wanted := make(map[netip.Prefix]bool)
	present, err := adoptDirect(d.within) // the kernel drops routes when a device goes down
	errs := []error{err}
	for _, p := range peers {
		for _, prefix := range p.AllowedIPs {
			wanted[prefix] = true
			gateway := p.Endpoint.Addr()
			if d.through[prefix] == gateway && present.through[prefix] == gateway {
				continue
			}
			if err := netlink.RouteReplace(directRoute(prefix, gateway)); err != nil {
				errs = append(errs, fmt.Errorf("add direct route %s via %s: %w", prefix, gateway, err))
				continue
			}
			d.through[prefix] = gateway
		}
	}
	for prefix, gateway := range d.through {
		if wanted[prefix] {
			continue
		}
		if err := netlink.RouteDel(directRoute(prefix, gateway)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove direct route %s via %s: %w", prefix, gateway, err))
		}
		delete(d.through, prefix)
	}
	return errors.Join(errs...)
}

func directRoute(prefix netip.Prefix, gateway netip.Addr) *netlink.Route {
	dst := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
	return &netlink.Route{Dst: dst, Gw: gateway.AsSlice(), Protocol: directProtocol}
}

// RemoveDirect removes the direct routes of all tunnels of this host.
func RemoveDirect() error {
	var errs []error
	for _, everything := range []string{"0.0.0.0/0", "::/0"} {
		d, err := adoptDirect(netip.MustParsePrefix(everything))
		errs = append(errs, err, d.set(nil))
	}
	return errors.Join(errs...)
}
