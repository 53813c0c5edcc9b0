//go:build netns

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/cmd/internal/control"
)

// patience is longer than anything here takes on any machine; only failures wait for it.
const patience = 20 * time.Second

func needLab(t *testing.T) {
	t.Helper()
	if err := lab.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
}

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}

// wire says how host a (vxlane) and host b are joined:
//
//	a  172.30.0.1, fd30::1  eth0 ----- eth0  172.30.0.2, fd30::2  b
//	a  10.99.0.1, fd99::1  vxlane0    vxlan0  10.99.0.2, fd99::2  b
type wire struct {
	MTU      int
	Offloads map[string]bool
}

type pair struct {
	t    *testing.T
	lab  *lab.Lab
	a, b *lab.Host
	dir  string
}

func newPair(t *testing.T, w wire) *pair {
	t.Helper()
	return newLab(t, lab.Topology{
		Hosts: []string{"a", "b"},
		Links: []lab.Link{{
			A:   lab.End{Host: "a", Device: "eth0", Addresses: prefixes("172.30.0.1/24", "fd30::1/64")},
			B:   lab.End{Host: "b", Device: "eth0", Addresses: prefixes("172.30.0.2/24", "172.30.0.9/24", "fd30::2/64")},
			MTU: w.MTU, Offloads: w.Offloads,
		}},
	})
}

// newLab builds hosts a, b and others for as long as the test runs.
func newLab(t *testing.T, topology lab.Topology) *pair {
	t.Helper()
	needLab(t)
	l, err := lab.Build(topology)
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, lab: l, a: l.Host("a"), b: l.Host("b"), dir: t.TempDir()}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	p.captureOnFailure()
	return p
}

// captureOnFailure keeps the underlay's frames of a failed test, when VXLANE_TEST_KEEP names a directory for them.
func (p *pair) captureOnFailure() {
	keep := os.Getenv("VXLANE_TEST_KEEP")
	if keep == "" {
		return
	}
	file := filepath.Join(keep, strings.ReplaceAll(p.t.Name(), "/", "-")+".pcap")
	stop, err := p.b.Capture("eth0", file)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		missed, err := stop()
		if err != nil {
			p.t.Error(err)
		}
		if !p.t.Failed() {
			_ = os.Remove(file)
			return
		}
		p.t.Logf("frames on the underlay: %s, %d missed", file, missed)
	})
}

// running is a vxlane up inside a host.
type running struct {
	t      *testing.T
	cmd    *lab.Command
	client *control.Client
	log    string
}

// start runs vxlane up in a host and waits until it is ready.
func (p *pair) start(h *lab.Host, args ...string) *running {
	p.t.Helper()
	d := p.launch(h, args...)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		s, err := d.client.Status(context.Background())
		if err == nil && len(s.Degraded) == 0 {
			return d
		}
		select {
		case <-d.cmd.Done():
			p.t.Fatalf("vxlane up ended: %v\n%s", d.cmd.Wait(), d.output())
		default:
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("vxlane is not ready: %v\n%s", err, d.output())
		}
	}
}

// launch runs vxlane up in a host and does not wait.
func (p *pair) launch(h *lab.Host, args ...string) *running {
	p.t.Helper()
	d := &running{t: p.t, log: filepath.Join(p.dir, fmt.Sprintf("%s-%d.log", h.Name(), time.Now().UnixNano()))}
	f, err := os.Create(d.log)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	socket := filepath.Join(p.dir, h.Name()+".sock")
	cmd := exec.Command("vxlane", append([]string{"up", "--socket", socket}, args...)...)
	cmd.Stdout, cmd.Stderr = f, f
	if d.cmd, err = h.Start(cmd); err != nil {
		p.t.Fatal(err)
	}
	d.client = control.NewClient(socket)
	p.t.Cleanup(func() {
		if p.t.Failed() {
			p.t.Logf("vxlane in host %s wrote:\n%s%s", h.Name(), d.output(), d.drops())
		}
	})
	return d
}

