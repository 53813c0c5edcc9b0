package encap

import (
	"testing"
)

// The arithmetic of udp_flow_src_port, computed by hand for a few hashes.
func TestSourcePort(t *testing.T) {
	for _, c := range []struct {
		hash   uint32
		lo, hi uint16
		want   uint16
	}{
		{0, 32768, 60999, 32768},
		{1, 32768, 60999, 32768},                  // 0x00010001 * 28231 >> 32 = 0
		{0x80000000, 32768, 60999, 32768 + 14115}, // half of 28231
		{0xffffffff, 32768, 60999, 32768},         // the two halves cancel: 0x0000ffff * 28231 >> 32 = 0
		{0xffff0000, 32768, 60999, 60998},
		{0x12345678, 1000, 1000, 1000},
		{0x12345678, 2000, 1000, 2000},
	} {
		if got := SourcePort(c.hash, c.lo, c.hi); got != c.want {
			t.Errorf("hash %#x in %d-%d: port %d, want %d", c.hash, c.lo, c.hi, got, c.want)
		}
	}
}

func TestFlowHash(t *testing.T) {
	base := *mustParseIP(t, udp4(t, []byte("x")))
	same := base
	same.TTL, same.TOS, same.Len = 1, 3, 999
	if base.FlowHash() != same.FlowHash() {
		t.Error("a flow's hash depends on TTL, TOS or length")
	}
	for name, edit := range map[string]func(h *Headers){
		"source": func(h *Headers) { h.Src = v4B }, "destination": func(h *Headers) { h.Dst = v4A },
		"source port": func(h *Headers) { h.SrcPort++ }, "destination port": func(h *Headers) { h.DstPort++ },
		"protocol": func(h *Headers) { h.Proto = ProtoTCP },
	} {
		other := base
		edit(&other)
		if base.FlowHash() == other.FlowHash() {
			t.Errorf("the hash does not depend on the %s", name)
		}
	}
	first, later := base, base
	first.Fragment = true
	later.Fragment, later.HasPorts, later.SrcPort, later.DstPort = true, false, 0, 0
	if first.FlowHash() != later.FlowHash() {
		t.Error("the fragments of one packet have different hashes")
	}
	frame := Headers{Link: Link{Dst: macB, Src: macA}}
	other := Headers{Link: Link{Dst: macA, Src: macB}}
	if frame.FlowHash() == other.FlowHash() {
		t.Error("frames that are not IP are not told apart by their MACs")
	}
}

// 256 flows that differ in one port find all buckets, and none of them holds a third.
func TestBucketsAreSpread(t *testing.T) {
	h := *mustParseIP(t, udp4(t, nil))
	const buckets = 16
	var count [buckets]int
	for p := range uint16(256) {
		h.SrcPort = p
		count[Bucket(h.FlowHash(), buckets)]++
	}
	for i, n := range count {
		if n == 0 || n > 256/3 {
			t.Errorf("bucket %d has %d of 256 flows", i, n)
		}
	}
}
