package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// segments splits a packet, whatever its checksum is, and returns the segments whole.
func segments(packet []byte, h *Headers, o Offload) [][]byte {
	if o.NeedsChecksum {
		packet = bytes.Clone(packet)
		LeaveChecksum(packet, h)
	}
	var s Splitter
	if !s.Reset(packet, h, o) {
		return nil
	}
	var out [][]byte
	buf := make([]byte, s.HeaderLen())
	for s.Next(buf) {
		out = append(out, append(bytes.Clone(s.Header()), s.Payload()...))
	}
	return out
}

func TestSplit(t *testing.T) {
	rng := newRand(t)
	for _, c := range splittable {
		for _, size := range []int{1, 536, 1398, 1400, 8948} {
			for _, length := range []int{1, size - 1, size, size + 1, 2 * size, min(7*size+3, 65000)} {
				if length < 1 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d by %d", c.name, length, size), func(t *testing.T) {
					payload := randomBytes(rng, length)
					packet := c.build(t, payload)
					h := mustParseIP(t, packet)
					o := Offload{NeedsChecksum: true, GSO: c.gso, SegmentSize: size}
					got := segments(packet, h, o)
					if want := o.Segments(packet, h); len(got) != want {
						t.Fatalf("%d segments, Segments says %d", len(got), want)
					}
					checkSegments(t, got, payload, size, c.gso)
				})
			}
		}
	}
}

// checkSegments compares segments with what gopacket makes of them.
func checkSegments(t *testing.T, got [][]byte, payload []byte, size int, kind GSO) {
	t.Helper()
	var joined []byte
	for i, seg := range got {
		h := mustParseIP(t, seg)
		if InspectChecksum(seg, h) != ChecksumWhole {
			t.Fatalf("segment %d: transport checksum is wrong", i)
		}
		if h.Kind == KindIPv4 && (Sum(seg[:20], 0) != 0xffff || binary.BigEndian.Uint16(seg[4:]) != uint16(7+i)) {
			t.Fatalf("segment %d: IPv4 header %x", i, seg[:20])
		}
		first := layers.LayerTypeIPv4
		if h.Kind == KindIPv6 {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(seg, first, gopacket.NoCopy)
		if kind == GSOTCP {
			tcp := p.TransportLayer().(*layers.TCP)
			last := i == len(got)-1
			if tcp.Seq != 0xfffffff0+uint32(i*size) || tcp.PSH != last || tcp.FIN != last || tcp.CWR != (i == 0) || len(tcp.Options) != 3 {
				t.Fatalf("segment %d: TCP header %+v", i, tcp)
			}
		}
		if app := p.ApplicationLayer(); app != nil {
			joined = append(joined, app.Payload()...)
		}
	}
	if !bytes.Equal(joined, payload) {
		t.Error("the payload came back changed")
	}
}

func TestSplitRefuses(t *testing.T) {
	packet := tcp4(t, make([]byte, 3000))
	h := mustParseIP(t, packet)
	fragment := *h
	fragment.Fragment = true
	for name, c := range map[string]struct {
		h Headers
		o Offload
	}{
		"other protocol": {*h, Offload{GSO: GSOUDP, SegmentSize: 1000}},
		"no kind":        {*h, Offload{SegmentSize: 1000}},
		"no size":        {*h, Offload{GSO: GSOTCP}},
		"fragment":       {fragment, Offload{GSO: GSOTCP, SegmentSize: 1000}},
	} {
		if segments(packet, &c.h, c.o) != nil {
			t.Errorf("%s: was split", name)
		}
	}
}

// A datagram without a UDP checksum gets none when it is split.
func TestSplitKeepsAbsentUDPChecksum(t *testing.T) {
	packet := udp4(t, make([]byte, 100))
	packet[26], packet[27] = 0, 0
	for i, seg := range segments(packet, mustParseIP(t, packet), Offload{GSO: GSOUDP, SegmentSize: 40}) {
		if seg[26] != 0 || seg[27] != 0 {
			t.Errorf("segment %d has checksum %x", i, seg[26:28])
		}
	}
}

// A checksum covers where a packet goes in the end, which its IPv6 header does not tell on the way (RFC 8200 section 8.1).
func TestSplitRoutedPacket(t *testing.T) {
	const routing, options = 43, 60
	other := netip.MustParseAddr("fd99::9")
	home := append([]byte{ProtoTCP, 2, 2, 1, 0, 0, 0, 0}, other.AsSlice()...) // RFC 6275 section 6.4.1
	for _, c := range []struct {
		name       string
		next       byte
		extensions []byte
		final      netip.Addr
	}{
		{"home address", routing, home, other},
		{"home address after options", options, append([]byte{routing, 0, 1, 4, 0, 0, 0, 0}, home...), other},
		{"segments", routing, slices.Concat([]byte{ProtoTCP, 4, 4, 1, 1, 0, 0, 0}, other.AsSlice(), v6B.AsSlice()), other}, // RFC 8754 section 2
		{"last segment", routing, slices.Concat([]byte{ProtoTCP, 4, 4, 0, 1, 0, 0, 0}, v6B.AsSlice(), other.AsSlice()), v6B},
		{"unknown type", routing, append([]byte{ProtoTCP, 2, 253, 1, 0, 0, 0, 0}, other.AsSlice()...), v6B},
	} {
		t.Run(c.name, func(t *testing.T) {
			packet := tcp6(t, randomBytes(newRand(t), 3000))
			copy(packet[24:], c.final.AsSlice())
			LeaveChecksum(packet, mustParseIP(t, packet))
			copy(packet[24:], v6B.AsSlice())
			packet = slices.Insert(packet, ipv6HeaderLen, c.extensions...)
			packet[6] = c.next
			binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-ipv6HeaderLen))

			frame := frameOf(links["tag"], packet)
			h := mustParseFrame(t, frame)
			if !HasPartialChecksum(frame, h) {
				t.Error("its checksum is not known to be partial")
			}
			got := segments(frame, h, SuperOffload(h, 1398))
			if len(got) != 3 {
				t.Fatalf("%d segments", len(got))
			}
			for i, seg := range got {
				if InspectChecksum(seg, mustParseFrame(t, seg)) != ChecksumWhole {
					t.Errorf("segment %d: transport checksum is wrong", i)
				}
			}
		})
	}
}

