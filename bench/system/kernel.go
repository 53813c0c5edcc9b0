package system

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/network"
)

func startDirect(n *network.Network) (*Instance, error) {
	return &Instance{Hosts: [2]netip.Addr{n.A.Underlay, n.B.Underlay}}, nil
}

// startKernel makes the kernel's vxlan devices on VXLAN's port in Linux and flannel, 8472.
func startKernel(noChecksum bool) func(*network.Network) (*Instance, error) {
	return func(n *network.Network) (*Instance, error) {
		for i, pair := range n.Sides() {
			near, far := pair[0], pair[1]
			err := near.Host.AddVXLAN(lab.VXLAN{
				Device: "vxlan0", ID: 1, Local: near.Underlay, Remote: far.Underlay, Link: network.Device, Port: 8472, NoChecksum: noChecksum,
				MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)}, Addresses: []netip.Prefix{near.Address},
			})
			if err != nil {
				return nil, fmt.Errorf("%w; is the kernel's vxlan driver there (modprobe vxlan)?", err)
			}
		}
		return overlay(n), nil
	}
}

// overlay is an instance on the network's own overlay addresses.
func overlay(n *network.Network) *Instance {
	return &Instance{Hosts: [2]netip.Addr{n.A.Address.Addr(), n.B.Address.Addr()}}
}
