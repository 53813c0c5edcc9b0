package encap

import (
	"encoding/binary"
	"fmt"
	"testing"
)

func TestNewVNI(t *testing.T) {
	for _, c := range []struct {
		in uint64
		ok bool
	}{{0, true}, {1, true}, {1<<24 - 1, true}, {1 << 24, false}, {1<<32 + 1, false}, {1<<64 - 1, false}} {
		v, err := NewVNI(c.in)
		if (err == nil) != c.ok {
			t.Errorf("NewVNI(%d): error %v, want ok=%v", c.in, err, c.ok)
		}
		if err == nil && uint64(v) != c.in {
			t.Errorf("NewVNI(%d) = %d", c.in, v)
		}
	}
}

func TestPutVXLANIsReadBack(t *testing.T) {
	for _, vni := range []VNI{0, 1, 0x123456, 1<<24 - 1} {
		b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		PutVXLAN(b, vni)
		for _, mode := range []ReservedBits{StrictBits, IgnoreBits} {
			got, r := DecodeVXLAN(b, mode)
			if got != vni || r != None {
				t.Errorf("vni %d, mode %d: got %d, %s", vni, mode, got, r)
			}
		}
	}
}

// Every one of the 64 bits of the header, set beside the I flag: 24 belong to the VNI, one is the I flag, and the other 39
// are flags and reserved bits that strict mode refuses (reliability goal R1).
func TestEveryReservedBit(t *testing.T) {
	refused := 0
	for bit := range 64 {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], 0x0800000000000000|1<<bit)
		vniBit := bit >= 8 && bit < 32
		iFlag := bit == 59
		_, strict := DecodeVXLAN(b[:], StrictBits)
		vni, lenient := DecodeVXLAN(b[:], IgnoreBits)
		if want := !vniBit && !iFlag; (strict == VXLANInvalidHdr) != want {
			t.Errorf("bit %d: strict says %s", bit, strict)
		} else if want {
			refused++
		}
		if lenient != None {
			t.Errorf("bit %d: lenient says %s", bit, lenient)
		}
		if want := VNI(0); vniBit {
			want = 1 << (bit - 8)
			if vni != want {
				t.Errorf("bit %d: VNI %#x, want %#x", bit, vni, want)
			}
		}
	}
	if refused != 39 {
		t.Errorf("%d bits are refused, want 39", refused)
	}
}

// Headers of GBP and GPE are told from reserved bits.
func TestExtensions(t *testing.T) {
	for name, c := range map[string]struct {
		flags           uint32
		strict, lenient Reason
	}{
		"GBP with a group":                {0x88000007, ExtensionNotEnabled, None},
		"GBP, do not learn":               {0x88400000, ExtensionNotEnabled, None},
		"GBP, policy applied":             {0x88080001, ExtensionNotEnabled, None},
		"the G flag alone":                {0x88000000, VXLANInvalidHdr, None},
		"GPE with IPv4":                   {0x0c000001, ExtensionNotEnabled, ExtensionNotEnabled},
		"GPE with NSH, BUM":               {0x0e000004, ExtensionNotEnabled, ExtensionNotEnabled},
		"GPE of a later version":          {0x1c000003, VXLANInvalidHdr, ExtensionNotEnabled},
		"the P flag alone":                {0x0c000000, VXLANInvalidHdr, None},
		"a group without the G flag":      {0x08000007, VXLANInvalidHdr, None},
		"GBP without a VNI":               {0x80000007, VXLANInvalidHdr, VXLANInvalidHdr},
		"remote checksum offload (0x200)": {0x08200000, VXLANInvalidHdr, None},
	} {
		var b [8]byte
		binary.BigEndian.PutUint32(b[:], c.flags)
		_, strict := DecodeVXLAN(b[:], StrictBits)
		_, lenient := DecodeVXLAN(b[:], IgnoreBits)
		if strict != c.strict || lenient != c.lenient {
			t.Errorf("%s: %s and %s, want %s and %s", name, strict, lenient, c.strict, c.lenient)
		}
	}
}

func TestDecodeVXLANNeedsIFlag(t *testing.T) {
	for _, flags := range []byte{0, 0xf7, 0x80, 0x01} {
		b := []byte{flags, 0, 0, 0, 0, 0, 1, 0}
		for _, mode := range []ReservedBits{StrictBits, IgnoreBits} {
			if _, r := DecodeVXLAN(b, mode); r != VXLANInvalidHdr {
				t.Errorf("flags %#x, mode %d: %s, want %s", flags, mode, r, VXLANInvalidHdr)
			}
		}
	}
}

func TestDecodeVXLANTruncated(t *testing.T) {
	var b [8]byte
	PutVXLAN(b[:], 7)
	for n := range 8 {
		if _, r := DecodeVXLAN(b[:n], StrictBits); r != PktTooSmall {
			t.Errorf("%d bytes: %s, want %s", n, r, PktTooSmall)
		}
	}
}

func TestReasonsAreNamedOnce(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range append(Reasons(), None) {
		switch {
		case r.String() == "" || seen[r.String()]:
			t.Errorf("reason %d: word %q is empty or taken", r, r)
		case r.Meaning() == "":
			t.Errorf("reason %s has no meaning", r)
		}
		seen[r.String()] = true
	}
	if got := Reason(NumReasons).String(); got != fmt.Sprintf("reason(%d)", NumReasons) {
		t.Errorf("a value outside the set is called %q", got)
	}
}

func TestMACText(t *testing.T) {
	for in, want := range map[string]string{"02:00:00:00:00:01": "02:00:00:00:00:01", "AA-BB-CC-DD-EE-FF": "aa:bb:cc:dd:ee:ff", "": ""} {
		var m MAC
		if err := m.UnmarshalText([]byte(in)); err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if got, _ := m.MarshalText(); string(got) != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
		if MACFromUint64(m.Uint64()) != m {
			t.Errorf("%q does not survive Uint64", in)
		}
	}
	for _, in := range []string{"02:00", "02:00:00:00:00:00:00:01", "x", "0200.0000.000g"} {
		var m MAC
		if err := m.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was taken for %s", in, m)
		}
	}
}
