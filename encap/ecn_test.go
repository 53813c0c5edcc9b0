package encap

import (
	"encoding/binary"
	"fmt"
	"testing"
)

var ecnNames = [4]string{NotECT: "Not-ECT", ECT1: "ECT(1)", ECT0: "ECT(0)", CE: "CE"}

// RFC 6040 section 4.1, normal mode: all four values are copied. The DSCP comes from the packet or from configuration.
func TestOuterTOS(t *testing.T) {
	for ecn := range uint8(4) {
		const dscp, fixed = 0xb8, 0x48
		if got, want := OuterTOS(dscp|ecn, true, fixed), dscp|ecn; got != want {
			t.Errorf("inherit, %s: %#x, want %#x", ecnNames[ecn], got, want)
		}
		if got, want := OuterTOS(dscp|ecn, false, fixed|3), fixed|ecn; got != want {
			t.Errorf("fixed, %s: %#x, want %#x", ecnNames[ecn], got, want)
		}
	}
}

// RFC 6040 section 4.2, figure 4, written out: 16 cells.
func TestDecapECN(t *testing.T) {
	const drop = 0xff
	for _, c := range []struct{ inner, outer, want uint8 }{
		{NotECT, NotECT, NotECT}, {NotECT, ECT0, NotECT}, {NotECT, ECT1, NotECT}, {NotECT, CE, drop},
		{ECT0, NotECT, ECT0}, {ECT0, ECT0, ECT0}, {ECT0, ECT1, ECT1}, {ECT0, CE, CE},
		{ECT1, NotECT, ECT1}, {ECT1, ECT0, ECT1}, {ECT1, ECT1, ECT1}, {ECT1, CE, CE},
		{CE, NotECT, CE}, {CE, ECT0, CE}, {CE, ECT1, CE}, {CE, CE, CE},
	} {
		for _, dscp := range []uint8{0, 0xfc} {
			got, ok := DecapECN(dscp|c.outer, dscp|c.inner)
			if ok != (c.want != drop) || ok && got != c.want {
				t.Errorf("inner %s, outer %s: %#x, %v", ecnNames[c.inner], ecnNames[c.outer], got, ok)
			}
			// RFC 6040 figure 4: those with exclamation marks.
			odd := c.inner == NotECT && c.outer != NotECT || c.inner == ECT1 && c.outer == ECT0 || c.inner == CE && c.outer == ECT1
			if OddECN(dscp|c.outer, dscp|c.inner) != odd {
				t.Errorf("inner %s, outer %s: odd %v", ecnNames[c.inner], ecnNames[c.outer], !odd)
			}
		}
	}
}

func TestSetECN(t *testing.T) {
	for name, packet := range map[string][]byte{"IPv4": udp4(t, []byte("x")), "IPv6": udp6(t, []byte("x"))} {
		for from := range uint8(4) {
			for to := range uint8(4) {
				t.Run(fmt.Sprintf("%s/%s to %s", name, ecnNames[from], ecnNames[to]), func(t *testing.T) {
					h := mustParseIP(t, packet)
					SetECN(packet, h, from)
					SetECN(packet, h, to)
					after := mustParseIP(t, packet)
					if after.TOS != to || h.TOS != to {
						t.Errorf("TOS is %#x, headers say %#x", after.TOS, h.TOS)
					}
					if h.Kind == KindIPv4 && Sum(packet[:20], 0) != 0xffff {
						t.Error("header checksum is wrong")
					}
				})
			}
		}
	}
}

// The DSCP and, over IPv6, the flow label are left alone.
func TestSetECNKeepsTheRest(t *testing.T) {
	packet := udp6(t, nil)
	binary.BigEndian.PutUint32(packet, 0x6fcabcde)
	SetECN(packet, mustParseIP(t, packet), CE)
	if got := binary.BigEndian.Uint32(packet); got != 0x6ffabcde {
		t.Errorf("first word is %#x", got)
	}
}
