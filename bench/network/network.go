// Package network builds what tunnels are measured on:
//
//	pod a ── cni0 ─ host a ── eth0 ═══ NIC profile ═══ eth0 ── host b ─ cni0 ── pod b
//
// Two hosts with a cable between them, and a pod behind a bridge on each, as Kubernetes has it.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

// Device is the underlay device of each host.
const Device = "eth0"

const (
	bridge  = "cni0"
	podPort = "pod0"
)

// Overlay is the network of all pods, as flannel calls it.
var Overlay = netip.MustParsePrefix("10.244.0.0/16")

// Side is one host, and the pod behind it.
type Side struct {
	Host     *lab.Host
	Pod      *lab.Host
	Underlay netip.Addr   // of the host
	Address  netip.Prefix // of the host in the tunnel
	Pods     netip.Prefix // the subnet of its pods
}

// Gateway returns the address of the bridge.
func (s *Side) Gateway() netip.Addr { return s.Pods.Addr().Next() }

// PodAddress returns the address of the pod.
func (s *Side) PodAddress() netip.Addr { return s.Gateway().Next() }

// Network is two sides with a profile between them.
type Network struct {
	Profile Profile
	A, B    Side
	lab     *lab.Lab
}

// Build makes the hosts, the pods and the cable; there is no tunnel yet.
func Build(p Profile) (*Network, error) {
	prefix := netip.MustParsePrefix
	underlay := [2]netip.Prefix{prefix("172.30.0.1/24"), prefix("172.30.0.2/24")}
	l, err := lab.Build(lab.Topology{
		Hosts: []string{"a", "b", "poda", "podb"},
		Links: []lab.Link{
			{
				A:   lab.End{Host: "a", Device: Device, Addresses: underlay[:1]},
				B:   lab.End{Host: "b", Device: Device, Addresses: underlay[1:]},
				MTU: p.MTU, Offloads: p.Offloads,
			},
			{A: lab.End{Host: "poda", Device: Device}, B: lab.End{Host: "a", Device: podPort}},
			{A: lab.End{Host: "podb", Device: Device}, B: lab.End{Host: "b", Device: podPort}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", p.Name, err)
	}
	return &Network{
		Profile: p, lab: l,
		A: Side{l.Host("a"), l.Host("poda"), underlay[0].Addr(), prefix("10.99.0.1/24"), prefix("10.244.1.0/24")},
		B: Side{l.Host("b"), l.Host("podb"), underlay[1].Addr(), prefix("10.99.0.2/24"), prefix("10.244.2.0/24")},
	}, nil
}

// Sides returns each side with the other.
func (n *Network) Sides() [2][2]*Side { return [2][2]*Side{{&n.A, &n.B}, {&n.B, &n.A}} }

// ConnectPods puts each pod on a bridge of its host, which forwards. The pods' MTU is that of the tunnel, as network
// plugins set it. The tunnel must be up; hosts are the addresses of host a and host b in it. A tunnel that makes the
// routes to the other host's pods itself is waited for; for others they are added.
func (n *Network) ConnectPods(ctx context.Context, hosts [2]netip.Addr, makesRoutes bool) error {
	for i, pair := range n.Sides() {
		near, far := pair[0], pair[1]
		route := func() error { return near.awaitRoute(ctx, far) }
		if !makesRoutes {
			route = func() error { return near.addRoute(far, hosts[1-i]) }
		}
		if err := route(); err != nil {
			return fmt.Errorf("connect pod of host %s: %w", near.Host.Name(), err)
		}
		if err := near.connectPod(far); err != nil {
			return fmt.Errorf("connect pod of host %s: %w", near.Host.Name(), err)
		}
	}
	return traffic.PingUntil(ctx, n.A.Pod, n.B.PodAddress())
}

func (s *Side) awaitRoute(ctx context.Context, far *Side) error {
	for {
		_, _, err := s.Host.RouteTo(far.PodAddress())
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// addRoute adds a route to the pods of the other host, unless there is one.
func (s *Side) addRoute(far *Side, gateway netip.Addr) error {
	if _, _, err := s.Host.RouteTo(far.PodAddress()); err == nil {
		return nil
	}
	device, _, err := s.Host.RouteTo(gateway)
	if err != nil {
		return err
	}
	return s.Host.AddRoute(far.Pods, gateway, device)
}

func (s *Side) connectPod(far *Side) error {
	if err := s.Host.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	_, mtu, err := s.Host.RouteTo(far.PodAddress())
	if err != nil {
		return err
	}
	gw := netip.PrefixFrom(s.Gateway(), s.Pods.Bits())
	pod := netip.PrefixFrom(s.PodAddress(), s.Pods.Bits())
	return errors.Join(
		s.Host.SetMTU(podPort, mtu), s.Pod.SetMTU(Device, mtu),
		s.Host.AddBridge(bridge, podPort), s.Host.AddAddresses(bridge, gw),
		s.Pod.AddAddresses(Device, pod), s.Pod.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gw.Addr(), Device),
	)
}

// AwaitReady waits until the tunnel carries packets between the hosts.
func (n *Network) AwaitReady(ctx context.Context, b netip.Addr) error {
	return traffic.PingUntil(ctx, n.A.Host, b)
}

// Close ends every process in the hosts, and removes all of it.
func (n *Network) Close() error {
	var errs []error
	for _, h := range []*lab.Host{n.A.Host, n.B.Host, n.A.Pod, n.B.Pod} {
		errs = append(errs, h.KillProcesses())
	}
	return errors.Join(append(errs, n.lab.Close())...)
}
