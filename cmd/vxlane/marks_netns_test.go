//go:build netns

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/encap"
)

const markedTTL = 33 // of packets that innerFrame makes

// innerFrame is a frame from src to dst with a packet of a kind, from host b's overlay address to host a's or the other way round; UDP
// has the port as its destination.
func innerFrame(t *testing.T, kind string, src, dst net.HardwareAddr, tags []byte, from, to netip.Addr, tos uint8, port uint16) []byte {
	t.Helper()
	udp := &layers.UDP{SrcPort: 9, DstPort: layers.UDPPort(port)}
	packet := []gopacket.SerializableLayer{udp, gopacket.Payload("a payload that needs no padding")}
	etherType := layers.EthernetTypeIPv4
	switch kind {
	case "IPv4":
		ip := &layers.IPv4{Version: 4, TOS: tos, TTL: markedTTL, Protocol: layers.IPProtocolUDP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		packet = append([]gopacket.SerializableLayer{ip}, packet...)
	case "IPv6":
		etherType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, TrafficClass: tos, HopLimit: markedTTL, NextHeader: layers.IPProtocolUDP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		packet = append([]gopacket.SerializableLayer{ip}, packet...)
	case "ARP":
		etherType = layers.EthernetTypeARP
		packet = []gopacket.SerializableLayer{&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
			SourceHwAddress: src, SourceProtAddress: []byte{10, 99, 0, 2}, DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 99, 0, 1},
		}}
	}
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, packet...))
	return slices.Concat(dst, src, tags, binary.BigEndian.AppendUint16(nil, uint16(etherType)), buf.Bytes())
}

var vlanTags = map[string][]byte{"untagged": nil, "in a VLAN": {0x81, 0, 0, 99}, "in two VLANs": {0x88, 0xa8, 0, 7, 0x81, 0, 0, 99}}

// What frames carry decides the outer header as it does for packets, tagged or not; what carries no IP inherits nothing (the kernel's
// l2_tos_ttl_inherit.sh, and test_ttl, test_tos and test_ecn_encap of forwarding/vxlan_bridge_1d.sh and vxlan_bridge_1d_ipv6.sh).
func TestOuterHeaderOfFrames(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		for name, keys := range map[string]string{"inherit": "ttl: inherit, tos: inherit", "fixed": "ttl: 77, tos: 0x48"} {
			t.Run(name+map[bool]string{false: " over IPv4", true: " over IPv6"}[v6], func(t *testing.T) {
				p := newPair(t, wire{Offloads: noOffloads, MTU: 1600})
				local, remote := "172.30.0.1", "172.30.0.2"
				if v6 {
					local, remote = "fd30::1", "fd30::2"
				}
				d := p.start(p.a, "--config", p.write("tap.yaml", fmt.Sprintf("version: 1\ntunnels:\n  - device: {mode: tap}\n    underlay: {local: %q, %s}\n    peers: [{name: b, endpoint: %q, mac: 02:00:00:00:00:02}]\n", local, keys, remote)))
				out, err := p.a.PacketSocket("vxlane0")
				must(t, err)
				defer out.Close()
				src, dst := net.HardwareAddr{2, 0, 0, 0, 0, 9}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
				type sending struct {
					what  string
					frame []byte
					want  outer
				}
				var all []sending
				for tagged, tags := range vlanTags {
					for i, kind := range []string{"IPv4", "IPv6"} {
						for _, tos := range []uint8{0, 0xb8, 0xb9, 0xba, 0xbb} {
							all = append(all, sending{fmt.Sprintf("%s %s, TOS %#x", kind, tagged, tos), innerFrame(t, kind, src, dst, tags, overlayA[i], overlayB[i], tos, 9), outer{tos: tos, ttl: markedTTL}})
						}
					}
					all = append(all, sending{"ARP " + tagged, innerFrame(t, "ARP", src, dst, tags, overlayA[0], overlayB[0], 0, 9), outer{ttl: 64}})
				}
				frames := p.framesDuring(func() {
					for _, s := range all {
						_, err := out.Write(s.frame)
						must(t, err)
					}
					time.Sleep(200 * time.Millisecond)
				})
				for _, s := range all {
					got := frameHeaders(t, frames, s.frame)
					if len(got) != 1 {
						t.Errorf("%s: %d datagrams", s.what, len(got))
						continue
					}
					want := s.want
					want.src, want.sport, want.checksum, want.sumRight = local, got[0].sport, got[0].checksum, true
					if name == "fixed" {
						want.tos, want.ttl = 0x48|want.tos&3, 77
					}
					if got[0] != want {
						t.Errorf("%s:\ngot  %+v\nwant %+v", s.what, got[0], want)
					}
				}
				d.stop()
			})
		}
	}
}

