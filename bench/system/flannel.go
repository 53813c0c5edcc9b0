//go:build flannel && cgo && amd64

package system

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/udp"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"

	"github.com/vxlane/vxlane/bench/network"
)

var flannelMissing error

// startFlannel runs this program again on each host, as one end of flannel's udp backend. Its device has the first
// address of the host's pod subnet, as flannel has it.
func startFlannel(n *network.Network) (*Instance, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	in := &Instance{Hosts: [2]netip.Addr{n.A.Pods.Addr(), n.B.Pods.Addr()}, MakesRoutes: true}
	for _, pair := range n.Sides() {
		near, far := pair[0], pair[1]
		args := []string{FlannelPeerCommand, network.Device, near.Underlay.String(), near.Pods.String(), far.Underlay.String(), far.Pods.String()}
		if err := in.run(near.Host, strings.Join(args, " "), exec.Command(self, args...)); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// RunFlannelPeer runs one end of flannel's udp backend until ctx ends: device, underlay address and pod subnet of this
// host, underlay address and pod subnet of the other.
func RunFlannelPeer(ctx context.Context, args []string) error {
	if len(args) != 5 {
		return errors.New("flannel peer: want DEVICE LOCAL SUBNET PEER SUBNET")
	}
	iface, err := net.InterfaceByName(args[0])
	if err != nil {
		return fmt.Errorf("flannel peer: device %s: %w", args[0], err)
	}
	own, err := leaseOf(args[1], args[2])
	if err != nil {
		return err
	}
	peer, err := leaseOf(args[3], args[4])
	if err != nil {
		return err
	}
	local := own.Attrs.PublicIP.ToIP()
	be, err := udp.New(&manager{own: own, peer: peer}, &backend.ExternalInterface{Iface: iface, IfaceName: args[0], IfaceAddr: local, ExtAddr: local})
	if err != nil {
		return fmt.Errorf("flannel peer: %w", err)
	}
	var wg sync.WaitGroup
	nw, err := be.RegisterNetwork(ctx, &wg, &subnet.Config{EnableIPv4: true, Network: ip4Net(network.Overlay)})
	if err != nil {
		return fmt.Errorf("flannel peer: %w", err)
	}
	nw.Run(ctx)
	return nil
}

func leaseOf(address, prefix string) (*lease.Lease, error) {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return nil, fmt.Errorf("flannel peer: %w", err)
	}
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return nil, fmt.Errorf("flannel peer: %w", err)
	}
	return &lease.Lease{EnableIPv4: true, Subnet: ip4Net(p), Attrs: lease.LeaseAttrs{PublicIP: ip.FromIP(addr.AsSlice())}}, nil
}

func ip4Net(p netip.Prefix) ip.IP4Net {
	return ip.IP4Net{IP: ip.FromIP(p.Addr().AsSlice()), PrefixLen: uint(p.Bits())}
}

// manager is a subnet.Manager that knows one lease and one peer.
type manager struct {
	subnet.Manager // nil: the udp backend asks for no more than what is below
	own, peer      *lease.Lease
}

func (m *manager) AcquireLease(_ context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	l := *m.own
	l.Attrs = *attrs
	return &l, nil
}

func (m *manager) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	defer close(receiver)
	receiver <- []lease.LeaseWatchResult{{Snapshot: []lease.Lease{*m.own, *m.peer}}}
	<-ctx.Done()
	return nil
}
