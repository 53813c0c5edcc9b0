//go:build netns && cluster

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/vxlane/vxlane/bench/lab"
)

const dualNetwork = `{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd10::/48", "Backend": {"Type": "vxlan"}}`

// both6 is both for IPv6.
func (c *cluster) both6() {
	c.t.Helper()
	for _, size := range []int{0, 56, 1382, 1383, 8000} { // 1382: 1430 with its headers
		c.ping(c.a.pod, c.b.podAddr6(), size)
		c.ping(c.b.pod, c.a.podAddr6(), size)
	}
	c.transfer(c.a.pod, c.b.pod, c.b.podAddr6())
	c.transfer(c.b.pod, c.a.pod, c.a.podAddr6())
}

// Both families, each over its own underlay, with ours at both ends and with the kernel's vxlan at one.
func TestDualStack(t *testing.T) {
	c := newCluster(t, dualNetwork)
	for _, dataplanes := range [][2]string{{"userspace", "userspace"}, {"userspace", "kernel"}, {"kernel", "userspace"}} {
		for i, n := range []*member{c.a, c.b} {
			if n.command != nil {
				c.must(n.command.Stop())
			}
			n.env = []string{dataplaneVariable + "=" + dataplanes[i]}
			n.start("vxlane-flanneld")
		}
		c.both()
		c.both6()
	}
	c.must(c.a.command.Stop())
	c.a.env = []string{dataplaneVariable + "=userspace"}
	c.a.start("vxlane-flanneld")
	if got := c.a.subnetVariable("FLANNEL_MTU"); got != "1430" { // flannel says 1450, which an IPv6 underlay does not carry whole
		t.Errorf("FLANNEL_MTU=%s", got)
	}
	if got := c.a.subnetVariable("FLANNEL_IPV6_NETWORK"); got != "fd10::/48" {
		t.Errorf("FLANNEL_IPV6_NETWORK=%s", got)
	}
}

// A node that is known by another of its addresses than the interface's first sends from that, and is reached there.
func TestSecondAddress(t *testing.T) {
	c := newCluster(t, vxlanNetwork)
	c.must(c.a.host.AddAddresses("eth0", netip.MustParsePrefix("172.30.0.11/24")))
	c.a.env, c.b.env = []string{dataplaneVariable + "=userspace"}, []string{dataplaneVariable + "=userspace"}
	c.a.start("vxlane-flanneld", "--public-ip=172.30.0.11")
	c.b.start("vxlane-flanneld")
	c.b.awaitPeer("flannel.1", c.a.subnet.Masked().String(), "172.30.0.11:8472")
	c.both()
}

