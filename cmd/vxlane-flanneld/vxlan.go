package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/vxlane/vxlane/cmd/internal/vtep"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/routing/flannel"
	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// vxlanDevices are the patterns of the devices' names, by VNI: for IPv4, and for IPv6.
var vxlanDevices = [2]string{"flannel.%d", "flannel-v6.%d"}

const (
	// vxlanType is the backend's name in leases.
	vxlanType = "vxlan"
	// dataplaneVariable chooses for one node, above the network configuration: nodes change one by one.
	dataplaneVariable = "VXLANE_VXLAN_DATAPLANE"
)

// vxlanBackend is flannel's vxlan backend where the kernel has vxlan, and vxlane's dataplane where it has not or where that is
// asked for. Leases and wire are the same.
type vxlanBackend struct{ ourBackend }

func (n *node) newVXLANBackend(sm subnet.Manager, external *backend.ExternalInterface) (backend.Backend, error) {
	return &vxlanBackend{ourBackend{n, sm, external}}, nil
}

// vxlanConfig is the backend's part of the network configuration: flannel's keys, and Dataplane.
type vxlanConfig struct {
	VNI           uint32
	Port          uint16 // 0: the kernel's, 8472
	MTU           int    // of the underlay; 0 is the interface's
	GBP           bool
	Learning      bool
	DirectRouting bool
	Dataplane     string // auto, kernel or userspace
	SourceCheck   string // userspace only: enforce, count or off
	UDPPort       uint16 // userspace only: flannel's udp framing too, with the nodes whose leases are of the udp backend; 0 is off
}

func (b *vxlanBackend) parse(config *subnet.Config) (vxlanConfig, error) {
	c := vxlanConfig{VNI: 1, Dataplane: "auto"}
	if len(config.Backend) > 0 {
		if err := json.Unmarshal(config.Backend, &c); err != nil {
			return c, fmt.Errorf("network configuration: Backend: %w", err)
		}
	}
	from := "network configuration: Backend.Dataplane"
	if v := os.Getenv(dataplaneVariable); v != "" {
		c.Dataplane, from = v, dataplaneVariable
	}
	if c.MTU == 0 {
		c.MTU = b.external.Iface.MTU
	}
	c.Dataplane, c.SourceCheck = strings.ToLower(c.Dataplane), strings.ToLower(c.SourceCheck)
	switch c.Dataplane {
	case "auto", "kernel", "userspace":
		return c, nil
	}
	return c, fmt.Errorf("%s: %q: want auto, kernel or userspace", from, c.Dataplane)
}

// RegisterNetwork implements backend.Backend.
func (b *vxlanBackend) RegisterNetwork(ctx context.Context, wg *sync.WaitGroup, config *subnet.Config) (backend.Network, error) {
	c, err := b.parse(config)
	if err != nil {
		return nil, err
	}
	if c.Dataplane == "auto" {
		c.Dataplane = "kernel"
		has, err := kernelHasVXLAN()
		if err != nil {
			return nil, err
		}
		if !has {
			klog.Info("the kernel has no vxlan: using vxlane's")
			c.Dataplane = "userspace"
		}
	}
	if c.Dataplane == "userspace" {
		return b.register(ctx, config, c)
	}
	if c.UDPPort != 0 {
		return nil, errors.New("network configuration: Backend.UDPPort: the kernel's dataplane cannot speak udp beside: use Dataplane userspace, or leave it out")
	}
	if c.SourceCheck != "" {
		klog.Warning("network configuration: Backend.SourceCheck has no effect: the kernel's dataplane checks no sources")
	}
	kernel, err := vxlan.New(b.manager, b.external)
	if err != nil {
		return nil, err
	}
	return kernel.RegisterNetwork(ctx, wg, config)
}

// kernelHasVXLAN asks the kernel for a vxlan device, and gives it back. One that is there already, left by a process that was
// killed here, is an answer, too.
func kernelHasVXLAN() (bool, error) {
	probe := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlane-probe"}, VxlanId: 1<<24 - 2}
	err := netlink.LinkAdd(probe)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return false, nil
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("ask the kernel for a vxlan device: %w: choose with %s=kernel or userspace", err, dataplaneVariable)
	}
	if err := netlink.LinkDel(probe); err != nil {
		klog.Warningf("device %s is left behind: %v", probe.Name, err)
	}
	return true, nil
}

