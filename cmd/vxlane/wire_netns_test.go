//go:build netns

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/encap"
)

// framesDuring returns what host b's eth0 carried while f ran; at full speed not all of it.
func (p *pair) framesDuring(f func()) [][]byte {
	p.t.Helper()
	file := filepath.Join(p.dir, fmt.Sprintf("%d.pcap", time.Now().UnixNano()))
	stop, err := p.b.Capture("eth0", file)
	if err != nil {
		p.t.Fatal(err)
	}
	f()
	missed, err := stop()
	if err != nil {
		p.t.Fatal(err)
	}
	if missed > 0 {
		p.t.Logf("the capture missed %d frames", missed)
	}
	in, err := os.Open(file)
	if err != nil {
		p.t.Fatal(err)
	}
	defer in.Close()
	r, err := pcapgo.NewReader(in)
	if err != nil {
		p.t.Fatal(err)
	}
	var frames [][]byte
	for {
		data, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return frames
		}
		if err != nil {
			p.t.Fatal(err)
		}
		frames = append(frames, data)
	}
}

// sendUDP sends one packet from host a through the tunnel to each of the given source ports' flows.
func (p *pair) sendUDP(dst string, tos int, df bool, ports ...int) {
	p.t.Helper()
	err := p.a.Run(func() error {
		for _, port := range ports {
			conn, err := net.DialUDP("udp", &net.UDPAddr{Port: port}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(dst)))
			if err != nil {
				return err
			}
			raw, err := conn.SyscallConn()
			if err != nil {
				return err
			}
			var optErr error
			err = raw.Control(func(fd uintptr) {
				discover := unix.IP_PMTUDISC_DONT
				if df {
					discover = unix.IP_PMTUDISC_DO
				}
				if strings.HasPrefix(dst, "[") {
					optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
					return
				}
				optErr = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, 33))
			})
			_, writeErr := conn.Write([]byte("payload"))
			if err := errors.Join(err, optErr, writeErr, conn.Close()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// outer is the outer header of a datagram that carried UDP to port 9, from port flow.
type outer struct {
	flow     uint16
	src      string
	tos, ttl uint8
	df       bool
	sport    uint16
	checksum uint16
	sumRight bool
}

// outerHeaders returns the outer headers of the datagrams that host a sent and that carry UDP.
func outerHeaders(t *testing.T, frames [][]byte) (out []outer) {
	t.Helper()
	for _, frame := range frames {
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if udp == nil || udp.DstPort != 8472 {
			continue
		}
		var h encap.Headers
		if _, r := encap.NewVXLANIP(1, encap.StrictBits).Decap(udp.Payload, &h); r != encap.None || h.DstPort != 9 {
			continue
		}
		o := outer{flow: h.SrcPort, sport: uint16(udp.SrcPort), checksum: udp.Checksum}
		if ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok {
			o.src, o.tos, o.ttl, o.df = ip.SrcIP.String(), ip.TOS, ip.TTL, ip.Flags&layers.IPv4DontFragment != 0
		} else if ip, ok := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6); ok {
			o.src, o.tos, o.ttl = ip.SrcIP.String(), ip.TrafficClass, ip.HopLimit
		}
		var oh encap.Headers
		if encap.ParseFrame(frame, &oh) == encap.None {
			o.sumRight = encap.InspectChecksum(frame, &oh) == encap.ChecksumWhole
		}
		out = append(out, o)
	}
	return out
}

// What underlay.* says is what the wire shows.
func TestOuterHeader(t *testing.T) {
	const template = `
version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: "%s", %s}
    peers: [{endpoint: "%s", mac: 02:00:00:00:00:02, allowed_ips: [10.99.0.2, "fd99::2"]}]
`
	const v4, v6 = "10.99.0.2:9", "[fd99::2]:9"
	for _, c := range []struct {
		name, keys, dst string
		overV6, df      bool
		tos             int
		want            outer
	}{
		{"defaults", "tos: inherit", v4, false, true, 0xb9, outer{tos: 0xb9, ttl: 64, sumRight: true}},
		{"inner IPv6", "tos: inherit", v6, false, true, 0xb9, outer{tos: 0xb9, ttl: 64, sumRight: true}},
		{"fixed", "ttl: 7, tos: 0x48, df: set", v4, false, false, 0xb9, outer{tos: 0x49, ttl: 7, df: true, sumRight: true}},
		{"inherited", "ttl: inherit, df: inherit", v4, false, true, 0x02, outer{tos: 0x02, ttl: 33, df: true, sumRight: true}},
		{"inherited, DF clear", "ttl: inherit, df: inherit", v4, false, false, 0x03, outer{tos: 0x03, ttl: 33, sumRight: true}},
		{"inherited from IPv6", "df: inherit", v6, false, false, 0, outer{ttl: 64, df: true, sumRight: true}},
		{"no checksum", "checksum: false", v4, false, false, 0, outer{ttl: 64}},
		{"over IPv6", "ttl: 9", v4, true, false, 0xb9, outer{tos: 0xb9, ttl: 9, sumRight: true}},
		{"over IPv6, no checksum", "zero_checksum6: {tx: true}", v6, true, false, 0, outer{ttl: 64}},
		{"over IPv6, checksum is IPv4's", "checksum: false", v6, true, false, 0, outer{ttl: 64, sumRight: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, wire{Offloads: noOffloads})
			local, remote := "172.30.0.1", "172.30.0.2"
			if c.overV6 {
				local, remote = "fd30::1", "fd30::2"
			}
			d := p.start(p.a, "--config", p.config(fmt.Sprintf(template, local, c.keys, remote)))
			frames := p.framesDuring(func() { p.sendUDP(c.dst, c.tos, c.df, 5001) })
			got := outerHeaders(t, frames)
			if len(got) != 1 {
				t.Fatalf("%d datagrams", len(got))
			}
			c.want.src, c.want.flow, c.want.sport = local, 5001, got[0].sport
			if c.want.sumRight {
				c.want.checksum = got[0].checksum
			}
			if got[0] != c.want {
				t.Errorf("got  %+v\nwant %+v", got[0], c.want)
			}
			if got[0].sport < 32768 || got[0].sport > 60999 {
				t.Errorf("source port %d is outside the range", got[0].sport)
			}
			d.stop()
		})
	}
}

