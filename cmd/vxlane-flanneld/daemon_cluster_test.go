//go:build netns && cluster

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vxlane/vxlane/bench/traffic"
)

// flannel's other backends are its own code, and work in this daemon; those that the kernel has no device for say so.
func TestOtherBackends(t *testing.T) {
	for _, b := range []struct{ kind, options, missing string }{
		{"host-gw", "", ""},
		{"ipip", "", "operation not supported"},
		{"wireguard", "", "not supported"},
	} {
		t.Run(b.kind, func(t *testing.T) {
			c := newCluster(t, `{"Network": "10.10.0.0/16", "Backend": {"Type": "`+b.kind+`"`+b.options+`}}`)
			if b.missing != "" && !kernelHas(c, b.kind) {
				c.a.fails(b.missing)
				t.Skipf("skipped after the error was read: needs a kernel with %s", b.kind)
			}
			c.a.start("vxlane-flanneld")
			c.b.start("vxlane-flanneld")
			c.ping(c.a.pod, c.b.podAddr(), 56)
			c.transfer(c.b.pod, c.a.pod, c.a.podAddr())
		})
	}
}

func kernelHas(c *cluster, kind string) bool {
	var link netlink.Link = &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe"}}
	if kind == "ipip" {
		link = &netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "probe"}, Local: net.ParseIP("192.0.2.1")}
	}
	err := c.hub.Run(func() error { return netlink.LinkAdd(link) })
	if err == nil {
		c.must(c.hub.Delete("probe"))
	}
	return err == nil
}

// fails runs the daemon on a node, which must end with exit code 1 and an error that has a text.
func (n *member) fails(text string, flags ...string) {
	t := n.c.t
	t.Helper()
	cmd := exec.Command("vxlane-flanneld", append(append([]string{"--iface=" + n.iface, "--subnet-file=" + n.file, "--iptables-forward-rules=false"}, n.leases...), flags...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), n.env...)
	p, err := n.host.Start(cmd)
	n.c.must(err)
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatalf("it still runs, want an error with %q\n%s", text, out.String())
	}
	if err := p.Wait(); err == nil || !strings.Contains(out.String(), text) {
		t.Errorf("%v, want an error with %q\n%s", err, text, out.String())
	}
}

// alloc takes a lease and makes no network; extension calls programs.
func TestAllocAndExtension(t *testing.T) {
	c := newCluster(t, `{"Network": "10.10.0.0/16", "Backend": {"Type": "alloc"}}`)
	c.a.start("vxlane-flanneld")
	if mtu := c.a.subnetVariable("FLANNEL_MTU"); mtu != "1500" {
		t.Errorf("alloc: MTU %s", mtu)
	}
	c = newNodes(t)
	noted := filepath.Join(c.dir, "noted")
	script := filepath.Join(c.dir, "note")
	c.must(os.WriteFile(script, []byte("#!/bin/sh\necho \"$1 $SUBNET $PUBLIC_IP $(cat)\" >>"+noted+"\n"), 0o700))
	c.etcd = &etcdServer{c: c, network: fmt.Sprintf(`{"Network": "10.10.0.0/16", "Backend": {"Type": "extension", "PreStartupCommand": "echo hello", "SubnetAddCommand": "%s add", "SubnetRemoveCommand": "%s remove"}}`, script, script)}
	c.etcd.start()
	c.a.start("vxlane-flanneld")
	c.b.start("vxlane-flanneld")
	c.etcd.remove(c.b.key())
	wants := []string{ // of a, of b, of a
		"add " + c.b.subnet.Masked().String() + " 172.30.0.2 hello\n", "add " + c.a.subnet.Masked().String() + " 172.30.0.1 hello\n",
		"remove " + c.b.subnet.Masked().String() + " 172.30.0.2 hello\n",
	}
	for _, want := range wants {
		var got []byte
		for deadline := time.Now().Add(patience); time.Now().Before(deadline) && !strings.Contains(string(got), want); time.Sleep(50 * time.Millisecond) {
			got, _ = os.ReadFile(noted)
		}
		if !strings.Contains(string(got), want) {
			t.Errorf("extension noted %q, want %q\n%s", got, want, c.a.output())
		}
	}
}

