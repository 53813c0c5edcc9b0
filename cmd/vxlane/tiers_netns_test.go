//go:build netns

package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/tunnel"
)

var tiers = []string{"tunnel-gso", "udp-gso", "portable"}

// Every tier speaks with the kernel's vxlan, whatever the NICs between them can do.
func TestTiersAgainstTheKernel(t *testing.T) {
	for _, tier := range tiers {
		for _, profile := range network.Profiles() {
			t.Run(tier+"/"+profile.Name, func(t *testing.T) {
				p := newPair(t, wire{MTU: profile.MTU, Offloads: profile.Offloads})
				p.needTier(tier)
				d := p.start(p.a, upArgs("--tier", tier)...)
				p.addKernelPeer()
				before := p.counters()
				largest := profile.MTU - 50 - 48 // the headers of the tunnel, and of an echo over IPv6
				for _, size := range []int{0, 56, largest, largest + 1, 20000} {
					p.pingAll(size)
				}
				for i := range overlayA {
					p.tcp(p.a, p.b, overlayB[i], 150*time.Millisecond)
					p.tcp(p.b, p.a, overlayA[i], 150*time.Millisecond)
				}
				for i := range overlayB {
					p.echo(overlayB[i], 4, 500)
				}
				d.hasAll(tier)
				p.healthy(before)
				d.stop()
			})
		}
	}
}

// hasAll wants every feature of a tier still in use that this kernel has, and one line in the log that told of each, at the start.
func (d *running) hasAll(tier string) {
	d.t.Helper()
	features := map[string][]string{
		"udp-gso":    {"tso", "uso", "gso", "gro"},
		"tunnel-gso": {"tso", "uso", "gso", "gro", "tunnel-gso", "outer-receive"},
	}[tier]
	s := d.status()
	if string(s.Tier) != tier {
		d.t.Errorf("tier %s, want %s: %+v", s.Tier, tier, s.Capabilities)
	}
	lines := regexp.MustCompile(`(?m)^.*msg="kernel features".*$`).FindAllString(d.output(), -1)
	if len(lines) != 1 || slices.ContainsFunc(s.Capabilities, func(c tunnel.Capability) bool { return !strings.Contains(lines[0], c.Name) }) {
		d.t.Errorf("the log says of features %q, status %+v", lines, s.Capabilities)
	}
	for _, name := range features {
		if c := capability(s, name); !c.Enabled && (name != "uso" || kernelHas(6, 2)) {
			d.t.Errorf("%s is off: %s", name, c.Reason)
		}
	}
}

// Without outer checksums TCP crosses in every tier, in both directions, to a kernel peer that sends none either.
func TestTiersWithoutOuterChecksum(t *testing.T) {
	for _, tier := range tiers {
		t.Run(tier, func(t *testing.T) {
			p := newPair(t, wire{})
			p.needTier(tier)
			d := p.start(p.a, "--config", p.config(`
version: 1
tunnels:
  - tier: `+tier+`
    device: {addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: 172.30.0.1, checksum: false}
    peers:
      - {name: b, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2/32, "fd99::2/128"]}
`))
			p.addKernelPeer(func(v *lab.VXLAN) { v.NoChecksum = true })
			before := p.counters()
			frames := p.framesDuring(func() {
				for i := range overlayA {
					p.tcp(p.a, p.b, overlayB[i], 100*time.Millisecond)
					p.tcp(p.b, p.a, overlayA[i], 100*time.Millisecond)
				}
			})
			for _, f := range frames {
				udp, ok := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeUDP).(*layers.UDP)
				if ok && udp.DstPort == 8472 && udp.Checksum != 0 {
					t.Fatalf("outer checksum %#x from port %d", udp.Checksum, udp.SrcPort)
				}
			}
			p.healthy(before)
			d.stop()
		})
	}
}

// echo sends UDP packets of mixed sizes to host b and back, each of which must come once, whole, and in its place.
func (p *pair) echo(to netip.Addr, flows, packets int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := traffic.Echo(ctx, p.a, p.b, to, flows, packets, traffic.Briskly)
	if err != nil || r.Reordered != 0 || r.Duplicated != 0 || r.Corrupted != 0 || r.Received < r.Sent*99/100 {
		p.t.Errorf("%+v, %v", r, err)
	}
}

// Frames on a plain wire: none is larger than the MTU, and gopacket computes the same checksums for every one, outer and
// inner, as it has.
func TestFramesOnAPlainWire(t *testing.T) {
	for _, tier := range tiers {
		for _, way := range []struct {
			name, local string
			args        []string
			edit        func(*lab.VXLAN)
		}{
			{"tun", "172.30.0.1", upArgs("--mode", "tun"), func(*lab.VXLAN) {}},
			{"tap", "172.30.0.1", upArgs("--mode", "tap"), func(*lab.VXLAN) {}},
			{"tun over IPv6", "fd30::1", up6Args(), overIPv6},
		} {
			t.Run(tier+" "+way.name, func(t *testing.T) {
				p := newPair(t, wire{Offloads: noOffloads})
				p.needTier(tier)
				d := p.start(p.a, append(way.args, "--tier", tier)...)
				p.addKernelPeer(way.edit)
				p.pingAll(56)
				frames := p.framesDuring(func() {
					for i := range overlayB {
						p.tcp(p.a, p.b, overlayB[i], 30*time.Millisecond)
						p.ping(p.a, overlayB[i], 5000)
						p.echo(overlayB[i], 4, 150)
					}
				})
				checked := 0
				for _, f := range frames {
					if checkFrame(t, f, way.local) {
						checked++
					}
					if t.Failed() {
						break
					}
				}
				if checked < 1000 {
					t.Errorf("only %d of %d frames are ours", checked, len(frames))
				}
				d.stop()
			})
		}
	}
}