// vxlanData is what a lease says of a VTEP. VtepMAC is last: flannel finds it there by its place in the text.
type vxlanData struct {
	VNI     uint32
	VtepMAC string
}

// vxlanChecks: known nodes alone are heard, as far as outer addresses tell. An inner source may be that of a client outside of the
// cluster, whom a Service lets in at another node, so offenders are only counted.
var vxlanChecks = static.SourceCheck{Outer: static.CheckEnforce, Inner: static.CheckCount}

// half is one address family of this node's vxlan.
type half struct {
	v6     bool
	tunnel static.Tunnel
	public netip.Addr
}

// describe says what the tunnel of a family is, but for its address, which is not known before the lease.
func (b *vxlanBackend) describe(ctx context.Context, c vxlanConfig, v6 bool) (h half, err error) {
	check, err := sourceCheck(c.SourceCheck, vxlanChecks)
	if err != nil {
		return h, err
	}
	own, public, err := local(b.external, v6)
	if err != nil {
		return h, err
	}
	if _, err := tunnel.UnderlayLink(public); err == nil {
		own = public // as flannel's own: peers know this node by it
	}
	h = half{v6: v6, public: public}
	device := fmt.Sprintf(vxlanDevices[family(v6)], c.VNI)
	h.tunnel, err = describe(`  - device: {name: %s, mtu: %d}
    underlay: {local: %q, vni: %d, source_check: {outer: %s, inner: %s}}
`, device, c.MTU-encap.Overhead(encap.NewVXLANIP(0, encap.StrictBits), v6), own, c.VNI, check.Outer, check.Inner)
	if err != nil {
		return h, err
	}
	if c.Port != 0 {
		h.tunnel.Underlay.Port = c.Port
	}
	if mac := b.knownMAC(ctx, device, v6); !mac.IsZero() {
		h.tunnel.Device.MAC = mac
	}
	return h, nil
}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// register takes a lease and brings the tunnels up.
func (b *vxlanBackend) register(ctx context.Context, config *subnet.Config, c vxlanConfig) (backend.Network, error) {
	if c.GBP {
		return nil, errors.New("network configuration: Backend.GBP: the userspace dataplane cannot do that: use Dataplane kernel, or leave it out")
	}
	var halves []half
	attrs := &lease.LeaseAttrs{BackendType: vxlanType}
	for _, v6 := range []bool{false, true} {
		if enabled := [2]bool{config.EnableIPv4, config.EnableIPv6}; !enabled[family(v6)] {
			continue
		}
		h, err := b.describe(ctx, c, v6)
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(vxlanData{c.VNI, h.tunnel.Device.MAC.String()})
		if err != nil {
			return nil, err
		}
		if v6 {
			attrs.PublicIPv6, attrs.BackendV6Data = ip.FromIP6(b.external.ExtV6Addr), data
		} else {
			attrs.PublicIP, attrs.BackendData = ip.FromIP(b.external.ExtAddr), data
		}
		halves = append(halves, h)
	}
	l, err := b.acquire(ctx, attrs)
	if err != nil {
		return nil, err
	}
	nw := b.network(l)
	for _, h := range halves {
		if err := b.open(nw, config, c, h); err != nil {
			return nil, err
		}
	}
	if c.UDPPort != 0 && config.EnableIPv4 {
		if err := b.openCompanion(nw, c); err != nil {
			return nil, err
		}
	}
	return nw, nw.start(ctx)
}

// openCompanion makes flannel0 beside flannel.1, for a cluster on its way from udp to vxlan: nodes that are not there yet send to
// this one as they send to each other, and are sent to so.
func (b *vxlanBackend) openCompanion(nw *tunnelNetwork, c vxlanConfig) error {
	own, public, err := local(b.external, false)
	if err != nil {
		return err
	}
	t, err := describe(`  - device: {name: %s, addresses: [%s/32], mtu: %d}
    underlay: {encap: flannel-udp, local: %s, port: %d, source_check: {outer: count, inner: count}}
`, udpDevice, flannel.Addr(nw.SubnetLease.Subnet.IP), c.MTU-encap.Overhead(encap.NewFlannelUDP(), false), own, c.UDPPort)
	if err != nil {
		return err
	}
	all := flannel.UDPPeer(public, c.UDPPort)
	return nw.open(t, vtep.Options{}, func(l *lease.Lease) (routing.Peer, bool, error) {
		if l.Attrs.BackendType != "" {
			return routing.Peer{}, false, nil
		}
		return all(l)
	})
}