// What cannot be is an error that names it and the way out.
func TestRefusals(t *testing.T) {
	for network, want := range map[string]string{
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "alivpc"}}`:                                           "vxlane-flanneld leaves the cloud providers' backends out",
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "tencentvpc"}}`:                                       "vxlane-flanneld leaves the cloud providers' backends out",
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "vxlan", "Dataplane": "userspace", "GBP": true}}`:     "Backend.GBP: the userspace dataplane cannot do that: use Dataplane kernel",
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "vxlan", "Dataplane": "userspace", "VNI": 16777216}}`: "vni",
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "udp", "SourceCheck": "perhaps"}}`:                    `Backend.SourceCheck: "perhaps": want enforce, count or off`,
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "udp", "Port": 70000}}`:                               "network configuration: Backend:",
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "nonsense"}}`:                                         "unknown backend type",
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "udp", "MTU": 9000}}`:                                 "does not fit the underlay: eth0 has MTU 1500",
	} {
		c := newCluster(t, network)
		c.a.fails(want)
	}
}

// Without the device node the daemon says so in the words of the classic error, and what to do. The kernel's device of before is
// left as it is.
func TestNoTUN(t *testing.T) {
	c := newCluster(t, vxlanNetwork)
	c.a.env, c.b.env = []string{dataplaneVariable + "=kernel"}, []string{dataplaneVariable + "=kernel"}
	c.a.start("vxlane-flanneld")
	c.b.start("vxlane-flanneld")
	c.ping(c.a.pod, c.b.podAddr(), 56)
	c.must(c.a.command.Stop())
	// A mount namespace in which /dev/net is empty.
	script := fmt.Sprintf(`mount -t tmpfs none /dev/net && exec vxlane-flanneld --iface=eth0 --subnet-file=%s --iptables-forward-rules=false %s`, c.a.file, strings.Join(c.a.leases, " "))
	cmd := exec.Command("unshare", "-m", "sh", "-c", script)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), dataplaneVariable+"=userspace")
	p, err := c.a.host.Start(cmd)
	c.must(err)
	if err := p.Wait(); err == nil {
		t.Error("it ended without an error")
	}
	for _, want := range []string{"open /dev/net/tun: no such file or directory", "mknod /dev/net/tun c 10 200", "hostPath volume of type CharDevice"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the error lacks %q:\n%s", want, out.String())
		}
	}
	c.ping(c.a.pod, c.b.podAddr(), 56)
}

// A device that somebody deletes ends the daemon, with an error that names it; flannel's own would spin. The next start, which is
// its supervisor's, has everything again.
func TestDeviceDeleted(t *testing.T) {
	for device, network := range map[string]string{"flannel0": udpNetwork16, "flannel.1": `{"Network": "10.10.0.0/16", "Backend": {"Type": "vxlan", "Dataplane": "userspace"}}`} {
		c := newCluster(t, network)
		c.a.start("vxlane-flanneld")
		c.b.start("vxlane-flanneld")
		c.ping(c.a.pod, c.b.podAddr(), 56)
		c.must(c.a.host.Delete(device))
		select {
		case <-c.a.command.Done():
		case <-time.After(patience):
			t.Fatalf("it still runs\n%s", c.a.output())
		}
		if err := c.a.command.Wait(); err == nil || !strings.Contains(c.a.output(), device) {
			t.Errorf("%v\n%s", err, c.a.output())
		}
		c.a.start("vxlane-flanneld")
		c.both()
	}
}

// A datagram that is longer than this node's MTU, from a node with a larger one, is delivered whole: flannel's own proxy cuts it
// off and delivers the rest.
func TestLongerThanTheMTU(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.b.start("vxlane-flanneld")
	c.etcd.put(configKey, `{"Network": "10.10.0.0/16", "Backend": {"Type": "udp", "MTU": 1000}}`, 0)
	c.a.start("vxlane-flanneld")
	if got := c.a.subnetVariable("FLANNEL_MTU"); got != "972" {
		t.Fatalf("FLANNEL_MTU=%s", got)
	}
	c.ping(c.b.host, c.a.subnet.Addr(), 1400) // its answer comes back in two fragments
	if s := c.a.stats("flannel0"); s.Decap.Dropped != 0 {
		t.Errorf("%+v", s.Decap)
	}
}

