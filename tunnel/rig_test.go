package tunnel_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/tunnel"
	"github.com/vxlane/vxlane/tunnel/tunneltest"
)

var (
	ourMAC  = encap.MAC{2, 5: 1}
	peerMAC = encap.MAC{2, 5: 2}

	peerAddr = netip.MustParseAddr("172.30.0.2")
)

// rig is a tunnel between ends in memory: local 172.30.0.1, overlay 10.99.0.1/24 and fd99::1/64; peer hb at 172.30.0.2
// has 10.99.0.2, fd99::2 and 10.244.2.0/24; peer hc at 172.30.0.3 has 10.99.0.3 and its MAC is asked for.
type rig struct {
	t        *testing.T
	tunnel   *tunnel.Tunnel
	device   *tunneltest.Device
	underlay *tunneltest.Underlay
	stop     func() error
}

func rigConfig() tunnel.Config {
	return tunnel.Config{
		Framing: encap.FramingVXLAN, VNI: 1, MAC: ourMAC, Local: netip.MustParseAddr("172.30.0.1"), Port: 8472, MTU: 1450,
		TOSInherit: true, OuterCheck: tunnel.CheckEnforce, InnerCheck: tunnel.CheckEnforce,
		Scheduler: tunnel.Scheduler{NewWaiter: tunneltest.NewWaiter},
	}
}

func rigPeers() []routing.Peer {
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	return []routing.Peer{
		{Name: "hb", Endpoint: netip.MustParseAddrPort("172.30.0.2:8472"), MAC: peerMAC, AllowedIPs: prefixes("10.99.0.2/32", "fd99::2/128", "10.244.2.0/24")},
		{Name: "hc", Endpoint: netip.MustParseAddrPort("172.30.0.3:8472"), AllowedIPs: prefixes("10.99.0.3/32")},
	}
}

// newRig returns a rig that has not been started.
func newRig(t *testing.T, cfg tunnel.Config) *rig {
	t.Helper()
	r := &rig{t: t, device: tunneltest.NewDevice(1), underlay: tunneltest.NewUnderlay(1)}
	var err error
	if r.tunnel, err = tunnel.New(cfg, r.device, r.underlay); err != nil {
		t.Fatal(err)
	}
	r.tunnel.SetAddresses([]netip.Prefix{netip.MustParsePrefix("10.99.0.1/24"), netip.MustParsePrefix("fd99::1/64")})
	peers := rigPeers()
	if cfg.Framing == encap.FramingFlannelUDP {
		peers[0].AllowedIPs = append(peers[0].AllowedIPs[:1], peers[0].AllowedIPs[2:]...)
	}
	if _, err := r.tunnel.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	return r
}

// start runs the tunnel until the test ends.
func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.tunnel.Run(ctx) }()
	stopped := false
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	r.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			r.t.Error(err)
		}
		r.conserved()
	})
}

// conserved holds the rule that every packet which entered has exactly one fate.
func (r *rig) conserved() {
	r.t.Helper()
	s := r.tunnel.Stats()
	for d, f := range map[string]tunnel.Flow{"encap": s.Encap, "decap": s.Decap} {
		if f.Received != f.Delivered+f.Consumed+f.Dropped+f.Held {
			r.t.Errorf("%s: %d received, %d delivered, %d consumed, %d dropped, %d held", d, f.Received, f.Delivered, f.Consumed, f.Dropped, f.Held)
		}
	}
}

func serialize(tb testing.TB, stack ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		tb.Fatal(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

type packetOption func(ip4 *layers.IPv4, ip6 *layers.IPv6)

func withTOS(tos uint8) packetOption {
	return func(ip4 *layers.IPv4, ip6 *layers.IPv6) { ip4.TOS, ip6.TrafficClass = tos, tos }
}

func withTTL(ttl uint8) packetOption {
	return func(ip4 *layers.IPv4, ip6 *layers.IPv6) { ip4.TTL, ip6.HopLimit = ttl, ttl }
}

// udp returns a UDP packet from port 1000 to dport.
func udp(tb testing.TB, src, dst string, dport uint16, payload []byte, options ...packetOption) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	ip4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
	for _, o := range options {
		o(ip4, ip6)
	}
	u := &layers.UDP{SrcPort: 1000, DstPort: layers.UDPPort(dport)}
	if s.Is4() {
		_ = u.SetNetworkLayerForChecksum(ip4)
		return serialize(tb, ip4, u, gopacket.Payload(payload))
	}
	_ = u.SetNetworkLayerForChecksum(ip6)
	return serialize(tb, ip6, u, gopacket.Payload(payload))
}

func tcp(tb testing.TB, src, dst string, payload []byte) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice()}
	h := &layers.TCP{SrcPort: 1000, DstPort: 2000, Seq: 7, ACK: true, PSH: true, Window: 100}
	_ = h.SetNetworkLayerForChecksum(ip)
	return serialize(tb, ip, h, gopacket.Payload(payload))
}

// frame puts a packet into a VXLAN datagram as peer hb would send it; the options change that.
func frame(packet []byte, edit ...func(datagram []byte)) []byte {
	d := make([]byte, 22, 22+len(packet))
	encap.PutVXLAN(d, 1)
	copy(d[8:], ourMAC[:])
	copy(d[14:], peerMAC[:])
	d[20], d[21] = 0x08, 0x00
	if len(packet) > 0 && packet[0]>>4 == 6 {
		d[20], d[21] = 0x86, 0xdd
	}
	d = append(d, packet...)
	for _, e := range edit {
		e(d)
	}
	return d
}

func setByte(at int, v byte) func([]byte) { return func(d []byte) { d[at] = v } }
