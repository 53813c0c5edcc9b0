//go:build netns

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
)

// gateways are two leaves with two networks each, as EVPN makes them: the VTEPs' addresses are on the loopback devices and several hops
// apart, every station is told of and none is learned, and both leaves are the gateway 10.N.0.1 of each network, with one MAC. Host a
// has vxlane, host b vxlane or the kernel's device:
//
//	h10a, h20a --- br10, br20 a (10.0.0.1 on lo) --- r --- (10.0.0.2 on lo) b br10, br20 --- h10b, h20b
//
// L3 VNI, with which packets for the other leaf's networks are routed between the leaves: br4001 on both.
type gateways struct {
	*pair
	hosts map[string]*lab.Host
}

var leaves = []string{"a", "b"}

func newGateways(t *testing.T, far string, symmetric bool) *gateways {
	t.Helper()
	topology := lab.Topology{Hosts: []string{"a", "b", "r"}}
	for i, leaf := range leaves {
		topology.Links = append(topology.Links, lab.Link{
			A: lab.End{Host: leaf, Device: "eth0", Addresses: prefixes(fmt.Sprintf("192.0.2.%d/28", i*16+2))},
			B: lab.End{Host: "r", Device: leaf, Addresses: prefixes(fmt.Sprintf("192.0.2.%d/28", i*16+1))},
		})
		for _, n := range []int{10, 20} {
			name := fmt.Sprintf("h%d%s", n, leaf)
			topology.Hosts = append(topology.Hosts, name)
			topology.Links = append(topology.Links, lab.Link{
				A: lab.End{Host: name, Device: "eth0", Addresses: prefixes(fmt.Sprintf("10.%d.0.10%d/24", n, i+1), fmt.Sprintf("fd%d::10%d/64", n, i+1))},
				B: lab.End{Host: leaf, Device: name},
			})
		}
	}
	g := &gateways{pair: newLab(t, topology), hosts: make(map[string]*lab.Host)}
	for _, name := range topology.Hosts {
		g.hosts[name] = g.lab.Host(name)
		for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
			must(t, g.hosts[name].Sysctl(key, "1"))
		}
	}
	for i, leaf := range leaves {
		h := g.hosts[leaf]
		must(t, h.AddAddresses("lo", prefixes(fmt.Sprintf("10.0.0.%d/32", i+1))...))
		g.ip(h, "route add 10.0.0.%d/32 via 192.0.2.%d src 10.0.0.%d", 2-i, i*16+1, i+1)
		g.ip(g.hosts["r"], "route add 10.0.0.%d/32 via 192.0.2.%d", i+1, i*16+2)
	}
	for i, leaf := range leaves {
		g.addTunnels(leaf, i, leaf == "a" || far == "vxlane", symmetric)
	}
	for i, leaf := range leaves {
		for _, n := range []int{10, 20} {
			g.addNetwork(leaf, i, n, symmetric)
		}
		if symmetric {
			g.addL3VNI(leaf, i)
		}
	}
	return g
}

// ip runs an ip command in a host.
func (g *gateways) ip(h *lab.Host, format string, args ...any) {
	g.t.Helper()
	g.exec(h, "ip", strings.Fields(fmt.Sprintf(format, args...))...)
}

// addTunnels makes devices vx10, vx20 and vx4001 on one port, which learn nothing.
func (g *gateways) addTunnels(leaf string, i int, vxlane, symmetric bool) {
	g.t.Helper()
	vnis := []int{10, 20}
	if symmetric {
		vnis = append(vnis, 4001)
	}
	text, names := "version: 1\ntunnels:\n", []string{}
	for _, n := range vnis {
		name := fmt.Sprintf("vx%d", n)
		names = append(names, name)
		text += fmt.Sprintf("  - device: {name: %s, mode: tap}\n    underlay: {local: 10.0.0.%d, vni: %d, checksum: false}\n    peers: [{name: far, endpoint: 10.0.0.%d}]\n", name, i+1, n, 2-i)
		if !vxlane {
			must(g.t, g.hosts[leaf].AddVXLAN(lab.VXLAN{Device: name, ID: n, Local: netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+1)), Remote: netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", 2-i)),
				Port: 8472, NoLearning: true, NoChecksum: true, MTU: 1450}))
		}
	}
	if vxlane {
		all := g.startMany(g.hosts[leaf], text, names...)
		if s := all["vx10"].status(); s.Device.MTU != 1450 || s.Underlay.Device != "eth0" {
			g.t.Errorf("with an address of the loopback device, the MTU is %d, on %s", s.Device.MTU, s.Underlay.Device)
		}
	}
}