func (d *running) output() string {
	data, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// drops returns the drop tables, for a failed test.
func (d *running) drops() string {
	s, err := d.client.Stats(context.Background())
	if err != nil {
		return ""
	}
	return fmt.Sprintf("encap drops %v, decap drops %v\n", s.Encap.Reasons, s.Decap.Reasons)
}

func (d *running) stats() control.Stats {
	d.t.Helper()
	s, err := d.client.Stats(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// stop ends the running and expects a clean exit; the books must balance before.
func (d *running) stop() {
	d.t.Helper()
	d.balanced()
	if err := d.cmd.Stop(); err != nil {
		d.t.Errorf("vxlane up: %v\n%s", err, d.output())
	}
}

// balanced waits for the traffic to rest, and checks that every packet has one fate.
func (d *running) balanced() {
	d.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		s := d.stats()
		e, f := s.Encap, s.Decap
		if e.Received == e.Delivered+e.Consumed+e.Dropped+e.Held && f.Received == f.Delivered+f.Consumed+f.Dropped+f.Held {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("packets without a fate: encap %+v, decap %+v", e, f)
		}
	}
}

// upArgs are the arguments for host a that every test starts from.
func upArgs(more ...string) []string {
	return append([]string{"--local", "172.30.0.1", "--address", "10.99.0.1/24", "--address", "fd99::1/64",
		"--peer", "name=b,endpoint=172.30.0.2,allowed_ips=10.99.0.2/32,allowed_ips=fd99::2/128"}, more...)
}

// kernelPeer is the other side of upArgs.
func kernelPeer() lab.VXLAN {
	return lab.VXLAN{Device: "vxlan0", ID: 1, Remote: netip.MustParseAddr("172.30.0.1"), Port: 8472, Addresses: prefixes("10.99.0.2/24", "fd99::2/64")}
}

// up6Args is upArgs over IPv6, and overIPv6 makes kernelPeer its other side.
func up6Args(more ...string) []string {
	return append([]string{"--local", "fd30::1", "--address", "10.99.0.1/24", "--address", "fd99::1/64",
		"--peer", "name=b,endpoint=fd30::2,allowed_ips=10.99.0.2/32,allowed_ips=fd99::2/128"}, more...)
}

func overIPv6(v *lab.VXLAN) {
	v.Local, v.Remote, v.Link = netip.MustParseAddr("fd30::2"), netip.MustParseAddr("fd30::1"), "eth0"
}

func (p *pair) addKernelPeer(edit ...func(v *lab.VXLAN)) {
	p.t.Helper()
	v := kernelPeer()
	for _, e := range edit {
		e(&v)
	}
	if err := p.b.AddVXLAN(v); err != nil {
		p.t.Fatal(err)
	}
}

var (
	overlayA = []netip.Addr{netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("fd99::1")}
	overlayB = []netip.Addr{netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("fd99::2")}
)

func (p *pair) ping(from *lab.Host, dst netip.Addr, size int) {
	p.t.Helper()
	if _, err := traffic.Ping(from, dst, size, patience/4); err != nil {
		p.t.Error(err)
	}
}

// pingAll pings both ways over both families.
func (p *pair) pingAll(size int) {
	p.t.Helper()
	for i := range overlayA {
		p.ping(p.a, overlayB[i], size)
		p.ping(p.b, overlayA[i], size)
	}
}

func (p *pair) tcp(from, to *lab.Host, dst netip.Addr, duration time.Duration) traffic.Result {
	p.t.Helper()
	r, err := traffic.TCP(context.Background(), from, to, dst, duration)
	if err != nil {
		p.t.Error(err)
	}
	return r
}

// netstat returns counters of /proc/net/snmp and netstat in a host, such as Tcp.RetransSegs.
func (p *pair) netstat(h *lab.Host) map[string]int64 {
	p.t.Helper()
	counters := make(map[string]int64)
	err := h.Run(func() error {
		for _, file := range []string{"/proc/thread-self/net/snmp", "/proc/thread-self/net/netstat"} {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			for i := 0; i+1 < len(lines); i += 2 {
				names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
				for j := 1; j < len(names) && j < len(values); j++ {
					var v int64
					fmt.Sscan(values[j], &v)
					counters[strings.TrimSuffix(names[0], ":")+"."+names[j]] = v
				}
			}
		}
		data, err := os.ReadFile("/proc/thread-self/net/snmp6")
		for _, line := range strings.Split(string(data), "\n") {
			var name string
			var v int64
			if n, _ := fmt.Sscan(line, &name, &v); n == 2 {
				counters[name] = v
			}
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return counters
}

// healthy checks that since before no host saw a bad checksum or retransmitted more than one segment in a hundred.
func (p *pair) healthy(before map[*lab.Host]map[string]int64) {
	p.t.Helper()
	for h, was := range before {
		now := p.netstat(h)
		for _, name := range []string{"Tcp.InCsumErrors", "Udp.InCsumErrors", "Icmp.InCsumErrors", "Udp6InCsumErrors", "Icmp6InCsumErrors"} {
			if n := now[name] - was[name]; n != 0 {
				p.t.Errorf("host %s: %s rose by %d", h.Name(), name, n)
			}
		}
		out, again := now["Tcp.OutSegs"]-was["Tcp.OutSegs"], now["Tcp.RetransSegs"]-was["Tcp.RetransSegs"]
		if again*100 > out+100 {
			p.t.Errorf("host %s: %d of %d segments were sent again", h.Name(), again, out)
		}
	}
}

func (p *pair) counters() map[*lab.Host]map[string]int64 {
	return map[*lab.Host]map[string]int64{p.a: p.netstat(p.a), p.b: p.netstat(p.b)}
}

// exec runs a command in a host and returns what it printed.
func (p *pair) exec(h *lab.Host, name string, args ...string) string {
	p.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	c, err := h.Start(cmd)
	must(p.t, err)
	if err := c.Wait(); err != nil {
		p.t.Fatalf("%s %s in host %s: %v\n%s", name, strings.Join(args, " "), h.Name(), err, out.String())
	}
	return out.String()
}

// dialUDP opens a connected UDP socket of a host with one socket option set.
func (p *pair) dialUDP(h *lab.Host, local, remote netip.AddrPort, level, option, value int) (conn net.Conn) {
	p.t.Helper()
	dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(local), Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, option, value) })
		return errors.Join(err, set)
	}}
	must(p.t, h.Run(func() (err error) {
		conn, err = dialer.Dial("udp", remote.String())
		return err
	}))
	p.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// soon waits until something holds, and reports whether it came to that.
func soon(holds func() bool) bool {
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// countFrames counts the frames of a kind that a socket gets: it waits for as many as are wanted, then until nothing came for a while.
func countFrames(t *testing.T, s *os.File, want int, quiet time.Duration, ours func(frame []byte) bool) (n int) {
	t.Helper()
	latest := time.Now().Add(patience)
	for buf := make([]byte, 4096); ; {
		deadline := latest
		if n >= want {
			deadline = time.Now().Add(quiet)
		}
		must(t, s.SetReadDeadline(deadline))
		size, err := s.Read(buf)
		if err != nil {
			return n
		}
		if ours(buf[:size]) {
			n++
		}
	}
}