// open makes one family's tunnel.
func (b *vxlanBackend) open(nw *tunnelNetwork, config *subnet.Config, c vxlanConfig, h half) error {
	if empty := [2]bool{nw.SubnetLease.Subnet.Empty(), nw.SubnetLease.IPv6Subnet.Empty()}; empty[family(h.v6)] {
		return fmt.Errorf("%s is enabled but the lease has no %[1]s: give this node a subnet of both families, or disable one", [2]string{"IPv4", "IPv6"}[family(h.v6)])
	}
	within, err := flannel.Prefix(config.Network)
	if err != nil && !h.v6 {
		return fmt.Errorf("network configuration: Network: %w", err)
	}
	own, err := flannel.Prefix(nw.SubnetLease.Subnet)
	if h.v6 {
		if within, err = flannel.Prefix6(config.IPv6Network); err != nil {
			return fmt.Errorf("network configuration: IPv6Network: %w", err)
		}
		own, err = flannel.Prefix6(nw.SubnetLease.IPv6Subnet)
	}
	if err != nil {
		return fmt.Errorf("this node's lease: %w", err)
	}
	h.tunnel.Device.Addresses = []netip.Prefix{hostPrefix(own)}
	device := h.tunnel.Device.Name
	if err := makeRoom(device); err != nil {
		return err
	}
	o := vtep.Options{DirectWithin: within}
	if c.DirectRouting {
		o.Direct = reachedDirectly
	}
	if err := nw.open(h.tunnel, o, flannel.VXLANPeer(h.public, h.tunnel.Underlay.Port)); err != nil {
		return err
	}
	remember(device, h.tunnel.Device.MAC)
	return nil
}

// reachedDirectly reports whether the underlay has no router between this node and an address.
func reachedDirectly(endpoint netip.Addr) bool {
	direct, err := ip.DirectRouting(endpoint.AsSlice())
	if err != nil {
		klog.Errorf("look up the way to %s, which goes through the tunnel: %v", endpoint, err)
	}
	return direct
}

// macAlias begins the alias of a kept device; this VTEP's MAC follows: a TUN device has none of its own to remember it by.
const macAlias = "vtep "

// knownMAC returns the MAC that other nodes know this one by, zero when there is none: the stored one, else that of the device,
// the kernel's or ours, that is there from before.
func (b *vxlanBackend) knownMAC(ctx context.Context, device string, v6 bool) (mac encap.MAC) {
	stored, stored6 := b.manager.GetStoredMacAddresses(ctx)
	if v6 {
		stored = stored6
	}
	if stored != "" {
		mac, err := encap.ParseMAC(stored)
		if err == nil {
			return mac
		}
		klog.Errorf("the stored MAC is not used: %v", err)
	}
	l, err := netlink.LinkByName(device)
	if err != nil {
		return mac
	}
	if l.Type() == vxlanType && len(l.Attrs().HardwareAddr) == len(mac) {
		copy(mac[:], l.Attrs().HardwareAddr)
	} else if text, ok := strings.CutPrefix(l.Attrs().Alias, macAlias); ok {
		mac, _ = encap.ParseMAC(text) // nobody's but ours; zero when it is
	}
	return mac
}

// remember notes this VTEP's MAC where knownMAC looks.
func remember(device string, mac encap.MAC) {
	l, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkSetAlias(l, macAlias+mac.String())
	}
	if err != nil {
		klog.Warningf("the MAC %s may change with the next start: %v", mac, err)
	}
}

// makeRoom removes the kernel's vxlan device of that name, when there is one and a TUN device can be had in its place.
func makeRoom(device string) error {
	l, err := netlink.LinkByName(device)
	if err != nil || l.Type() != vxlanType {
		return nil
	}
	spare, err := tunnel.OpenTUN(tunnel.TUNConfig{Name: "vxprobe%d", Queues: 1})
	if err != nil {
		return fmt.Errorf("replace the kernel's device %s: %w", device, explainDevice(err))
	}
	if err := spare.Close(); err != nil {
		return fmt.Errorf("replace the kernel's device %s: give the probe back: %w", device, err)
	}
	klog.Infof("device %s is the kernel's: it is replaced", device)
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("replace the kernel's device %s: %w", device, err)
	}
	return nil
}
