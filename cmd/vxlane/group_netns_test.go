//go:build netns

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/tunnel"
)

// segment is three hosts on one underlay Ethernet; host b has the kernel's vxlan device, the others vxlane:
//
//	a 172.30.0.1 ---.
//	b 172.30.0.2 --- s
//	c 172.30.0.3 ---'
func segment(t *testing.T) (*pair, *lab.Host) {
	t.Helper()
	topology := lab.Topology{Hosts: []string{"a", "b", "c", "s"}}
	for i, name := range topology.Hosts[:3] {
		topology.Links = append(topology.Links, lab.Link{
			A: lab.End{Host: name, Device: "eth0", Addresses: prefixes(fmt.Sprintf("172.30.0.%d/24", i+1), fmt.Sprintf("fd30::%d/64", i+1))},
			B: lab.End{Host: "s", Device: name}, Offloads: noOffloads,
		})
	}
	p := newLab(t, topology)
	must(t, p.lab.Host("s").AddBridge("br0", "a", "b", "c"))
	for _, name := range topology.Hosts {
		p.keepOrder(p.lab.Host(name))
	}
	return p, p.lab.Host("c")
}

// keepOrder gives each flow that comes over a host's cables one queue, as a NIC does (Documentation/networking/scaling.rst, RPS). A veth device
// without GRO has one for each core, and on two such cables in a row it shows: data that an application sends is overtaken by what an
// acknowledgement lets go on another core (TCPSACKReorder), between two of the kernel's vxlan devices as well.
//
// It is taken back before the devices go: the kernel counts the queues that have a mask, and not that one went with its device
// (net/core/net-sysfs.c, rx_queue_release). The whole machine would pay for RPS with each packet, until it is started anew.
func (p *pair) keepOrder(h *lab.Host) {
	spread := func(cores string) {
		p.exec(h, "unshare", "--mount", "sh", "-ec", `mount -t sysfs sysfs /sys; for f in /sys/class/net/*/queues/rx-*/rps_cpus; do echo "$1" >"$f"; done`, "sh", cores)
	}
	spread("3")
	p.t.Cleanup(func() { spread("0") })
}

// toGroup returns the outer headers of what an address sent to a group, and how many of them carry a frame of arping from a MAC.
func toGroup(frames [][]byte, src, group netip.Addr, mac net.HardwareAddr) (ttls []uint8, own int) {
	for _, frame := range frames {
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if udp == nil || udp.DstPort != 8472 || len(udp.Payload) < 20 {
			continue
		}
		flow := p.NetworkLayer().NetworkFlow()
		from, _ := netip.AddrFromSlice(flow.Src().Raw())
		to, _ := netip.AddrFromSlice(flow.Dst().Raw())
		if from != src || to != group {
			continue
		}
		if len(udp.Payload) > 22 && bytes.Equal(udp.Payload[14:22], slices.Concat(mac, arpingType)) {
			own++
		}
		switch ip := p.NetworkLayer().(type) {
		case *layers.IPv4:
			ttls = append(ttls, ip.TTL)
		case *layers.IPv6:
			ttls = append(ttls, ip.HopLimit)
		}
	}
	return ttls, own
}

