//go:build netns

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/tunnel"
)

// tapConfig is host a in Ethernet mode, with more keys for the tunnel.
func (p *pair) tapConfig(more string) string {
	return p.write("tap.yaml", "version: 1\ntunnels:\n  - device: {mode: tap, addresses: [10.99.0.1/24, \"fd99::1/64\"]}\n    underlay: {local: 172.30.0.1}\n"+more)
}

func (d *running) fdb() map[string]tunnel.FDBEntry {
	d.t.Helper()
	f, err := d.client.FDB(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	entries := make(map[string]tunnel.FDBEntry)
	for _, e := range f.Entries {
		key := e.MAC
		if e.VLAN != 0 {
			key += fmt.Sprintf(" vlan %d", e.VLAN)
		}
		entries[key] = e
	}
	return entries
}

// awaitEntry waits until a station is behind a peer, or unknown when peer is empty.
func (d *running) awaitEntry(key, peer string) tunnel.FDBEntry {
	d.t.Helper()
	var all map[string]tunnel.FDBEntry
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if all = d.fdb(); all[key].Peer == peer {
			return all[key]
		}
	}
	d.t.Fatalf("%s is behind %q, want %q; all: %v", key, all[key].Peer, peer, slices.Collect(maps.Values(all)))
	return tunnel.FDBEntry{}
}

// A TAP device and the kernel's vxlan device, each with addresses of its own: two hosts on one Ethernet, in every tier.
func TestTAPAgainstTheKernel(t *testing.T) {
	for name, tier := range map[string]string{"best": "", "portable": "    tier: portable\n", "tunnel-gso": "    tier: tunnel-gso\n"} {
		for profile, offloads := range map[string]map[string]bool{"full": nil, "wire": noOffloads} {
			t.Run(name+" "+profile, func(t *testing.T) {
				p := newPair(t, wire{Offloads: offloads})
				p.needTier(name)
				d := p.start(p.a, "--config", p.tapConfig("    peers: [{name: b, endpoint: 172.30.0.2}]\n"+tier))
				p.addKernelPeer()
				before := p.counters()
				for _, size := range []int{0, 56, 1402, 1422, 1423, 1450, 4000, 20000} {
					p.pingAll(size)
				}
				for i := range overlayA {
					p.tcp(p.a, p.b, overlayB[i], 200*time.Millisecond)
					p.tcp(p.b, p.a, overlayA[i], 200*time.Millisecond)
				}
				for i := range overlayB {
					r, err := traffic.Echo(t.Context(), p.a, p.b, overlayB[i], 4, 250, traffic.Gently)
					if err != nil || r.Received != r.Sent || r.Reordered+r.Duplicated+r.Corrupted != 0 {
						t.Errorf("UDP to %s: %+v, %v", overlayB[i], r, err)
					}
				}
				p.healthy(before)
				d.hasAll(map[string]string{"best": "udp-gso", "portable": "portable", "tunnel-gso": "tunnel-gso"}[name])
				d.stop()
			})
		}
	}
}

