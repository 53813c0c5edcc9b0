//go:build netns

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
)

// withGRO is a plain wire, and receivers that do GRO.
func withGRO() map[string]bool {
	offloads := maps.Clone(noOffloads)
	offloads["rx-gro"] = true
	return offloads
}

// The kernel merges the TCP that comes in, over both families, as long as it is asked to; and nothing of that is left, however the process ends.
func TestKernelGRO(t *testing.T) {
	for _, c := range []struct {
		name, local, remote string
		head                int // bytes of the outer IP header
		asked               bool
	}{
		{"IPv4", "172.30.0.1", "172.30.0.2", 20, true},
		{"IPv6", "fd30::1", "fd30::2", 40, true},
		{"not asked for", "172.30.0.1", "172.30.0.2", 20, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, wire{Offloads: withGRO()})
			p.needTier("tunnel-gso")
			must(t, p.a.AddAddresses("eth0", prefixes("172.30.0.66/24")...))
			before := hostState(t, p.a)
			config := p.write("gro.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: %q, kernel_gro: %v}
    peers: [{name: b, endpoint: %q, allowed_ips: [10.99.0.2, "fd99::2"]}]
    tier: tunnel-gso
`, c.local, c.asked, c.remote))
			d := p.start(p.a, "--config", config)
			p.addKernelPeer(func(v *lab.VXLAN) {
				v.Local, v.Remote, v.MTU = netip.MustParseAddr(c.remote), netip.MustParseAddr(c.local), 2000
			})
			s := d.status()
			if f := capability(s, "kernel-gro"); f.Enabled != c.asked || !c.asked && !strings.Contains(f.Reason, "underlay.kernel_gro") {
				t.Errorf("%+v", f)
			}
			told := slices.ContainsFunc(s.HostChanges, func(s string) bool { return strings.Contains(s, "vxgro0") })
			there := slices.ContainsFunc(hostState(t, p.a), func(s string) bool { return strings.HasPrefix(s, "link vxgro0") })
			if told != c.asked || there != c.asked {
				t.Errorf("vxgro0 is there: %v; host changes %q", there, s.HostChanges)
			}
			for i := range overlayA {
				if merged := p.mergedDuring(c.head, i == 1, func() { p.tcp(p.b, p.a, overlayA[i], 200*time.Millisecond) }); merged != c.asked {
					t.Errorf("the kernel merges TCP to %s: %v", overlayA[i], merged)
				}
				p.tcp(p.a, p.b, overlayB[i], 200*time.Millisecond)
				p.echo(overlayB[i], 4, 500)
				if c.head == 20 {
					p.ping(p.b, overlayA[i], 1900) // in fragments; over IPv6 the kernel's vxlan sends none
				}
			}
			// Those of another VNI, in one piece and in three, are counted as ever.
			for _, size := range []int{0, 4000} {
				p.send(p.b, netip.AddrPortFrom(netip.MustParseAddr(c.local), 8472), append([]byte{8, 0, 0, 0, 0, 0, 9, 0}, make([]byte, size)...))
			}
			if !soon(func() bool { return d.stats().Decap.Reasons["vxlan_vni_not_found"] == 2 }) {
				t.Errorf("drops %v", d.stats().Decap.Reasons)
			}
			d.hasAll("tunnel-gso")
			d.balanced()
			if c.head == 20 && c.asked {
				p.nothingIntrudes("vxgro0", netip.MustParseAddr("172.30.0.66"))
			}
			must(t, d.cmd.Signal(unix.SIGKILL))
			_ = d.cmd.Wait()
			if !soon(func() bool { return slices.Equal(before, hostState(t, p.a)) }) {
				t.Errorf("after SIGKILL: before %q\nafter %q", before, hostState(t, p.a))
			}
			p.start(p.a, "--config", config).stop()
			if after := hostState(t, p.a); !slices.Equal(before, after) {
				t.Errorf("before %q\nafter %q", before, after)
			}
		})
	}
}

// mergedDuring reports whether a TCP packet longer than the path came out of the outer device in one datagram of its own while do ran.
func (p *pair) mergedDuring(head int, v6 bool, do func()) bool {
	p.t.Helper()
	in, err := p.a.PacketSocket("vxgso0")
	must(p.t, err)
	defer in.Close()
	do()
	must(p.t, in.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	inner, buf := 14+head+8+8+14, make([]byte, 1<<17)
	for {
		n, err := in.Read(buf)
		if err != nil {
			return false
		}
		if n < inner+40 || binary.BigEndian.Uint16(buf[14+head+2:]) != 8472 {
			continue
		}
		length := int(binary.BigEndian.Uint16(buf[inner+2:]))
		if v6 {
			length = 40 + int(binary.BigEndian.Uint16(buf[inner+4:]))
		}
		if length > 2000 && length == n-inner {
			return true
		}
	}
}

// nothingIntrudes makes sure that what strangers send to another address of host a, with the VNI of the kernel's device and to everybody's MAC,
// ends in that device.
func (p *pair) nothingIntrudes(device string, other netip.Addr) {
	p.t.Helper()
	var in *net.UDPConn
	must(p.t, p.a.Run(func() (err error) {
		in, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 7777})
		return err
	}))
	defer in.Close()
	vni := p.exec(p.a, "ip", "-d", "link", "show", device)
	number, err := strconv.Atoi(regexp.MustCompile(`vxlan id (\d+)`).FindStringSubmatch(vni)[1])
	must(p.t, err)
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame := innerFrame(p.t, "IPv4", net.HardwareAddr{2, 5: 9}, everybody, nil, netip.MustParseAddr("172.30.0.2"), other, 0, 7777)
	header := []byte{8, 0, 0, 0, byte(number >> 16), byte(number >> 8), byte(number), 0}
	received := func() string { return p.exec(p.a, "cat", "/proc/net/dev") }
	p.send(p.b, netip.AddrPortFrom(other, 8472), slices.Concat(header, frame))
	if !soon(func() bool { return regexp.MustCompile(device + `: *[1-9]`).MatchString(received()) }) {
		p.t.Errorf("the datagram did not come to the device: %s", received())
	}
	must(p.t, in.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if n, from, err := in.ReadFrom(make([]byte, 100)); err == nil {
		p.t.Errorf("%d bytes came in from %s", n, from)
	}
}

// send sends a datagram from a host.
func (p *pair) send(from *lab.Host, to netip.AddrPort, data []byte) {
	p.t.Helper()
	must(p.t, from.Run(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		_, err = c.Write(data)
		return errors.Join(err, c.Close())
	}))
}

// What comes in on another device than the one that has the address, and from this host itself, comes to the tunnel's sockets.
func TestKernelGROOnOtherWays(t *testing.T) {
	t.Parallel()
	p := newRouted(t)
	p.needTier("tunnel-gso")
	for _, h := range []*lab.Host{p.a, p.b, p.lab.Host("r")} {
		must(t, h.SetOffloads("eth0", withGRO()))
	}
	must(t, p.a.SetOffloads("eth1", withGRO()))
	must(t, errors.Join(p.a.Sysctl("net.ipv4.conf.all.rp_filter", "0"), p.a.Sysctl("net.ipv4.conf.eth1.rp_filter", "0"), p.a.Sysctl("net.ipv4.conf.eth0.rp_filter", "0")))
	must(t, p.a.AddRoute(netip.MustParsePrefix("172.31.0.0/24"), netip.MustParseAddr("172.30.0.254"), "eth0"))
	d := p.start(p.a, "--tier", "tunnel-gso", "--local", "172.30.0.1", "--address", "10.99.0.1/24", "--peer", "endpoint=172.31.0.2,allowed_ips=10.99.0.2")
	p.addKernelPeer(func(v *lab.VXLAN) { v.Local = netip.MustParseAddr("172.31.0.2") })
	p.ping(p.a, overlayB[0], 56)
	if f := capability(d.status(), "kernel-gro"); !f.Enabled {
		t.Fatalf("%+v", f)
	}
	// The way back leads to the other device from here on.
	p.exec(p.lab.Host("r"), "ip", "route", "add", "172.30.0.1/32", "via", "172.32.0.1", "dev", "eth2")
	before := p.netstat(p.a)["Udp.InDatagrams"]
	p.ping(p.a, overlayB[0], 1400)
	p.tcp(p.b, p.a, overlayA[0], 200*time.Millisecond)
	if n := p.netstat(p.a)["Udp.InDatagrams"]; n < before+10 {
		t.Errorf("%d datagrams came to the sockets", n-before)
	}
	p.send(p.a, netip.MustParseAddrPort("172.30.0.1:8472"), []byte{8, 0, 0, 0, 0, 0, 9, 0})
	if !soon(func() bool { return d.stats().Decap.Reasons["peer_unknown"] == 1 }) {
		t.Errorf("drops %v", d.stats().Decap.Reasons)
	}
	d.balanced()
	d.stop()
}

// Where the kernel cannot have the port, the tunnel has it as ever, and status says why.
func TestKernelGRORefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, why string
		prepare   func(p *pair) (undo func())
	}{
		{"no GRO", "ethtool -K eth0 rx-gro on", func(p *pair) func() {
			must(p.t, p.a.SetOffloads("eth0", map[string]bool{"rx-gro": false}))
			return func() {}
		}},
		{"somebody has the port at another address", "address already in use", func(p *pair) func() {
			p.exec(p.a, "ip", "address", "add", "172.30.0.77/24", "dev", "eth0")
			var other *net.UDPConn
			must(p.t, p.a.Run(func() (err error) {
				other, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(172, 30, 0, 77), Port: 8472})
				return err
			}))
			return func() { must(p.t, other.Close()) }
		}},
		{"a device of that name", "vxgro0", func(p *pair) func() {
			must(p.t, p.a.Run(func() error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "vxgro0"
				return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
			}))
			return func() {}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, wire{Offloads: withGRO()})
			p.needTier("tunnel-gso")
			defer c.prepare(p)()
			before := hostState(t, p.a)
			d := p.start(p.a, upArgs("--tier", "tunnel-gso")...)
			p.addKernelPeer()
			if f := capability(d.status(), "kernel-gro"); f.Enabled || !strings.Contains(f.Reason, c.why) {
				t.Errorf("%+v, want a reason with %q", f, c.why)
			}
			for i := range overlayA {
				p.tcp(p.b, p.a, overlayA[i], 100*time.Millisecond)
				p.tcp(p.a, p.b, overlayB[i], 100*time.Millisecond)
			}
			d.hasAll("tunnel-gso")
			d.stop()
			if after := hostState(t, p.a); !slices.Equal(before, after) {
				t.Errorf("before %q\nafter %q", before, after)
			}
		})
	}
}

// Tunnels of one process that have the port in common, or one port at two addresses, have it themselves.
func TestKernelGROAndSeveralTunnels(t *testing.T) {
	t.Parallel()
	for name, local := range map[string]string{"at one address": "172.30.0.1", "at two": "172.30.0.77"} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, wire{Offloads: withGRO()})
			p.needTier("tunnel-gso")
			p.exec(p.a, "ip", "address", "add", "172.30.0.77/24", "dev", "eth0")
			d := p.startMany(p.a, fmt.Sprintf(`version: 1
tunnels:
  - device: {name: gro1, addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: 172.30.0.1}
    peers: [{name: b, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2, "fd99::2"]}]
    tier: tunnel-gso
  - device: {name: gro2, addresses: [10.98.0.1/24]}
    underlay: {local: %s, vni: 2}
    peers: [{name: b, endpoint: 172.30.0.2, allowed_ips: [10.98.0.2]}]
    tier: tunnel-gso
`, local), "gro1", "gro2")["gro1"]
			p.addKernelPeer()
			if f := capability(d.status(), "kernel-gro"); f.Enabled || !strings.Contains(f.Reason, "another tunnel of this process") {
				t.Errorf("%+v", f)
			}
			p.pingAll(1400)
			p.tcp(p.b, p.a, overlayA[0], 100*time.Millisecond)
			d.stop()
		})
	}
}
