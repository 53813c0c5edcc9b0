//go:build netns

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/tunnel"
)

// kernelHas reports whether this machine's kernel is of a release or a later one.
func kernelHas(major, minor int) bool {
	var uts unix.Utsname
	var x, y int
	if unix.Uname(&uts) != nil {
		return false
	}
	n, _ := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &x, &y)
	return n == 2 && (x > major || x == major && y >= minor)
}

// needTier skips the test where this machine's kernel has no tunnel-gso.
func (p *pair) needTier(tier string) {
	p.t.Helper()
	if tier != "tunnel-gso" {
		return
	}
	d := p.launch(p.a, upArgs("--tier", tier)...)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := d.client.Status(context.Background()); err == nil {
			d.stop()
			return
		}
		select {
		case <-d.cmd.Done():
			var exit *exec.ExitError
			if err := d.cmd.Wait(); errors.As(err, &exit) && exit.ExitCode() == cli.ExitKernel && !kernelHas(6, 17) {
				p.t.Skipf("needs Linux 6.17 or later: %s", d.output())
			}
			p.t.Fatalf("vxlane up ended:\n%s", d.output())
		default:
		}
	}
	p.t.Fatalf("vxlane is not ready:\n%s", d.output())
}

func (d *running) status() control.Status {
	d.t.Helper()
	s, err := d.client.Status(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// capability returns what status says of one kernel feature.
func capability(s control.Status, name string) tunnel.Capability {
	i := slices.IndexFunc(s.Capabilities, func(c tunnel.Capability) bool { return c.Name == name })
	if i < 0 {
		return tunnel.Capability{Reason: "not in the status"}
	}
	return s.Capabilities[i]
}

// The outer device is told of, used, and gone with the process, however it ends.
func TestOuterDevice(t *testing.T) {
	p := newPair(t, wire{})
	p.needTier("tunnel-gso")
	before := hostState(t, p.a)
	d := p.start(p.a, upArgs("--tier", "tunnel-gso")...)
	p.addKernelPeer(func(v *lab.VXLAN) { v.MTU = 2000 })
	for i := range overlayB {
		p.tcp(p.a, p.b, overlayB[i], 300*time.Millisecond)
		p.tcp(p.b, p.a, overlayA[i], 300*time.Millisecond)
	}
	if during := hostState(t, p.a); !slices.ContainsFunc(during, func(s string) bool {
		return strings.HasPrefix(s, "1 BPF programs at") && strings.HasSuffix(s, "of eth0")
	}) {
		t.Errorf("no program at eth0: %q", during)
	}
	s := d.status()
	if s.Tier != "tunnel-gso" || len(s.HostChanges) != 2 || !strings.Contains(s.HostChanges[0], "vxgso") || !strings.Contains(s.HostChanges[1], "ingress of eth0") {
		t.Errorf("tier %s, host changes %q", s.Tier, s.HostChanges)
	}
	if c := d.stats().Syscalls; c["writev"] < 10*c["sendmmsg"] {
		t.Errorf("TCP went through the sockets: %v", c)
	}
	if n := p.netstat(p.a)["Udp.InDatagrams"]; n > 10 {
		t.Errorf("%d datagrams came to the sockets", n)
	}
	if s := d.stats(); s.Syscalls["read"]*5 > s.Encap.Received+s.Decap.Received {
		t.Errorf("%d reads for %d and %d packets", s.Syscalls["read"], s.Encap.Received, s.Decap.Received)
	}
	// What the program cannot judge does, and arrives as well.
	before6 := p.netstat(p.a)["Udp.InDatagrams"]
	p.ping(p.b, overlayA[0], 1700)
	if n := p.netstat(p.a); n["Ip.ReasmOKs"] == 0 || n["Udp.InDatagrams"] == before6 {
		t.Errorf("%d datagrams were put together, %d came to the sockets", n["Ip.ReasmOKs"], n["Udp.InDatagrams"]-before6)
	}
	if err := d.cmd.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait()
	if after := hostState(t, p.a); !slices.Equal(before, after) {
		t.Errorf("after SIGKILL: before %q\nafter %q", before, after)
	}
	p.start(p.a, upArgs("--tier", "tunnel-gso")...).stop()
	if after := hostState(t, p.a); !slices.Equal(before, after) {
		t.Errorf("before %q\nafter %q", before, after)
	}
}

// To a peer that takes no super-packets TCP goes as trains, whatever the tier; it may be told while the tunnel runs.
func TestOuterDeviceAndASegmentedPeer(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{})
	p.needTier("tunnel-gso")
	d := p.start(p.a, "--tier", "tunnel-gso", "--local", "172.30.0.1", "--address", "10.99.0.1/24", "--peer", "name=b,endpoint=172.30.0.2,allowed_ips=10.99.0.2,super_packets=false")
	p.addKernelPeer()
	p.tcp(p.a, p.b, overlayB[0], 200*time.Millisecond)
	if c := d.stats(); c.Encap.Delivered < 1000 || c.Syscalls["sendmmsg"] < 100 {
		t.Errorf("%d packets, %v", c.Encap.Delivered, c.Syscalls)
	}
	before := d.stats().Syscalls["sendmmsg"]
	out, code := p.vxlane(p.a, "peer", "apply", "--socket", p.dir+"/a.sock", "-f", p.write("peers.yaml", "- {name: b, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2]}\n"))
	if code != 0 {
		t.Fatal(out)
	}
	p.tcp(p.a, p.b, overlayB[0], 200*time.Millisecond)
	if c := d.stats().Syscalls; c["sendmmsg"] > before+30 {
		t.Errorf("TCP still goes through the sockets: %d, %v", before, c)
	}
	d.hasAll("tunnel-gso")
	d.stop()
}

// Over a device that segments trains and not tunnels' super-packets, TCP goes as trains, and still comes in through the outer device.
// Without outer checksums there are no trains.
func TestOuterDeviceAndTrains(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		checksum        bool
		feature, reason string
	}{
		{true, "tx-udp_tnl-csum-segmentation", "TCP is sent as such"},
		{false, "tx-udp_tnl-segmentation", "the CPU segments"},
	} {
		t.Run(c.feature, func(t *testing.T) {
			p := newPair(t, wire{Offloads: map[string]bool{"tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false}})
			p.needTier("tunnel-gso")
			d := p.start(p.a, "--config", p.write("trains.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: 172.30.0.1, checksum: %v}
    peers: [{name: b, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2, "fd99::2"]}]
    tier: tunnel-gso
`, c.checksum)))
			p.addKernelPeer()
			for i := range overlayB {
				p.tcp(p.a, p.b, overlayB[i], 300*time.Millisecond)
			}
			s := d.status()
			if f := capability(s, c.feature); s.Tier != "tunnel-gso" || f.Enabled || !strings.Contains(f.Reason, c.reason) {
				t.Errorf("tier %s, %+v", s.Tier, s.Capabilities)
			}
			if n := d.stats().Syscalls; c.checksum && n["sendmmsg"] <= 300 || !c.checksum && n["sendmmsg"] > 30 {
				t.Errorf("through the sockets or not: %v", n)
			}
			if n := p.netstat(p.a)["Udp.InDatagrams"]; n > 10 {
				t.Errorf("%d datagrams came to the sockets", n)
			}
			must(t, p.a.SetOffloads("eth0", map[string]bool{c.feature: true})) // too late for this tunnel
			if f := capability(d.status(), c.feature); f.Enabled == c.checksum || c.checksum && !strings.Contains(f.Reason, "after the start") {
				t.Errorf("turned on after the start: %+v", f)
			}
			d.stop()
		})
	}
}

// An underlay address of the loopback device says nothing about the NIC that segments: the routes do.
func TestOuterDeviceFromTheLoopbackDevice(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{})
	p.needTier("tunnel-gso")
	local := netip.MustParseAddr("172.33.0.1")
	p.exec(p.a, "ip", "address", "add", local.String()+"/32", "dev", "lo")
	must(t, p.b.AddRoute(netip.PrefixFrom(local, 32), netip.MustParseAddr("172.30.0.1"), "eth0"))
	d := p.start(p.a, "--tier", "tunnel-gso", "--local", local.String(), "--address", "10.99.0.1/24", "--address", "fd99::1/64",
		"--peer", "name=b,endpoint=172.30.0.2,allowed_ips=10.99.0.2/32,allowed_ips=fd99::2/128")
	p.addKernelPeer(func(v *lab.VXLAN) { v.Remote = local })
	for i := range overlayB {
		p.tcp(p.a, p.b, overlayB[i], 300*time.Millisecond)
		p.tcp(p.b, p.a, overlayA[i], 300*time.Millisecond)
	}
	if n := d.stats().Syscalls; n["sendmmsg"] > 30 || n["writev"] < 100 {
		t.Errorf("TCP went through the sockets: %v", n)
	}
	if s := d.status(); s.Tier != "tunnel-gso" {
		t.Errorf("tier %s: %+v", s.Tier, s.Capabilities)
	}
	d.stop()
}

// Without the outer device, or the underlay's that leads to it, everything goes through the sockets, and status says why.
func TestOuterDeviceTakenAway(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, why string
		do        func(p *pair)
	}{
		{"down", "vxgso0 is down", func(p *pair) { must(p.t, p.a.SetDown("vxgso0")) }},
		{"deleted", "vxgso0 is", func(p *pair) { must(p.t, p.a.Delete("vxgso0")) }},
		{"underlay gone", "eth0 is gone", func(p *pair) {
			must(p.t, p.a.Delete("eth0")) // and its other end with it
			p.exec(p.b, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", p.a.Namespace())
			for h, own := range map[*lab.Host]string{p.a: "172.30.0.1/24", p.b: "172.30.0.2/24"} {
				must(p.t, h.AddAddresses("eth0", prefixes(own)...))
				must(p.t, h.SetUp("eth0"))
			}
			must(p.t, errors.Join(p.a.AwaitRunning("eth0"), p.b.AwaitRunning("eth0")))
		}},
	} {
		for _, merges := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, the kernel merges %v", c.name, merges), func(t *testing.T) {
				p := newPair(t, wire{Offloads: map[string]bool{"rx-gro": merges}})
				p.needTier("tunnel-gso")
				d := p.start(p.a, upArgs("--tier", "tunnel-gso")...)
				p.addKernelPeer()
				p.pingAll(56)
				if f := capability(d.status(), "kernel-gro"); f.Enabled != merges {
					t.Errorf("%+v", f)
				}
				c.do(p)
				for deadline := time.Now().Add(patience); capability(d.status(), "outer-receive").Enabled; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("not noticed")
					}
				}
				p.pingAll(1400)
				for i := range overlayB {
					p.tcp(p.a, p.b, overlayB[i], 200*time.Millisecond)
					p.tcp(p.b, p.a, overlayA[i], 200*time.Millisecond)
				}
				d.balanced()
				s := d.status()
				if slices.ContainsFunc(s.HostChanges, func(s string) bool { return strings.Contains(s, "ingress of eth0") }) {
					t.Errorf("host changes %q", s.HostChanges)
				}
				if f := capability(s, "outer-receive"); !strings.Contains(f.Reason, c.why) {
					t.Errorf("%+v, want a reason with %q", f, c.why)
				}
				if f := capability(s, "kernel-gro"); f.Enabled {
					t.Errorf("%+v", f)
				}
				d.stop()
			})
		}
	}
}

// Super-packets find their way over IPv6, through routers, and around a change of the route:
//
//	a 172.30.0.1, fd30::1 --- r --- 172.31.0.2, fd31::2 b
//	a 172.32.0.1, fd32::1 --- r
func TestOuterDeviceFollowsTheRoutes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, local, remote, via, other string }{
		{"IPv4", "172.30.0.1", "172.31.0.2", "172.30.0.254", "172.32.0.254"},
		{"IPv6", "fd30::1", "fd31::2", "fd30::fe", "fd32::fe"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newRouted(t)
			p.needTier("tunnel-gso")
			remote := netip.MustParseAddr(c.remote)
			to := netip.PrefixFrom(remote, remote.BitLen())
			if err := p.a.AddRoute(to, netip.MustParseAddr(c.via), "eth0"); err != nil {
				t.Fatal(err)
			}
			d := p.start(p.a, "--tier", "tunnel-gso", "--local", c.local, "--address", "10.99.0.1/24", "--address", "fd99::1/64", "--peer", "endpoint="+c.remote+",allowed_ips=10.99.0.2,allowed_ips=fd99::2")
			p.addKernelPeer(func(v *lab.VXLAN) { v.Local, v.Remote = remote, netip.MustParseAddr(c.local) })
			for i, via := range []string{c.via, c.other, c.via} {
				if err := p.changeRoute(to, netip.MustParseAddr(via), fmt.Sprintf("eth%d", i%2)); err != nil {
					t.Fatal(err)
				}
				for i := range overlayA {
					if out := p.tcp(p.a, p.b, overlayB[i], 300*time.Millisecond); out.Bytes < 1<<20 {
						t.Errorf("via %s: %d bytes", via, out.Bytes)
					}
				}
			}
			if s := d.status(); s.Tier != "tunnel-gso" {
				t.Errorf("tier %s: %+v", s.Tier, s.Capabilities)
			}
			if drops := d.stats().OuterDrops; len(drops) != 0 {
				t.Errorf("dropped: %v", drops)
			}
			d.stop()
		})
	}
}

func newRouted(t *testing.T) *pair {
	t.Helper()
	p := newLab(t, lab.Topology{
		Hosts: []string{"a", "r", "b"},
		Links: []lab.Link{
			{A: lab.End{Host: "a", Device: "eth0", Addresses: prefixes("172.30.0.1/24", "fd30::1/64")}, B: lab.End{Host: "r", Device: "eth0", Addresses: prefixes("172.30.0.254/24", "fd30::fe/64")}},
			{A: lab.End{Host: "a", Device: "eth1", Addresses: prefixes("172.32.0.1/24", "fd32::1/64")}, B: lab.End{Host: "r", Device: "eth2", Addresses: prefixes("172.32.0.254/24", "fd32::fe/64")}},
			{A: lab.End{Host: "r", Device: "eth1", Addresses: prefixes("172.31.0.254/24", "fd31::fe/64")}, B: lab.End{Host: "b", Device: "eth0", Addresses: prefixes("172.31.0.2/24", "fd31::2/64")}},
		},
	})
	r := p.lab.Host("r")
	err := errors.Join(
		r.Sysctl("net.ipv4.ip_forward", "1"), r.Sysctl("net.ipv6.conf.all.forwarding", "1"),
		r.Sysctl("net.ipv4.conf.all.rp_filter", "0"), r.Sysctl("net.ipv4.conf.eth2.rp_filter", "0"),
		p.b.AddRoute(netip.MustParsePrefix("172.30.0.0/24"), netip.MustParseAddr("172.31.0.254"), "eth0"),
		p.b.AddRoute(netip.MustParsePrefix("fd30::/64"), netip.MustParseAddr("fd31::fe"), "eth0"),
	)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func netipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// changeRoute makes host a send to prefix by another way.
func (p *pair) changeRoute(to netip.Prefix, via netip.Addr, device string) error {
	return p.a.Run(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netipNet(to), Gw: via.AsSlice()})
	})
}

// A packet that the routes lead nowhere is counted, by what they say; one that is too long for its path goes through the
// sockets from then on.
func TestOuterDeviceWithoutAWay(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{})
	p.needTier("tunnel-gso")
	d := p.start(p.a, upArgs("--tier", "tunnel-gso")...)
	p.addKernelPeer()
	p.pingAll(56)
	peer := netip.MustParsePrefix("172.30.0.2/32")
	blackhole := &netlink.Route{Dst: netipNet(peer), Type: unix.RTN_BLACKHOLE}
	if err := p.a.Run(func() error { return netlink.RouteAdd(blackhole) }); err != nil {
		t.Fatal(err)
	}
	p.connectFails(overlayB[0])
	if n := d.stats().OuterDrops["blackhole"]; n == 0 {
		t.Errorf("counted: %v", d.stats().OuterDrops)
	}
	narrow := func() error {
		if err := netlink.RouteDel(blackhole); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netipNet(peer), Scope: netlink.SCOPE_LINK, MTU: 1400, MTULock: true})
	}
	if err := p.a.Run(narrow); err != nil {
		t.Fatal(err)
	}
	p.tcp(p.a, p.b, overlayB[0], time.Second)
	if s := d.status(); s.Tier != "udp-gso" || d.stats().OuterDrops["frag_needed"] == 0 {
		t.Errorf("tier %s, counted %v: %+v", s.Tier, d.stats().OuterDrops, s.Capabilities)
	}
	d.stop()
}

// Where a socket gets through and what leaves whole does not, the sockets take over, and status says for whom and why.
func TestOuterDeviceGivenUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, why string
		hinder    func(p *pair)
		passes    bool // through the sockets
	}{
		{"a peer's address is this host's", "172.30.0.2 is an address of this host", func(p *pair) { p.exec(p.a, "ip", "address", "add", "172.30.0.2/32", "dev", "lo") }, false},
		{"routes for sockets alone", "172.30.0.2 has a route for sockets", func(p *pair) {
			p.exec(p.a, "ip", "rule", "add", "iif", "lo", "lookup", "main", "pref", "100")
			p.exec(p.a, "ip", "rule", "del", "pref", "32766")
		}, true},
		{"forwarding off", "nothing leaves it for 172.30.0.2", func(p *pair) { must(p.t, p.a.Sysctl("net.ipv4.conf.vxgso0.forwarding", "0")) }, true},
		{"a route with an encapsulation", "the route to 172.30.0.2 has an encapsulation of its own", func(p *pair) {
			p.exec(p.a, "ip", "route", "add", "172.30.0.2/32", "encap", "ip", "id", "7", "dst", "172.30.0.2", "dev", "eth0")
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, wire{})
			p.needTier("tunnel-gso")
			d := p.start(p.a, upArgs("--tier", "tunnel-gso")...)
			p.addKernelPeer()
			p.pingAll(56)
			c.hinder(p)
			if c.passes {
				p.tcp(p.a, p.b, overlayB[0], time.Second)
			} else {
				p.connectFails(overlayB[0])
			}
			s := d.status()
			if f := capability(s, "tunnel-gso"); s.Tier != "udp-gso" || f.Enabled || !strings.Contains(f.Reason, c.why) {
				t.Errorf("tier %s, counted %v, %+v", s.Tier, d.stats().OuterDrops, f)
			}
			d.stop()
		})
	}
}

// connectFails dials from host a where nothing can come back.
func (p *pair) connectFails(to netip.Addr) {
	p.t.Helper()
	err := p.a.Run(func() error {
		var timeout net.Error
		c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(to, 9).String(), 500*time.Millisecond)
		switch {
		case err == nil:
			return errors.Join(errors.New("connected through a black hole"), c.Close())
		case !errors.As(err, &timeout) || !timeout.Timeout():
			return err
		}
		return nil
	})
	if err != nil {
		p.t.Error(err)
	}
}

// Where super-packets would evade something, or lead nowhere, the tier is refused, and nothing is left.
func TestOuterDeviceRefused(t *testing.T) {
	p := newPair(t, wire{})
	p.needTier("tunnel-gso")
	before := hostState(t, p.a)
	policy := func(dir netlink.Dir) *netlink.XfrmPolicy {
		net := netipNet(netip.MustParsePrefix("172.30.0.0/24"))
		return &netlink.XfrmPolicy{Src: net, Dst: net, Dir: dir}
	}
	out, in := policy(netlink.XFRM_DIR_OUT), policy(netlink.XFRM_DIR_IN)
	for _, c := range []struct {
		name, local, want string
		prepare, undo     func() error
	}{
		{"IPsec", "172.30.0.1", "IPsec policies", func() error { return netlink.XfrmPolicyAdd(out) }, func() error { return netlink.XfrmPolicyDel(out) }},
		{"IPsec for what comes in", "172.30.0.1", "IPsec policies", func() error { return netlink.XfrmPolicyAdd(in) }, func() error { return netlink.XfrmPolicyDel(in) }},
		{"loopback", "127.0.0.1", "loopback", func() error { return nil }, func() error { return nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := p.a.Run(c.prepare); err != nil {
				t.Skipf("needs a kernel with %s: %v", c.name, err)
			}
			out, code := p.vxlane(p.a, "up", "--tier", "tunnel-gso", "--local", c.local, "--address", "10.99.0.1/24", "--peer", "endpoint=172.30.0.2,allowed_ips=10.99.0.2")
			if code != cli.ExitKernel || !strings.Contains(out, c.want) {
				t.Errorf("exit code %d, want %d and %q:\n%s", code, cli.ExitKernel, c.want, out)
			}
			if err := p.a.Run(c.undo); err != nil {
				t.Error(err)
			}
			if after := hostState(t, p.a); !slices.Equal(before, after) {
				t.Errorf("before %q\nafter %q", before, after)
			}
		})
	}
}
