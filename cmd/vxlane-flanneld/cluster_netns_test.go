//go:build netns

package main

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

const patience = 30 * time.Second

// etcdCommand runs a real etcd: its directory, the address to listen at, and the network configuration to begin with.
const etcdCommand = "etcd-for-test"

func init() {
	extra[etcdCommand] = func() {
		if err := runEtcd(os.Args[1], os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func runEtcd(dir, address, network string) error {
	client, err := url.Parse("http://" + address + ":2379")
	if err != nil {
		return err
	}
	peer, err := url.Parse("http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	c := embed.NewConfig()
	c.Dir, c.LogLevel = dir, "error"
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	<-e.Server.ReadyNotify()
	kv, err := clientv3.New(clientv3.Config{Endpoints: []string{client.String()}})
	if err != nil {
		return err
	}
	if _, err := kv.Put(context.Background(), "/coreos.com/network/config", network); err != nil {
		return err
	}
	return <-e.Err()
}

// cluster is two nodes and an etcd behind one bridge:
//
//	a 172.30.0.1 --- hub (br0, etcd) 172.30.0.254 --- 172.30.0.2 b
//	a 10.10.x.1 cni0, flannel0                 flannel0, cni0 10.10.y.1 b
type cluster struct {
	t    *testing.T
	lab  *lab.Lab
	a, b *member
	dir  string
}

// member is a node of a cluster.
type member struct {
	c       *cluster
	host    *lab.Host
	file    string // subnet.env
	log     string
	env     []string // of its daemons
	leases  []string // flags that say where the leases are
	command *lab.Command
	subnet  netip.Prefix // FLANNEL_SUBNET, once it is known
}

// newCluster builds the nodes, and an etcd with the given network configuration.
func newCluster(t *testing.T, network string) *cluster {
	t.Helper()
	c := newNodes(t)
	cmd := exec.Command(etcdCommand, filepath.Join(c.dir, "etcd"), "172.30.0.254", network)
	cmd.Stderr = os.Stderr
	if _, err := c.lab.Host("hub").Start(cmd); err != nil {
		t.Fatal(err)
	}
	return c
}

func newNodes(t *testing.T) *cluster {
	t.Helper()
	if err := lab.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	prefix := netip.MustParsePrefix
	l, err := lab.Build(lab.Topology{
		Hosts: []string{"a", "b", "hub"},
		Links: []lab.Link{
			{A: lab.End{Host: "a", Device: "eth0", Addresses: []netip.Prefix{prefix("172.30.0.1/24")}}, B: lab.End{Host: "hub", Device: "eth0"}},
			{A: lab.End{Host: "b", Device: "eth0", Addresses: []netip.Prefix{prefix("172.30.0.2/24")}}, B: lab.End{Host: "hub", Device: "eth1"}},
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
	c := &cluster{t: t, lab: l, dir: t.TempDir()}
	hub := l.Host("hub")
	if err := hub.AddBridge("br0", "eth0", "eth1"); err != nil {
		t.Fatal(err)
	}
	if err := hub.AddAddresses("br0", prefix("172.30.0.254/24")); err != nil {
		t.Fatal(err)
	}
	c.a, c.b = c.node("a"), c.node("b")
	return c
}

func (c *cluster) node(name string) *member {
	h := c.lab.Host(name)
	if err := h.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		c.t.Fatal(err)
	}
	return &member{
		c: c, host: h, file: filepath.Join(c.dir, name+".env"), log: filepath.Join(c.dir, name+".log"),
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
	flags = append(append([]string{"--iface=eth0", "--subnet-file=" + n.file, "--iptables-forward-rules=false"}, n.leases...), flags...)
	cmd := exec.Command(program, flags...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = append(os.Environ(), n.env...)
	if n.command, err = n.host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	n.awaitSubnet(before)
	if before == nil {
		if err := n.host.AddBridge("cni0"); err != nil {
			t.Fatal(err)
		}
		if err := n.host.AddAddresses("cni0", n.subnet); err != nil {
			t.Fatal(err)
		}
	}
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
	for _, line := range strings.Split(n.subnetFile(), "\n") {
		if value, ok := strings.CutPrefix(line, "FLANNEL_SUBNET="); ok {
			n.subnet = netip.MustParsePrefix(value)
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

// ping waits until the other node's pods answer, with packets of a size.
func (n *member) ping(other *member, size int) {
	t := n.c.t
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err = traffic.Ping(n.host, other.subnet.Addr(), size, time.Second); err == nil {
			return
		}
	}
	t.Fatalf("ping from %s: %v\n%s%s", n.host.Name(), err, n.output(), other.output())
}

func (n *member) tcp(other *member) {
	t := n.c.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := traffic.TCP(ctx, n.host, other.host, other.subnet.Addr(), 500*time.Millisecond); err != nil {
		t.Error(err)
	}
}

// both pings and transfers in both directions, at the edges of the MTU.
func (c *cluster) both() {
	c.t.Helper()
	for _, size := range []int{0, 56, 1444, 1445, 8000} { // 1444: 1472 with its headers
		c.a.ping(c.b, size)
		c.b.ping(c.a, size)
	}
	c.a.tcp(c.b)
	c.b.tcp(c.a)
}