// Two daemons on each node, with files and keys of their own (flannel's test_multi): each network has its own way, and a packet
// that is sent the other's gets no answer.
func TestMulti(t *testing.T) {
	c := newCluster(t, `{"Network": "10.10.0.0/16", "Backend": {"Type": "vxlan", "Dataplane": "userspace"}}`)
	const second = `{"Network": "10.20.0.0/16", "Backend": {"Type": "udp"}}`
	c.etcd.put("/vxlane.test/second/config", second, 0)
	var others []*member
	for _, n := range []*member{c.a, c.b} {
		n.start("vxlane-flanneld")
		other := *n
		other.file, other.log = n.file+".second", n.log+".second"
		f, err := os.Create(other.log)
		c.must(err)
		cmd := exec.Command("vxlane-flanneld", "--iface=eth0", "--etcd-endpoints=http://172.30.0.254:2379", "--etcd-prefix=/vxlane.test/second", "--subnet-file="+other.file, "--iptables-forward-rules=false")
		cmd.Stderr = f
		other.command, err = n.host.Start(cmd)
		c.must(err)
		c.must(f.Close())
		other.awaitSubnet(nil)
		c.must(n.host.AddBridge("cni1"))
		c.must(n.host.AddAddresses("cni1", other.subnet))
		others = append(others, &other)
	}
	c.both()
	others[0].ping(others[1], 56)
	others[1].ping(others[0], 56)
	var wrong []string
	for device, to := range map[string]netip.Addr{"flannel.1": others[1].subnet.Addr(), "flannel0": c.b.subnet.Addr()} {
		if err := pingThrough(c.a, device, to); err == nil {
			wrong = append(wrong, device)
		}
	}
	if wrong != nil {
		t.Errorf("answers came through the wrong devices %v", wrong)
	}
}

// pingThrough pings with a route of its own through a device.
func pingThrough(n *member, device string, to netip.Addr) error {
	n.c.must(n.host.AddRoute(netip.PrefixFrom(to, 32), netip.Addr{}, device))
	defer n.run("ip", "route", "del", to.String()+"/32")
	_, err := traffic.Ping(n.host, to, 56, time.Second)
	return err
}

// The interface is chosen as flanneld chooses it.
func TestInterfaceChoice(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.must(c.a.host.AddBridge("br9"))
	c.must(c.a.host.AddAddresses("br9", netip.MustParsePrefix("172.31.0.1/24")))
	for _, k := range []struct {
		flags  []string
		public string
	}{
		{[]string{"--iface=none0", "--iface=br9"}, "172.31.0.1"},
		{[]string{"--iface=172.30.0.1"}, "172.30.0.1"},
		{[]string{"--iface=none0", "--iface-regex=^none", "--iface-regex=^br.$"}, "172.31.0.1"},
		{[]string{"--iface-can-reach=172.30.0.254"}, "172.30.0.1"},
		{[]string{"--public-ip=172.31.0.1"}, "172.31.0.1"},
		{[]string{"--iface=eth0", "--public-ip=198.51.100.7"}, "198.51.100.7"},
	} {
		c.must(os.RemoveAll(c.a.file))
		log, err := os.Create(c.a.log)
		c.must(err)
		cmd := exec.Command("vxlane-flanneld", append(append(k.flags, c.a.leases...), "--subnet-file="+c.a.file, "--iptables-forward-rules=false")...)
		cmd.Stderr = log
		c.a.command, err = c.a.host.Start(cmd)
		c.must(err)
		c.a.awaitSubnet(nil)
		if value := c.etcd.get(c.a.key()); !strings.Contains(value, `"PublicIP":"`+k.public+`"`) {
			t.Errorf("%v: lease %s, want public IP %s", k.flags, value, k.public)
		}
		if err := c.a.command.Stop(); err != nil {
			text, _ := os.ReadFile(c.a.log)
			t.Errorf("%v: %v\n%s", k.flags, err, text)
		}
		c.must(log.Close())
	}
	c.a.iface = "none0"
	c.a.fails("none matches --iface, --iface-regex or --iface-can-reach", "--iface-regex=^none")
}

