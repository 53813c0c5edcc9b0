package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

// coalesced adds packets and returns what they came to, each super-packet joined into one slice.
func coalesced(t testing.TB, packets [][]byte) (supers []Super, joined [][]byte) {
	t.Helper()
	c := NewCoalescer(len(packets))
	for _, p := range packets {
		h := mustParseIP(t, p)
		c.Add(p, h, InspectChecksum(p, h) == ChecksumWhole)
	}
	for s := range c.All {
		supers = append(supers, *s)
		joined = append(joined, append(bytes.Clone(s.Header), bytes.Join(s.Payload, nil)...))
	}
	return supers, joined
}

// What the Splitter cuts, the Coalescer joins again to the same super-packet.
func TestCoalesceUndoesSplit(t *testing.T) {
	rng := newRand(t)
	for _, c := range splittable {
		for _, size := range []int{64, 536, 1398} {
			for _, count := range []int{1, 2, 40} {
				for _, tail := range []int{0, 1, size - 1} {
					t.Run(fmt.Sprintf("%s/%d times %d and %d", c.name, count, size, tail), func(t *testing.T) {
						payload := randomBytes(rng, count*size+tail)
						super := withoutCWR(c.build(t, payload))
						want := mustParseIP(t, super)
						packets := segments(super, want, Offload{NeedsChecksum: true, GSO: c.gso, SegmentSize: size})
						supers, joined := coalesced(t, packets)
						if len(supers) != 1 || supers[0].Packets != len(packets) {
							t.Fatalf("%d super-packets, the first of %d packets; want 1 of %d", len(supers), supers[0].Packets, len(packets))
						}
						checkSuper(t, supers[0], joined[0], super, payload, size)
					})
				}
			}
		}
	}
}

// withoutCWR clears the flag that stands for itself in a TCP packet.
func withoutCWR(packet []byte) []byte {
	var h Headers
	if ParseIP(packet, &h) == None && h.Proto == ProtoTCP {
		packet[h.L4+13] &^= tcpCWR
	}
	return packet
}

func checkSuper(t *testing.T, s Super, joined, want, payload []byte, size int) {
	t.Helper()
	h := mustParseIP(t, joined)
	if h.Len != len(joined) || !bytes.HasSuffix(joined, payload) {
		t.Fatalf("%d bytes, the header says %d; want %d", len(joined), h.Len, len(want))
	}
	if h.Kind == KindIPv4 && Sum(joined[:h.L4], 0) != 0xffff {
		t.Errorf("the IPv4 checksum of %x is wrong", joined[:h.L4])
	}
	if s.Packets == 1 {
		if s.Offload != (Offload{}) {
			t.Errorf("a packet that stayed alone has metadata: %+v", s.Offload)
		}
		return
	}
	if !s.Offload.NeedsChecksum || s.Offload.SegmentSize != size || !HasPartialChecksum(joined, h) {
		t.Errorf("metadata %+v, bare pseudo-header sum: %v", s.Offload, HasPartialChecksum(joined, h))
	}
	// Beside the checksums, all is as it was before it was split.
	offset, _, _ := transportChecksumOffset(h.Proto)
	for _, p := range [][]byte{joined, want} {
		copy(p[h.L4+offset:], []byte{0, 0})
		if h.Kind == KindIPv4 {
			copy(p[10:], []byte{0, 0})
		}
	}
	if !bytes.Equal(joined, want) {
		t.Errorf("got  %x\nwant %x", joined[:h.L4+20], want[:h.L4+20])
	}
}

// pair is two packets that belong together, for tests that spoil that.
func pair(t *testing.T, build func(testing.TB, []byte) []byte, gso GSO) [][]byte {
	super := withoutCWR(build(t, make([]byte, 400)))
	return segments(super, mustParseIP(t, super), Offload{NeedsChecksum: true, GSO: gso, SegmentSize: 200})
}

