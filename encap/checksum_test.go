package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// slowSum is RFC 1071 as it is written.
func slowSum(b []byte, initial uint16) uint16 {
	sum := uint32(initial)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestSumAgainstReference(t *testing.T) {
	rng := newRand(t)
	data := randomBytes(rng, 3000)
	for n := range 300 {
		for _, off := range []int{0, 1, 3, 8} {
			initial := uint16(rng.Uint32())
			if got, want := Sum(data[off:off+n], initial), slowSum(data[off:off+n], initial); !sameSum(got, want) {
				t.Fatalf("%d bytes from %d, initial %#x: %#x, want %#x", n, off, initial, got, want)
			}
		}
	}
	ones := bytes.Repeat([]byte{0xff}, 2048)
	for _, n := range []int{1, 2, 7, 8, 63, 64, 65, 1500, 2048} {
		if got, want := Sum(ones[:n], 0xffff), slowSum(ones[:n], 0xffff); !sameSum(got, want) {
			t.Errorf("%d ones: %#x, want %#x", n, got, want)
		}
	}
}

// sameSum: 0 and 0xffff are the two zeros of one's complement; which of them a sum of zeros gives is not defined.
func sameSum(a, b uint16) bool { return a == b || a%0xffff == b%0xffff }

func TestUpdateChecksum(t *testing.T) {
	rng := newRand(t)
	for range 10000 {
		header := randomBytes(rng, 20)
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], ^Sum(header, 0))
		at := 2 * int(rng.UintN(5))
		old := binary.BigEndian.Uint16(header[at:])
		binary.BigEndian.PutUint16(header[at:], uint16(rng.Uint32()))
		UpdateChecksum(header[10:12], old, binary.BigEndian.Uint16(header[at:]))
		if got := Sum(header, 0); got != 0xffff {
			t.Fatalf("%x: sum is %#x", header, got)
		}
	}
}

// gopacket computed the checksums of these packets; what is left to a device and finished again must be the same.
func TestChecksumStates(t *testing.T) {
	for name, whole := range map[string][]byte{
		"tcp4": tcp4(t, []byte("odd")), "tcp6": tcp6(t, []byte("even")), "udp4": udp4(t, []byte("odd")), "udp6": udp6(t, nil),
	} {
		t.Run(name, func(t *testing.T) {
			h := mustParseIP(t, whole)
			offset, _, _ := transportChecksumOffset(h.Proto)
			at := h.L4 + offset
			if got := InspectChecksum(whole, h); got != ChecksumWhole {
				t.Errorf("gopacket's checksum: %d", got)
			}
			partial := bytes.Clone(whole)
			LeaveChecksum(partial, h)
			if got := InspectChecksum(partial, h); got != ChecksumPartial || !HasPartialChecksum(partial, h) {
				t.Errorf("bare pseudo-header sum: %d", got)
			}
			if HasPartialChecksum(whole, h) {
				t.Error("gopacket's checksum passes for a bare pseudo-header sum")
			}
			if !PartialOffload(h).FinishChecksum(partial) || !bytes.Equal(partial, whole) {
				t.Errorf("finished to %x, gopacket has %x", partial, whole)
			}
			bad := bytes.Clone(whole)
			bad[at] ^= 0x40
			if got := InspectChecksum(bad, h); got != ChecksumBad {
				t.Errorf("flipped bit: %d", got)
			}
		})
	}
}

// A whole checksum that happens to equal the pseudo-header's sum is not "finished" into a wrong one.
func TestWholeChecksumThatLooksPartial(t *testing.T) {
	packet := udp4(t, []byte{0, 0})
	h := mustParseIP(t, packet)
	pseudo := pseudoHeaderSum(packet, h, h.Len-h.L4)
	binary.BigEndian.PutUint16(packet[26:], pseudo)
	packet[28], packet[29] = 0, 0
	binary.BigEndian.PutUint16(packet[28:], ^Sum(packet[h.L4:h.Len], pseudo)) // payload that makes the sum right
	before := bytes.Clone(packet)
	if !HasPartialChecksum(packet, h) || InspectChecksum(packet, h) != ChecksumWhole {
		t.Fatal("the packet is not what it should be")
	}
	if !PartialOffload(h).FinishChecksum(packet) || !bytes.Equal(packet, before) {
		t.Errorf("%x became %x", before, packet)
	}
}

// Metadata that a packet has no room for changes nothing.
func TestFinishRefusesWhatDoesNotFit(t *testing.T) {
	packet := udp4(t, []byte("x"))
	before := bytes.Clone(packet)
	for _, o := range []Offload{{ChecksumStart: -1}, {ChecksumStart: 20, ChecksumField: 19}, {ChecksumStart: 20, ChecksumField: len(packet) - 1}, {ChecksumStart: 99, ChecksumField: 99}} {
		if o.FinishChecksum(packet) || !bytes.Equal(packet, before) {
			t.Errorf("%+v was taken", o)
		}
	}
}

func TestChecksumOpaque(t *testing.T) {
	none := udp4(t, []byte("x"))
	none[26], none[27] = 0, 0
	fragment := udp4(t, []byte("x"))
	fragment[6] = 0x20
	icmp := udp4(t, []byte("x"))
	icmp[9] = ProtoICMP
	short := append([]byte(nil), udp4(t, nil)[:26]...)
	short[3] = 26
	for name, packet := range map[string][]byte{"UDP without": none, "fragment": fragment, "ICMP": icmp, "short UDP": short} {
		if got := InspectChecksum(packet, mustParseIP(t, packet)); got != ChecksumOpaque {
			t.Errorf("%s: %d", name, got)
		}
	}
}

// The vector unit and the portable code agree, for every length and alignment, also where every word is as large as can be.
func TestVectorSum(t *testing.T) {
	if !hasVectorSum {
		t.Skip("skipped: needs a CPU with AVX2")
	}
	rng := newRand(t)
	full := bytes.Repeat([]byte{0xff}, 70_000)
	random := randomBytes(rng, 70_000)
	for _, data := range [][]byte{full, random} {
		for range 2000 {
			from := rng.IntN(64)
			b := data[from : from+vectorMin+rng.IntN(len(data)-64-vectorMin)]
			got := Sum(b, 7)
			want := uint16(7)
			for at := 0; at < len(b); at += 128 { // pieces too short for the vector unit
				want = Sum(b[at:min(at+128, len(b))], want)
			}
			if got != want {
				t.Fatalf("%d bytes from %d: %#x, want %#x", len(b), from, got, want)
			}
		}
	}
}

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{20, 64, 1400, 65000} {
		data := bytes.Repeat([]byte{0xa5}, n)
		b.Run(fmt.Sprintf("bytes=%d", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				Sum(data, 0)
			}
		})
	}
}