// frameHeaders returns the outer headers of the datagrams that carry a frame.
func frameHeaders(t *testing.T, frames [][]byte, inner []byte) (out []outer) {
	t.Helper()
	for _, frame := range frames {
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if udp == nil || udp.DstPort != 8472 || len(udp.Payload) < 8 || !slices.Equal(udp.Payload[8:], inner) {
			continue
		}
		o := outer{sport: uint16(udp.SrcPort), checksum: udp.Checksum}
		switch ip := p.NetworkLayer().(type) {
		case *layers.IPv4:
			o.src, o.tos, o.ttl, o.df = ip.SrcIP.String(), ip.TOS, ip.TTL, ip.Flags&layers.IPv4DontFragment != 0
		case *layers.IPv6:
			o.src, o.tos, o.ttl = ip.SrcIP.String(), ip.TrafficClass, ip.HopLimit
		}
		var h encap.Headers
		o.sumRight = encap.ParseFrame(frame, &h) == encap.None && encap.InspectChecksum(frame, &h) == encap.ChecksumWhole
		out = append(out, o)
	}
	return out
}

// The full table of RFC 6040 on receipt, where the kernel's socket marks the outer header, over both families, for both, in both
// modes: what the device gives is what the table says, the IPv4 header checksum is mended, and what must be dropped is counted.
func TestECNOnTheWire(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tun", "tap"} {
		for _, v6 := range []bool{false, true} {
			t.Run(mode+map[bool]string{false: " over IPv4", true: " over IPv6"}[v6], func(t *testing.T) {
				p := newPair(t, wire{})
				local, remote := "172.30.0.1", "172.30.0.2"
				if v6 {
					local, remote = "fd30::1", "fd30::2"
				}
				d := p.start(p.a, "--config", p.write("ecn.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mode: %s, mac: 02:00:00:00:00:01, addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: %q}
    peers: [{name: b, endpoint: %q, mac: 02:00:00:00:00:02, allowed_ips: [10.99.0.2, "fd99::2"]}]
`, mode, local, remote)))
				in, err := p.a.PacketSocket("vxlane0")
				must(t, err)
				defer in.Close()
				want, drops := make(map[uint16]uint8), uint64(0)
				for i, kind := range []string{"IPv4", "IPv6"} {
					for inner := range uint8(4) {
						for mark := range uint8(4) {
							port := uint16(1000 + int(inner)*10 + int(mark) + i*100)
							frame := innerFrame(t, kind, net.HardwareAddr{2, 0, 0, 0, 0, 2}, net.HardwareAddr{2, 0, 0, 0, 0, 1}, nil, overlayB[i], overlayA[i], 0x48|inner, port)
							datagram := append(make([]byte, encap.VXLANHeaderLen), frame...)
							encap.PutVXLAN(datagram, 1)
							p.sendWithTOS(p.b, remote, local, datagram, 0xb8|mark)
							if ecn, ok := encap.DecapECN(mark, inner); ok {
								want[port] = 0x48 | ecn
							} else {
								drops++
							}
						}
					}
				}
				got := make(map[uint16]uint8)
				must(t, in.SetReadDeadline(time.Now().Add(patience)))
				for buf := make([]byte, 4096); len(got) < len(want); {
					n, err := in.Read(buf)
					if err != nil {
						t.Fatalf("%d of %d packets came: %v", len(got), len(want), err)
					}
					var h encap.Headers
					parse := encap.ParseIP
					if mode == "tap" {
						parse = encap.ParseFrame
					}
					if parse(buf[:n], &h) == encap.None && h.SrcPort == 9 {
						got[h.DstPort] = h.TOS
						if encap.InspectChecksum(buf[:n], &h) != encap.ChecksumWhole || h.Kind == encap.KindIPv4 && !headerSumRight(buf[h.L3:h.L4]) {
							t.Errorf("port %d: a checksum is wrong", h.DstPort)
						}
					}
				}
				for port, tos := range want {
					if got[port] != tos {
						t.Errorf("inner, outer of %d: TOS %#x, want %#x", port, got[port], tos)
					}
				}
				d.awaitReason("ip_tunnel_ecn", drops)
				if n := d.stats().Decap.OddECN; n != 2*5 {
					t.Errorf("%d packets were found odd, want %d", n, 2*5)
				}
				d.stop()
			})
		}
	}
}

// headerSumRight reports whether an IPv4 header's checksum is right (RFC 1071).
func headerSumRight(header []byte) bool {
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	return uint16(sum)+uint16(sum>>16) == 0xffff
}

// awaitReason waits until so many received packets were dropped for a reason.
func (d *running) awaitReason(reason string, n uint64) {
	d.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if d.stats().Decap.Reasons[reason] == n {
			return
		}
		if time.Now().After(deadline) {
			d.t.Errorf("%s: drops %v, want %d", reason, d.stats().Decap.Reasons, n)
			return
		}
	}
}

// sendWithTOS sends a datagram to the tunnel's port with a TOS or traffic class.
func (p *pair) sendWithTOS(from *lab.Host, src, dst string, datagram []byte, tos uint8) {
	p.t.Helper()
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if netip.MustParseAddr(src).Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	conn := p.dialUDP(from, netip.AddrPortFrom(netip.MustParseAddr(src), 0), netip.AddrPortFrom(netip.MustParseAddr(dst), 8472), level, option, int(tos))
	_, err := conn.Write(datagram)
	must(p.t, err)
}

// What comes with a wrong outer checksum, or over IPv6 with none that was not asked for, is dropped by the kernel and counted there, or here with
// tunnel-gso; what comes with none where that is allowed, or with a right one, is delivered (RFC 7348 section 5, RFC 6935 section 5, RFC 6936 section 4).
func TestOuterChecksumsOnReceipt(t *testing.T) {
	t.Parallel()
	const right, wrong, none, tagged = "right", "wrong", "none", "right, with the tag of a VLAN that is not here"
	for _, c := range []struct {
		name, local, remote, keys string
		taken                     map[string]bool
	}{
		{"IPv4", "172.30.0.1", "172.30.0.2", "", map[string]bool{right: true, none: true}},
		{"IPv6", "fd30::1", "fd30::2", "", map[string]bool{right: true}},
		{"IPv6, rx", "fd30::1", "fd30::2", ", zero_checksum6: {rx: true}", map[string]bool{right: true, none: true}},
		{"IPv6, tx", "fd30::1", "fd30::2", ", zero_checksum6: {tx: true}", map[string]bool{right: true}},
	} {
		for _, way := range []struct {
			tier     string
			offloads map[string]bool
		}{{"udp-gso", noOffloads}, {"tunnel-gso", noOffloads}, {"tunnel-gso", withGRO()}} {
			tier := way.tier
			t.Run(fmt.Sprintf("%s %s, GRO %v", c.name, tier, way.offloads["rx-gro"]), func(t *testing.T) {
				p := newPair(t, wire{Offloads: way.offloads})
				p.needTier(tier)
				d := p.start(p.a, "--config", p.write("sums.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mac: 02:00:00:00:00:01, addresses: [10.99.0.1/24]}
    underlay: {local: %q%s}
    peers: [{name: b, endpoint: %q, mac: 02:00:00:00:00:02, allowed_ips: [10.99.0.2]}]
    tier: %s
`, c.local, c.keys, c.remote, tier)))
				in, err := p.a.PacketSocket("vxlane0")
				must(t, err)
				defer in.Close()
				out, err := p.b.PacketSocket("eth0")
				must(t, err)
				defer out.Close()
				src, err := p.b.MAC("eth0")
				must(t, err)
				dst, err := p.a.MAC("eth0")
				must(t, err)
				got := make(map[string]bool)
				ports := map[uint16]string{2001: right, 2002: wrong, 2003: none, 2004: tagged}
				for port, sum := range ports {
					frame := innerFrame(t, "IPv4", net.HardwareAddr{2, 0, 0, 0, 0, 2}, net.HardwareAddr{2, 0, 0, 0, 0, 1}, nil, overlayB[0], overlayA[0], 0, port)
					datagram := append(make([]byte, encap.VXLANHeaderLen), frame...)
					encap.PutVXLAN(datagram, 1)
					kind, sumAt := "IPv4", encap.EthernetHeaderLen+20+encap.UDPChecksumOffset
					if netip.MustParseAddr(c.local).Is6() {
						kind, sumAt = "IPv6", encap.EthernetHeaderLen+40+encap.UDPChecksumOffset
					}
					outer := outerFrame(t, kind, src, dst, netip.MustParseAddr(c.remote), netip.MustParseAddr(c.local), datagram)
					switch sum {
					case wrong:
						outer[sumAt] ^= 0x40
					case none:
						outer[sumAt], outer[sumAt+1] = 0, 0
					case tagged:
						outer = append(append(bytes.Clone(outer[:12]), 0x81, 0, 0, 99), outer[12:]...)
					}
					_, err := out.Write(outer)
					must(t, err)
				}
				countFrames(t, in, len(c.taken), 100*time.Millisecond, func(packet []byte) bool {
					var h encap.Headers
					if encap.ParseIP(packet, &h) != encap.None || ports[h.DstPort] == "" {
						return false
					}
					got[ports[h.DstPort]] = true
					return true
				})
				for _, sum := range ports {
					if got[sum] != c.taken[sum] {
						t.Errorf("checksum %s: delivered %v, want %v", sum, got[sum], c.taken[sum])
					}
				}
				received, dropped := uint64(len(c.taken)), uint64(0)
				if tier == "tunnel-gso" {
					received, dropped = 3, 3-received
				}
				counted := func() bool {
					s := d.stats().Decap
					return s.Received == received && s.Reasons["udp_csum"] == dropped
				}
				if !soon(counted) {
					s := d.stats().Decap
					t.Errorf("%d datagrams were received, want %d; drops %v, want %d", s.Received, received, s.Reasons, dropped)
				}
				d.stop()
			})
		}
	}
}

// outerFrame is a frame from src to dst with a datagram for the tunnel's port.
func outerFrame(t *testing.T, kind string, src, dst net.HardwareAddr, from, to netip.Addr, payload []byte) []byte {
	t.Helper()
	udp := &layers.UDP{SrcPort: 40000, DstPort: 8472}
	eth := &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: layers.EthernetTypeIPv4}
	var network gopacket.SerializableLayer
	if kind == "IPv4" {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		network = ip
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		network = ip
	}
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, network, udp, gopacket.Payload(payload)))
	return buf.Bytes()
}
