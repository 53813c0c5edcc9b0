//go:build netns

package load

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
)

// twoHosts is
//
//	a 172.30.0.1 ── eth0 ═══ eth0 ── b 172.30.0.2
func twoHosts(t *testing.T) Path {
	a, b := netip.MustParsePrefix("172.30.0.1/24"), netip.MustParsePrefix("172.30.0.2/24")
	l, err := lab.Build(lab.Topology{Hosts: []string{"a", "b"}, Links: []lab.Link{{
		A: lab.End{Host: "a", Device: "eth0", Addresses: []netip.Prefix{a}}, B: lab.End{Host: "b", Device: "eth0", Addresses: []netip.Prefix{b}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return Path{From: l.Host("a"), To: l.Host("b"), Src: a.Addr(), Dst: b.Addr()}
}

var testPhases = []Phase{{Length: 50 * time.Millisecond}, {Length: 500 * time.Millisecond}}

// Every generator moves something over a bare link, and counts what it moved.
func TestGenerators(t *testing.T) {
	p := twoHosts(t)
	t.Run("bulk", func(t *testing.T) {
		r, err := Bulk(t.Context(), []Path{p, p, p.Reverse()}, testPhases)
		if err != nil {
			t.Fatal(err)
		}
		m := r.Counts[1]
		if m.Idle() > 0 || len(m.PerPath) != 3 || m.Bytes != m.PerPath[0]+m.PerPath[1]+m.PerPath[2] || r.SegmentSize < 1000 {
			t.Errorf("%+v, segments of %d bytes", m, r.SegmentSize)
		}
	})
	t.Run("datagrams", func(t *testing.T) {
		for _, flows := range []int{1, 16, 256} {
			for _, pause := range []time.Duration{0, ReceivePause} {
				r, err := Send(t.Context(), p, Datagrams{Flows: flows, Sizes: IMIX, Pause: pause}, testPhases)
				if err != nil {
					t.Fatal(err)
				}
				if r.Received == 0 || r.Received > r.Sent || r.Counts[1].Packets == 0 {
					t.Errorf("%d flows, receiver pausing for %s: %+v", flows, pause, r)
				}
			}
		}
	})
	t.Run("paced datagrams", func(t *testing.T) {
		const rate = 5000
		r, err := Send(t.Context(), p, Datagrams{Flows: 1, Sizes: []int{64}, Rate: rate}, testPhases)
		if err != nil {
			t.Fatal(err)
		}
		if most := 1.2 * rate * r.Counts[1].Elapsed.Seconds(); float64(r.Counts[1].Offered) > most || r.Received != r.Sent {
			t.Errorf("%d of %d packets arrived, %d in the second phase: want all, and %.0f at most", r.Received, r.Sent, r.Counts[1].Offered, most)
		}
	})
	for name, f := range map[string]func() (RoundTrips, error){
		"ping-pong": func() (RoundTrips, error) { return PingPong(t.Context(), p, 64, testPhases, 1) },
		"ping":      func() (RoundTrips, error) { return Ping(t.Context(), p, testPhases, 1) },
		"connect":   func() (RoundTrips, error) { return Connections(t.Context(), p, testPhases, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			r, err := f()
			if err != nil {
				t.Fatal(err)
			}
			if n := r.Histogram.TotalCount(); n == 0 || r.Counts[1].Packets == 0 {
				t.Errorf("%d recorded, %d counted", n, r.Counts[1].Packets)
			}
		})
	}
}

// Streams have the congestion control that is asked for, whatever the machine allows those who may not configure its network.
func TestCongestion(t *testing.T) {
	known, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	p := twoHosts(t)
	for _, name := range strings.Fields(string(known)) {
		p.Congestion = name
		transfer, err := StartBulk([]Path{p, p.Reverse()})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range transfer.streams {
			if got, err := unix.GetsockoptString(s.from, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || got != name {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		transfer.Stop()
	}
	p.Congestion = "nosuch"
	if _, err := Bulk(t.Context(), []Path{p}, testPhases); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a congestion control that does not exist: %v", err)
	}
}

// Where nothing arrives, there is an error that says from where to where, and no zero.
func TestNothingArrives(t *testing.T) {
	p := twoHosts(t)
	if err := p.To.SetDown("eth0"); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"bulk": func() error { _, err := Bulk(t.Context(), []Path{p}, testPhases); return err },
		"datagrams": func() error {
			_, err := Send(t.Context(), p, Datagrams{Flows: 1, Sizes: []int{64}}, testPhases)
			return err
		},
		"ping-pong": func() error { _, err := PingPong(t.Context(), p, 64, testPhases, 1); return err },
		"ping":      func() error { _, err := Ping(t.Context(), p, testPhases, 1); return err },
		"connect":   func() error { _, err := Connections(t.Context(), p, testPhases, 1); return err },
	} {
		err := f()
		if err == nil || !strings.Contains(err.Error(), "from a to b (172.30.0.2)") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIperf3(t *testing.T) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("needs iperf3 (apt-get install iperf3)")
	}
	p := twoHosts(t)
	phases := []Phase{{Length: time.Second}, {Length: time.Second}}
	for _, i := range []Iperf3{{Streams: 2, Bidirectional: true}, {Streams: 2, UDP: true, Size: 512}} {
		r, err := i.Run(t.Context(), p, phases)
		if err != nil {
			t.Fatal(err)
		}
		if r.Bytes == 0 || i.Bidirectional != (r.BytesBack > 0) || i.UDP != (r.Packets > 0) {
			t.Errorf("%+v: %+v", i, r)
		}
	}
	if err := p.To.SetDown("eth0"); err != nil {
		t.Fatal(err)
	}
	if _, err := (Iperf3{Streams: 1}).Run(t.Context(), p, phases); err == nil {
		t.Error("iperf3 over a link that is down has no error")
	}
}
