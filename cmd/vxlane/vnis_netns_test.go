//go:build netns

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/encap"
)

// startMany runs vxlane up with a configuration of several tunnels in a host, and returns one running for each device.
func (p *pair) startMany(h *lab.Host, config string, devices ...string) map[string]*running {
	p.t.Helper()
	d := &running{t: p.t, log: filepath.Join(p.dir, h.Name()+"-many.log")}
	f, err := os.Create(d.log)
	must(p.t, err)
	defer f.Close()
	cmd := exec.Command("vxlane", "up", "--config", p.write(h.Name()+"-many.yaml", config))
	cmd.Stdout, cmd.Stderr = f, f
	d.cmd, err = h.Start(cmd)
	must(p.t, err)
	all := make(map[string]*running)
	for _, name := range devices {
		one := *d
		must(p.t, h.Run(func() error {
			path, err := control.SocketPath(name)
			one.client = control.NewClient(path)
			return err
		}))
		all[name] = &one
		p.t.Cleanup(func() {
			if p.t.Failed() {
				p.t.Logf("%s: %s", name, one.drops())
			}
		})
	}
	p.t.Cleanup(func() {
		if p.t.Failed() {
			p.t.Logf("vxlane in host %s wrote:\n%s", h.Name(), d.output())
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		up := 0
		for _, one := range all {
			if s, err := one.client.Status(context.Background()); err == nil && len(s.Degraded) == 0 {
				up++
			}
		}
		if up == len(all) {
			return all
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%d of %d tunnels are ready\n%s", up, len(all), d.output())
		}
	}
}

// threeVNIs are three tunnels of one process on one port, two for packets and one for frames; side is 1 or 2.
func threeVNIs(side, far int, more string) string {
	text := "version: 1\ntunnels:\n"
	for i, mode := range []string{"tun", "tap", "tun"} {
		n := i + 1
		text += fmt.Sprintf(`  - device: {name: vx%d, mode: %s, mac: 02:00:00:00:0%d:0%d, addresses: [10.%d.0.%d/24]%s}
    underlay: {local: 172.30.0.%d, vni: %d}
    peers: [{name: far, endpoint: 172.30.0.%d, mac: 02:00:00:00:0%d:0%d, allowed_ips: [10.%d.0.%d]}]
`, n, mode, n, side, n, side, more, side, n*10, far, n, far, n, far)
	}
	return text
}

// Several VNIs on one port, each with a device and peers of its own: against the kernel's devices, which share a port as well, and
// between two of vxlane. What has another VNI is counted by the first.
func TestSharedPort(t *testing.T) {
	names := []string{"vx1", "vx2", "vx3"}
	for _, far := range []string{"kernel", "vxlane"} {
		for _, c := range []struct{ queues, tier string }{{"", "auto"}, {", queues: 3", "auto"}, {", queues: 3", "tunnel-gso"}} {
			t.Run(far+c.queues+" "+c.tier, func(t *testing.T) {
				p := newPair(t, wire{})
				p.needTier(c.tier)
				withTier := func(text string) string {
					return strings.ReplaceAll(text, "  - device:", "  - tier: "+c.tier+"\n    device:")
				}
				all := p.startMany(p.a, withTier(threeVNIs(1, 2, c.queues)), names...)
				if far == "vxlane" {
					p.startMany(p.b, withTier(threeVNIs(2, 1, "")), names...)
				} else {
					for i := range names {
						n := i + 1
						must(t, p.b.AddVXLAN(lab.VXLAN{Device: names[i], ID: n * 10, Remote: netip.MustParseAddr("172.30.0.1"), Port: 8472,
							MAC: net.HardwareAddr{2, 0, 0, 0, byte(n), 2}, Addresses: prefixes(fmt.Sprintf("10.%d.0.2/24", n))}))
					}
				}
				before := p.counters()
				for i := range names {
					a, b := netip.AddrFrom4([4]byte{10, byte(i + 1), 0, 1}), netip.AddrFrom4([4]byte{10, byte(i + 1), 0, 2})
					p.ping(p.a, b, 56)
					p.ping(p.b, a, 1400)
					p.tcp(p.a, p.b, b, 150*time.Millisecond)
					p.tcp(p.b, p.a, a, 150*time.Millisecond)
				}
				p.healthy(before)
				in := newInjector(p, all["vx1"], "172.30.0.2:40000")
				stranger := make([]byte, 60)
				encap.PutVXLAN(stranger, 77)
				in.expect("a VNI of none", "vxlan_vni_not_found", stranger, stranger)
				in.expect("no header", "pkt_too_small", stranger[:5])
				for name, d := range all {
					s := d.stats()
					if n := s.Decap.Reasons["vxlan_vni_not_found"]; (n > 0) != (name == "vx1") {
						t.Errorf("%s: drops %v", name, s.Decap.Reasons)
					}
					d.balanced()
				}
				all["vx1"].stop()
			})
		}
	}
}

// One of the devices goes away under traffic: the process ends with an error that names it, as ever.
func TestSharedPortLosesADevice(t *testing.T) {
	p := newPair(t, wire{})
	names := []string{"vx1", "vx2", "vx3"}
	all := p.startMany(p.a, threeVNIs(1, 2, ""), names...)
	p.startMany(p.b, threeVNIs(2, 1, ""), names...)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 1; ctx.Err() == nil; n = n%3 + 1 {
			_, _ = traffic.Ping(p.b, netip.AddrFrom4([4]byte{10, byte(n), 0, 1}), 1400, 5*time.Millisecond)
		}
	}()
	time.Sleep(50 * time.Millisecond)
	must(t, p.a.Delete("vx1"))
	err := all["vx1"].cmd.Wait()
	cancel()
	<-done
	if out := all["vx1"].output(); err == nil || strings.Contains(out, "goroutine ") || !strings.Contains(out, "vx1") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Both families and two ports in one process, at once (the kernel's test_vxlan_vnifiltering.sh): VNIs are told apart on each.
func TestSharedPortsOfBothFamilies(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{})
	text, names := "version: 1\ntunnels:\n", []string{}
	type end struct{ a, b netip.Addr }
	var ends []end
	for _, c := range []struct {
		local, far string
		port       int
	}{{"172.30.0.1", "172.30.0.2", 8472}, {"fd30::1", "fd30::2", 8472}, {"172.30.0.1", "172.30.0.2", 4790}, {"fd30::1", "fd30::2", 4790}} {
		for _, vni := range []int{10, 20} {
			n := len(names) + 1
			name := fmt.Sprintf("vx%d", n)
			names = append(names, name)
			text += fmt.Sprintf("  - device: {name: %s, mode: tap, addresses: [10.%d.0.1/24]}\n    underlay: {local: %q, vni: %d, port: %d}\n    peers: [{name: far, endpoint: %q}]\n", name, n, c.local, vni, c.port, c.far)
			must(t, p.b.AddVXLAN(lab.VXLAN{Device: name, ID: vni, Local: netip.MustParseAddr(c.far), Remote: netip.MustParseAddr(c.local), Port: c.port, MTU: 1430, Addresses: prefixes(fmt.Sprintf("10.%d.0.2/24", n))}))
			ends = append(ends, end{netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", n)), netip.MustParseAddr(fmt.Sprintf("10.%d.0.2", n))})
		}
	}
	all := p.startMany(p.a, text, names...)
	for _, e := range ends {
		p.ping(p.a, e.b, 1400)
		p.ping(p.b, e.a, 1400)
	}
	for name, d := range all {
		if s := d.stats(); s.Decap.Reasons["vxlan_vni_not_found"] != 0 {
			t.Errorf("%s: drops %v", name, s.Decap.Reasons)
		}
		d.balanced()
	}
	all["vx1"].stop()
}

// Two tunnels of one host that are each other's peer, at two addresses of it: frames go through the host's own stack, as with the
// kernel's nolocalbypass (test_vxlan_nolocalbypass.sh), and arrive as they do with its bypass.
func TestTunnelsOfOneHost(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{})
	text, at := "version: 1\ntunnels:\n", []string{"172.30.0.2", "172.30.0.9"} // both host b's
	for i := range at {
		text += fmt.Sprintf("  - device: {name: vx%d, mode: tap}\n    underlay: {local: %s}\n    peers: [{name: far, endpoint: %s}]\n", i+1, at[i], at[1-i])
	}
	all := p.startMany(p.b, text, "vx1", "vx2")
	for _, way := range [][2]string{{"vx1", "vx2"}, {"vx2", "vx1"}} {
		in, err := p.b.PacketSocket(way[1])
		must(t, err)
		mac, err := p.b.MAC(way[0])
		must(t, err)
		p.arping(p.b, way[0], mac)
		if n := arrived(t, in); n != 1 {
			t.Errorf("from %s to %s: a broadcast frame arrives %d times", way[0], way[1], n)
		}
		must(t, in.Close())
		all[way[0]].balanced()
	}
	all["vx1"].stop()
}

// The kernel joins datagrams of one outer flow to a train, whatever their VNIs: each tunnel gets what is its own.
func TestTrainOfSeveralVNIs(t *testing.T) {
	p := newPair(t, wire{})
	all := p.startMany(p.a, threeVNIs(1, 2, ""), "vx1", "vx2", "vx3")
	const count = 30
	var train []byte
	size := 0
	for i := range count {
		n := byte(i%3 + 1)
		d := vxlanDatagram(t, encap.MAC{2, 4: n, 5: 1}, fmt.Sprintf("10.%d.0.2", n))
		encap.PutVXLAN(d, encap.VNI(n)*10)
		train, size = append(train, d...), len(d)
	}
	conn := p.dialUDP(p.b, netip.MustParseAddrPort("172.30.0.2:40000"), netip.MustParseAddrPort("172.30.0.1:8472"), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	_, err := conn.Write(train)
	must(t, err)
	for name, d := range all {
		for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			s := d.stats()
			if s.Decap.Delivered == count/3 && s.Decap.Dropped == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: %d delivered, drops %v", name, s.Decap.Delivered, s.Decap.Reasons)
				break
			}
		}
		d.balanced()
	}
	all["vx1"].stop()
}