// An underlay multicast group, of which nobody is told who else is in it, as with ip link add … type vxlan … group: two of vxlane
// and one of the kernel find each other, and what is for all goes out once.
func TestGroup(t *testing.T) {
	for _, c := range []struct {
		name, group, ttl string
		local            [3]string
		want             uint8
		peers            string
	}{
		{"IPv4", "239.1.1.1", "auto", [3]string{"172.30.0.1", "172.30.0.2", "172.30.0.3"}, 1, ""},
		{"IPv6", "ff05::100", "auto", [3]string{"fd30::1", "fd30::2", "fd30::3"}, 1, ""},
		{"IPv6 link-local group", "ff02::100", "9", [3]string{"fd30::1", "fd30::2", "fd30::3"}, 9, ""},
		{"IPv4 with peers", "239.1.1.1", "9", [3]string{"172.30.0.1", "172.30.0.2", "172.30.0.3"}, 9,
			"    peers: [{name: b, endpoint: 172.30.0.2}, {name: c, endpoint: 172.30.0.3}, {name: a, endpoint: 172.30.0.1}]\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, third := segment(t)
			group := netip.MustParseAddr(c.group)
			names := [3]string{c.local[0], c.local[1], c.local[2]}
			start := func(h *lab.Host, i int) *running {
				keys, check := c.peers, "outer: false"
				if keys != "" {
					keys, check = dropPeer(keys, c.local[i]), "outer: true"
					names = [3]string{"a", "b", "c"}
				}
				return p.start(h, "--config", p.write(h.Name()+".yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mode: tap, addresses: [10.99.0.%d/24, "fd99::%d/64"]}
    underlay: {local: %q, ttl: %s, source_check: {%s}}
    fdb: {learning: true, group: %q}
%s`, i+1, i+1, c.local[i], c.ttl, check, c.group, keys)))
			}
			a, d := start(p.a, 0), start(third, 2)
			p.addKernelPeer(func(v *lab.VXLAN) {
				v.Local, v.Remote, v.Link = netip.MustParseAddr(c.local[1]), group, "eth0"
			})
			hosts := [3]*lab.Host{p.a, p.b, third}
			devices := [3]string{"vxlane0", "vxlan0", "vxlane0"}
			before := p.counters()
			for i, from := range hosts {
				for j := range hosts {
					if i != j {
						p.ping(from, netip.MustParseAddr(fmt.Sprintf("10.99.0.%d", j+1)), 1400)
						p.ping(from, netip.MustParseAddr(fmt.Sprintf("fd99::%d", j+1)), 1400)
					}
				}
			}
			p.tcp(p.a, p.b, overlayB[0], 300*time.Millisecond)
			p.tcp(p.b, p.a, overlayA[1], 300*time.Millisecond)
			p.tcp(p.a, third, netip.MustParseAddr("10.99.0.3"), 300*time.Millisecond)
			p.healthy(before)

			var macs [3]net.HardwareAddr
			for i, h := range hosts {
				mac, err := h.MAC(devices[i])
				must(t, err)
				macs[i] = mac
			}
			a.awaitEntry(macs[1].String(), names[1])
			a.awaitEntry(macs[2].String(), names[2])
			d.awaitEntry(macs[0].String(), names[0])
			if e := a.fdb()["00:00:00:00:00:00"]; e.Kind != tunnel.FDBFlood || e.Endpoint != netip.AddrPortFrom(group, 8472).String() {
				t.Errorf("the group is not in the table: %+v", a.fdb())
			}

			frames := p.framesDuring(func() { p.arping(p.a, "vxlane0", macs[0]) })
			ttls, own := toGroup(frames, netip.MustParseAddr(c.local[0]), group, macs[0])
			if own != 1 || slices.ContainsFunc(ttls, func(ttl uint8) bool { return ttl != c.want }) {
				t.Errorf("a broadcast frame went out %d times, with TTLs %v, want %d", own, ttls, c.want)
			}
			// What came from the group does not go back to it.
			frames = p.framesDuring(func() { p.arping(p.b, "vxlan0", macs[1]) })
			for _, i := range []int{0, 2} {
				if _, n := toGroup(frames, netip.MustParseAddr(c.local[i]), group, macs[1]); n != 0 {
					t.Errorf("%s sent a frame back to the group", hosts[i].Name())
				}
			}
			a.balanced()
			d.balanced()
			a.stop()
			d.stop()
		})
	}
}

// dropPeer removes the peer with an endpoint from a line of peers.
func dropPeer(line, endpoint string) string {
	for _, name := range []string{"a", "b", "c"} {
		for _, cut := range []string{", {name: " + name + ", endpoint: " + endpoint + "}", "{name: " + name + ", endpoint: " + endpoint + "}, "} {
			line = string(bytes.Replace([]byte(line), []byte(cut), nil, 1))
		}
	}
	return line
}

// arpingType is for experiments (IEEE 802).
var arpingType = []byte{0x88, 0xb5}

// arping sends a broadcast frame of a type that nobody answers out of a device, and waits until it is through.
func (p *pair) arping(h *lab.Host, device string, src net.HardwareAddr) {
	p.t.Helper()
	out, err := h.PacketSocket(device)
	must(p.t, err)
	defer out.Close()
	frame := slices.Concat([]byte{255, 255, 255, 255, 255, 255}, src, arpingType, make([]byte, 46))
	_, err = out.Write(frame)
	must(p.t, err)
	time.Sleep(200 * time.Millisecond)
}

// arrived counts the frames of arping that a socket has, where one is due.
func arrived(t *testing.T, in *os.File) int {
	t.Helper()
	return countFrames(t, in, 1, 100*time.Millisecond, func(frame []byte) bool {
		return len(frame) > 14 && bytes.Equal(frame[12:14], arpingType)
	})
}

// Two tunnels on one port that are in one group: each gets what has its VNI, once, whoever the other one listens to.
func TestGroupOnASharedPort(t *testing.T) {
	p, third := segment(t)
	text := "version: 1\ntunnels:\n"
	far := []*lab.Host{third, p.b}
	checks := []string{"outer: true", "outer: false"}
	peers := []string{"[{name: c, endpoint: 172.30.0.3}]", "[]"}
	for i := range far {
		n := i + 1
		text += fmt.Sprintf("  - device: {name: vx%d, mode: tap, addresses: [10.%d.0.1/24]}\n    underlay: {local: 172.30.0.1, vni: %d, source_check: {%s}}\n    fdb: {learning: true, group: 239.1.1.1}\n    peers: %s\n", n, n, n*10, checks[i], peers[i])
	}
	all := p.startMany(p.a, text, "vx1", "vx2")
	for i, h := range far { // not before: what a new device says to the group would find one tunnel without the other
		n := i + 1
		must(t, h.AddVXLAN(lab.VXLAN{Device: fmt.Sprintf("vx%d", n), ID: n * 10, Remote: netip.MustParseAddr("239.1.1.1"), Link: "eth0", Port: 8472,
			Addresses: prefixes(fmt.Sprintf("10.%d.0.2/24", n))}))
	}
	for i, h := range far {
		p.ping(h, netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", i+1)), 1400)
		p.ping(p.a, netip.MustParseAddr(fmt.Sprintf("10.%d.0.2", i+1)), 1400)
	}
	for i, h := range far {
		device := fmt.Sprintf("vx%d", i+1)
		mac, err := h.MAC(device)
		must(t, err)
		in, err := p.a.PacketSocket(device)
		must(t, err)
		p.arping(h, device, mac)
		if times := arrived(t, in); times != 1 {
			t.Errorf("%s: a broadcast frame was delivered %d times", device, times)
		}
		must(t, in.Close())
		if s := all[device].stats(); s.Decap.Reasons["vxlan_vni_not_found"]+s.Decap.Reasons["peer_unknown"] != 0 {
			t.Errorf("%s: drops %v", device, s.Decap.Reasons)
		}
		all[device].balanced()
	}
	all["vx1"].stop()
}

// With an underlay address of the loopback device, the group is on the device that the route to it says; without one, it is asked for.
func TestGroupFromTheLoopbackDevice(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{})
	must(t, p.a.AddAddresses("lo", prefixes("10.0.0.1/32")...))
	config := p.write("lo.yaml", `version: 1
tunnels:
  - device: {mode: tap, addresses: [10.99.0.1/24]}
    underlay: {local: 10.0.0.1, source_check: {outer: false}}
    fdb: {learning: true, group: 239.1.1.1}
`)
	d := p.launch(p.a, "--config", config)
	if err := d.cmd.Wait(); err == nil || !strings.Contains(d.output(), "tunnels[0].fdb.group: ") || !strings.Contains(d.output(), "ip route add 239.1.1.1 dev DEVICE") {
		t.Errorf("without a route to the group: %v\n%s", err, d.output())
	}
	p.exec(p.a, "ip", "route", "add", "239.1.1.1", "dev", "eth0")
	d = p.start(p.a, "--config", config)
	p.exec(p.b, "ip", "route", "add", "10.0.0.1", "via", "172.30.0.1")
	p.addKernelPeer(func(v *lab.VXLAN) { v.Remote, v.Link = netip.MustParseAddr("239.1.1.1"), "eth0" })
	p.ping(p.b, overlayA[0], 1400)
	p.ping(p.a, overlayB[0], 1400)
	if s := d.status(); s.Underlay.Device != "eth0" || s.Device.MTU != 1450 {
		t.Errorf("MTU %d, on %s", s.Device.MTU, s.Underlay.Device)
	}
	d.stop()
}
