//go:build netns

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

// bridges are three VTEPs on one underlay Ethernet, each with a bridge and machines behind it. Host a has vxlane; the others vxlane or
// the kernel's device:
//
//	vm-a, vm-a2 --- br0 a 172.30.0.1 ---.
//	       vm-b --- br0 b 172.30.0.2 --- s
//	       vm-c --- br0 c 172.30.0.3 ---'
type bridges struct {
	*pair
	a       *running
	address [3]string // of a, b and c
	vm      map[string]*lab.Host
}

// newBridges builds them; keys are more keys of host a's tunnel.
func newBridges(t *testing.T, far string, v6 bool, keys string) *bridges {
	t.Helper()
	address, prefix := [3]string{"172.30.0.1", "172.30.0.2", "172.30.0.3"}, "/24"
	if v6 {
		address, prefix = [3]string{"fd30::1", "fd30::2", "fd30::3"}, "/64"
	}
	hosts := []string{"a", "b", "c"}
	topology := lab.Topology{Hosts: []string{"a", "b", "c", "s", "vm-a", "vm-a2", "vm-b", "vm-c"}}
	for i, name := range hosts {
		topology.Links = append(topology.Links, lab.Link{A: lab.End{Host: name, Device: "eth0", Addresses: prefixes(address[i] + prefix)}, B: lab.End{Host: "s", Device: name}, MTU: 1600})
	}
	for i, name := range topology.Hosts[4:] {
		topology.Links = append(topology.Links, lab.Link{
			A: lab.End{Host: name, Device: "eth0", Addresses: prefixes(fmt.Sprintf("10.55.0.%d/24", i+1), fmt.Sprintf("fd55::%d/64", i+1))},
			B: lab.End{Host: name[3:4], Device: name},
		})
	}
	n := &bridges{pair: newLab(t, topology), address: address, vm: make(map[string]*lab.Host)}
	must(t, n.lab.Host("s").AddBridge("br0", hosts...))
	for _, name := range topology.Hosts[4:] {
		n.vm[name] = n.lab.Host(name)
	}
	config := func(i int, keys string) string {
		peers := ""
		for j, name := range hosts {
			if j != i {
				peers += fmt.Sprintf("      - {name: %s, endpoint: %q}\n", name, address[j])
			}
		}
		return n.write(hosts[i]+".yaml", fmt.Sprintf("version: 1\ntunnels:\n  - device: {mode: tap, mtu: 1500}\n    underlay: {local: %q}\n    peers:\n%s%s", address[i], peers, keys))
	}
	n.a = n.start(n.pair.a, "--config", config(0, keys))
	must(t, n.pair.a.AddBridge("br0", "vxlane0", "vm-a", "vm-a2"))
	for i, name := range hosts[1:] {
		h, device := n.lab.Host(name), "vxlane0"
		if far == "vxlane" {
			n.start(h, "--config", config(i+1, "    fdb: {learning: true}\n"))
		} else {
			device = "vxlan0"
			must(t, h.AddVXLAN(lab.VXLAN{Device: device, ID: 1, Local: netip.MustParseAddr(address[i+1]), Remote: netip.MustParseAddr(address[0]), Port: 8472, MTU: 1500}))
			must(t, h.FloodTo(device, netip.MustParseAddr(address[2-i])))
		}
		must(t, h.AddBridge("br0", device, "vm-"+name))
	}
	for _, vm := range n.vm { // the first frames are through, and bridges know where they came from
		for i := range 4 {
			n.ping(vm, netip.MustParseAddr(fmt.Sprintf("10.55.0.%d", i+1)), 56)
		}
	}
	return n
}

// fdbCommand runs vxlane fdb in host a.
func (n *bridges) fdbCommand(args ...string) {
	n.t.Helper()
	n.exec(n.pair.a, "vxlane", append([]string{"fdb", "--socket", n.dir + "/a.sock"}, args...)...)
}

// forget makes the bridges forget where stations are: what follows is the tunnel's doing.
func (n *bridges) forget() {
	n.t.Helper()
	for _, name := range []string{"a", "b", "c"} {
		n.exec(n.lab.Host(name), "ip", "link", "set", "br0", "type", "bridge", "fdb_flush")
	}
}

