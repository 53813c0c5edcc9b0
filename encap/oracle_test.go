package encap

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// oracleRounds is how many VXLAN headers and how many frames are compared with gopacket.
const oracleRounds = 1_000_000

// gopacket's VXLAN decoder reads what RFC 7348 forbids: it takes a header without the I flag and ignores reserved bits.
// So the comparison is of what each field holds; which headers are refused is worked out here from gopacket's fields and
// the reserved bits, which it does not show.
func TestOracleVXLANHeaders(t *testing.T) {
	rng := newRand(t)
	var vx layers.VXLAN
	b := make([]byte, 8)
	for range oracleRounds {
		randomHeader(rng, b)
		if err := vx.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
			t.Fatal(err)
		}
		reserved := b[0]&^0x08 | b[1] | b[2] | b[3] | b[7]
		strictWant, lenientWant := None, None
		if !vx.ValidIDFlag {
			strictWant, lenientWant = VXLANInvalidHdr, VXLANInvalidHdr
		} else if reserved != 0 {
			strictWant = VXLANInvalidHdr
		}
		switch { // headers that say GBP or GPE, and nothing else
		case b[0] == 0x88 && b[1]&^0x48 == 0 && b[1]|b[2]|b[3] != 0:
			strictWant = ExtensionNotEnabled
		case b[0]&^3 == 0x0c && b[1]|b[2] == 0 && b[3] != 0:
			strictWant = ExtensionNotEnabled
		}
		if b[0]&0x0c == 0x0c && b[3] != 0 {
			lenientWant = ExtensionNotEnabled
		}
		strictVNI, strict := DecodeVXLAN(b, StrictBits)
		lenientVNI, lenient := DecodeVXLAN(b, IgnoreBits)
		if strict != strictWant || lenient != lenientWant {
			t.Fatalf("%x: %s and %s, want %s and %s", b, strict, lenient, strictWant, lenientWant)
		}
		if strict == None && uint32(strictVNI) != vx.VNI || lenient == None && uint32(lenientVNI) != vx.VNI {
			t.Fatalf("%x: VNI %d and %d, gopacket reads %d", b, strictVNI, lenientVNI, vx.VNI)
		}
	}
}

// randomHeader makes headers of which a good part is valid.
func randomHeader(rng *rand.Rand, b []byte) {
	binary.BigEndian.PutUint64(b, rng.Uint64())
	switch rng.UintN(5) {
	case 2:
		b[0], b[1] = 0x88|byte(rng.UintN(2))<<2, b[1]&0x48
	case 0:
		PutVXLAN(b, VNI(rng.Uint32()&vniMax))
	case 1:
		PutVXLAN(b, VNI(rng.Uint32()&vniMax))
		b[rng.UintN(8)] ^= 1 << rng.UintN(8)
	}
}

// oracle is gopacket's view of a frame.
type oracle struct {
	parser  *gopacket.DecodingLayerParser
	decoded []gopacket.LayerType
	eth     layers.Ethernet
	ip4     layers.IPv4
	ip6     layers.IPv6
	tcp     layers.TCP
	udp     layers.UDP
	payload gopacket.Payload
}

func newOracle() *oracle {
	o := new(oracle)
	o.parser = gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &o.eth, &o.ip4, &o.ip6, &o.tcp, &o.udp, &o.payload)
	o.parser.IgnoreUnsupported = true
	return o
}

// Frames are made at random; most are right, the others are cut, or have bytes changed. Whatever we accept, gopacket must
// read in the same way; and what is right, we must accept.
func TestOracleFrames(t *testing.T) {
	rng := newRand(t)
	g := &frameMaker{rng: rng, buf: make([]byte, 0, 512)}
	o := newOracle()
	accepted, withPorts := 0, 0
	for range oracleRounds {
		frame, right := g.next()
		var h Headers
		r := ParseFrame(frame, &h)
		if right && r != None {
			t.Fatalf("%x: %s, but it is right", frame, r)
		}
		if r != None {
			continue
		}
		accepted++
		if h.HasPorts {
			withPorts++
		}
		o.compare(t, frame, &h)
	}
	if accepted < oracleRounds/2 || withPorts < oracleRounds/10 {
		t.Errorf("of %d frames %d were accepted, %d with ports: the comparison says little", oracleRounds, accepted, withPorts)
	}
}

