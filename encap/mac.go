package encap

import (
	"encoding/hex"
	"fmt"
	"net"
)

// MAC is an Ethernet address (EUI-48).
type MAC [6]byte

// Broadcast is the address of every station.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ParseMAC reads six octets in any of the notations of net.ParseMAC.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, fmt.Errorf("parse MAC %q: want six octets such as 02:00:00:00:00:01", s)
	}
	if len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("parse MAC %q: want 6 octets, got %d", s, len(hw))
	}
	return MAC(hw), nil
}

// IsZero reports whether m is 00:00:00:00:00:00.
func (m MAC) IsZero() bool { return m == MAC{} }

// IsGroup reports whether m is a multicast or broadcast address (the I/G bit).
func (m MAC) IsGroup() bool { return m[0]&1 != 0 }

// IsUnicast reports whether m can be the address of one station: not zero, not a group.
func (m MAC) IsUnicast() bool { return !m.IsZero() && !m.IsGroup() }

// Uint64 returns m as the low 48 bits of an integer, first octet highest.
func (m MAC) Uint64() uint64 {
	return uint64(m[0])<<40 | uint64(m[1])<<32 | uint64(m[2])<<24 | uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
}

// MACFromUint64 is the inverse of Uint64; the upper 16 bits are ignored.
func MACFromUint64(v uint64) MAC {
	return MAC{byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// String returns lower-case octets between colons.
func (m MAC) String() string {
	const sep = ':'
	var b [17]byte
	for i, o := range m {
		hex.Encode(b[3*i:], []byte{o})
		if i < 5 {
			b[3*i+2] = sep
		}
	}
	return string(b[:])
}

// MarshalText implements encoding.TextMarshaler; the zero MAC is the empty text.
func (m MAC) MarshalText() ([]byte, error) {
	if m.IsZero() {
		return nil, nil
	}
	return []byte(m.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*m = MAC{}
		return nil
	}
	*m, err = ParseMAC(string(text))
	return err
}