// finish makes the checksums of an IPv4 or IPv6 packet right again.
func finish(t *testing.T, p []byte) {
	t.Helper()
	h := mustParseIP(t, p)
	if h.Kind == KindIPv4 {
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^Sum(p[:h.L4], 0))
	}
	offset, _, _ := transportChecksumOffset(h.Proto)
	field := p[h.L4+offset:]
	field[0], field[1] = 0, 0
	sum := ^Sum(p[h.L4:h.Len], pseudoHeaderSum(p, h, h.Len-h.L4))
	if h.Proto == ProtoUDP && sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

// Packets stay apart when joining them would lose what one of them says.
func TestCoalesceKeepsApart(t *testing.T) {
	const l4v4, l4v6 = 20, 40
	for name, c := range map[string]struct {
		build func(testing.TB, []byte) []byte
		gso   GSO
		spoil func(first, second []byte)
	}{
		"nothing spoilt":   {tcp4, GSOTCP, nil},
		"ttl":              {tcp4, GSOTCP, func(_, p []byte) { p[8]-- }},
		"tos":              {tcp4, GSOTCP, func(_, p []byte) { p[1] ^= 0x20 }},
		"ecn":              {tcp4, GSOTCP, func(_, p []byte) { p[1] ^= 3 }},
		"don't fragment":   {tcp4, GSOTCP, func(_, p []byte) { p[6] ^= 0x40 }},
		"identification":   {udp4, GSOUDP, func(_, p []byte) { p[5] += 3 }},
		"source":           {tcp4, GSOTCP, func(_, p []byte) { p[15]++ }},
		"destination port": {udp4, GSOUDP, func(_, p []byte) { p[l4v4+3]++ }},
		"sequence":         {tcp4, GSOTCP, func(_, p []byte) { p[l4v4+7]++ }},
		"acknowledgement":  {tcp4, GSOTCP, func(_, p []byte) { p[l4v4+11]++ }},
		"window":           {tcp4, GSOTCP, func(_, p []byte) { p[l4v4+15]++ }},
		"option":           {tcp4, GSOTCP, func(_, p []byte) { p[l4v4+31]++ }},
		"echo":             {tcp4, GSOTCP, func(_, p []byte) { p[l4v4+13] ^= tcpECE }},
		"urgent":           {tcp4, GSOTCP, func(_, p []byte) { p[l4v4+13] |= 0x20 }},
		"reset":            {tcp6, GSOTCP, func(_, p []byte) { p[l4v6+13] |= 0x04 }},
		"congestion":       {tcp6, GSOTCP, func(_, p []byte) { p[l4v6+13] |= tcpCWR }},
		"push before":      {tcp4, GSOTCP, func(f, _ []byte) { f[l4v4+13] |= tcpPSH }},
		"fin before":       {tcp4, GSOTCP, func(f, _ []byte) { f[l4v4+13] |= tcpFIN }},
		"flow label":       {udp6, GSOUDP, func(_, p []byte) { p[3]++ }},
		"hop limit":        {udp6, GSOUDP, func(_, p []byte) { p[7]-- }},
		"reserved flag":    {udp4, GSOUDP, func(f, p []byte) { f[6] |= 0x80; p[6] |= 0x80 }},
		"reserved bit":     {tcp4, GSOTCP, func(_, p []byte) { p[l4v4+12] |= 1 }},
		"urgent pointer":   {tcp4, GSOTCP, func(_, p []byte) { p[l4v4+19]++ }},
		"udp options":      {udp4, GSOUDP, func(f, p []byte) { f[l4v4+5] -= 9; p[l4v4+5] -= 9 }},
		"tunnel":           {udp4, GSOUDP, func(f, p []byte) { copy(f[l4v4+2:], []byte{0x21, 0x18}); copy(p[l4v4+2:], []byte{0x21, 0x18}) }},
	} {
		packets := pair(t, c.build, c.gso)
		want := 1
		if c.spoil != nil {
			c.spoil(packets[0], packets[1])
			finish(t, packets[0])
			finish(t, packets[1])
			want = 2
		}
		if supers, _ := coalesced(t, packets); len(supers) != want {
			t.Errorf("%s: %d packets come out, want %d", name, len(supers), want)
		}
	}
}

