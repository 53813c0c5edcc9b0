//go:build netns

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

const patience = 30 * time.Second

// stockProgram is a flanneld of flannel's own, empty when the tests were built without one.
var stockProgram string

// cluster is two nodes, each with a pod, and an etcd behind one bridge:
//
//	a 172.30.0.1, fd30::1 --- hub (br0, etcd) 172.30.0.254 --- 172.30.0.2, fd30::2 b
//	flannel0, cni0 10.10.x.1                                        flannel0, cni0 10.10.y.1
//	      |                                                               |
//	pod-a 10.10.x.2                                                 pod-b 10.10.y.2
type cluster struct {
	t    *testing.T
	lab  *lab.Lab
	hub  *lab.Host
	a, b *member
	dir  string
	etcd *etcdServer // nil when the leases are elsewhere
}

// member is a node of a cluster.
type member struct {
	c       *cluster
	host    *lab.Host
	pod     *lab.Host
	file    string // subnet.env
	log     string
	env     []string // of its daemons
	leases  []string // flags that say where the leases are
	iface   string
	forward bool // with forward rules, which need iptables or nft
	command *lab.Command
	subnet  netip.Prefix // FLANNEL_SUBNET, once it is known
	subnet6 netip.Prefix // FLANNEL_IPV6_SUBNET
}

// podAddr is the address of the pod on a node, the first after the bridge's.
func (n *member) podAddr() netip.Addr  { return n.subnet.Addr().Next() }
func (n *member) podAddr6() netip.Addr { return n.subnet6.Addr().Next() }

// newCluster builds the nodes, and an etcd with the given network configuration.
func newCluster(t *testing.T, network string) *cluster {
	t.Helper()
	c := newNodes(t)
	c.etcd = &etcdServer{c: c, network: network}
	c.etcd.start()
	return c
}

