//go:build netns

package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

// Everything that the kernel's vxlan device can be told and that changes what is on the wire, against vxlane.
func TestInteropMatrix(t *testing.T) {
	port4789 := func(v *lab.VXLAN) { v.Port = 4789 }
	for _, c := range []struct {
		name     string
		args     []string
		kernel   func(v *lab.VXLAN)
		wire     wire
		overhead int
	}{
		{"defaults", upArgs(), func(*lab.VXLAN) {}, wire{}, 50},
		{"without udpcsum", upArgs(), func(v *lab.VXLAN) { v.NoChecksum = true }, wire{}, 50},
		{"port 4789", upArgs("--port", "4789"), port4789, wire{}, 50},
		{"over IPv6", up6Args(), overIPv6, wire{}, 70},
		{"over IPv6, noudp6zerocsumrx, port 4789", up6Args("--port", "4789"), func(v *lab.VXLAN) { overIPv6(v); port4789(v) }, wire{}, 70},
		{"VNI 16777215", upArgs("--vni", "16777215"), func(v *lab.VXLAN) { v.ID = 16777215 }, wire{}, 50},
		{"underlay MTU 9000", upArgs(), func(*lab.VXLAN) {}, wire{MTU: 9000}, 50},
		{"wire without offloads", upArgs(), func(*lab.VXLAN) {}, wire{Offloads: noOffloads}, 50},
		{"wire without offloads or udpcsum", upArgs(), func(v *lab.VXLAN) { v.NoChecksum = true }, wire{Offloads: noOffloads}, 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, c.wire)
			d := p.start(p.a, c.args...)
			p.addKernelPeer(c.kernel)
			before := p.counters()
			mtu := max(c.wire.MTU, 1500) - c.overhead
			for _, size := range []int{0, 1, 56, 1000, mtu - 48, mtu - 28, mtu - 27, mtu, 4000, 20000} {
				p.pingAll(size)
			}
			for i := range overlayA {
				p.tcp(p.a, p.b, overlayB[i], 150*time.Millisecond)
				p.tcp(p.b, p.a, overlayA[i], 150*time.Millisecond)
			}
			p.healthy(before)
			d.stop()
		})
	}
}

// noOffloads makes a veth pair behave like a plain wire: frames of at most the MTU, with checksums that are finished.
var noOffloads = map[string]bool{
	"tx-checksum-ip-generic": false, "tx-tcp-segmentation": false, "tx-tcp6-segmentation": false, "tx-generic-segmentation": false,
	"tx-udp-segmentation": false, "tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false,
}

// Ten seconds both ways at once.
func TestTCPForTenSeconds(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	p.addKernelPeer()
	before := p.counters()
	back := make(chan traffic.Result)
	go func() { back <- p.tcp(p.b, p.a, overlayA[0], 10*time.Second) }()
	out := p.tcp(p.a, p.b, overlayB[0], 10*time.Second)
	in := <-back
	t.Logf("a to b %.2f Gbit/s, b to a %.2f Gbit/s", out.BitsPerSecond()/1e9, in.BitsPerSecond()/1e9)
	p.healthy(before)
	d.stop()
}

// With IP on both sides, two vxlane hosts speak either framing, over either family.
func TestTwoVXLANEHosts(t *testing.T) {
	for _, c := range []struct {
		name   string
		shared []string
		a, b   string
		v6     bool
	}{
		{"vxlan", nil, "172.30.0.1", "172.30.0.2", true},
		{"flannel-udp", []string{"--encap", "flannel-udp"}, "172.30.0.1", "172.30.0.2", false},
		{"flannel-udp over IPv6", []string{"--encap", "flannel-udp"}, "fd30::1", "fd30::2", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, wire{})
			args := func(local, remote, own, other, own6, other6 string) []string {
				peer := "endpoint=" + remote + ",allowed_ips=" + other
				out := append([]string{"--local", local, "--address", own + "/24"}, c.shared...)
				if c.v6 {
					out, peer = append(out, "--address", own6+"/64"), peer+",allowed_ips="+other6
				}
				return append(out, "--peer", peer)
			}
			a := p.start(p.a, args(c.a, c.b, "10.99.0.1", "10.99.0.2", "fd99::1", "fd99::2")...)
			b := p.start(p.b, args(c.b, c.a, "10.99.0.2", "10.99.0.1", "fd99::2", "fd99::1")...)
			before := p.counters()
			for i := range overlayA {
				if i == 1 && !c.v6 {
					continue
				}
				for _, size := range []int{56, 1400, 5000} {
					p.ping(p.a, overlayB[i], size)
					p.ping(p.b, overlayA[i], size)
				}
				p.tcp(p.a, p.b, overlayB[i], 200*time.Millisecond)
				p.tcp(p.b, p.a, overlayA[i], 200*time.Millisecond)
			}
			p.healthy(before)
			a.stop()
			b.stop()
		})
	}
}

// A super-packet from a kernel vxlan peer is for a host behind this one, which must be given packets that its link takes:
//
//	b (kernel vxlan) 10.99.0.2 --- 10.99.0.1 a (vxlane, routes) 10.98.0.1 --- 10.98.0.2 c
func TestForwardedSuperPackets(t *testing.T) {
	for _, c := range []struct {
		name string
		mtu  int
	}{{"link as wide as the tunnel", 1450}, {"wider link", 1500}, {"narrower link", 1300}} {
		t.Run(c.name, func(t *testing.T) {
			p := newLab(t, lab.Topology{
				Hosts: []string{"a", "b", "c"},
				Links: []lab.Link{
					{A: lab.End{Host: "a", Device: "eth0", Addresses: prefixes("172.30.0.1/24")}, B: lab.End{Host: "b", Device: "eth0", Addresses: prefixes("172.30.0.2/24")}},
					{A: lab.End{Host: "a", Device: "eth1", Addresses: prefixes("10.98.0.1/24")}, B: lab.End{Host: "c", Device: "eth0", Addresses: prefixes("10.98.0.2/24")}, MTU: c.mtu},
				},
			})
			behind := p.lab.Host("c")
			for _, err := range []error{
				p.a.Sysctl("net.ipv4.ip_forward", "1"),
				behind.AddRoute(netip.MustParsePrefix("10.99.0.0/24"), netip.MustParseAddr("10.98.0.1"), "eth0"),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			d := p.start(p.a, upArgs()...)
			p.addKernelPeer()
			if err := p.b.AddRoute(netip.MustParsePrefix("10.98.0.0/24"), netip.MustParseAddr("10.99.0.1"), "vxlan0"); err != nil {
				t.Fatal(err)
			}
			addrC := netip.MustParseAddr("10.98.0.2")
			p.ping(p.b, addrC, 56)
			p.ping(behind, overlayB[0], 5000)
			before := map[*lab.Host]map[string]int64{p.a: p.netstat(p.a), p.b: p.netstat(p.b), behind: p.netstat(behind)}
			in := p.tcp(p.b, behind, addrC, 500*time.Millisecond)
			out := p.tcp(behind, p.b, overlayB[0], 500*time.Millisecond)
			if in.Bytes < 1<<20 || out.Bytes < 1<<20 {
				t.Errorf("in a second, %d bytes came and %d went", in.Bytes, out.Bytes)
			}
			p.healthy(before)
			d.stop()
		})
	}
}