// Of a packet whose route is not understood, the checksum that was left to finish still is the right one.
func TestSplitTrustsThePartialChecksum(t *testing.T) {
	packet := tcp4(t, randomBytes(newRand(t), 3000))
	h := mustParseIP(t, packet)
	LeaveChecksum(packet, h)
	was := binary.BigEndian.Uint32(packet[16:])
	binary.BigEndian.PutUint32(packet[16:], was+1) // such as a source route does (RFC 791 section 3.1)
	var s Splitter
	if !s.Reset(packet, h, SuperOffload(h, 1398)) {
		t.Fatal("cannot be split")
	}
	for buf := make([]byte, s.HeaderLen()); s.Next(buf); {
		seg := slices.Concat(s.Header(), s.Payload())
		binary.BigEndian.PutUint32(seg[16:], was)
		if InspectChecksum(seg, mustParseIP(t, seg)) != ChecksumWhole {
			t.Error("a segment's checksum is wrong")
		}
	}
}

func TestSuperTCP(t *testing.T) {
	big := tcp4(t, make([]byte, 3000))
	h := mustParseIP(t, big)
	o, ok := SuperTCP(big, h, 1450)
	if !ok || o.GSO != GSOTCP || o.SegmentSize != 1450-20-32 {
		t.Errorf("got %+v, %v", o, ok)
	}
	for i, seg := range segments(big, h, o) {
		if len(seg) > 1450 {
			t.Errorf("segment %d has %d bytes", i, len(seg))
		}
	}
	if _, ok := SuperTCP(big, h, len(big)); ok {
		t.Error("a packet that fits is no super-packet")
	}
	if _, ok := SuperTCP(big, h, 52); ok {
		t.Error("there is no room for payload under a limit of 52")
	}
	big[h.L4+13] |= tcpSYN
	if _, ok := SuperTCP(big, h, 1450); ok {
		t.Error("two SYNs were to be made of one")
	}
	if u := udp4(t, make([]byte, 3000)); true {
		if _, ok := SuperTCP(u, mustParseIP(t, u), 1450); ok {
			t.Error("UDP has no segments to find again")
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	packet := tcp4(b, make([]byte, 64000))
	h := mustParseIP(b, packet)
	buf := make([]byte, 128)
	b.SetBytes(int64(len(packet)))
	b.ReportAllocs()
	for b.Loop() {
		var s Splitter
		s.Reset(packet, h, Offload{GSO: GSOTCP, SegmentSize: 1398})
		for s.Next(buf) {
		}
	}
}
