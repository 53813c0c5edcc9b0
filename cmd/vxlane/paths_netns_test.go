//go:build netns

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/tunnel"
)

// A narrow hop on the underlay, of which neither end knows at first:
//
//	a 172.30.0.1, fd30::1 --- (1500) --- r --- (1400) --- 172.31.0.2, fd31::2 b
//
// With the don't-fragment bit unset, datagrams are fragmented on the way (IPv4) or, once the router has said so, at this
// host (IPv6).
func TestNarrowUnderlay(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			p, local, remote := narrow(t, v6, 0)
			d := p.start(p.a, "--local", local, "--address", "10.99.0.1/24", "--address", "fd99::1/64", "--peer", "endpoint="+remote+",allowed_ips=10.99.0.2,allowed_ips=fd99::2")
			p.pingAll(56)
			for i := range overlayA {
				if out := p.tcp(p.a, p.b, overlayB[i], 400*time.Millisecond); out.Bytes < 1<<20 {
					t.Errorf("a to b: %d bytes in 0.4 s", out.Bytes)
				}
				if in := p.tcp(p.b, p.a, overlayA[i], 400*time.Millisecond); in.Bytes < 1<<20 {
					t.Errorf("b to a: %d bytes in 0.4 s", in.Bytes)
				}
			}
			d.stop()
		})
	}
}

// The same, where datagrams must not be fragmented: the sender in the tunnel is told what fits, in both modes of the device, and
// sends that.
func TestNarrowUnderlayWithoutFragments(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		for _, mode := range []string{"tun", "tap"} {
			t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6]+" "+mode, func(t *testing.T) {
				p, local, remote := narrow(t, v6, 1430) // b believes that its own packets fit
				d := p.start(p.a, "--config", p.write("narrow.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mode: %s, addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: %q, df: set}
    peers: [{name: b, endpoint: %q, allowed_ips: [10.99.0.2, "fd99::2"]}]
`, mode, local, remote)))
				p.pingAll(56)
				for i := range overlayA {
					if out := p.tcp(p.a, p.b, overlayB[i], 400*time.Millisecond); out.Bytes < 1<<20 {
						t.Errorf("a to b: %d bytes in 0.4 s", out.Bytes)
					}
				}
				want := 1400 - 50
				if v6 {
					want = 1400 - 70
				}
				for _, to := range overlayB {
					if out := p.exec(p.a, "ip", "route", "get", to.String()); !strings.Contains(out, fmt.Sprintf(" mtu %d", want)) {
						t.Errorf("the host's route to %s is %s; want mtu %d", to, out, want)
					}
				}
				s := d.stats()
				if s.Encap.Reasons["pkt_too_big"] == 0 || s.Generated.ICMPErrors < 2 {
					t.Errorf("drops %v, %d ICMP errors", s.Encap.Reasons, s.Generated.ICMPErrors)
				}
				if !strings.Contains(d.output(), "path MTU\" peer=b bytes=1400") {
					t.Errorf("nothing of it in the log:\n%s", d.output())
				}
				d.stop()
			})
		}
	}
}

// A route that gets another MTU changes what fits, without a packet that does not.
func TestPathMTUFollowsRoutes(t *testing.T) {
	t.Parallel()
	p, local, remote := narrow(t, false, 1430)
	d := p.start(p.a, "--config", p.write("routes.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24]}
    underlay: {local: %q, df: set, path_probe: false}
    peers: [{name: b, endpoint: %q, allowed_ips: [10.99.0.2]}]
`, local, remote)))
	if off := (tunnel.Capability{Name: "path-probe", Reason: "turned off (path_probe: false)"}); !slices.Contains(d.status().Capabilities, off) {
		t.Errorf("features %+v", d.status().Capabilities)
	}
	await := func(mtu int) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			peers, err := d.client.Peers(t.Context())
			must(t, err)
			if peers.Peers[0].Path.MTU == mtu {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("path %+v, want %d", peers.Peers[0].Path, mtu)
			}
		}
	}
	p.ping(p.a, overlayB[0], 56)
	_, _ = traffic.Ping(p.a, overlayB[0], 1400, 100*time.Millisecond)
	_, _ = traffic.Ping(p.a, overlayB[0], 1400, 100*time.Millisecond)
	await(1400)
	p.exec(p.a, "ip", "route", "change", "172.31.0.0/24", "via", "172.30.0.254", "mtu", "1300")
	p.exec(p.a, "ip", "route", "flush", "cache")
	await(1300)
	p.exec(p.a, "ip", "route", "change", "172.31.0.0/24", "via", "172.30.0.254")
	await(1500)
	d.stop()
}