// A packet's way from pod to pod has four hops over udp, two of them the tunnel's: each says where it is (flannel's own two are
// silent).
func TestTraceroute(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.a.start("vxlane-flanneld")
	c.b.start("vxlane-flanneld")
	c.ping(c.a.pod, c.b.podAddr(), 56)
	var icmps *icmp.PacketConn
	c.must(c.a.pod.Run(func() (err error) { icmps, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0"); return err }))
	defer icmps.Close()
	var hops []string
	for ttl := 1; ttl <= 5; ttl++ {
		c.must(c.a.pod.Run(func() error {
			conn, err := net.Dial("udp4", netip.AddrPortFrom(c.b.podAddr(), 33434).String())
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := ipv4.NewConn(conn).SetTTL(ttl); err != nil {
				return err
			}
			_, err = conn.Write([]byte("where"))
			return err
		}))
		c.must(icmps.SetReadDeadline(time.Now().Add(patience)))
		buf := make([]byte, 1500)
		n, from, err := icmps.ReadFrom(buf)
		c.must(err)
		m, err := icmp.ParseMessage(1, buf[:n])
		c.must(err)
		hops = append(hops, fmt.Sprint(from, " ", m.Type))
	}
	far := c.b.subnet.Masked().Addr().String()
	want := []string{
		c.a.subnet.Addr().String() + " time exceeded", far + " time exceeded", far + " time exceeded",
		c.b.subnet.Addr().String() + " time exceeded", c.b.podAddr().String() + " destination unreachable",
	}
	if hops[3] == far+" time exceeded" { // the node answers with the address of the device that the packet came from
		want[3] = hops[3]
	}
	if !slices.Equal(hops, want) {
		t.Errorf("hops %q, want %q\n%s", hops, want, c.logs())
	}
}

// routeTo returns how a node sends to an address: the device, and the gateway when there is one.
func (n *member) routeTo(to netip.Addr) (device, gateway string) {
	n.c.t.Helper()
	n.c.must(n.host.Run(func() error {
		routes, err := netlink.RouteGet(to.AsSlice())
		if err != nil || len(routes) != 1 {
			return fmt.Errorf("route to %s: %v, %w", to, routes, err)
		}
		l, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return err
		}
		device = l.Attrs().Name
		if routes[0].Gw != nil {
			gateway = routes[0].Gw.String()
		}
		return nil
	}))
	return device, gateway
}

func (n *member) awaitRoute(to netip.Addr, device, gateway string) {
	n.c.t.Helper()
	var d, g string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if d, g = n.routeTo(to); d == device && g == gateway {
			return
		}
	}
	n.c.t.Fatalf("%s sends to %s through %s %s, want %s %s\n%s", n.host.Name(), to, d, g, device, gateway, n.output())
}

// With DirectRouting, packets for a peer that no router is before go without a tunnel, and through it as soon as there is one.
func TestDirectRouting(t *testing.T) {
	for _, other := range []string{"userspace", "kernel"} {
		t.Run(other, func(t *testing.T) {
			c := newCluster(t, strings.Replace(dualNetwork, `"vxlan"`, `"vxlan", "DirectRouting": true`, 1))
			c.a.env, c.b.env = []string{dataplaneVariable + "=userspace"}, []string{dataplaneVariable + "=" + other}
			c.a.start("vxlane-flanneld")
			c.b.start("vxlane-flanneld")
			c.a.awaitRoute(c.b.podAddr(), "eth0", "172.30.0.2")
			c.a.awaitRoute(c.b.podAddr6(), "eth0", "fd30::2")
			c.both()
			c.both6()
			if s := c.a.stats("flannel.1"); s.Encap.Delivered != 0 {
				t.Errorf("%d packets went through the tunnel", s.Encap.Delivered)
			}
			c.must(c.a.command.Stop())
			c.a.awaitRoute(c.b.podAddr(), "eth0", "172.30.0.2") // as the tunnel's, it stays
			c.must(c.a.host.AddRoute(netip.MustParsePrefix("172.30.0.2/32"), netip.MustParseAddr("172.30.0.254"), "eth0"))
			c.must(c.hub.Sysctl("net.ipv4.ip_forward", "1"))
			c.a.start("vxlane-flanneld")
			c.a.awaitRoute(c.b.podAddr(), "flannel.1", "")
			c.ping(c.a.pod, c.b.podAddr(), 56)
			c.ping(c.b.pod, c.a.podAddr(), 56)
			c.must(c.a.command.Stop())
			c.a.run("vxlane-flanneld", "cleanup")
			for _, to := range []netip.Addr{c.b.podAddr(), c.b.podAddr6()} {
				if err := c.a.host.Run(func() error {
					routes, err := netlink.RouteGet(to.AsSlice())
					if err == nil {
						return fmt.Errorf("after cleanup there is a route to %s: %v", to, routes)
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// need skips a test where a program is not installed.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skipped: needs the program %s", p)
		}
	}
}

// seconds are the programs for the second node: ours, and flannel's own where the tests were built with it.
func seconds() []string {
	return slices.DeleteFunc([]string{"vxlane-flanneld", stockProgram}, func(p string) bool { return p == "" })
}

// The rules for masquerading and forwarding are those of flannel, literally; what leaves the cluster leaves with the node's
// address, what stays keeps the pod's.
func TestRules(t *testing.T) {
	need(t, "iptables", "iptables-save", "nft")
	for name, nft := range map[string]string{"iptables": "false", "nftables": "true"} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, `{"Network": "10.10.0.0/16", "EnableNFTables": `+nft+`, "Backend": {"Type": "udp"}}`)
			for _, n := range []*member{c.a, c.b} {
				n.forward = true
				if nft == "false" { // as Docker leaves a host
					n.run("iptables", "--policy", "FORWARD", "DROP")
				}
				n.start("vxlane-flanneld", "--ip-masq")
			}
			own := c.a.subnet.Masked().String()
			if nft == "true" {
				c.a.wantLines(c.a.run("nft", "list", "table", "ip", "flannel-ipv4"), []string{
					"type filter hook forward priority filter; policy accept;", "ip saddr 10.10.0.0/16 accept", "ip daddr 10.10.0.0/16 accept",
					"type nat hook postrouting priority srcnat; policy accept;", "meta mark 0x00004000 return",
					"ip saddr " + own + " ip daddr 10.10.0.0/16 return", "ip saddr 10.10.0.0/16 ip daddr " + own + " return",
					"ip saddr != " + own + " ip daddr 10.10.0.0/16 return",
					"ip saddr 10.10.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
					"ip saddr != 10.10.0.0/16 ip daddr 10.10.0.0/16 masquerade fully-random",
				})
			} else {
				const masq, forward = `-m comment --comment "flanneld masq" -j `, `-m comment --comment "flanneld forward" -j `
				c.a.wantLines(c.a.run("iptables-save"), []string{
					"-A FORWARD " + forward + "FLANNEL-FWD", "-A FLANNEL-FWD -s 10.10.0.0/16 " + forward + "ACCEPT", "-A FLANNEL-FWD -d 10.10.0.0/16 " + forward + "ACCEPT",
					"-A POSTROUTING " + masq + "FLANNEL-POSTRTG", "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 " + masq + "RETURN",
					"-A FLANNEL-POSTRTG -s " + own + " -d 10.10.0.0/16 " + masq + "RETURN", "-A FLANNEL-POSTRTG -s 10.10.0.0/16 -d " + own + " " + masq + "RETURN",
					"-A FLANNEL-POSTRTG ! -s 10.10.0.0/16 -d " + own + " " + masq + "RETURN",
					"-A FLANNEL-POSTRTG -s 10.10.0.0/16 ! -d 224.0.0.0/4 " + masq + "MASQUERADE --random-fully",
					"-A FLANNEL-POSTRTG ! -s 10.10.0.0/16 -d 10.10.0.0/16 " + masq + "MASQUERADE --random-fully",
				})
			}
			c.both()
			for from, want := range map[*lab.Host]string{c.a.pod: "172.30.0.1", c.b.pod: "172.30.0.2"} {
				if got := c.caller(from, c.hub, netip.MustParseAddrPort("172.30.0.254:7000"), netip.MustParseAddrPort("172.30.0.254:7000")); got.String() != want {
					t.Errorf("%s is seen outside as %s, want %s", from.Name(), got, want)
				}
			}
			at := netip.AddrPortFrom(c.b.podAddr(), 7000)
			if got := c.caller(c.a.pod, c.b.pod, at, at); got != c.a.podAddr() {
				t.Errorf("pod-a is seen by pod-b as %s, want %s", got, c.a.podAddr())
			}
		})
	}
}

// wantLines checks that a text has lines, in their order, whatever else it has between them.
func (n *member) wantLines(text string, lines []string) {
	n.c.t.Helper()
	rest := text
	// Tables may be listed in any order; within one, rules keep theirs.
	for _, line := range lines {
		if !strings.Contains(text, line) {
			n.c.t.Errorf("rule %q is missing in\n%s%s", line, text, n.output())
			return
		}
		if strings.Contains(line, "FORWARD") || strings.Contains(line, "POSTROUTING") || strings.HasPrefix(line, "type ") {
			rest = text
		}
		_, after, ok := strings.Cut(rest, line)
		if !ok {
			n.c.t.Errorf("rule %q is not where it should be in\n%s", line, text)
			return
		}
		rest = after
	}
}

// caller opens a TCP connection from one host to an address, at which another listens, and returns whom that sees.
func (c *cluster) caller(from, to *lab.Host, dial, listen netip.AddrPort) netip.Addr {
	c.t.Helper()
	var l net.Listener
	c.must(to.Run(func() (err error) { l, err = net.Listen("tcp", listen.String()); return err }))
	defer l.Close()
	type seen struct {
		who netip.Addr
		err error
	}
	accepted := make(chan seen, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			accepted <- seen{err: err}
			return
		}
		defer conn.Close()
		accepted <- seen{who: conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()}
	}()
	c.must(from.Run(func() error {
		conn, err := net.DialTimeout("tcp", dial.String(), patience)
		if err != nil {
			return err
		}
		return conn.Close()
	}))
	s := <-accepted
	c.must(s.err)
	return s.who
}

const (
	serviceAddress = "10.96.0.10"
	nodePort       = 30053
)

// nat gives the nodes a Service and a NodePort as kube-proxy does: addresses by DNAT, and what comes from outside, or goes back
// to where it came from, is marked and masqueraded.
func (n *member) nat(kind string, backend netip.AddrPort) {
	n.c.t.Helper()
	var script string
	if kind == "nftables" {
		script = fmt.Sprintf(`nft -f - <<EOF
table ip kube-proxy {
	chain services {
		ip daddr %[1]s meta l4proto { tcp, udp } th dport 53 ip saddr != 10.10.0.0/16 meta mark set mark or 0x4000
		ip daddr %[1]s meta l4proto { tcp, udp } th dport 53 dnat to %[2]s
		fib daddr type local meta l4proto { tcp, udp } th dport %[3]d meta mark set mark or 0x4000
		fib daddr type local meta l4proto { tcp, udp } th dport %[3]d dnat to %[2]s
	}
	chain prerouting { type nat hook prerouting priority dstnat; jump services; }
	chain output { type nat hook output priority -100; jump services; }
	chain postrouting { type nat hook postrouting priority srcnat; mark and 0x4000 == 0x4000 mark set mark and 0xffffbfff masquerade fully-random; }
}
EOF`, serviceAddress, backend, nodePort)
	} else {
		script = fmt.Sprintf(`set -e
iptables -t nat -N KUBE-SERVICES
iptables -t nat -N KUBE-MARK-MASQ
iptables -t nat -N KUBE-POSTROUTING
iptables -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
for p in tcp udp; do
iptables -t nat -A KUBE-SERVICES ! -s 10.10.0.0/16 -d %[1]s -p $p --dport 53 -j KUBE-MARK-MASQ
iptables -t nat -A KUBE-SERVICES -d %[1]s -p $p --dport 53 -j DNAT --to-destination %[2]s
iptables -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -p $p --dport %[3]d -j KUBE-MARK-MASQ
iptables -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -p $p --dport %[3]d -j DNAT --to-destination %[2]s
done
iptables -t nat -A PREROUTING -j KUBE-SERVICES
iptables -t nat -A OUTPUT -j KUBE-SERVICES
iptables -t nat -I POSTROUTING -j KUBE-POSTROUTING
iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
iptables -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully`, serviceAddress, backend, nodePort)
	}
	if out := n.run("sh", "-c", script); out != "" {
		n.c.t.Fatalf("rules of %s: %s", n.host.Name(), out)
	}
}

// serveDNS answers every question over UDP with one address.
func serveDNS(c *net.UDPConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.RCode = true, dnsmessage.RCodeSuccess
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}},
			}}
		}
		if answer, err := m.Pack(); err == nil {
			_, _ = c.WriteToUDPAddrPort(answer, from)
		}
	}
}

