package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/cmd/internal/control"
)

// The Kubernetes topology: two nodes with a pod each, and two overlays between them, as flannel's udp and vxlan backends
// make them. docs/pod-to-pod.md follows a packet through it.
//
//	vxlane-demo.pod-a          vxlane-demo.a                       vxlane-demo.b          vxlane-demo.pod-b
//	eth0 10.244.1.2 ---- pod -- cni0 10.244.1.1                    cni0 10.244.2.1 -- pod ---- eth0 10.244.2.2
//	     10.245.1.2             10.245.1.1                              10.245.2.1                  10.245.2.2
//	                            flannel0  vxlane ------ 8285 ------ vxlane flannel0
//	                            flannel.1 vxlane ------ 8472 ------ kernel flannel.1
//	                            eth0 172.30.0.1 ------------------- 172.30.0.2 eth0
const (
	udpNetwork   = "10.244.0.0/16"
	udpTunnel    = "flannel0"
	vxlanTunnel  = "flannel.1"
	kubeMTU      = 1450 // of pods: what the narrower of the two tunnels takes
	vxlanMACBase = "0a:00:00:00:00:0%d"
)

// demoNode is one of the two nodes.
type demoNode struct {
	number int
	host   *lab.Host
	pod    *lab.Host
	at     netip.Prefix // on the underlay
	ups    []*lab.Command
}

func (n *demoNode) subnet(network int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(network), byte(n.number), 0}), 24)
}

// address is the nth of a node's subnet in a network, with the subnet's length.
func (n *demoNode) address(network, nth int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(network), byte(n.number), byte(nth)}), 24)
}

func (n *demoNode) mac() string { return fmt.Sprintf(vxlanMACBase, n.number) }

// kubeDemo is the two nodes and what is between them.
type kubeDemo struct {
	demo
	nodes [2]*demoNode
}

func runKubernetesDemo(ctx context.Context, w io.Writer, keep bool) error {
	l, err := lab.Build(lab.Topology{
		Name:  demoName,
		Hosts: []string{"a", "b", "pod-a", "pod-b"},
		Links: []lab.Link{
			{A: lab.End{Host: "a", Device: "eth0", Addresses: []netip.Prefix{demoUnderlayA}}, B: lab.End{Host: "b", Device: "eth0", Addresses: []netip.Prefix{demoUnderlayB}}},
			{A: lab.End{Host: "pod-a", Device: "eth0"}, B: lab.End{Host: "a", Device: "pod"}},
			{A: lab.End{Host: "pod-b", Device: "eth0"}, B: lab.End{Host: "b", Device: "pod"}},
		},
	})
	if err != nil {
		return fmt.Errorf("demo: %w; a demo that was kept is removed with vxlane demo --remove", err)
	}
	k := &kubeDemo{demo: demo{w: w, lab: l, a: l.Host("a"), b: l.Host("b")}}
	k.nodes = [2]*demoNode{
		{number: 1, host: k.a, pod: l.Host("pod-a"), at: demoUnderlayA},
		{number: 2, host: k.b, pod: l.Host("pod-b"), at: demoUnderlayB},
	}
	if err := k.show(ctx); err != nil {
		return errors.Join(fmt.Errorf("demo: %w", err), k.logs(), l.Close())
	}
	if keep {
		return k.keep()
	}
	if err := l.Close(); err != nil {
		return fmt.Errorf("demo: clean up: %w", err)
	}
	k.say("\nall of it is removed again")
	return nil
}

func (k *kubeDemo) show(ctx context.Context) error {
	k.say("two nodes with a pod each; flannel0 carries 10.244.0.0/16 in flannel's UDP framing, flannel.1 carries 10.245.0.0/16 in VXLAN\n")
	for i, n := range k.nodes {
		if err := n.addPod(); err != nil {
			return err
		}
		if err := k.addTunnels(n, k.nodes[1-i]); err != nil {
			return err
		}
	}
	for _, n := range k.nodes {
		if err := n.awaitTunnels(ctx); err != nil {
			return err
		}
	}
	for _, network := range []int{244, 245} {
		for i, n := range k.nodes {
			to := k.nodes[1-i].address(network, 2).Addr()
			rtt, err := traffic.Ping(n.pod, to, 56, demoPatience)
			if err != nil {
				return err
			}
			k.say("ping  %s -> %s  %-10s  %.2f ms", n.pod.Name(), k.nodes[1-i].pod.Name(), to, float64(rtt.Microseconds())/1000)
		}
	}
	return ctx.Err()
}