// Many flows, few ports, and each flow keeps its own.
func TestSourcePortsOnTheWire(t *testing.T) {
	p := newPair(t, wire{Offloads: noOffloads}) // else trains cross it whole
	d := p.start(p.a, "--config", p.config(`
version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24]}
    underlay: {local: 172.30.0.1, source_ports: {range: 50000-50007, buckets: 8}}
    peers: [{endpoint: 172.30.0.2, mac: 02:00:00:00:00:02, allowed_ips: [10.99.0.2]}]
`))
	var flows []int
	for i := range 40 {
		flows = append(flows, 6000+i)
	}
	frames := p.framesDuring(func() {
		p.sendUDP("10.99.0.2:9", 0, false, flows...)
		p.sendUDP("10.99.0.2:9", 0, false, flows...)
	})
	got := outerHeaders(t, frames)
	if len(got) != 80 {
		t.Fatalf("%d datagrams, want 80", len(got))
	}
	used, ports := make(map[uint16]bool), make(map[uint16]uint16)
	for _, o := range got {
		if before, ok := ports[o.flow]; o.sport < 50000 || o.sport > 50007 || ok && before != o.sport {
			t.Errorf("flow %d: port %d, it had %d", o.flow, o.sport, before)
		}
		used[o.sport], ports[o.flow] = true, o.sport
	}
	if len(used) < 5 {
		t.Errorf("40 flows use %d of 8 ports", len(used))
	}
	d.stop()
}