const burst = 10 // frames

// spread sends frames to dst from a machine, and returns how many of them arrive at each of the others named, when it has waited for
// as many as are wanted there.
func (n *bridges) spread(from string, src, dst net.HardwareAddr, tags []byte, want []int, at ...string) (counts []int) {
	n.t.Helper()
	var sockets []*os.File
	for _, name := range at {
		s, err := n.vm[name].PacketSocket("eth0")
		must(n.t, err)
		defer s.Close()
		sockets = append(sockets, s)
	}
	out, err := n.vm[from].PacketSocket("eth0")
	must(n.t, err)
	defer out.Close()
	marker := make([]byte, 40)
	_, _ = rand.Read(marker)
	for range burst {
		_, err := out.Write(slices.Concat(dst, src, tags, []byte{0x88, 0xb5}, marker))
		must(n.t, err)
	}
	for i, s := range sockets {
		counts = append(counts, countFrames(n.t, s, want[i], 0, marked(marker)))
	}
	quiet := 100 * time.Millisecond
	for i, s := range sockets {
		counts[i] += countFrames(n.t, s, 0, quiet, marked(marker))
		quiet = 20 * time.Millisecond // what comes comes everywhere at once
	}
	return counts
}

func marked(marker []byte) func(frame []byte) bool {
	return func(frame []byte) bool { return bytes.Contains(frame, marker) }
}

func mustMAC(t *testing.T, s string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(s)
	must(t, err)
	return mac
}

// The kernel's forwarding/vxlan_bridge_1d.sh: who gets what is for all, for nobody known, for a station that was added, and for one
// that was learned, that was deleted, that aged and that moved.
func TestBridgeFlooding(t *testing.T) {
	t.Parallel()
	for _, far := range []string{"kernel", "vxlane"} {
		for _, v6 := range []bool{false, true} {
			if far == "vxlane" && !v6 {
				continue // less of the same
			}
			t.Run(far+map[bool]string{false: " over IPv4", true: " over IPv6"}[v6], func(t *testing.T) {
				n := newBridges(t, far, v6, "    fdb: {learning: true, ageing: 2s}\n")
				m := mustMAC(t, "de:ad:be:ef:13:37")
				src, err := n.vm["vm-a"].MAC("eth0")
				must(t, err)
				want := func(what string, dst net.HardwareAddr, counts ...int) {
					t.Helper()
					if got := n.spread("vm-a", src, dst, nil, counts, "vm-a2", "vm-b", "vm-c"); !slices.Equal(got, counts) {
						t.Errorf("%s: at vm-a2, vm-b and vm-c arrive %v of %d frames, want %v", what, got, burst, counts)
					}
				}
				all := []int{burst, burst, burst}
				for _, vm := range n.vm {
					for i := range 4 {
						n.ping(vm, netip.MustParseAddr(fmt.Sprintf("fd55::%d", i+1)), 1400)
					}
				}
				want("unknown", m, all...)
				for _, group := range []string{"ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:37", "33:33:00:00:00:37"} {
					want(group, mustMAC(t, group), all...)
				}
				neighbour, err := n.vm["vm-a2"].MAC("eth0")
				must(t, err)
				before := n.a.stats().Encap.Received
				want("a machine on the same bridge", neighbour, burst, 0, 0)
				if after := n.a.stats().Encap.Received; after-before >= burst {
					t.Errorf("%d frames went into the tunnel", after-before)
				}
				n.fdbCommand("add", m.String(), "--peer", "b")
				want("added behind b", m, burst, burst, 0) // a's bridge does not know it
				n.fdbCommand("add", m.String(), "--peer", "c")
				want("added behind c", m, burst, 0, burst)
				n.fdbCommand("del", m.String())
				want("deleted", m, all...)

				sighting := func(vm string) {
					t.Helper()
					n.spread(vm, m, mustMAC(t, "ff:ff:ff:ff:ff:ff"), nil, nil)
				}
				sighting("vm-b")
				n.a.awaitEntry(m.String(), "b")
				want("learned behind b", m, 0, burst, 0)
				sighting("vm-c")
				n.a.awaitEntry(m.String(), "c")
				want("moved to c", m, 0, 0, burst)
				n.fdbCommand("del", m.String())
				n.forget()
				want("learned and deleted", m, all...)
				sighting("vm-b")
				n.a.awaitEntry(m.String(), "b")
				for begin := time.Now(); time.Since(begin) < 4*time.Second; { // frames to a station are no sign of it
					n.spread("vm-a", src, m, nil, nil)
					time.Sleep(100 * time.Millisecond)
				}
				n.a.awaitEntry(m.String(), "")
				n.forget()
				want("aged", m, all...)

				// Head-end replication at b reaches c once: a does not send on what came from the underlay.
				if got := n.spread("vm-b", m, mustMAC(t, "ff:ff:ff:ff:ff:ff"), nil, all[:2], "vm-a", "vm-c"); !slices.Equal(got, all[:2]) {
					t.Errorf("broadcast from vm-b: at vm-a and vm-c arrive %v", got)
				}
				n.a.balanced()
				n.a.stop()
			})
		}
	}
}

