package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// links are what may stand in front of an IP packet in a frame.
var links = map[string][]byte{
	"plain": {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2},
	"tag":   {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0xe0, 0x64},
	"QinQ":  {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xa8, 0, 7, 0x81, 0, 0, 42},
}

// frameOf puts a packet into a frame.
func frameOf(link, packet []byte) []byte {
	etherType := []byte{0x08, 0x00}
	if packet[0]>>4 == 6 {
		etherType = []byte{0x86, 0xdd}
	}
	return slices.Concat(link, etherType, packet)
}

func mustParseFrame(t testing.TB, frame []byte) *Headers {
	t.Helper()
	h := new(Headers)
	if r := ParseFrame(frame, h); r != None {
		t.Fatal(r)
	}
	return h
}

// A frame is split, and joined again, as the packet in it is, with the link's header in front of each.
func TestFramesSplitAndJoinAsPackets(t *testing.T) {
	rng := newRand(t)
	for name, link := range links {
		for _, c := range splittable {
			t.Run(fmt.Sprintf("%s %s", name, c.name), func(t *testing.T) {
				const size = 1398
				packet := withoutCWR(c.build(t, randomBytes(rng, 5*size+7)))
				o := Offload{NeedsChecksum: true, GSO: c.gso, SegmentSize: size}
				bare := segments(packet, mustParseIP(t, packet), o)
				frame := frameOf(link, packet)
				framed := segments(frame, mustParseFrame(t, frame), o)
				if len(framed) != len(bare) {
					t.Fatalf("%d segments, %d of the bare packet", len(framed), len(bare))
				}
				for i := range bare {
					if want := frameOf(link, bare[i]); !bytes.Equal(framed[i], want) {
						t.Fatalf("segment %d is\n%x, want\n%x", i, framed[i], want)
					}
				}
				_, want := coalesced(t, bare)
				co := NewCoalescer(len(framed))
				for _, f := range framed {
					co.Add(f, mustParseFrame(t, f), true)
				}
				count := 0
				for s := range co.All {
					count++
					got := slices.Concat(s.Header, bytes.Join(s.Payload, nil))
					if !bytes.Equal(got, frameOf(link, want[0])) || s.Packets != len(framed) {
						t.Errorf("joined of %d to\n%x, want\n%x", s.Packets, got[:80], frameOf(link, want[0])[:80])
					}
					l3 := len(link) + 2
					if s.Offload.ChecksumStart < l3 || s.Offload.SegmentSize != size {
						t.Errorf("metadata %+v", s.Offload)
					}
				}
				if count != 1 {
					t.Errorf("%d super-packets", count)
				}
			})
		}
	}
}

// Frames of one IP flow that differ in addresses or tags, and frames with padding, are not joined.
func TestFramesThatAreNotJoined(t *testing.T) {
	c := splittable[0]
	packet := withoutCWR(c.build(t, make([]byte, 200)))
	bare := segments(packet, mustParseIP(t, packet), Offload{NeedsChecksum: true, GSO: c.gso, SegmentSize: 100})
	for name, pair := range map[string][2][]byte{
		"other source": {frameOf(links["plain"], bare[0]), frameOf([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3}, bare[1])},
		"other tag":    {frameOf(links["tag"], bare[0]), frameOf([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0xe0, 0x65}, bare[1])},
		"tag and none": {frameOf(links["tag"], bare[0]), frameOf(links["plain"], bare[1])},
		"padding":      {append(frameOf(links["plain"], bare[0]), 0, 0), frameOf(links["plain"], bare[1])},
	} {
		co := NewCoalescer(2)
		for _, f := range pair {
			co.Add(bytes.Clone(f), mustParseFrame(t, f), true)
		}
		i := 0
		for s := range co.All {
			if s.Packets != 1 || !bytes.Equal(s.Header, pair[i]) {
				t.Errorf("%s: %d packets\n%x, want\n%x", name, s.Packets, s.Header, pair[i])
			}
			i++
		}
	}
}

// Whatever is in a frame that is long enough passes the Ethernet codec, and comes back as it was.
func FuzzEthernetCodec(f *testing.F) {
	codec := NewVXLANEthernet(7, StrictBits)
	f.Add(frameOf(links["QinQ"], []byte{0x45, 0, 0, 20}))
	f.Add([]byte{1, 2, 3})
	f.Add(append(bytes.Clone(links["plain"]), 0x08, 0x06, 0, 1))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var h Headers
		header := make([]byte, codec.Headroom())
		codec.Encap(header, frame, &h, Link{})
		if binary.BigEndian.Uint32(header) != vxlanFlagVNI || header[6] != 7 {
			t.Fatalf("header %x", header)
		}
		got, r := codec.Decap(slices.Concat(header, frame), &h)
		if len(frame) < EthernetHeaderLen {
			if r != PktTooSmall {
				t.Fatalf("%d bytes: %s", len(frame), r)
			}
			return
		}
		if r != None || !bytes.Equal(got, frame) || h.Len > len(frame) || h.L3 > h.Len || h.L4 > h.Len || h.VLANs > maxVLANTags {
			t.Fatalf("%s, %d of %d bytes, %+v", r, len(got), len(frame), h)
		}
		if !bytes.Equal(h.Link.Dst[:], frame[:6]) || !bytes.Equal(h.Link.Src[:], frame[6:12]) {
			t.Fatalf("addresses %+v", h.Link)
		}
	})
}
