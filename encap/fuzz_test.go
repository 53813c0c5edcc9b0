package encap

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func addPackets(f *testing.F) {
	for _, p := range [][]byte{udp4(f, []byte("x")), udp6(f, []byte("x")), tcp4(f, make([]byte, 100)), tcp6(f, nil)} {
		f.Add(p)
		f.Add(serialize(f, ethernet(layers.EthernetTypeIPv4), gopacket.Payload(p)))
	}
	f.Add(ND{Type: NeighbourSolicitation, Src: v6A, Dst: SolicitedNode(v6B), Target: v6B, LinkAddr: macA}.Append(nil))
	f.Add(ARP{Op: ARPReply, SenderMAC: macA, SenderIP: v4A, TargetMAC: macB, TargetIP: v4B}.Append(nil))
}

// checkHeaders holds what must be true of whatever was parsed without complaint.
func checkHeaders(t *testing.T, b []byte, h *Headers) {
	t.Helper()
	switch {
	case h.Len > len(b), h.L3 > h.Len, h.L4 > h.Len, h.L4 != 0 && h.L4 <= h.L3, h.HasPorts && h.Len < h.L4+4:
		t.Fatalf("offsets outside %d bytes: %+v", len(b), h)
	case (h.Kind == KindIPv4) != h.Src.Is4(), (h.Kind == KindIPv6) != h.Src.Is6(), h.Src.Is4() != h.Dst.Is4():
		t.Fatalf("addresses do not fit the kind: %+v", h)
	}
}

func FuzzParseIP(f *testing.F) {
	addPackets(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, again Headers
		if ParseIP(b, &h) != None {
			return
		}
		checkHeaders(t, b, &h)
		if r := ParseIP(b[:h.Len], &again); r != None || again != h {
			t.Fatalf("without what is behind its length: %s, %+v, was %+v", r, again, h)
		}
		if r := ParseIP(b[:h.Len-1], &again); r == None {
			t.Fatal("one byte less was accepted")
		}
		h.FlowHash()
		MayAnswerWithError(b, &h)
		SizeHint(b, &h)
	})
}

func FuzzParseOuter(f *testing.F) {
	for _, to := range []string{"172.30.0.2:8472", "[fd00::2]:8472"} {
		dst := netip.MustParseAddrPort(to)
		b := make([]byte, OuterHeaderLen(dst.Addr().Is6())+9)
		PutOuter(b, &Outer{Src: dst, Dst: dst, TTL: 64, Checksum: true, ID: 1, Flow: 2}, 9)
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var o Outer
		payload, r := ParseOuter(b, &o)
		if r != None {
			return
		}
		head := OuterHeaderLen(o.Dst.Addr().Is6())
		if !bytes.Equal(payload, b[head:head+len(payload)]) {
			t.Fatalf("payload of %d bytes is not where it was", len(payload))
		}
		VerifyOuter(b, &o, payload)
		again, written := o, make([]byte, head+len(payload))
		PutOuter(written, &o, len(payload))
		copy(written[head:], payload)
		if _, r := ParseOuter(written, &again); r != None || again != o {
			t.Fatalf("written again: %s, %+v, was %+v", r, again, o)
		}
	})
}

func FuzzParseFrame(f *testing.F) {
	addPackets(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, alone Headers
		if ParseFrame(b, &h) != None {
			return
		}
		checkHeaders(t, b, &h)
		if h.Kind != KindIPv4 && h.Kind != KindIPv6 {
			return
		}
		if r := ParseIP(b[h.L3:], &alone); r != None || alone.Src != h.Src || alone.Dst != h.Dst || alone.Len != h.Len-h.L3 || alone.HasPorts != h.HasPorts {
			t.Fatalf("the packet by itself: %s, %+v, in the frame %+v", r, alone, h)
		}
	})
}