// Identifications that stay the same are those of senders that do not fragment: joined when they say so.
func TestCoalesceSameIdentification(t *testing.T) {
	for df, want := range map[byte]int{0: 3, 0x40: 1} {
		super := withoutCWR(udp4(t, make([]byte, 600)))
		packets := segments(super, mustParseIP(t, super), Offload{NeedsChecksum: true, GSO: GSOUDP, SegmentSize: 200})
		for _, p := range packets {
			p[4], p[5], p[6] = 0, 0, df
			finish(t, p)
		}
		if supers, _ := coalesced(t, packets); len(supers) != want {
			t.Errorf("flags %#x: %d come out, want %d", df, len(supers), want)
		}
	}
}

// A header checksum that is wrong is the receiver's to see, and a fragment is not overtaken by what follows.
func TestCoalesceDoesNotMend(t *testing.T) {
	for i := range 2 {
		packets := pair(t, tcp4, GSOTCP)
		packets[i][10]++
		if supers, _ := coalesced(t, packets); len(supers) != 2 {
			t.Errorf("a wrong header checksum in packet %d: %d come out, want 2", i, len(supers))
		}
	}
	packets := pair(t, udp4, GSOUDP)
	fragment := bytes.Clone(packets[0])
	fragment[6] = 0x20
	finish(t, fragment)
	if supers, _ := coalesced(t, [][]byte{packets[0], fragment, packets[1]}); len(supers) != 3 {
		t.Errorf("around a fragment, %d come out, want 3", len(supers))
	}
}

func TestCoalesceKeepsApartByState(t *testing.T) {
	count := func(packets [][]byte, good func(int) bool) int {
		c, n := NewCoalescer(len(packets)), 0
		for i, p := range packets {
			c.Add(p, mustParseIP(t, p), good(i))
		}
		for range c.All {
			n++
		}
		return n
	}
	all := func(int) bool { return true }
	packets := pair(t, tcp4, GSOTCP)
	if n := count(packets, func(i int) bool { return i == 0 }); n != 2 {
		t.Errorf("a checksum that is not known to be good was joined: %d", n)
	}
	if n := count(packets, func(i int) bool { return i == 1 }); n != 2 {
		t.Errorf("a checksum that is not known to be good was joined to: %d", n)
	}
	noSum := pair(t, udp4, GSOUDP)
	for _, p := range noSum {
		p[26], p[27] = 0, 0
	}
	if n := count(noSum, all); n != 2 {
		t.Errorf("UDP without checksums was joined: %d", n)
	}
	ack := withoutCWR(tcp4(t, nil))
	binary.BigEndian.PutUint32(ack[24:], binary.BigEndian.Uint32(packets[1][24:])+200)
	if n := count(append(packets, ack, ack), all); n != 3 {
		t.Errorf("two of data and two bare acknowledgements: %d come out, want 3", n)
	}
	longer := [][]byte{withoutCWR(udp4(t, make([]byte, 100))), withoutCWR(udp4(t, make([]byte, 200)))}
	longer[1][5]++
	finish(t, longer[1])
	if n := count(longer, all); n != 2 {
		t.Errorf("a longer packet was joined to a shorter one: %d", n)
	}
}

