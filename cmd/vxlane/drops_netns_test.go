//go:build netns

package main

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/encap"
)

// injector sends datagrams of any shape from host b to the tunnel in host a.
type injector struct {
	p    *pair
	d    *running
	conn *net.UDPConn
}

func newInjector(p *pair, d *running, source string) *injector {
	p.t.Helper()
	in := &injector{p: p, d: d}
	err := p.b.Run(func() (err error) {
		in.conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(source)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("172.30.0.1:8472")))
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = in.conn.Close() })
	return in
}

// expect sends datagrams and waits until each of them is counted under reason, or delivered when it is empty.
func (in *injector) expect(what, reason string, datagrams ...[]byte) {
	in.p.t.Helper()
	count := func() uint64 {
		s := in.d.stats().Decap
		if reason == "" {
			return s.Delivered
		}
		return s.Reasons[reason]
	}
	before := count()
	for _, d := range datagrams {
		if _, err := in.conn.Write(d); err != nil {
			in.p.t.Fatal(err)
		}
	}
	want := before + uint64(len(datagrams))
	for deadline := time.Now().Add(patience / 4); count() != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			in.p.t.Errorf("%s: %d counted as %q, want %d", what, count()-before, reason, len(datagrams))
			return
		}
	}
}

// vxlanDatagram is what a peer with MAC 02:00:00:00:00:02 sends from inner to 10.99.0.1, for the VTEP with MAC dst.
func vxlanDatagram(t *testing.T, dst encap.MAC, inner string) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.ParseIP(inner), DstIP: net.ParseIP("10.99.0.1")}
	udp := &layers.UDP{SrcPort: 9, DstPort: 9}
	_ = udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.VXLAN{ValidIDFlag: true, VNI: 1},
		&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, DstMAC: net.HardwareAddr(dst[:]), EthernetType: layers.EthernetTypeIPv4},
		ip, udp, gopacket.Payload("payload"))
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()[:8+14+20+8+len("payload")] // without gopacket's padding to 60 bytes
}

// Each way in which a datagram can be wrong is counted under its own reason, and the tunnel goes on.
func TestWrongDatagramsAreCounted(t *testing.T) {
	p := newPair(t, wire{})
	vtep := encap.MAC{2, 5: 1}
	d := p.start(p.a, upArgs("--mac", vtep.String())...)
	must(t, p.b.Sysctl("net.ipv6.conf.default.disable_ipv6", "1")) // what a link-local address sends by itself would be counted too
	p.addKernelPeer(func(v *lab.VXLAN) { v.Addresses = prefixes("10.99.0.2/24") })
	p.ping(p.a, overlayB[0], 56)
	p.ping(p.b, overlayA[0], 56)
	in := newInjector(p, d, "172.30.0.2:40000")
	good := vxlanDatagram(t, vtep, "10.99.0.2")
	edit := func(at int, xor byte) []byte {
		b := append([]byte(nil), good...)
		b[at] ^= xor
		return b
	}
	in.expect("a good one", "", good)

	var cut [][]byte
	for n := range good {
		cut = append(cut, good[:n])
	}
	in.expect("each truncation", "pkt_too_small", cut...)

	var reserved [][]byte
	for bit := range 64 {
		if at := bit / 8; (at < 4 || at == 7) && bit != 4 { // not the VNI's bits, not the I flag (bit 4 from the left)
			reserved = append(reserved, edit(at, 0x80>>(bit%8)))
		}
	}
	if len(reserved) != 39 {
		t.Fatalf("%d reserved bits, want 39", len(reserved))
	}
	in.expect("each reserved bit", "vxlan_invalid_hdr", reserved...)
	gbp, gpe := edit(0, 0x80), edit(0, 0x04)
	gbp[3], gpe[3] = 7, 1
	in.expect("GBP and GPE", "extension_not_enabled", gbp, gpe)
	in.expect("no I flag", "vxlan_invalid_hdr", edit(0, 0x08))
	in.expect("another VNI", "vxlan_vni_not_found", edit(4, 1), edit(5, 1), edit(6, 2))
	in.expect("a spoofed inner source", "inner_source_not_allowed", vxlanDatagram(t, vtep, "10.99.0.77"), vxlanDatagram(t, vtep, "8.8.8.8"))
	in.expect("our own address as source", "inner_martian", vxlanDatagram(t, vtep, "10.99.0.1"), vxlanDatagram(t, vtep, "127.0.0.1"))
	in.expect("another host's MAC", "otherhost", vxlanDatagram(t, encap.MAC{2, 5: 9}, "10.99.0.2"))
	in.expect("a group as source MAC", "mac_invalid_source", edit(14, 1))
	in.expect("our MAC as source", "local_mac", edit(19, 3))
	in.expect("not IP", "not_ip", edit(20, 0x80))
	in.expect("an IP header of three words", "not_ip", edit(22, 0x06))
	newInjector(p, d, "172.30.0.9:40000").expect("an unknown peer", "peer_unknown", good, good[:30], good)
	in.expect("a good one after all that", "", good)
	must(t, p.b.Sysctl("net.ipv6.conf.vxlan0.disable_ipv6", "0"))
	must(t, p.b.AddAddresses("vxlan0", prefixes("fd99::2/64")...))
	p.pingAll(56)
	d.stop()
}

func TestReservedBitsCanBeIgnored(t *testing.T) {
	p := newPair(t, wire{})
	vtep := encap.MAC{2, 5: 1}
	d := p.start(p.a, "--config", p.config(fmt.Sprintf(`
version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24], mac: "%s"}
    underlay: {local: 172.30.0.1, reserved_bits: ignore, source_check: {outer: false, inner: false}}
    peers: [{endpoint: 172.30.0.2, allowed_ips: [10.99.0.2]}]
`, vtep)))
	good := vxlanDatagram(t, vtep, "10.99.0.77")
	good[0] |= 0x80
	good[7] = 0xff
	newInjector(p, d, "172.30.0.9:40000").expect("reserved bits, unknown source, foreign inner source", "", good)
	d.stop()
}