func newNodes(t *testing.T) *cluster {
	t.Helper()
	if err := lab.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	prefix := netip.MustParsePrefix
	l, err := lab.Build(lab.Topology{
		Hosts: []string{"a", "b", "hub", "pod-a", "pod-b"},
		Links: []lab.Link{
			{A: lab.End{Host: "a", Device: "eth0", Addresses: []netip.Prefix{prefix("172.30.0.1/24"), prefix("fd30::1/64")}}, B: lab.End{Host: "hub", Device: "eth0"}},
			{A: lab.End{Host: "b", Device: "eth0", Addresses: []netip.Prefix{prefix("172.30.0.2/24"), prefix("fd30::2/64")}}, B: lab.End{Host: "hub", Device: "eth1"}},
			{A: lab.End{Host: "pod-a", Device: "eth0"}, B: lab.End{Host: "a", Device: "pod"}},
			{A: lab.End{Host: "pod-b", Device: "eth0"}, B: lab.End{Host: "b", Device: "pod"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{t: t, lab: l, hub: l.Host("hub"), dir: t.TempDir()}
	c.must(c.hub.AddBridge("br0", "eth0", "eth1"))
	c.must(c.hub.AddAddresses("br0", prefix("172.30.0.254/24"), prefix("fd30::254/64")))
	c.a, c.b = c.node("a"), c.node("b")
	return c
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) node(name string) *member {
	h := c.lab.Host(name)
	c.must(h.Sysctl("net.ipv4.ip_forward", "1"))
	c.must(h.Sysctl("net.ipv6.conf.all.forwarding", "1"))
	return &member{
		c: c, host: h, iface: "eth0", pod: c.lab.Host("pod-" + name), file: filepath.Join(c.dir, name+".env"), log: filepath.Join(c.dir, name+".log"),
		leases: []string{"--etcd-endpoints=http://172.30.0.254:2379"},
	}
}

// start runs a daemon on a node, and waits until it has written its subnet file; the address in it is that of cni0.
func (n *member) start(program string, flags ...string) {
	t := n.c.t
	t.Helper()
	before, _ := os.Stat(n.file)
	f, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags = append(append([]string{"--iface=" + n.iface, "--subnet-file=" + n.file, fmt.Sprintf("--iptables-forward-rules=%v", n.forward)}, n.leases...), flags...)
	cmd := exec.Command(program, flags...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = append(os.Environ(), n.env...)
	if n.command, err = n.host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	n.awaitSubnet(before)
	if before == nil {
		n.plugIn()
	}
}

// plugIn does what the CNI plugin does with the subnet file: a bridge with the subnet's first address, and a pod on it.
func (n *member) plugIn() {
	c := n.c
	c.t.Helper()
	mtu, err := strconv.Atoi(n.subnetVariable("FLANNEL_MTU"))
	c.must(err)
	c.must(n.host.AddBridge("cni0", "pod"))
	c.must(n.host.SetMTU("cni0", mtu))
	for _, d := range []struct {
		h    *lab.Host
		name string
	}{{n.host, "pod"}, {n.pod, "eth0"}} {
		c.must(d.h.SetMTU(d.name, mtu))
	}
	for _, subnet := range []netip.Prefix{n.subnet, n.subnet6} {
		if !subnet.IsValid() {
			continue
		}
		c.must(n.host.AddAddresses("cni0", subnet))
		c.must(n.pod.AddAddresses("eth0", netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())))
		everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if subnet.Addr().Is6() {
			everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		c.must(n.pod.AddRoute(everywhere, subnet.Addr(), "eth0"))
	}
}

// subnetVariable returns what the subnet file says of a variable, nothing when it does not.
func (n *member) subnetVariable(name string) string {
	for _, line := range strings.Split(n.subnetFile(), "\n") {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return value
		}
	}
	return ""
}

// awaitSubnet waits for another file than before: each one replaces the last.
func (n *member) awaitSubnet(before os.FileInfo) {
	t := n.c.t
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		now, err := os.Stat(n.file)
		if err == nil && !os.SameFile(before, now) {
			break
		}
		select {
		case <-n.command.Done():
			t.Fatalf("%s ended: %v\n%s", n.host.Name(), n.command.Wait(), n.output())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s wrote no subnet file: %v\n%s", n.host.Name(), err, n.output())
		}
	}
	n.readSubnets()
}

// readSubnets reads the node's subnets out of its subnet file.
func (n *member) readSubnets() {
	for name, subnet := range map[string]*netip.Prefix{"FLANNEL_SUBNET": &n.subnet, "FLANNEL_IPV6_SUBNET": &n.subnet6} {
		if value := n.subnetVariable(name); value != "" {
			*subnet = netip.MustParsePrefix(value)
		}
	}
}

func (n *member) subnetFile() string {
	text, err := os.ReadFile(n.file)
	if err != nil {
		n.c.t.Fatal(err)
	}
	return string(text)
}

func (n *member) output() string {
	text, _ := os.ReadFile(n.log)
	return string(text)
}

// ping waits until the other node's bridge answers, with packets of a size.
func (n *member) ping(other *member, size int) {
	n.c.t.Helper()
	n.c.ping(n.host, other.subnet.Addr(), size)
}

// ping waits until an address answers a host, with packets of a size.
func (c *cluster) ping(from *lab.Host, to netip.Addr, size int) {
	c.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err = traffic.Ping(from, to, size, time.Second); err == nil {
			return
		}
	}
	c.t.Fatalf("ping: %v\n%s", err, c.logs())
}

func (c *cluster) logs() string { return "a:\n" + c.a.output() + "b:\n" + c.b.output() }

// transfer moves data over TCP, and checks every byte.
func (c *cluster) transfer(from, to *lab.Host, address netip.Addr) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := traffic.TCP(ctx, from, to, address, 200*time.Millisecond); err != nil {
		c.t.Errorf("%v\n%s", err, c.logs())
	}
}

// both pings and transfers in both directions, at the edges of the MTU, between the nodes' bridges and between pods.
func (c *cluster) both() {
	c.t.Helper()
	for _, size := range []int{0, 56, 1444, 1445, 8000} { // 1444: 1472 with its headers
		c.a.ping(c.b, size)
		c.b.ping(c.a, size)
		c.ping(c.a.pod, c.b.podAddr(), size)
		c.ping(c.b.pod, c.a.podAddr(), size)
	}
	c.transfer(c.a.host, c.b.host, c.b.subnet.Addr())
	c.transfer(c.b.pod, c.a.pod, c.a.podAddr())
	for _, n := range []*member{c.a, c.b} {
		c.datagrams(n)
	}
}

// datagrams sends UDP of every size from a node's pod to the other's, and back: each comes once and whole.
func (c *cluster) datagrams(n *member) {
	c.t.Helper()
	other := c.a
	if n == c.a {
		other = c.b
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := traffic.Echo(ctx, n.pod, other.pod, other.podAddr(), 2, 500, traffic.Gently)
	if err != nil || r.Received != r.Sent || r.Corrupted+r.Duplicated+r.Reordered != 0 {
		c.t.Errorf("UDP between pods: %+v, %v\n%s", r, err, c.logs())
	}
}