// compare fails the test when gopacket reads something else.
//
// Explained differences, in which only part is compared: gopacket stops at IPv6 extension headers (it is given no
// decoders for them, they are compared in TestParseIP), at fragments, and at transport headers that are cut off or
// contradict themselves; we read the ports from the first four bytes all the same. And it goes on into IP in IP, where
// its layers then hold the inner packet.
func (o *oracle) compare(t *testing.T, frame []byte, h *Headers) {
	t.Helper()
	const ipInIP, ipv6InIP, ipIP = 4, 41, 94
	if h.Proto == ipInIP || h.Proto == ipv6InIP || h.Proto == ipIP {
		return
	}
	_ = o.parser.DecodeLayers(frame, &o.decoded) // an error concerns a layer behind those that are in decoded
	if MAC(o.eth.DstMAC) != h.Link.Dst || MAC(o.eth.SrcMAC) != h.Link.Src {
		t.Fatalf("%x: MACs %+v", frame, h.Link)
	}
	for _, layer := range o.decoded {
		switch layer {
		case layers.LayerTypeIPv4:
			if h.Kind != KindIPv4 || h.Src != addr(o.ip4.SrcIP) || h.Dst != addr(o.ip4.DstIP) || h.TTL != o.ip4.TTL || h.TOS != o.ip4.TOS ||
				h.Len-h.L3 != int(o.ip4.Length) || h.Proto != uint8(o.ip4.Protocol) ||
				h.Fragment != (o.ip4.FragOffset != 0 || o.ip4.Flags&layers.IPv4MoreFragments != 0) ||
				h.L4 != 0 && h.L4-h.L3 != int(o.ip4.IHL)*4 {
				t.Fatalf("%x: %+v, gopacket reads %+v", frame, h, o.ip4)
			}
		case layers.LayerTypeIPv6:
			if h.Kind != KindIPv6 || h.Src != addr(o.ip6.SrcIP) || h.Dst != addr(o.ip6.DstIP) || h.TTL != o.ip6.HopLimit ||
				h.TOS != o.ip6.TrafficClass || h.Len-h.L3 != 40+int(o.ip6.Length) {
				t.Fatalf("%x: %+v, gopacket reads %+v", frame, h, o.ip6)
			}
		case layers.LayerTypeTCP:
			if !h.HasPorts || h.Proto != ProtoTCP || h.SrcPort != uint16(o.tcp.SrcPort) || h.DstPort != uint16(o.tcp.DstPort) {
				t.Fatalf("%x: %+v, gopacket reads %+v", frame, h, o.tcp)
			}
		case layers.LayerTypeUDP:
			if !h.HasPorts || h.Proto != ProtoUDP || h.SrcPort != uint16(o.udp.SrcPort) || h.DstPort != uint16(o.udp.DstPort) {
				t.Fatalf("%x: %+v, gopacket reads %+v", frame, h, o.udp)
			}
		}
	}
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// frameMaker writes random frames by hand, so that making them costs little.
type frameMaker struct {
	rng *rand.Rand
	buf []byte
}

// next returns a frame, valid until the next, and whether it is right.
func (g *frameMaker) next() (frame []byte, right bool) {
	rng := g.rng
	transport := []byte{ProtoTCP, ProtoUDP, ProtoICMP, ProtoICMPv6, 50, 132}[rng.UintN(6)]
	payload := int(rng.UintN(64))
	b := append(g.buf[:0], 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, byte(rng.Uint32()))
	if rng.UintN(2) == 0 {
		b = g.appendIPv4(b, transport, payload)
	} else {
		b = g.appendIPv6(b, transport, payload)
	}
	for range payload {
		b = append(b, byte(rng.Uint32()))
	}
	for range rng.UintN(3) {
		b = append(b, 0) // padding
	}
	g.buf = b
	switch rng.UintN(5) {
	case 2:
		b[0], b[1] = 0x88|byte(rng.UintN(2))<<2, b[1]&0x48
	case 0:
		return b[:rng.UintN(uint(len(b)))], false
	case 1:
		b[12+rng.UintN(uint(len(b)-12))] ^= byte(1 + rng.UintN(255))
		return b, false
	}
	return b, true
}

func (g *frameMaker) appendIPv4(b []byte, proto byte, payload int) []byte {
	options := 4 * int(g.rng.UintN(3))
	fragment := uint16(0)
	if g.rng.UintN(8) == 0 {
		fragment = uint16(g.rng.Uint32()) & 0x3fff
	}
	b = append(b, 0x08, 0, 0x45+byte(options/4), byte(g.rng.Uint32()))
	b = binary.BigEndian.AppendUint16(b, uint16(20+options+payload))
	b = append(b, 0, 1)
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, byte(g.rng.Uint32()), proto, 0, 0, 10, byte(g.rng.Uint32()), 0, 1, 10, 0, byte(g.rng.Uint32()), 2)
	for range options {
		b = append(b, 1) // no operation
	}
	return b
}

func (g *frameMaker) appendIPv6(b []byte, proto byte, payload int) []byte {
	class := byte(g.rng.Uint32())
	b = append(b, 0x86, 0xdd, 0x60|class>>4, class<<4, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(payload))
	b = append(b, proto, byte(g.rng.Uint32()))
	for range 32 {
		b = append(b, byte(g.rng.Uint32()))
	}
	return b
}
