package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addLink makes a veth pair, one end in each host, and brings it up.
func (l *Lab) addLink(link Link) error {
	a, b := l.hosts[link.A.Host], l.hosts[link.B.Host]
	if a == nil || b == nil {
		return errors.New("both ends want a host of the topology")
	}
	err := a.Run(func() error {
		veth := netlink.NewVeth(netlink.NewLinkAttrs())
		veth.Name, veth.PeerName, veth.PeerNamespace = link.A.Device, link.B.Device, netlink.NsFd(int(b.handle.Fd()))
		veth.MTU = link.MTU
		return netlink.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("make veth pair: %w", err)
	}
	for _, end := range []End{link.A, link.B} {
		h := l.hosts[end.Host]
		if link.MTU != 0 {
			err = errors.Join(err, h.SetMTU(end.Device, link.MTU))
		}
		err = errors.Join(err, h.SetOffloads(end.Device, link.Offloads), h.AddAddresses(end.Device, end.Addresses...), h.SetUp(end.Device))
	}
	return err
}

// AwaitRunning waits until a device has a carrier, its IPv6 link-local address, and the local route of every IPv6 address that it
// has: they follow a moment after it is up, and whoever compares a host before and after, or sends to it, wants them there before.
func (h *Host) AwaitRunning(device string) error {
	return h.await(device, "has no carrier, no link-local address or no local route", func(l netlink.Link) (bool, error) {
		if !running(l) {
			return false, nil
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
		if err != nil {
			return true, nil // no IPv6 here
		}
		off, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + device + "/disable_ipv6")
		if err != nil || strings.TrimSpace(string(off)) == "1" {
			return true, nil
		}
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() }) {
			return false, nil
		}
		return delivered(l, addrs)
	})
}

func running(l netlink.Link) bool {
	state := l.Attrs().OperState
	return l.Attrs().Flags&net.FlagUp != 0 && (state == netlink.OperUp || state == netlink.OperUnknown)
}

// delivered reports whether the host takes packets for each address of a device for its own: the kernel says yes to a new IPv6
// address and adds its local route later, from a work queue (net/ipv6/addrconf.c, addrconf_dad_start), DAD or not.
func delivered(l netlink.Link, addrs []netlink.Addr) (bool, error) {
	local := &netlink.Route{LinkIndex: l.Attrs().Index, Table: unix.RT_TABLE_LOCAL}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	missing := slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return a.Flags&unix.IFA_F_TENTATIVE != 0 ||
			!slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.IP.Equal(a.IP) })
	})
	return !missing, err
}

func (h *Host) await(device, otherwise string, reached func(netlink.Link) (bool, error)) error {
	const patience, pause = 5 * time.Second, time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(pause) {
		done := false
		err := h.withLink(device, "wait for", func(l netlink.Link) (err error) {
			done, err = reached(l)
			return err
		})
		switch {
		case err != nil || done:
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("device %s in host %s %s after %s", device, h.name, otherwise, patience)
		}
	}
}

// withLink runs f with a device of the host.
func (h *Host) withLink(device, what string, f func(netlink.Link) error) error {
	return h.Run(func() error {
		l, err := netlink.LinkByName(device)
		if err == nil {
			err = f(l)
		}
		if err != nil {
			return fmt.Errorf("%s %s in host %s: %w", what, device, h.name, err)
		}
		return nil
	})
}

// SetUp brings a device up.
func (h *Host) SetUp(device string) error { return h.withLink(device, "bring up", netlink.LinkSetUp) }

// SetDown takes a device down.
func (h *Host) SetDown(device string) error {
	return h.withLink(device, "take down", netlink.LinkSetDown)
}

// SetMTU sets the MTU of a device, in bytes.
func (h *Host) SetMTU(device string, mtu int) error {
	return h.withLink(device, "set mtu of", func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu) })
}

// Delete removes a device.
func (h *Host) Delete(device string) error { return h.withLink(device, "remove", netlink.LinkDel) }

// MAC returns the address of a device.
func (h *Host) MAC(device string) (mac net.HardwareAddr, err error) {
	err = h.withLink(device, "find", func(l netlink.Link) error {
		mac = l.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}

// AddAddresses gives addresses to a device. Those of one that runs can be used at once: duplicates of IPv6 ones are not looked for.
func (h *Host) AddAddresses(device string, addrs ...netip.Prefix) error {
	var added []netlink.Addr
	err := h.withLink(device, "add address to", func(l netlink.Link) error {
		for _, a := range addrs {
			addr := netlink.Addr{IPNet: ipNet(a)}
			if a.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
				added = append(added, addr)
			}
			if err := netlink.AddrAdd(l, &addr); err != nil {
				return fmt.Errorf("%s: %w", a, err)
			}
		}
		return nil
	})
	if err != nil || len(added) == 0 {
		return err
	}
	return h.await(device, "has no local route for its new addresses", func(l netlink.Link) (bool, error) {
		if !running(l) {
			return true, nil
		}
		return delivered(l, added)
	})
}

// AddRoute adds a route through a gateway or, when that is the zero address, straight through a device.
func (h *Host) AddRoute(to netip.Prefix, via netip.Addr, device string) error {
	return h.withLink(device, "add route through", func(l netlink.Link) error {
		r := &netlink.Route{Dst: ipNet(to), LinkIndex: l.Attrs().Index}
		if via.IsValid() {
			r.Gw = via.AsSlice()
		}
		return netlink.RouteAdd(r)
	})
}

// SetOffloads turns ethtool features of a device on or off, by the kernel's names, such as tx-udp-segmentation.
func (h *Host) SetOffloads(device string, features map[string]bool) error {
	if len(features) == 0 {
		return nil
	}
	return h.Run(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return fmt.Errorf("open ethtool: %w", err)
		}
		defer e.Close()
		if err := e.Change(device, features); err != nil {
			return fmt.Errorf("set offloads of %s in host %s: %w", device, h.name, err)
		}
		return nil
	})
}

// Offloads returns every ethtool feature of a device.
func (h *Host) Offloads(device string) (features map[string]bool, err error) {
	err = h.Run(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return fmt.Errorf("open ethtool: %w", err)
		}
		defer e.Close()
		features, err = e.Features(device)
		return err
	})
	return features, err
}

// AddBridge makes a bridge with the given devices on it and brings it up.
func (h *Host) AddBridge(name string, ports ...string) error {
	err := h.Run(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		for _, port := range ports {
			l, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(l, bridge); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("add bridge %s to host %s: %w", name, h.name, err)
	}
	return h.SetUp(name)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