// checkFrame holds a frame that host a sent from an address against what gopacket makes of its parts, and reports whether it was one.
func checkFrame(t *testing.T, frame []byte, local string) bool {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if udp == nil || p.NetworkLayer().NetworkFlow().Src().String() != local || udp.DstPort != 8472 {
		return false
	}
	ip := p.NetworkLayer().(gopacket.SerializableLayer)
	vxlan, _ := gopacket.NewPacket(udp.Payload, layers.LayerTypeVXLAN, gopacket.Default).Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
	if len(frame) > 1514 || vxlan == nil {
		t.Errorf("%d bytes: %x", len(frame), frame[:64])
		return true
	}
	_ = udp.SetNetworkLayerForChecksum(p.NetworkLayer())
	if want := serialized(t, ip, udp, udp.Payload); !bytes.Equal(frame[14:14+len(want)], want) {
		t.Errorf("outer headers\n%x, gopacket has\n%x", frame[14:14+28], want[:28])
	}
	checkInner(t, vxlan.Payload)
	return true
}

func checkInner(t *testing.T, frame []byte) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	network, _ := p.NetworkLayer().(gopacket.SerializableLayer)
	transport, _ := p.TransportLayer().(gopacket.SerializableLayer)
	if network == nil || transport == nil || p.Layer(gopacket.LayerTypeFragment) != nil {
		return // ARP, ND, ICMP and fragments have no checksum that is ours
	}
	switch l := transport.(type) {
	case *layers.TCP:
		_ = l.SetNetworkLayerForChecksum(p.NetworkLayer())
	case *layers.UDP:
		_ = l.SetNetworkLayerForChecksum(p.NetworkLayer())
	}
	want := serialized(t, network, transport, p.TransportLayer().LayerPayload())
	if !bytes.Equal(frame[14:14+len(want)], want) {
		t.Errorf("inner headers\n%x, gopacket has\n%x", frame[14:14+60], want[:60])
	}
}

// serialized returns what gopacket makes of a packet, and a UDP checksum that came to zero as RFC 768 has it: gopacket leaves
// the zero, which says that there is none.
func serialized(t *testing.T, network, transport gopacket.SerializableLayer, payload []byte) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, network, transport, gopacket.Payload(payload))
	if err != nil {
		t.Fatal(err)
	}
	out := buf.Bytes()
	if _, ok := transport.(*layers.UDP); ok {
		if sum := out[len(out)-len(payload)-2:][:2]; sum[0]|sum[1] == 0 {
			sum[0], sum[1] = 0xff, 0xff
		}
	}
	return out
}

// soak is how many packets each tier carries in TestAMillionPackets; make soak sets it, and takes hours.
var soak = flag.Int("soak", 0, "packets for each tier, in millions; 0: as many in 16 flows as make test has time for")

// A million numbered packets with checksums, of all sizes and in many flows, through two tunnels and back, over IPv4 and
// IPv6: each arrives once, whole, and in its place; and TCP after them, the only thing that leaves through tunnel-gso's device, each byte as it
// was. With tunnel-gso they come in through two queues of that device instead of a socket.
func TestAMillionPackets(t *testing.T) {
	const flows = 16
	for tier, packets := range map[string]int{"tunnel-gso": 17_000, "udp-gso": 25_000, "portable": 21_000} {
		patience, streaming := 2*time.Minute, 300*time.Millisecond
		if *soak > 0 {
			const slowest = 10_000 // packets a second, far below what any tier carries
			packets = *soak * 1_000_000 / flows
			patience = time.Duration(*soak) * 1_000_000 / slowest * time.Second
			streaming = time.Duration(*soak) * time.Second / 4
		}
		t.Run(tier, func(t *testing.T) {
			p := newPair(t, wire{})
			p.needTier(tier)
			queues := map[string]int{"tunnel-gso": 2}[tier]
			up := func(own, other string) []string {
				return []string{"--config", p.write(own+".yaml", fmt.Sprintf(`version: 1
tunnels:
  - tier: %s
    device: {addresses: [10.99.0.%s/24, "fd99::%s/64"], queues: %d}
    underlay: {local: 172.30.0.%s}
    peers: [{name: far, endpoint: 172.30.0.%s, allowed_ips: [10.99.0.%s, "fd99::%s"]}]
`, tier, own, own, queues, own, other, other, other))}
			}
			a, b := p.start(p.a, up("1", "2")...), p.start(p.b, up("2", "1")...)
			p.pingAll(56)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			for _, to := range overlayB {
				r, err := traffic.Echo(ctx, p.a, p.b, to, flows, packets/2, traffic.Briskly)
				if err != nil {
					t.Fatal(err)
				}
				if r.Reordered != 0 || r.Duplicated != 0 || r.Corrupted != 0 || r.Received < r.Sent*99/100 {
					t.Errorf("%+v", r)
				}
				t.Logf("%+v, and %.1f GB of TCP", r, float64(p.tcp(p.a, p.b, to, streaming/2).Bytes)/1e9)
			}
			a.hasAll(tier)
			b.hasAll(tier)
			a.stop()
			b.stop()
		})
	}
}
