package encap

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// gopacket builds the packets of these tests, so that nothing here is judged by itself.

func serialize(tb testing.TB, stack ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		tb.Fatal(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

var (
	macA = MAC{2, 0, 0, 0, 0, 0xa}
	macB = MAC{2, 0, 0, 0, 0, 0xb}

	v4A = netip.MustParseAddr("10.99.0.1")
	v4B = netip.MustParseAddr("10.99.0.2")
	v6A = netip.MustParseAddr("fd99::1")
	v6B = netip.MustParseAddr("fd99::2")
)

func ethernet(t layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{DstMAC: net.HardwareAddr(macB[:]), SrcMAC: net.HardwareAddr(macA[:]), EthernetType: t}
}

func ip4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Id: 7, Protocol: proto, SrcIP: v4A.AsSlice(), DstIP: v4B.AsSlice()}
}

func ip6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: v6A.AsSlice(), DstIP: v6B.AsSlice()}
}

// udp4, udp6, tcp4 and tcp6 return packets with the given payload.
func udp4(tb testing.TB, payload []byte) []byte {
	ip := ip4(layers.IPProtocolUDP)
	u := &layers.UDP{SrcPort: 1000, DstPort: 2000}
	_ = u.SetNetworkLayerForChecksum(ip)
	return zeroIsAllOnes(serialize(tb, ip, u, gopacket.Payload(payload)), 26)
}

func udp6(tb testing.TB, payload []byte) []byte {
	ip := ip6(layers.IPProtocolUDP)
	u := &layers.UDP{SrcPort: 1000, DstPort: 2000}
	_ = u.SetNetworkLayerForChecksum(ip)
	return zeroIsAllOnes(serialize(tb, ip, u, gopacket.Payload(payload)), 46)
}

// zeroIsAllOnes writes a UDP checksum that came to zero as RFC 768 has it; gopacket leaves the zero, which says that there is none.
func zeroIsAllOnes(packet []byte, field int) []byte {
	if packet[field]|packet[field+1] == 0 {
		packet[field], packet[field+1] = 0xff, 0xff
	}
	return packet
}

func tcpHeader() *layers.TCP {
	return &layers.TCP{SrcPort: 1000, DstPort: 2000, Seq: 0xfffffff0, Ack: 5, ACK: true, PSH: true, FIN: true, CWR: true, Window: 500,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}}}
}

func tcp4(tb testing.TB, payload []byte) []byte {
	ip, tcp := ip4(layers.IPProtocolTCP), tcpHeader()
	_ = tcp.SetNetworkLayerForChecksum(ip)
	return serialize(tb, ip, tcp, gopacket.Payload(payload))
}

func tcp6(tb testing.TB, payload []byte) []byte {
	ip, tcp := ip6(layers.IPProtocolTCP), tcpHeader()
	_ = tcp.SetNetworkLayerForChecksum(ip)
	return serialize(tb, ip, tcp, gopacket.Payload(payload))
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// newRand returns a generator whose seed a failing test prints.
func newRand(tb testing.TB) *rand.Rand {
	seed := rand.Uint64()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("random seed: %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 1))
}

// mustParseIP parses a packet that must be right.
func mustParseIP(tb testing.TB, packet []byte) *Headers {
	tb.Helper()
	h := new(Headers)
	if r := ParseIP(packet, h); r != None {
		tb.Fatalf("parse %x: %s", packet, r)
	}
	return h
}

// splittable are the kinds of packet that a super-packet can be.
var splittable = []struct {
	name  string
	build func(testing.TB, []byte) []byte
	gso   GSO
}{{"tcp4", tcp4, GSOTCP}, {"tcp6", tcp6, GSOTCP}, {"udp4", udp4, GSOUDP}, {"udp6", udp6, GSOUDP}}