// Super-packets end at the kernel's limits.
func TestCoalesceLimits(t *testing.T) {
	for _, c := range []struct {
		payload, size int
		build         func(testing.TB, []byte) []byte
		gso           GSO
		want          int
	}{{200 * 10, 10, udp4, GSOUDP, 4}, {100 * 1398, 1398, tcp4, GSOTCP, 3}, {100 * 1398, 1398, tcp6, GSOTCP, 3}} {
		var packets [][]byte
		for at := 0; at < c.payload; at += c.size {
			p := withoutCWR(c.build(t, make([]byte, c.size)))
			h := mustParseIP(t, p)
			if h.Kind == KindIPv4 {
				binary.BigEndian.PutUint16(p[4:], uint16(at/c.size))
			}
			if h.Proto == ProtoTCP {
				binary.BigEndian.PutUint32(p[h.L4+4:], uint32(at))
				p[h.L4+13] &^= tcpPSH | tcpFIN
			}
			finish(t, p)
			packets = append(packets, p)
		}
		supers, joined := coalesced(t, packets)
		if len(supers) != c.want {
			t.Errorf("%d packets of %d bytes came to %d, want %d", len(packets), c.size, len(supers), c.want)
		}
		for _, j := range joined {
			if h := mustParseIP(t, j); h.Len != len(j) {
				t.Errorf("%d bytes, the header says %d", len(j), h.Len)
			}
		}
	}
}

// mixture makes packets of a few flows that mostly, but not always, continue each other.
func mixture(t testing.TB, rng *rand.Rand, n int) (packets [][]byte) {
	type flow struct {
		template []byte
		h        Headers
		seq      uint32
		id       uint16
	}
	var flows []flow
	for i := range 4 {
		build := []func(testing.TB, []byte) []byte{tcp4, tcp6, udp4, udp6}[i]
		f := flow{template: withoutCWR(build(t, nil))}
		_ = ParseIP(f.template, &f.h)
		flows = append(flows, f, f)
	}
	sizes := []int{1, 100, 100, 100, 101, 0}
	for range n {
		i := rng.IntN(len(flows))
		f := &flows[i]
		payload := randomBytes(rng, sizes[rng.IntN(len(sizes))])
		p := append(bytes.Clone(f.template), payload...)
		p[f.h.L4+1] ^= byte(i) // a source port for each flow
		if f.h.Kind == KindIPv4 {
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			binary.BigEndian.PutUint16(p[4:], f.id)
			f.id++
		} else {
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		}
		if f.h.Proto == ProtoTCP {
			binary.BigEndian.PutUint32(p[f.h.L4+4:], f.seq)
			p[f.h.L4+13] = tcpACK | []byte{0, 0, 0, 0, tcpPSH, tcpFIN, 2}[rng.IntN(7)]
			f.seq += uint32(len(payload))
		} else {
			binary.BigEndian.PutUint16(p[f.h.L4+4:], uint16(8+len(payload)))
		}
		if rng.IntN(10) == 0 {
			p[f.h.L4+2] ^= 1 << rng.IntN(8) // another flow for once
		}
		packets = append(packets, p)
	}
	return packets
}

// checkRoundTrip coalesces packets, splits what came out, and expects each flow's packets as they were, in order.
func checkRoundTrip(t *testing.T, packets [][]byte) (supers int) {
	t.Helper()
	before, after := make(map[string][][]byte), make(map[string][][]byte)
	flowOf := func(p []byte) string {
		h := mustParseIP(t, p)
		return fmt.Sprint(h.Src, h.Dst, h.Proto, h.SrcPort, h.DstPort)
	}
	total := 0
	for _, p := range packets {
		before[flowOf(p)] = append(before[flowOf(p)], bytes.Clone(p))
	}
	found, joined := coalesced(t, packets)
	for i, s := range found {
		total += s.Packets
		out := [][]byte{joined[i]}
		if s.Offload.IsSuper() {
			out = segments(joined[i], mustParseIP(t, joined[i]), s.Offload)
		}
		if len(out) != s.Packets {
			t.Fatalf("a super-packet of %d packets is split into %d", s.Packets, len(out))
		}
		flow := flowOf(joined[i])
		after[flow] = append(after[flow], out...)
	}
	if total != len(packets) {
		t.Fatalf("%d packets went in, %d came out", len(packets), total)
	}
	for flow, want := range before {
		for i := range want {
			if got := after[flow][i]; !bytes.Equal(withoutIdleID(t, got), withoutIdleID(t, want[i])) {
				t.Fatalf("%s: packet %d\ngot  %x\nwant %x", flow, i, got, want[i])
			}
		}
	}
	return len(found)
}