// A peer that nobody can reach, wherever it stands in the list, holds nothing back from the others.
func TestFloodingPastAPeerThatIsNotThere(t *testing.T) {
	t.Parallel()
	n := newBridges(t, "kernel", false, "    fdb: {learning: true}\n")
	src, err := n.vm["vm-a"].MAC("eth0")
	must(t, err)
	both := []int{burst, burst}
	for _, order := range []string{"xbc", "bxc", "bcx"} {
		for _, nobody := range []string{"198.51.100.1", "172.30.0.77"} { // without a route, without an answer
			list := ""
			for _, name := range strings.Split(order, "") {
				at := map[string]string{"b": "172.30.0.2", "c": "172.30.0.3", "x": nobody}[name]
				list += fmt.Sprintf("- {name: %s, endpoint: %s}\n", name, at)
			}
			n.exec(n.pair.a, "vxlane", "peer", "apply", "-f", n.write("peers.yaml", list), "--socket", n.dir+"/a.sock")
			before := n.a.stats().Encap
			if got := n.spread("vm-a", src, mustMAC(t, "de:ad:be:ef:13:37"), nil, both, "vm-b", "vm-c"); !slices.Equal(got, both) {
				t.Errorf("order %s, %s: %v frames arrive", order, nobody, got)
			}
			n.a.balanced()
			after := n.a.stats().Encap
			if failed := after.CopiesDropped["udp_send"] - before.CopiesDropped["udp_send"] + after.Dropped - before.Dropped; nobody == "198.51.100.1" && failed < burst {
				t.Errorf("order %s, %s: %d copies are told to have failed, want %d: %v", order, nobody, failed, burst, after.Reasons)
			}
		}
	}
	n.a.stop()
}

// With fdb.vlans a station is behind one peer in one VLAN and behind another in the next.
func TestStationsByVLAN(t *testing.T) {
	t.Parallel()
	n := newBridges(t, "vxlane", false, "    fdb: {learning: true, vlans: true}\n")
	m := mustMAC(t, "de:ad:be:ef:13:37")
	src, err := n.vm["vm-a"].MAC("eth0")
	must(t, err)
	tag := func(vid uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0x81, 0}, vid) }
	n.spread("vm-b", m, mustMAC(t, "ff:ff:ff:ff:ff:ff"), tag(10), nil)
	n.spread("vm-c", m, mustMAC(t, "ff:ff:ff:ff:ff:ff"), tag(20), nil)
	n.a.awaitEntry(m.String()+" vlan 10", "b")
	n.a.awaitEntry(m.String()+" vlan 20", "c")
	n.forget()
	for _, c := range []struct {
		tags []byte
		want []int
	}{
		{tag(10), []int{burst, 0}}, {tag(20), []int{0, burst}}, {tag(30), []int{burst, burst}}, {nil, []int{burst, burst}},
		{tag(0xe000 | 10), []int{burst, 0}}, {slices.Concat([]byte{0x88, 0xa8, 0, 10}, tag(20)), []int{burst, 0}},
	} {
		if got := n.spread("vm-a", src, m, c.tags, c.want, "vm-b", "vm-c"); !slices.Equal(got, c.want) {
			t.Errorf("tags %x: at vm-b and vm-c arrive %v, want %v", c.tags, got, c.want)
		}
	}
	n.fdbCommand("add", m.String(), "--peer", "c", "--vlan", "30")
	n.fdbCommand("del", m.String(), "--vlan", "10")
	for vid, want := range map[uint16][]int{10: {burst, burst}, 20: {0, burst}, 30: {0, burst}} {
		if got := n.spread("vm-a", src, m, tag(vid), want, "vm-b", "vm-c"); !slices.Equal(got, want) {
			t.Errorf("VLAN %d: at vm-b and vm-c arrive %v, want %v", vid, got, want)
		}
	}
	n.a.stop()
}