// ethernet is two bridges, each with a machine behind it that may have tagged devices; host a's bridge has vxlane's TAP device as
// its port, host b's the kernel's vxlan:
//
//	vm-a eth0 --- vm  br0  vxlane0  a  172.30.0.1 ----- 172.30.0.2  b  vxlan0  br0  vm --- eth0 vm-b
func ethernet(t *testing.T, keys string) (*pair, *running, [2]*lab.Host) {
	t.Helper()
	p := newLab(t, lab.Topology{
		Hosts: []string{"a", "b", "vm-a", "vm-b"},
		Links: []lab.Link{
			{A: lab.End{Host: "a", Device: "eth0", Addresses: prefixes("172.30.0.1/24")}, B: lab.End{Host: "b", Device: "eth0", Addresses: prefixes("172.30.0.2/24")}, MTU: 1600},
			{A: lab.End{Host: "vm-a", Device: "eth0", Addresses: prefixes("10.55.0.1/24", "fd55::1/64")}, B: lab.End{Host: "a", Device: "vm"}},
			{A: lab.End{Host: "vm-b", Device: "eth0", Addresses: prefixes("10.55.0.2/24", "fd55::2/64")}, B: lab.End{Host: "b", Device: "vm"}},
		},
	})
	config := p.write("tap.yaml", "version: 1\ntunnels:\n  - device: {mode: tap, mtu: 1500}\n    underlay: {local: 172.30.0.1}\n    peers: [{name: b, endpoint: 172.30.0.2}]\n"+keys)
	d := p.start(p.a, "--config", config)
	must(t, p.b.AddVXLAN(lab.VXLAN{Device: "vxlan0", ID: 1, Remote: netip.MustParseAddr("172.30.0.1"), Port: 8472, MTU: 1500}))
	must(t, p.a.AddBridge("br0", "vm", "vxlane0"))
	must(t, p.b.AddBridge("br0", "vm", "vxlan0"))
	return p, d, [2]*lab.Host{p.lab.Host("vm-a"), p.lab.Host("vm-b")}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// carries sends a frame with tags from one machine to the other, which gets it as it was, padding included.
func (p *pair) carries(from, to *lab.Host, tags []byte) {
	p.t.Helper()
	src, err := from.MAC("eth0")
	must(p.t, err)
	dst, err := to.MAC("eth0")
	must(p.t, err)
	frame := slices.Concat(dst, src, tags, []byte{0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x26, 0xd1, 192, 0, 2, 1, 192, 0, 2, 2, 0, 9, 0, 9, 0, 8, 0, 0}, []byte("padding behind the packet"))
	in, err := to.PacketSocket("eth0")
	must(p.t, err)
	defer in.Close()
	out, err := from.PacketSocket("eth0")
	must(p.t, err)
	defer out.Close()
	must(p.t, in.SetReadDeadline(time.Now().Add(patience)))
	if _, err := out.Write(frame); err != nil {
		p.t.Fatal(err)
	}
	for buf := make([]byte, 4096); ; {
		n, err := in.Read(buf)
		if err != nil {
			p.t.Errorf("frame with tags %x: %v", tags, err)
			return
		}
		// The kernel takes the first tag out of a received frame, and tells of it beside.
		bare := slices.Concat(frame[:12], frame[16:])
		if bytes.Equal(buf[:n], frame) || bytes.Equal(buf[:n], bare) {
			return
		}
	}
}

// Machines behind bridges: broadcast is flooded, stations are learned, tags (QinQ too) pass, and age out; what is static does not move.
func TestBridgedMachines(t *testing.T) {
	t.Parallel()
	p, d, vm := ethernet(t, "    fdb: {learning: true, ageing: 3s}\n")
	mac, err := vm[1].MAC("eth0")
	must(t, err)
	for i, dst := range []string{"10.55.0.2", "fd55::2"} {
		for _, size := range []int{56, 1400, 5000} {
			p.ping(vm[0], netip.MustParseAddr(dst), size)
		}
		p.tcp(vm[0], vm[1], netip.MustParseAddr(dst), 200*time.Millisecond)
		p.tcp(vm[1], vm[0], netip.MustParseAddr([]string{"10.55.0.1", "fd55::1"}[i]), 200*time.Millisecond)
	}
	e := d.awaitEntry(mac.String(), "b")
	if e.Kind != tunnel.FDBLearned || e.Heard == nil || e.Endpoint != "172.30.0.2:8472" {
		t.Errorf("entry %+v", e)
	}
	for _, tags := range [][]byte{
		{0x81, 0x00, 0x00, 0x64}, {0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0xe0, 0x2a}, {0x81, 0x00, 0, 1, 0x81, 0x00, 0, 2, 0x81, 0x00, 0, 3},
	} {
		p.carries(vm[0], vm[1], tags)
		p.carries(vm[1], vm[0], tags)
	}
	must(t, vm[1].SetDown("eth0"))
	d.awaitEntry(mac.String(), "")                                                                  // it aged out
	if s := d.stats(); s.Encap.Dropped != s.Encap.Reasons["no_tx_target"] || s.Decap.Dropped != 0 { // what the device sent before there was a peer
		t.Errorf("dropped: %v, %v", s.Encap.Reasons, s.Decap.Reasons)
	}
}

// vxlane fdb shows and changes what frames go by.
func TestFDBCommands(t *testing.T) {
	t.Parallel()
	p, d, vm := ethernet(t, "    fdb: {learning: true}\n")
	run := func(args ...string) (string, error) {
		out, err := exec.Command("vxlane", append(args, "--socket", p.dir+"/a.sock")...).CombinedOutput()
		return string(out), err
	}
	monitor := exec.Command("vxlane", "fdb", "monitor", "--json", "--socket", p.dir+"/a.sock")
	events, err := monitor.StdoutPipe()
	must(t, err)
	must(t, monitor.Start())
	defer func() { _ = monitor.Process.Kill(); _ = monitor.Wait() }()
	const added = `{"schema":"vxlane/fdb-event/v1","device":"vxlane0","op":"add","entry":{"mac":"02:00:00:00:00:66","peer":"b"`
	told := make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(events); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), added) {
				told <- true
				return
			}
		}
		told <- false
	}()
	for listening := false; !listening; { // it tells nothing of what was before
		out, err := run("fdb", "add", "02:00:00:00:00:66", "--peer", "b")
		if err != nil {
			t.Fatalf("%s%v", out, err)
		}
		select {
		case ok := <-told:
			if listening = true; !ok {
				t.Errorf("the monitor ended without %s", added)
			}
		case <-time.After(50 * time.Millisecond):
		}
	}
	mac, err := vm[1].MAC("eth0")
	must(t, err)
	p.ping(vm[0], netip.MustParseAddr("10.55.0.2"), 56)
	d.awaitEntry(mac.String(), "b")
	out, err := run("fdb", "show")
	if err != nil || !strings.Contains(out, mac.String()+" dev vxlane0 dst 172.30.0.2:8472 peer b self used ") {
		t.Errorf("%s%v", out, err)
	}
	const by, group = "02:00:00:00:00:77", "01:00:5e:00:00:01"
	for _, c := range []struct {
		args []string
		want string
		fail bool
	}{
		{[]string{"fdb", "add", by, "--peer", "b"}, "", false},
		{[]string{"fdb", "show"}, by + " dev vxlane0 dst 172.30.0.2:8472 peer b self permanent", false},
		{[]string{"fdb", "add", by}, "--peer is missing", true},
		{[]string{"fdb", "add", by, "--peer", "c"}, `peer "c": there is none of that name`, true},
		{[]string{"fdb", "add", group, "--peer", "b"}, "want the address of one station", true},
		{[]string{"fdb", "add", by, "--peer", "b", "--vlan", "5"}, "fdb.vlans", true},
		{[]string{"fdb", "add", "x", "--peer", "b"}, "x", true},
		{[]string{"fdb", "flush"}, "entries removed", false},
		{[]string{"fdb", "show"}, by, false},
		{[]string{"fdb", "flush", "--peer", "c"}, `peer "c"`, true},
		{[]string{"fdb", "flush", "--peer", "b"}, "entries removed", false},
		{[]string{"fdb", "show"}, by, false},
		{[]string{"fdb", "flush", "--peer", "b", "--all"}, "entries removed", false},
		{[]string{"fdb", "del", by}, "there is no static or learned entry", true},
		{[]string{"fdb", "add", by, "--peer", "b"}, "", false},
		{[]string{"fdb", "show"}, "00:00:00:00:00:00 dev vxlane0 dst 172.30.0.2:8472 peer b self permanent", false},
		{[]string{"fdb", "del", by}, "", false},
		{[]string{"fdb", "del", by}, "there is no static or learned entry", true},
		{[]string{"fdb", "show", "--json"}, `"schema": "vxlane/fdb/v1"`, false},
	} {
		out, err := run(c.args...)
		if !strings.Contains(out, c.want) || (err != nil) != c.fail {
			t.Errorf("vxlane %v: %v\n%s\nwant %q", c.args, err, out, c.want)
		}
	}
	if out, err := exec.Command("vxlane", "fdb").CombinedOutput(); err == nil || !strings.Contains(string(out), "needs a command") {
		t.Errorf("%s%v", out, err)
	}
	d.stop()
	p2 := newPair(t, wire{})
	ip := p2.start(p2.a, upArgs()...)
	if _, err := ip.client.FDB(t.Context()); err == nil || !strings.Contains(err.Error(), "has no forwarding database") {
		t.Errorf("fdb of a tunnel in IP mode: %v", err)
	}
}

