//go:build netns

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

// swallow keeps a router from sending ICMP of its own: it drops what does not fit, and nobody hears of it.
func (p *pair) swallow(h *lab.Host) {
	p.t.Helper()
	p.exec(h, "ip", "-4", "rule", "add", "iif", "lo", "ipproto", "icmp", "blackhole")
	p.exec(h, "ip", "-6", "rule", "add", "iif", "lo", "ipproto", "ipv6-icmp", "blackhole")
}

// awaitStatus waits until vxlane status says something.
func (d *running) awaitStatus(want string) {
	d.t.Helper()
	var out bytes.Buffer
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		out.Reset()
		s, err := d.client.Status(context.Background())
		if err != nil {
			d.t.Fatal(err)
		}
		if must(d.t, printStatus(&out, s)); strings.Contains(out.String(), want) {
			return
		}
	}
	d.t.Errorf("status has nothing of %q:\n%s", want, out.String())
}

// blackHole is host a's end of narrow: IPv4 with the don't-fragment bit, IPv6 as it is by default.
func (p *pair) blackHole(mode, local, remote string, v6 bool) *running {
	df := "set"
	if v6 {
		df = "unset"
	}
	return p.start(p.a, "--config", p.write("hole.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mode: %s, addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: %q, df: %s}
    peers: [{name: b, endpoint: %q, allowed_ips: [10.99.0.2, "fd99::2"]}]
`, mode, local, df, remote)))
}

// wideMTU is that of a device whose datagrams fit an underlay of 1500 bytes.
func wideMTU(v6 bool) int {
	if v6 {
		return 1430
	}
	return 1450
}

// A hop that takes only 1400 bytes and says nothing of it: the tunnel finds out, and a connection that was stuck goes on.
func TestBlackHoleOnThePath(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		for _, mode := range []string{"tun", "tap"} {
			t.Run(mode+map[bool]string{false: " over IPv4", true: " over IPv6"}[v6], func(t *testing.T) {
				p, local, remote := narrow(t, v6, wideMTU(v6))
				p.swallow(p.lab.Host("r"))
				d := p.blackHole(mode, local, remote, v6)
				for _, to := range overlayB {
					p.ping(p.a, to, 1200)
					begin := time.Now()
					r, err := traffic.TCP(t.Context(), p.a, p.b, to, 1500*time.Millisecond)
					if err != nil || r.Bytes < 1<<20 {
						t.Errorf("%s: %d bytes, %v", to, r.Bytes, err)
					}
					t.Logf("%s: %.0f Mbit/s, %v in all", to, r.BitsPerSecond()/1e6, time.Since(begin))
				}
				d.awaitStatus("black hole to b: of more than 1")
				peers, err := d.client.Peers(t.Context())
				must(t, err)
				if path := peers.Peers[0].Path; !path.BlackHole || path.MTU > 1400 || path.MTU < 1385 || path.Echo != "answered" {
					t.Errorf("path %+v", path)
				}
				d.stop()
			})
		}
	}
}

// The path turns narrow under a connection, which goes on; TestBlackHole says how soon it can.
func TestPathTurnsIntoABlackHole(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			p, local, remote := narrow(t, v6, wideMTU(v6))
			r := p.lab.Host("r")
			must(t, r.SetMTU("eth1", 1500))
			must(t, p.b.SetMTU("eth0", 1500))
			p.swallow(r)
			d := p.blackHole("tun", local, remote, v6)
			done := make(chan error, 1)
			go func() {
				_, err := traffic.TCP(context.WithoutCancel(t.Context()), p.a, p.b, overlayB[0], 5*time.Second)
				done <- err
			}()
			var last int64
			var longest time.Duration
			begin, moved, narrowed := time.Now(), time.Now(), false
			for running := true; running; {
				select {
				case err := <-done:
					must(t, err)
					running = false
				case <-time.After(20 * time.Millisecond):
				}
				if !narrowed && time.Since(begin) > 1500*time.Millisecond {
					must(t, r.SetMTU("eth1", 1400))
					moved, narrowed = time.Now(), true
				}
				n := p.netstat(p.b)["Tcp.InSegs"]
				if n != last && narrowed {
					longest = max(longest, time.Since(moved))
				}
				if n != last {
					last, moved = n, time.Now()
				}
			}
			t.Logf("longest silence %v", longest)
			if stuck := time.Since(moved); stuck > time.Second {
				t.Errorf("nothing has arrived for %v", stuck)
			}
			d.awaitStatus("black hole to b: of more than 1")
			d.stop()
		})
	}
}

// A peer that answers no echo is named: nothing could be found out about the way there.
func TestPeerWithoutEcho(t *testing.T) {
	t.Parallel()
	p, local, remote := narrow(t, false, wideMTU(false))
	must(t, p.b.Sysctl("net.ipv4.icmp_echo_ignore_all", "1"))
	d := p.blackHole("tun", local, remote, false)
	p.sendUDP("10.99.0.2:9", 0, false, 5001, 5002)
	err := p.a.Run(func() error { return sendLarge("10.99.0.2:9") })
	must(t, err)
	d.awaitStatus("no answer to ICMP echo from b: a black hole on the way there would not be found")
	if s := d.status(); len(s.Degraded) != 0 {
		t.Errorf("degraded: %v", s.Degraded)
	}
	d.stop()
}

// sendLarge sends a datagram of 1300 bytes.
func sendLarge(to string) error {
	conn, err := net.Dial("udp", to)
	if err != nil {
		return err
	}
	_, err = conn.Write(make([]byte, 1300))
	return errors.Join(err, conn.Close())
}