// addNetwork makes the bridge of a network with its port, a station's and the tunnel's, and the gateway on it.
func (g *gateways) addNetwork(leaf string, i, n int, symmetric bool) {
	g.t.Helper()
	h, bridge := g.hosts[leaf], fmt.Sprintf("br%d", n)
	must(g.t, h.AddBridge(bridge, fmt.Sprintf("h%d%s", n, leaf), fmt.Sprintf("vx%d", n)))
	g.ip(h, "link set %s mtu 1450", bridge)
	g.ip(h, "addr add 10.%d.0.1%d/24 dev %s", n, i+1, bridge)
	g.ip(h, "addr add fd%d::1%d/64 dev %s nodad", n, i+1, bridge)
	g.ip(h, "link add link %s name gw%d address 00:00:5e:00:01:01 type macvlan mode private", bridge, n)
	g.ip(h, "link set gw%d up", n)
	g.ip(h, "addr add 10.%d.0.1/24 dev gw%d metric 1024", n, n)
	g.ip(h, "addr add fd%d::1/64 dev gw%d metric 1024 nodad", n, n)
	end := g.hosts[fmt.Sprintf("h%d%s", n, leaf)]
	g.ip(end, "link set eth0 mtu 1450")
	g.ip(end, "route add default via 10.%d.0.1", n)
	g.ip(end, "-6 route add default via fd%d::1", n)
	g.tell(leaf, fmt.Sprintf("vx%d", n), g.hosts[fmt.Sprintf("h%d%s", n, leaves[1-i])], "eth0")
}

// tell says to a leaf that a station is behind the other one.
func (g *gateways) tell(leaf, device string, station *lab.Host, port string) {
	g.t.Helper()
	mac, err := station.MAC(port)
	must(g.t, err)
	other := 2
	if leaf == "b" {
		other = 1
	}
	out := g.exec(g.hosts[leaf], "ip", "-d", "link", "show", device)
	if strings.Contains(out, " vxlan id ") {
		g.exec(g.hosts[leaf], "bridge", "fdb", "replace", mac.String(), "dev", device, "dst", fmt.Sprintf("10.0.0.%d", other), "self", "static")
	} else {
		g.exec(g.hosts[leaf], "vxlane", "fdb", "add", mac.String(), "--peer", "far", "--device", device)
	}
}

// addL3VNI makes the bridge whose only port is the tunnel that routed packets take, and the routes to the other leaf's stations.
func (g *gateways) addL3VNI(leaf string, i int) {
	g.t.Helper()
	h := g.hosts[leaf]
	must(g.t, h.AddBridge("br4001", "vx4001"))
	g.ip(h, "link set br4001 mtu 1450 address 02:00:00:00:40:0%d", i+1)
	station := fmt.Sprintf("02:00:00:00:40:0%d", 2-i)
	if strings.Contains(g.exec(h, "ip", "-d", "link", "show", "vx4001"), " vxlan id ") {
		g.exec(h, "bridge", "fdb", "replace", station, "dev", "vx4001", "dst", fmt.Sprintf("10.0.0.%d", 2-i), "self", "static")
	} else {
		g.exec(h, "vxlane", "fdb", "add", station, "--peer", "far", "--device", "vx4001")
	}
	g.ip(h, "neigh add 10.0.0.%d lladdr %s dev br4001 nud permanent", 2-i, station)
	g.ip(h, "-6 neigh add fe80::%d lladdr %s dev br4001 nud permanent", 2-i, station)
	for _, n := range []int{10, 20} {
		g.ip(h, "route add 10.%d.0.10%d/32 via 10.0.0.%d dev br4001 onlink", n, 2-i, 2-i)
		g.ip(h, "-6 route add fd%d::10%d/128 via fe80::%d dev br4001", n, 2-i, 2-i)
	}
}

// The kernel's forwarding/vxlan_asymmetric.sh and vxlan_symmetric.sh: within a network and between networks, on one leaf and across,
// routed at the ingress leaf, or at both through an L3 VNI.
func TestEVPNRouting(t *testing.T) {
	t.Parallel()
	for _, far := range []string{"kernel", "vxlane"} {
		for _, symmetric := range []bool{false, true} {
			t.Run(far+map[bool]string{false: " asymmetric", true: " symmetric"}[symmetric], func(t *testing.T) {
				g := newGateways(t, far, symmetric)
				for _, c := range []struct{ from, to string }{
					{"h10a", "20.0.101"}, {"h10a", "10.0.102"}, {"h20a", "20.0.102"}, {"h10a", "20.0.102"}, {"h20a", "10.0.102"},
					{"h10b", "20.0.101"}, {"h20b", "10.0.101"}, {"h10b", "10.0.101"},
				} {
					four := netip.MustParseAddr("10." + c.to)
					six := netip.MustParseAddr("fd" + strings.Replace(c.to, ".0.", "::", 1))
					for _, size := range []int{56, 1400} {
						g.ping(g.hosts[c.from], four, size)
						g.ping(g.hosts[c.from], six, size)
					}
				}
				g.tcp(g.hosts["h10a"], g.hosts["h20b"], netip.MustParseAddr("10.20.0.102"), 300*time.Millisecond)
				g.tcp(g.hosts["h20b"], g.hosts["h10a"], netip.MustParseAddr("fd10::101"), 300*time.Millisecond)
				if symmetric {
					out := g.exec(g.hosts["a"], "vxlane", "stats", "--device", "vx4001", "--json")
					if !strings.Contains(out, `"delivered"`) || strings.Contains(out, `"delivered": 0,`) {
						t.Errorf("nothing went through the L3 VNI: %s", out)
					}
				}
			})
		}
	}
}
