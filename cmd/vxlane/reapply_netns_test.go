//go:build netns

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

// The underlay's address, its route and its device go away under a running tunnel and come back (reapply_config of the kernel's
// forwarding/vxlan_bridge_1d.sh and vxlan_bridge_1d_ipv6.sh): nothing passes meanwhile, what is lost is counted, and then all is as before.
func TestUnderlayComesBack(t *testing.T) {
	t.Parallel()
	for i, tier := range []string{"auto", "portable", "tunnel-gso"} {
		for j, mode := range []string{"tun", "tap"} {
			v6 := (i+j)%2 == 1
			t.Run(fmt.Sprintf("%s %s%s", tier, mode, map[bool]string{false: " over IPv4", true: " over IPv6"}[v6]), func(t *testing.T) {
				p := newPair(t, wire{Offloads: map[string]bool{"rx-gro": true}}) // tunnel-gso has the kernel merge
				p.needTier(tier)
				local, remote, own := "172.30.0.1", "172.30.0.2", "172.30.0.1/24"
				if v6 {
					local, remote, own = "fd30::1", "fd30::2", "fd30::1/64"
				}
				d := p.start(p.a, "--config", p.write("back.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mode: %s, addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: %q}
    peers: [{name: b, endpoint: %q, allowed_ips: [10.99.0.2, "fd99::2"]}]
    tier: %s
`, mode, local, remote, tier)))
				p.addKernelPeer(func(v *lab.VXLAN) {
					v.Local, v.Remote = netip.MustParseAddr(remote), netip.MustParseAddr(local)
					v.MTU = wideMTU(v6)
				})
				p.pingAll(1400)
				for what, change := range map[string][2]func(){
					"address": {
						func() { p.exec(p.a, "ip", "addr", "del", own, "dev", "eth0") },
						func() { must(t, p.a.AddAddresses("eth0", prefixes(own)...)) },
					},
					"device": {
						func() { must(t, p.a.SetDown("eth0")) },
						func() {
							must(t, p.a.SetUp("eth0"))
							must(t, p.a.AwaitRunning("eth0"))
							must(t, p.b.AwaitRunning("eth0"))
							if v6 { // the kernel takes IPv6 addresses from a device that goes down
								must(t, p.a.AddAddresses("eth0", prefixes(own)...))
							}
						},
					},
				} {
					change[0]()
					for range 3 {
						if _, err := traffic.Ping(p.a, overlayB[0], 56, 100*time.Millisecond); err == nil {
							t.Errorf("%s: a packet passed although it is gone", what)
						}
					}
					p.connectFails(overlayB[0]) // TCP, as tunnel-gso sends nothing else whole
					change[1]()
					p.pingAll(1400)
					p.tcp(p.a, p.b, overlayB[0], 200*time.Millisecond)
					p.tcp(p.b, p.a, overlayA[1], 200*time.Millisecond)
					d.balanced()
				}
				if s := d.stats(); s.Encap.Dropped == 0 && len(s.OuterDrops) == 0 {
					t.Errorf("what was lost was not counted: %+v", s.Encap)
				}
				d.hasAll(map[string]string{"auto": "udp-gso"}[tier] + strings.TrimPrefix(tier, "auto"))
				d.stop()
			})
		}
	}
}

// A tunnel of the kernel's inside the tunnel: neither takes the other's datagrams for its own (double_udp_encap.sh).
func TestTunnelInTheTunnel(t *testing.T) {
	for _, tier := range []string{"auto", "portable", "tunnel-gso"} {
		for _, mode := range []string{"tun", "tap"} {
			t.Run(tier+" "+mode, func(t *testing.T) {
				p := newPair(t, wire{})
				p.needTier(tier)
				d := p.start(p.a, "--config", p.write("nest.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mode: %s, addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: 172.30.0.1}
    peers: [{name: b, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2, "fd99::2"]}]
    tier: %s
`, mode, tier)))
				p.addKernelPeer()
				for i, h := range []*lab.Host{p.a, p.b} {
					must(t, h.AddVXLAN(lab.VXLAN{Device: "nest", ID: 40, Local: netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", i+1)), Remote: netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", 2-i)),
						Port: 6082, MTU: 1400, Addresses: prefixes(fmt.Sprintf("10.40.0.%d/24", i+1), fmt.Sprintf("fd40::%d/64", i+1))}))
				}
				before := p.counters()
				for _, to := range []string{"10.40.0.2", "fd40::2"} {
					for _, size := range []int{56, 1300, 5000} {
						p.ping(p.a, netip.MustParseAddr(to), size)
					}
					p.tcp(p.a, p.b, netip.MustParseAddr(to), 300*time.Millisecond)
				}
				for _, to := range []string{"10.40.0.1", "fd40::1"} {
					p.ping(p.b, netip.MustParseAddr(to), 5000)
					p.tcp(p.b, p.a, netip.MustParseAddr(to), 300*time.Millisecond)
				}
				p.healthy(before)
				d.stop()
			})
		}
	}
}