// The kernel's test_bridge_neigh_suppress.sh: what the configuration knows is answered without a frame to the other side, which need
// not even be there; a question to one station goes to it, and so does one of which nobody knows the answer.
func TestBridgeSuppression(t *testing.T) {
	t.Parallel()
	n := newBridges(t, "kernel", false, "    fdb: {learning: true, suppress: true}\n")
	b := n.vm["vm-b"]
	mac, err := b.MAC("eth0")
	must(t, err)
	src, err := n.vm["vm-a"].MAC("eth0")
	must(t, err)
	n.exec(n.pair.a, "vxlane", "peer", "apply", "--socket", n.dir+"/a.sock", "-f", n.write("peers.yaml", fmt.Sprintf(
		"- {name: b, endpoint: 172.30.0.2, mac: %q, allowed_ips: [10.55.0.3, \"fd55::3\"]}\n- {name: c, endpoint: 172.30.0.3}\n", mac)))
	flush := func() { n.exec(n.vm["vm-a"], "ip", "neigh", "flush", "dev", "eth0") }
	questions := func(f func()) (asked int) {
		for _, frame := range n.framesDuring(f) {
			if i := bytes.Index(frame, src); i >= 0 && bytes.Contains(frame[i:], []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1}) {
				asked++
			}
		}
		return asked
	}
	flush()
	if asked := questions(func() { n.ping(n.vm["vm-a"], netip.MustParseAddr("10.55.0.3"), 56) }); asked != 0 {
		t.Errorf("%d questions crossed the underlay", asked)
	}
	n.ping(n.vm["vm-a"], netip.MustParseAddr("fd55::3"), 56)
	if g := n.a.stats().Generated; g.ARPReplies == 0 || g.Advertisements == 0 {
		t.Errorf("answered: %+v", g)
	}
	flush()
	if asked := questions(func() { n.ping(n.vm["vm-a"], netip.MustParseAddr("10.55.0.4"), 56) }); asked == 0 {
		t.Error("a question that nobody here can answer was not flooded")
	}
	must(t, b.SetDown("eth0"))
	flush()
	_, _ = traffic.Ping(n.vm["vm-a"], netip.MustParseAddr("10.55.0.3"), 56, 200*time.Millisecond)
	_, _ = traffic.Ping(n.vm["vm-a"], netip.MustParseAddr("fd55::3"), 56, 200*time.Millisecond)
	for _, family := range []string{"-4", "-6"} {
		neighbours := func() string { return n.exec(n.vm["vm-a"], "ip", family, "neigh", "show") }
		if !soon(func() bool { return strings.Contains(neighbours(), mac.String()) }) {
			t.Errorf("a machine that is down was not answered for: %s", neighbours())
		}
	}
	must(t, b.SetUp("eth0"))
	must(t, traffic.PingUntil(t.Context(), n.vm["vm-c"], netip.MustParseAddr("10.55.0.3")))
	in, err := n.vm["vm-a"].PacketSocket("eth0")
	must(t, err)
	defer in.Close()
	question := slices.Concat(mac, src, []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1}, src, []byte{10, 55, 0, 1}, make([]byte, 6), []byte{10, 55, 0, 3})
	_, err = in.Write(question)
	must(t, err)
	if got := countFrames(t, in, 1, 100*time.Millisecond, marked(slices.Concat([]byte{0, 2}, mac, []byte{10, 55, 0, 3}, src))); got != 1 {
		t.Errorf("a question to one station has %d answers", got)
	}
	n.a.stop()
}