// addPod does what the CNI plugin does: a bridge with the subnets' first addresses, and a pod behind it.
func (n *demoNode) addPod() error {
	errs := []error{n.host.Sysctl("net.ipv4.ip_forward", "1"), n.host.AddBridge("cni0", "pod"), n.host.SetMTU("pod", kubeMTU), n.pod.SetMTU("eth0", kubeMTU)}
	for _, network := range []int{244, 245} {
		errs = append(errs, n.host.AddAddresses("cni0", n.address(network, 1)), n.pod.AddAddresses("eth0", n.address(network, 2)))
	}
	gateway := n.address(244, 1).Addr()
	errs = append(errs,
		n.pod.AddRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway, "eth0"),
		n.pod.AddRoute(netip.MustParsePrefix("10.245.0.0/16"), n.address(245, 1).Addr(), "eth0"))
	return errors.Join(errs...)
}

// addTunnels makes flannel0, and flannel.1: vxlane's on the first node, the kernel's on the second.
func (k *kubeDemo) addTunnels(n, other *demoNode) error {
	peer := "endpoint=" + other.at.Addr().String() + ",allowed_ips="
	host := func(network int) string { return n.subnet(network).Addr().String() + "/32" }
	err := n.up("--device", udpTunnel, "--encap", "flannel-udp", "--local", n.at.Addr().String(), "--address", host(244), "--peer", peer+other.subnet(244).String())
	if err != nil {
		return err
	}
	if n.number == 1 {
		return n.up("--device", vxlanTunnel, "--local", n.at.Addr().String(), "--mac", n.mac(), "--address", host(245), "--peer", peer+other.subnet(245).String()+",mac="+other.mac())
	}
	mac, err := net.ParseMAC(n.mac())
	if err != nil {
		return err
	}
	peerMAC, err := net.ParseMAC(other.mac())
	if err != nil {
		return err
	}
	err = n.host.AddVXLAN(lab.VXLAN{
		Device: vxlanTunnel, ID: 1, Local: n.at.Addr(), Link: "eth0", Port: 8472, MAC: mac, MTU: kubeMTU, NoLearning: true,
		Addresses: []netip.Prefix{netip.PrefixFrom(n.subnet(245).Addr(), 32)},
	})
	return errors.Join(err, n.host.AddPeer(vxlanTunnel, other.subnet(245), peerMAC, other.at.Addr()))
}

// up runs a vxlane on the node.
func (n *demoNode) up(flags ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.host.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, append([]string{"up"}, flags...)...)
	cmd.Args[0] = "vxlane"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // so that it outlives this terminal with --keep
	up, err := n.host.Start(cmd)
	if err == nil {
		n.ups = append(n.ups, up)
	}
	return err
}

// awaitTunnels waits until each vxlane of the node is ready, and gives flannel0 the network's route, as flannel does.
func (n *demoNode) awaitTunnels(ctx context.Context) error {
	devices := []string{udpTunnel, vxlanTunnel}[:len(n.ups)]
	for i, device := range devices {
		var path string
		if err := n.host.Run(func() (err error) { path, err = control.SocketPath(device); return err }); err != nil {
			return err
		}
		if err := awaitReady(ctx, control.NewClient(path), n.ups[i]); err != nil {
			return fmt.Errorf("%s in %s: %w", device, n.host.Name(), err)
		}
	}
	return n.host.AddRoute(netip.MustParsePrefix(udpNetwork), netip.Addr{}, udpTunnel)
}

// awaitReady waits until a tunnel is up and well.
func awaitReady(ctx context.Context, c *control.Client, up *lab.Command) error {
	for deadline := time.Now().Add(demoPatience); ; time.Sleep(20 * time.Millisecond) {
		s, err := c.Status(ctx)
		switch {
		case err == nil && len(s.Degraded) == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("vxlane is not ready after %s: %w", demoPatience, errors.Join(err, errors.New(strings.Join(s.Degraded, "; "))))
		}
		select {
		case <-up.Done():
			return fmt.Errorf("vxlane ended before it was ready: %v", up.Wait())
		default:
		}
	}
}

func (k *kubeDemo) keep() error {
	if err := k.lab.Keep(); err != nil {
		return errors.Join(fmt.Errorf("demo: keep the hosts: %w", err), k.lab.Close())
	}
	k.say("\nthe hosts stay. Step into one with:")
	for _, h := range []*lab.Host{k.a, k.nodes[0].pod, k.b, k.nodes[1].pod} {
		k.say("  %-6s  sudo ip netns exec %s bash", h.Name(), h.Namespace())
	}
	k.say("docs/pod-to-pod.md follows a packet through them. Remove all of it with:\n  sudo %s demo --remove", ownPath())
	return nil
}