func FuzzVXLANDecap(f *testing.F) {
	c := NewVXLANIP(1, StrictBits)
	for _, p := range [][]byte{udp4(f, []byte("x")), tcp6(f, nil)} {
		d := append(make([]byte, c.Headroom()), p...)
		c.Encap(d[:c.Headroom()], p, mustParseIP(f, p), Link{Dst: macB, Src: macA})
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		var h Headers
		packet, r := c.Decap(b, &h)
		if !bytes.Equal(b, before) {
			t.Fatal("decap changed the datagram")
		}
		if r != None {
			if packet != nil {
				t.Fatalf("%s, and a packet", r)
			}
			return
		}
		checkHeaders(t, packet, &h)
		if h.L3 != 0 || h.Len != len(packet) {
			t.Fatalf("packet of %d bytes: %+v", len(packet), h)
		}
		if h.VLANs > 0 || h.Kind == KindOther {
			return
		}
		// What was taken apart can be put together again.
		again := make([]byte, c.Headroom())
		if r := c.Encap(again, packet, &h, h.Link); r != None || !bytes.Equal(again, b[:c.Headroom()]) {
			t.Fatalf("encap gives %x, %s; was %x", again, r, b[:c.Headroom()])
		}
	})
}

func FuzzFlannelUDP(f *testing.F) {
	addPackets(f)
	c := NewFlannelUDP()
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Headers
		packet, r := c.Decap(b, &h)
		if r != None {
			return
		}
		ttl, sum := packet[8], Sum(packet[:20], 0)
		switch r := c.Forward(packet, &h); {
		case r == None && (packet[8] != ttl-1 || ttl == 0 || !sameSum(Sum(packet[:20], 0), sum)):
			t.Fatalf("TTL %d became %d, header sum %#x became %#x", ttl, packet[8], sum, Sum(packet[:20], 0))
		case r != None && packet[8] != ttl:
			t.Fatalf("%s, but the TTL was changed", r)
		}
	})
}

func FuzzParseARP(f *testing.F) {
	addPackets(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, r := ParseARP(b); r == None && !bytes.Equal(a.Append(nil), b[:arpLen]) {
			t.Fatalf("%x came back as %x", b[:arpLen], a.Append(nil))
		}
	})
}

func FuzzParseND(f *testing.F) {
	addPackets(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Headers
		if ParseIP(b, &h) != None || !IsND(b, &h) {
			return
		}
		n, r := ParseND(b, &h)
		if r != None {
			return
		}
		again := n.Append(nil)
		if got, r := ParseND(again, mustParseIP(t, again)); r != None || got.Target != n.Target || got.LinkAddr != n.LinkAddr {
			t.Fatalf("%+v came back as %+v, %s", n, got, r)
		}
	})
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint16(9))
	f.Fuzz(func(t *testing.T, b []byte, initial uint16) {
		if got, want := Sum(b, initial), slowSum(b, initial); !sameSum(got, want) {
			t.Fatalf("%#x, want %#x", got, want)
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add(tcp4(f, make([]byte, 3000)), uint16(1000))
	f.Add(tcp6(f, make([]byte, 3000)), uint16(1))
	f.Add(udp4(f, make([]byte, 300)), uint16(7))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		var h Headers
		if ParseIP(b, &h) != None {
			return
		}
		o := Offload{NeedsChecksum: true, GSO: GSOTCP, SegmentSize: int(size)}
		if h.Proto == ProtoUDP {
			o.GSO = GSOUDP
		}
		n := transportHeaderLen(b, &h)
		var joined []byte
		for i, seg := range segments(b, &h, o) {
			sh := mustParseIP(t, seg)
			if sh.Src != h.Src || sh.Dst != h.Dst || sh.SrcPort != h.SrcPort || sh.Len != len(seg) {
				t.Fatalf("segment %d: %+v of %+v", i, sh, h)
			}
			if got := InspectChecksum(seg, sh); got != ChecksumWhole && got != ChecksumOpaque {
				t.Fatalf("segment %d: checksum %d", i, got)
			}
			joined = append(joined, seg[sh.L4+n:]...)
		}
		if joined != nil && !bytes.Equal(joined, b[h.L4+n:h.Len]) {
			t.Fatal("the payload came back changed")
		}
	})
}

func FuzzAppendUnreachable(f *testing.F) {
	addPackets(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Headers
		if ParseIP(b, &h) != None || !MayAnswerWithError(b, &h) {
			return
		}
		src := v4A
		if h.Kind == KindIPv6 {
			src = v6A
		}
		answer := AppendUnreachable(nil, HostUnreachable, src, 0, b, &h)
		if a := mustParseIP(t, answer); a.Dst != h.Src || MayAnswerWithError(answer, a) {
			t.Fatalf("answer %+v to %+v", a, h)
		}
	})
}
