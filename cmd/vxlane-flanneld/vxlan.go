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

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/flannel"
)

const (
	// vxlanDevice is the pattern of the device's name, by VNI.
	vxlanDevice = "flannel.%d"
	// vxlanType is the backend's name in leases.
	vxlanType = "vxlan"
	// dataplaneVariable chooses for one node, above the network configuration: nodes change one by one.
	dataplaneVariable = "VXLANE_VXLAN_DATAPLANE"
)

// vxlanBackend is flannel's vxlan backend where the kernel has vxlan, and vxlane's dataplane where it has not or where that is
// asked for. Leases and wire are the same.
type vxlanBackend struct {
	node     *node
	manager  subnet.Manager
	external *backend.ExternalInterface
}

func (n *node) newVXLANBackend(sm subnet.Manager, external *backend.ExternalInterface) (backend.Backend, error) {
	return &vxlanBackend{n, sm, external}, nil
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

// register takes a lease and brings the tunnel up.
func (b *vxlanBackend) register(ctx context.Context, config *subnet.Config, c vxlanConfig) (backend.Network, error) {
	switch {
	case config.EnableIPv6:
		return nil, errors.New("network configuration: EnableIPv6: the userspace dataplane carries IPv4 only yet: use Dataplane kernel")
	case c.GBP:
		return nil, errors.New("network configuration: Backend.GBP: the userspace dataplane cannot do that yet: use Dataplane kernel, or leave it out")
	case c.DirectRouting:
		return nil, errors.New("network configuration: Backend.DirectRouting: the userspace dataplane cannot do that yet: use Dataplane kernel, or leave it out")
	}
	own, public, err := local(b.external)
	if err != nil {
		return nil, err
	}
	device := fmt.Sprintf(vxlanDevice, c.VNI)
	t, err := describe(`  - device: {name: %s, mtu: %d}
    underlay: {local: %s, vni: %d, source_check: {outer: true, inner: false}}
`, device, c.MTU-encap.Overhead(encap.NewVXLANIP(0, encap.StrictBits), false), own, c.VNI)
	if err != nil {
		return nil, err
	}
	if c.Port != 0 {
		t.Underlay.Port = c.Port
	}
	if mac := b.knownMAC(ctx, device); !mac.IsZero() {
		t.Device.MAC = mac
	}
	data, err := json.Marshal(vxlanData{c.VNI, t.Device.MAC.String()})
	if err != nil {
		return nil, err
	}
	l, err := b.manager.AcquireLease(ctx, &lease.LeaseAttrs{PublicIP: ip.FromIP(b.external.ExtAddr), BackendType: vxlanType, BackendData: data})
	if err != nil {
		return nil, fmt.Errorf("acquire lease: %w", err)
	}
	t.Device.Addresses = []netip.Prefix{address(l)}
	nw := &tunnelNetwork{
		SimpleNetwork: backend.SimpleNetwork{SubnetLease: l, ExtIface: b.external},
		node:          b.node, manager: b.manager, mtu: t.Device.MTU,
		peer: flannel.VXLANPeer(public, t.Underlay.Port),
	}
	if err := makeRoom(device); err != nil {
		return nil, err
	}
	if err := nw.open(t, netip.Prefix{}); err != nil {
		return nil, err
	}
	remember(device, t.Device.MAC)
	return nw, nw.start(ctx)
}

// macAlias begins the alias of a kept device; this VTEP's MAC follows: a TUN device has none of its own to remember it by.
const macAlias = "vtep "

// knownMAC returns the MAC that other nodes know this one by, zero when there is none: the stored one, else that of the device,
// the kernel's or ours, that is there from before.
func (b *vxlanBackend) knownMAC(ctx context.Context, device string) (mac encap.MAC) {
	if stored, _ := b.manager.GetStoredMacAddresses(ctx); stored != "" {
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

// makeRoom removes the kernel's vxlan device of that name, when there is one.
func makeRoom(device string) error {
	l, err := netlink.LinkByName(device)
	if err != nil || l.Type() != vxlanType {
		return nil
	}
	klog.Infof("device %s is the kernel's: it is replaced", device)
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("replace the kernel's device %s: %w", device, err)
	}
	return nil
}