// The packets of a flow arrive in order, while traffic flows both ways over several queues.
func TestOrderWithinAFlow(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, "--config", p.config(`
version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24, "fd99::1/64"], queues: 4}
    underlay: {local: 172.30.0.1}
    peers: [{endpoint: 172.30.0.2, allowed_ips: [10.99.0.2, "fd99::2"]}]
`))
	p.addKernelPeer()
	p.pingAll(56)
	if n := d.status().Device.Queues; n != 4 {
		t.Errorf("%d queues, want the 4 that were asked for", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, to := range overlayB {
		r, err := traffic.Echo(ctx, p.a, p.b, to, 16, 2500, traffic.Briskly)
		if err != nil {
			t.Fatal(err)
		}
		if r.Reordered != 0 || r.Duplicated != 0 || r.Corrupted != 0 || r.Received < r.Sent*99/100 {
			t.Errorf("to %s: %+v", to, r)
		}
		t.Logf("to %s: %+v", to, r)
	}
	d.stop()
}

// A device that is not told has a queue for every two cores: the others are left to those whose packets it moves.
func TestQueuesByDefault(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	if n, want := d.status().Device.Queues, max(1, runtime.NumCPU()/2); n != want {
		t.Errorf("%d queues, want %d", n, want)
	}
	d.stop()
}

var number = regexp.MustCompile(`[-+0-9.eE]+$`)

// The whole scrape, with the numbers taken out.
func TestScrape(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs("--metrics", "127.0.0.1:9472", "--mac", "02:00:00:00:00:01")...)
	p.addKernelPeer(func(v *lab.VXLAN) { v.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 2} })
	p.pingAll(56)
	text := p.get("http://127.0.0.1:9472/metrics")
	for _, want := range []string{`vxlane_packets_total{direction="encap",vni="1"}`, `vxlane_peer_up{peer="b"} 1`, "go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing", want)
		}
	}
	var lines []string
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "vxlane_") && !strings.HasPrefix(line, "vxlane_build_info") {
			lines = append(lines, number.ReplaceAllString(line, "N"))
		} else if strings.HasPrefix(line, "# ") && strings.Contains(line, " vxlane_") {
			lines = append(lines, line)
		}
	}
	got := strings.Join(lines, "\n") + "\n"
	const golden = "testdata/scrape.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the scrape is not %s (write it anew with -update):\n%s", golden, got)
	}
	d.stop()
}

// get fetches a page inside host a.
func (p *pair) get(url string) string {
	p.t.Helper()
	var body []byte
	client := http.Client{Transport: &http.Transport{DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
		err = p.a.Run(func() error {
			conn, err = net.Dial(network, address)
			return err
		})
		return conn, err
	}}}
	resp, err := client.Get(url)
	if err == nil {
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return string(body)
}

// A captured datagram is traced as it would fare now.
func TestTraceOfACapture(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	p.addKernelPeer()
	file := filepath.Join(p.dir, "trace.pcap")
	stop, err := p.b.Capture("eth0", file)
	if err != nil {
		t.Fatal(err)
	}
	p.ping(p.b, overlayA[0], 56)
	if missed, err := stop(); missed != 0 || err != nil {
		t.Fatalf("the capture missed %d frames: %v", missed, err)
	}
	var outputs []string
	for n := 1; n < 30; n++ {
		var out bytes.Buffer
		code := run(context.Background(), []string{"trace", "--socket", filepath.Join(p.dir, "a.sock"), fmt.Sprintf("%s:%d", file, n)}, nil, &out, &out)
		if code == cli.ExitUsage && strings.Contains(out.String(), "there is no number") {
			break
		}
		outputs = append(outputs, out.String())
	}
	for _, want := range []string{"decap         icmp 10.99.0.2 -> 10.99.0.1", "encap         icmp 10.99.0.1 -> 10.99.0.2"} {
		if !slices.ContainsFunc(outputs, func(s string) bool { return strings.HasPrefix(s, want) && strings.Contains(s, "deliver") }) {
			t.Errorf("%q is not among\n%s", want, strings.Join(outputs, "\n"))
		}
	}
	d.stop()
}

func TestDemo(t *testing.T) {
	needLab(t)
	out, err := exec.Command("vxlane", "demo").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"ping  a -> b  10.99.0.2", "ping  b -> a  fd99::1", "tcp   b -> a", "every byte checked", "delivered", "dropped, by reason", "all of it is removed again"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	out, err = exec.Command("vxlane", "demo", "--keep").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "nsenter --net=/run/netns/vxlane-demo.b") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat("/run/netns/vxlane-demo.a"); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("vxlane", "demo").CombinedOutput(); err == nil || !strings.Contains(string(out), "vxlane demo --remove") {
		t.Errorf("a second demo beside one that is kept: %v\n%s", err, out)
	}
	if out, err := exec.Command("vxlane", "demo", "--remove").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, path := range []string{"/run/netns/vxlane-demo.a", "/run/netns/vxlane-demo.b", "/run/vxlane-lab/vxlane-demo.json", "/run/vxlane-lab/vxlane-demo.a.log"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}