// The same for machines behind a bridge, and for the host that the bridge is on: the error reaches who sent the packet (the kernel's
// pmtu.sh, test_pmtu_ipvX_over_bridged_vxlanY_exception).
func TestNarrowUnderlayOfABridge(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			p, local, remote := narrow(t, v6, 1430, lab.Link{
				A: lab.End{Host: "vm", Device: "eth0", Addresses: prefixes("10.99.0.3/24", "fd99::3/64")}, B: lab.End{Host: "a", Device: "vm"},
			})
			d := p.start(p.a, "--config", p.write("narrow.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mode: tap}
    underlay: {local: %q, df: set}
    peers: [{name: b, endpoint: %q}]
`, local, remote)))
			vm := p.lab.Host("vm")
			must(t, p.a.AddBridge("br0", "vm", "vxlane0"))
			must(t, p.a.AddAddresses("br0", prefixes("10.99.0.1/24", "fd99::1/64")...))
			must(t, vm.SetMTU("eth0", 1430)) // as its owner would, who knows of the tunnel, but not of the path
			must(t, p.a.SetMTU("br0", 1430))
			want := 1400 - 50
			if v6 {
				want = 1400 - 70
			}
			for _, from := range []*lab.Host{vm, p.a} {
				for _, to := range overlayB {
					p.ping(from, to, 56)
					if out := p.tcp(from, p.b, to, 400*time.Millisecond); out.Bytes < 1<<20 {
						t.Errorf("%s to %s: %d bytes in 0.4 s", from.Name(), to, out.Bytes)
					}
					if out := p.exec(from, "ip", "route", "get", to.String()); !strings.Contains(out, fmt.Sprintf(" mtu %d", want)) {
						t.Errorf("the route of %s to %s is %s; want mtu %d", from.Name(), to, out, want)
					}
				}
			}
			d.stop()
		})
	}
}

// narrow builds the hosts and the kernel's end of the tunnel, whose device has the given MTU, or the kernel's choice.
func narrow(t *testing.T, v6 bool, peerMTU int, more ...lab.Link) (p *pair, local, remote string) {
	t.Helper()
	hosts := []string{"a", "r", "b"}
	for _, l := range more {
		hosts = append(hosts, l.A.Host)
	}
	p = newLab(t, lab.Topology{
		Hosts: hosts,
		Links: append([]lab.Link{
			{A: lab.End{Host: "a", Device: "eth0", Addresses: prefixes("172.30.0.1/24", "fd30::1/64")}, B: lab.End{Host: "r", Device: "eth0", Addresses: prefixes("172.30.0.254/24", "fd30::fe/64")}, Offloads: noOffloads},
			{A: lab.End{Host: "r", Device: "eth1", Addresses: prefixes("172.31.0.254/24", "fd31::fe/64")}, B: lab.End{Host: "b", Device: "eth0", Addresses: prefixes("172.31.0.2/24", "fd31::2/64")}, MTU: 1400, Offloads: noOffloads},
		}, more...),
	})
	route := func(h *lab.Host, to, via string) error {
		return h.AddRoute(netip.MustParsePrefix(to), netip.MustParseAddr(via), "eth0")
	}
	err := errors.Join(
		p.lab.Host("r").Sysctl("net.ipv4.ip_forward", "1"), p.lab.Host("r").Sysctl("net.ipv6.conf.all.forwarding", "1"),
		route(p.a, "172.31.0.0/24", "172.30.0.254"), route(p.b, "172.30.0.0/24", "172.31.0.254"),
		route(p.a, "fd31::/64", "fd30::fe"), route(p.b, "fd30::/64", "fd31::fe"),
	)
	if err != nil {
		t.Fatal(err)
	}
	local, remote = "172.30.0.1", "172.31.0.2"
	if v6 {
		local, remote = "fd30::1", "fd31::2"
	}
	p.addKernelPeer(func(v *lab.VXLAN) {
		v.Local, v.Remote, v.Link = netip.MustParseAddr(remote), netip.MustParseAddr(local), "eth0"
		if v.MTU = peerMTU; peerMTU > 0 {
			v.Link = "" // which would bound it
		}
	})
	return p, local, remote
}

// A kernel peer over IPv6 that sends without UDP checksums, and takes none: both by option, on both sides.
func TestZeroChecksum6(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, "--config", p.config(`
version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: "fd30::1", zero_checksum6: {tx: true, rx: true}}
    peers: [{endpoint: "fd30::2", allowed_ips: [10.99.0.2, "fd99::2"]}]
`))
	p.addKernelPeer(func(v *lab.VXLAN) {
		v.Local, v.Remote, v.Link = netip.MustParseAddr("fd30::2"), netip.MustParseAddr("fd30::1"), "eth0"
		v.ZeroTX6, v.ZeroRX6 = true, true
	})
	before := p.counters()
	p.pingAll(1000)
	p.tcp(p.a, p.b, overlayB[0], 300*time.Millisecond)
	p.tcp(p.b, p.a, overlayA[0], 300*time.Millisecond)
	p.healthy(before)
	d.stop()
}

// UDP super-packets of an application behind the kernel's device (UDP_SEGMENT) arrive as the datagrams that they stand for.
func TestUDPSuperPackets(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tun", "tap"} {
		t.Run(mode, func(t *testing.T) { udpSuperPackets(t, mode) })
	}
}

func udpSuperPackets(t *testing.T, mode string) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs("--mode", mode)...)
	p.addKernelPeer()
	p.pingAll(56)
	for i, network := range []string{"udp4", "udp6"} {
		for _, size := range []int{1000, 22, 1} {
			p.superPacket(network, overlayB[i], overlayA[i], size)
		}
	}
	d.stop()
}

// superPacket sends 40 datagrams as one super-packet from host b to a.
func (p *pair) superPacket(network string, from, to netip.Addr, size int) {
	t := p.t
	t.Helper()
	const count = 40
	var server *net.UDPConn
	err := p.a.Run(func() (err error) {
		server, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, size*count)
	for j := range payload {
		payload[j] = byte(j / size)
	}
	conn := p.dialUDP(p.b, netip.AddrPortFrom(from, 0), server.LocalAddr().(*net.UDPAddr).AddrPort(), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	_, err = conn.Write(payload)
	must(t, err)
	buf := make([]byte, 1<<16)
	for j := range count {
		_ = server.SetReadDeadline(time.Now().Add(patience))
		n, err := server.Read(buf)
		if err != nil {
			t.Fatalf("%s: datagram %d: %v", network, j, err)
		}
		if want := payload[j*size : (j+1)*size]; !bytes.Equal(buf[:n], want) {
			t.Errorf("%s: datagram %d has %d bytes, the first is %d", network, j, n, buf[0])
		}
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}