// badChecksums returns how many datagrams a host's UDP has dropped for their checksum.
func badChecksums(h *lab.Host) (count string, err error) {
	var text []byte
	if err := h.Run(func() error { text, err = os.ReadFile("/proc/thread-self/net/snmp"); return err }); err != nil {
		return "", err
	}
	var names []string
	for _, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		return fields[slices.Index(names, "InCsumErrors")], nil
	}
	return "", errors.New("no Udp line in /proc/net/snmp")
}

// A Service, a NodePort and DNS over UDP, whose only pod is on the other node: with double NAT across the tunnel no checksum is
// bad, and nothing waits for a retransmission (flannel-io/flannel#1279, kubernetes#88986).
func TestServices(t *testing.T) {
	need(t, "iptables", "nft")
	for backend, network := range map[string]string{"udp": `"udp"`, "vxlan": `"vxlan", "Dataplane": "userspace"`} {
		for _, kind := range []string{"iptables", "nftables"} {
			for _, second := range seconds() {
				if second == stockProgram && backend != "udp" {
					continue
				}
				t.Run(backend+" "+kind+" "+second, func(t *testing.T) {
					testServices(t, network, kind, second)
				})
			}
		}
	}
}

func testServices(t *testing.T, network, kind, second string) {
	c := newCluster(t, `{"Network": "10.10.0.0/16", "Backend": {"Type": `+network+`}}`)
	c.a.forward = true
	c.must(c.a.host.AddRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.MustParseAddr("172.30.0.254"), "eth0"))
	for _, n := range []*member{c.a, c.b} { // what leaves a node is as a wire would carry it: checksums are there, and are looked at
		c.must(n.host.SetOffloads("eth0", map[string]bool{"tx-checksum-ip-generic": false}))
	}
	c.a.start("vxlane-flanneld", "--ip-masq")
	c.b.start(second)
	backend := netip.AddrPortFrom(c.b.podAddr(), 5300)
	c.a.nat(kind, backend)
	c.ping(c.a.pod, c.b.podAddr(), 56)
	var server *net.UDPConn
	c.must(c.b.pod.Run(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(backend))
		return err
	}))
	defer server.Close()
	go serveDNS(server)
	service, port := netip.MustParseAddrPort(serviceAddress+":53"), netip.AddrPortFrom(netip.MustParseAddr("172.30.0.1"), nodePort)
	for _, from := range []struct {
		h  *lab.Host
		at netip.AddrPort
	}{{c.a.pod, service}, {c.a.host, service}, {c.hub, port}, {c.a.pod, port}} {
		resolver := net.Resolver{PreferGo: true, Dial: func(_ context.Context, _, _ string) (conn net.Conn, err error) {
			err = from.h.Run(func() error { conn, err = net.Dial("udp", from.at.String()); return err })
			return conn, err
		}}
		for i := range 20 {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second) // a resolver asks again after five
			got, err := resolver.LookupHost(ctx, fmt.Sprintf("name%d.test.", i))
			cancel()
			if err != nil || !slices.Equal(got, []string{"192.0.2.7"}) {
				t.Errorf("DNS from %s at %s: %q, %v\n%s", from.h.Name(), from.at, got, err, c.logs())
				break
			}
		}
		c.caller(from.h, c.b.pod, from.at, backend)
	}
	if got := c.caller(c.a.pod, c.b.pod, service, backend); got != c.a.podAddr() {
		t.Errorf("through the Service, pod-a is seen as %s", got)
	}
	for _, h := range []*lab.Host{c.a.host, c.b.host, c.a.pod, c.b.pod, c.hub} {
		if n, err := badChecksums(h); err != nil || n != "0" {
			t.Errorf("%s: %s datagrams with a bad checksum, %v", h.Name(), n, err)
		}
	}
}