// Metrics are those of a tunnel and of the leases; sources that are not a peer's are counted and let pass, or dropped when asked.
func TestMetricsAndSuspects(t *testing.T) {
	for check, delivered := range map[string]bool{"count": true, "enforce": false} {
		t.Run(check, func(t *testing.T) {
			c := newCluster(t, `{"Network": "10.10.0.0/16", "Backend": {"Type": "udp", "SourceCheck": "`+check+`"}}`)
			c.a.start("vxlane-flanneld", "--metrics=127.0.0.1:9472")
			c.b.start("vxlane-flanneld")
			c.both()
			// b's lease says another address than b sends from.
			c.etcd.put(c.b.key(), leaseAt("172.30.0.99"), 24*3600) // one that does not end would be renewed at once
			c.a.awaitPeer("flannel0", c.b.subnet.Masked().String(), "172.30.0.99:8285")
			_, _ = traffic.Ping(c.b.pod, c.a.podAddr(), 56, 100*time.Millisecond) // its answer is lost either way
			want := []string{
				`vxlane_flannel_info{backend="udp",dataplane="userspace"} 1`, "vxlane_flannel_leases 2", "vxlane_flannel_bad_leases 0", "vxlane_flannel_watching 1",
				"vxlane_flannel_watch_failures_total 0", `vxlane_peer_info{endpoint="172.30.0.99:8285",peer="` + c.b.subnet.Masked().String() + `"} 1`,
				"vxlane_build_info{", "process_resident_memory_bytes", "go_goroutines", `vxlane_suspect_packets_total{reason="inner_source_not_allowed"} 0`,
			}
			none := "" // a late segment may come with the request, so there is one at least
			suspect, dropped := `vxlane_suspect_packets_total{reason="peer_unknown"} `, `vxlane_dropped_packets_total{direction="decap",reason="peer_unknown"} `
			if delivered {
				want, none = append(want, dropped+"0"), suspect+"0\n"
			} else {
				want, none = append(want, suspect+"0"), dropped+"0\n"
			}
			metrics := func() string { return c.a.get("http://127.0.0.1:9472/metrics") }
			text := metrics()
			for deadline := time.Now().Add(patience); strings.Contains(text, none) && time.Now().Before(deadline); text = metrics() {
				time.Sleep(20 * time.Millisecond)
			}
			if strings.Contains(text, none) {
				t.Errorf("%q in\n%s", none, text)
			}
			for _, line := range want {
				if !strings.Contains(text, line) {
					t.Errorf("no %q in\n%s", line, text)
				}
			}
			for _, name := range []string{"vxlane_flannel_leases_applied_timestamp_seconds", "vxlane_flannel_lease_expiry_timestamp_seconds"} {
				if !strings.Contains(text, name+" 1.") {
					t.Errorf("%s is no time in\n%s", name, text)
				}
			}
			c.etcd.stop()
			c.must(c.b.command.Stop())
			if s := c.a.status("flannel0"); s.Peers.Total != 1 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// The blackhole route holds what nobody here has; the file is one that flannel's mk-docker-opts.sh reads.
func TestBlackholeAndDockerOpts(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.a.start("vxlane-flanneld", "--ip-blackhole-route", "--iptables-resync=1", "--ip-masq=false")
	subnet := c.a.subnet.Masked().String()
	c.must(c.a.host.Delete("cni0")) // whose route is the same
	for deadline := time.Now().Add(patience); !strings.Contains(c.a.run("ip", "route", "show", "type", "blackhole"), "blackhole "+subnet); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no blackhole route for %s\n%s", subnet, c.a.output())
		}
	}
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/flannel-io/flannel").Output()
	if err != nil {
		t.Fatalf("find flannel's module: %v", err)
	}
	opts := filepath.Join(c.dir, "docker")
	if out := c.a.run("bash", filepath.Join(strings.TrimSpace(string(module)), "dist", "mk-docker-opts.sh"), "-f", c.a.file, "-d", opts); out != "" {
		t.Errorf("mk-docker-opts.sh: %s", out)
	}
	got, err := os.ReadFile(opts)
	want := fmt.Sprintf("DOCKER_OPT_BIP=\"--bip=%s\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n", c.a.subnet)
	if err != nil || !strings.HasPrefix(string(got), want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