// Where a frame may come from: the peer's own MAC and, where it has allowed_ips, its addresses. Nobody floods when told so.
func TestTAPSourcesAndFlooding(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{})
	d := p.start(p.a, "--config", p.tapConfig("    peers: [{name: b, endpoint: 172.30.0.2, mac: 02:00:00:00:00:02, allowed_ips: [10.99.0.2/32]}]\n    fdb: {flood: none}\n"))
	p.addKernelPeer(func(v *lab.VXLAN) { v.MAC, _ = net.ParseMAC("02:00:00:00:00:02") })
	ping := func(from *lab.Host, to string) error {
		_, err := traffic.Ping(from, netip.MustParseAddr(to), 56, 300*time.Millisecond)
		return err
	}
	p.ping(p.b, overlayA[0], 56) // b asks, and a's answer goes by b's MAC
	for _, c := range []struct {
		args []string
		want string
		fail bool
	}{
		{[]string{"udp", "10.99.0.1:1", "10.99.0.2:2"}, "sent to peer b at 172.30.0.2:8472", false},
		{[]string{"udp", "10.99.0.1:1", "10.99.0.7:2"}, "say --mac for the destination's MAC", true},
		{[]string{"udp", "10.99.0.1:1", "10.99.0.7:2", "--mac", "02:00:00:00:00:07"}, "nobody knows where 02:00:00:00:00:07 is, and nobody gets what is for all", false},
		{[]string{"udp", "10.99.0.1:1", "10.99.0.7:2", "--mac", "x"}, "six octets", true},
		{[]string{"--from", "172.30.0.2", "udp", "10.99.0.2:1", "10.99.0.1:2"}, "written to the device", false},
		{[]string{"--from", "172.30.0.2", "udp", "10.99.0.3:1", "10.99.0.1:2"}, "inner_source_not_allowed", false},
		{[]string{"02 00 00 00 00 02 02 00 00 00 00 09 81 00 00 05 88 b5 00 00"}, "02:00:00:00:00:09 -> 02:00:00:00:00:02, VLAN 5: not IP", false},
	} {
		cmd := exec.Command("vxlane", append([]string{"trace", "--socket", p.dir + "/a.sock"}, c.args...)...)
		if out, err := cmd.CombinedOutput(); (err != nil) != c.fail || !strings.Contains(string(out), c.want) {
			t.Errorf("trace %v: %v\n%swant %q", c.args, err, out, c.want)
		}
	}
	if err := ping(p.b, "fd99::1"); err == nil {
		t.Error("an address that is not among the peer's was let in")
	}
	if !soon(func() bool { return d.stats().Decap.Reasons["inner_source_not_allowed"] > 0 }) {
		t.Errorf("drops %v", d.stats().Decap.Reasons)
	}
	if err := ping(p.a, "10.99.0.77"); err == nil {
		t.Error("nobody has this address")
	}
	if !soon(func() bool { return d.stats().Encap.Reasons["no_tx_target"] > 0 }) { // the ARP request that nobody gets
		t.Errorf("drops %v", d.stats().Encap.Reasons)
	}
	d.stop()
}

// write makes a file for the test and returns its path.
func (p *pair) write(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	must(p.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}