// withoutIdleID clears an identification that has no meaning, and the checksum that covers it.
func withoutIdleID(t *testing.T, packet []byte) []byte {
	t.Helper()
	if h := mustParseIP(t, packet); h.Kind != KindIPv4 || !h.DF {
		return packet
	}
	p := bytes.Clone(packet)
	copy(p[4:6], []byte{0, 0})
	copy(p[10:12], []byte{0, 0})
	return p
}

func TestCoalesceRoundTrip(t *testing.T) {
	rng := newRand(t)
	joined := 0
	for range 300 {
		packets := mixture(t, rng, 64)
		for _, p := range packets {
			finish(t, p)
		}
		joined += len(packets) - checkRoundTrip(t, packets)
	}
	if joined < 1000 {
		t.Errorf("only %d packets were joined: the test shows little", joined)
	}
}

func FuzzCoalesce(f *testing.F) {
	f.Add(uint64(1), []byte{0, 1, 2})
	f.Fuzz(func(t *testing.T, seed uint64, damage []byte) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var packets [][]byte
		for i, p := range mixture(t, rng, 32) {
			if i < len(damage) && damage[i] != 0 { // a byte of the headers, anything: it must still parse
				q := bytes.Clone(p)
				q[int(damage[i])%min(60, len(q))] ^= byte(seed) | 1
				var h Headers
				if ParseIP(q, &h) == None && h.Len == len(q) {
					p = q
				}
			}
			var h Headers
			if ParseIP(p, &h) == None && !h.Fragment && transportHeaderLen(p, &h) > 0 && seed%8 != 0 {
				finish(t, p) // a damage that checksums do not show
			}
			packets = append(packets, p)
		}
		checkRoundTrip(t, packets)
	})
}

func BenchmarkCoalesce(b *testing.B) {
	for name, build := range map[string]func(testing.TB, []byte) []byte{"tcp4": tcp4, "udp4": udp4} {
		b.Run("packets=40/proto="+name, func(b *testing.B) {
			super := withoutCWR(build(b, make([]byte, 40*1398)))
			kind := map[string]GSO{"tcp4": GSOTCP, "udp4": GSOUDP}[name]
			packets := segments(super, mustParseIP(b, super), Offload{NeedsChecksum: true, GSO: kind, SegmentSize: 1398})
			headers, first := make([]Headers, len(packets)), bytes.Clone(packets[0])
			for i, p := range packets {
				headers[i] = *mustParseIP(b, p)
			}
			c := NewCoalescer(len(packets))
			b.ReportAllocs()
			for b.Loop() {
				copy(packets[0], first) // its headers became the super-packet's
				c.Reset()
				for i, p := range packets {
					c.Add(p, &headers[i], true)
				}
				for s := range c.All {
					if s.Packets != len(packets) {
						b.Fatal(s.Packets)
					}
				}
			}
		})
	}
}

func TestCoalesceAllocatesNothing(t *testing.T) {
	super := withoutCWR(tcp4(t, make([]byte, 40*1398)))
	packets := segments(super, mustParseIP(t, super), Offload{NeedsChecksum: true, GSO: GSOTCP, SegmentSize: 1398})
	headers := make([]Headers, len(packets))
	for i, p := range packets {
		headers[i] = *mustParseIP(t, p)
	}
	c, out := NewCoalescer(len(packets)), 0
	if n := testing.AllocsPerRun(1, func() {
		c.Reset()
		for i, p := range packets {
			c.Add(p, &headers[i], true)
		}
		out = 0
		for range c.All {
			out++
		}
	}); n != 0 || out == len(packets) {
		t.Errorf("%v allocations for %d packets, of which %d came out", n, len(packets), out)
	}
}
