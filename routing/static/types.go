package static

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/vxlane/vxlane/encap"
)

// Tier is the set of kernel offloads that a tunnel is to use.
type Tier string

// The tiers, in the words of tunnel.Tier; TierAuto stands for the best that needs nothing special.
const (
	TierAuto      Tier = "auto"
	TierTunnelGSO Tier = "tunnel-gso"
	TierUDPGSO    Tier = "udp-gso"
	TierPortable  Tier = "portable"
)

// Mode is what a device carries.
type Mode string

// The modes of a device.
const (
	ModeTUN Mode = "tun"
	ModeTAP Mode = "tap"
)

// DF is a policy for the don't-fragment bit, in the words of ip-link(8).
type DF string

// The policies.
const (
	DFUnset   DF = "unset"
	DFSet     DF = "set"
	DFInherit DF = "inherit"
)

// ReservedBits is a policy for reserved bits in the VXLAN header.
type ReservedBits string

// The policies.
const (
	ReservedStrict ReservedBits = "strict"
	ReservedIgnore ReservedBits = "ignore"
)

// Bits returns the policy as the codec knows it.
func (r ReservedBits) Bits() encap.ReservedBits {
	if r == ReservedIgnore {
		return encap.IgnoreBits
	}
	return encap.StrictBits
}

// Check says what becomes of packets whose source is not what it should be.
type Check string

// The ways to check, as they are written.
const (
	CheckOff     Check = "false"
	CheckCount   Check = "count"
	CheckEnforce Check = "true"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Check) UnmarshalText(text []byte) error {
	switch v := Check(strings.ToLower(string(text))); v {
	case CheckOff, CheckCount, CheckEnforce:
		*c = v
		return nil
	}
	return fmt.Errorf("%q: want true, false or count", text)
}

// MarshalJSON implements json.Marshaler: what is a boolean in the file is one here.
func (c Check) MarshalJSON() ([]byte, error) { return json.Marshal(plainBool(string(c))) }

// UnmarshalJSON implements json.Unmarshaler.
func (c *Check) UnmarshalJSON(data []byte) error {
	return c.UnmarshalText(bytes.Trim(data, `"`))
}

// MarshalYAML implements yaml.Marshaler.
func (c Check) MarshalYAML() (any, error) { return plainBool(string(c)), nil }

// Suppress says what becomes of questions for the MAC of an address, in tap mode.
type Suppress string

// The ways, as they are written.
const (
	SuppressOff   Suppress = "false"
	SuppressKnown Suppress = "true"
	SuppressDrop  Suppress = "drop"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Suppress) UnmarshalText(text []byte) error {
	switch v := Suppress(strings.ToLower(string(text))); v {
	case SuppressOff, SuppressKnown, SuppressDrop:
		*s = v
		return nil
	}
	return fmt.Errorf("%q: want true, false or drop", text)
}

// MarshalJSON implements json.Marshaler: what is a boolean in the file is one here.
func (s Suppress) MarshalJSON() ([]byte, error) { return json.Marshal(plainBool(string(s))) }

// UnmarshalJSON implements json.Unmarshaler.
func (s *Suppress) UnmarshalJSON(data []byte) error {
	return s.UnmarshalText(bytes.Trim(data, `"`))
}

// MarshalYAML implements yaml.Marshaler.
func (s Suppress) MarshalYAML() (any, error) { return plainBool(string(s)), nil }

// plainBool returns a boolean for the words of one, and other words as they are.
func plainBool(word string) any {
	switch word {
	case "true":
		return true
	case "false":
		return false
	}
	return word
}

// Duration is a time.Duration that is written as text, such as 300s.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q: want a duration such as 300s", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// TTL is a fixed TTL, inherit, or auto.
type TTL struct {
	Inherit bool
	Value   uint8 // 0, when not inherited, is auto
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *TTL) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*t = TTL{}
		return nil
	}
	inherit, v, err := inheritOr(text)
	if err != nil || !inherit && v == 0 {
		return fmt.Errorf("%q: want 1-255, inherit or auto", text)
	}
	*t = TTL{inherit, v}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (t TTL) MarshalText() ([]byte, error) {
	if t == (TTL{}) {
		return []byte("auto"), nil
	}
	return marshalInherit(t.Inherit, t.Value)
}

// TOS is a fixed TOS, or inherit.
type TOS struct {
	Inherit bool
	Value   uint8
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *TOS) UnmarshalText(text []byte) error {
	inherit, v, err := inheritOr(text)
	if err != nil {
		return fmt.Errorf("%q: want 0-255 or inherit", text)
	}
	*t = TOS{inherit, v}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (t TOS) MarshalText() ([]byte, error) { return marshalInherit(t.Inherit, t.Value) }

func inheritOr(text []byte) (inherit bool, value uint8, err error) {
	if string(text) == "inherit" {
		return true, 0, nil
	}
	v, err := strconv.ParseUint(string(text), 0, 8)
	return false, uint8(v), err
}

func marshalInherit(inherit bool, v uint8) ([]byte, error) {
	if inherit {
		return []byte("inherit"), nil
	}
	return strconv.AppendUint(nil, uint64(v), 10), nil
}

// PortRange is a range of UDP ports, both ends included.
type PortRange struct{ Low, High uint16 }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *PortRange) UnmarshalText(text []byte) error {
	lo, hi, ok := strings.Cut(string(text), "-")
	if !ok {
		hi = lo
	}
	low, err1 := strconv.ParseUint(strings.TrimSpace(lo), 10, 16)
	high, err2 := strconv.ParseUint(strings.TrimSpace(hi), 10, 16)
	if err1 != nil || err2 != nil || low == 0 || low > high {
		return fmt.Errorf("%q: want two ports LOW-HIGH within 1-65535, such as 32768-60999", text)
	}
	*r = PortRange{uint16(low), uint16(high)}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (r PortRange) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d-%d", r.Low, r.High), nil
}

// Endpoint is an underlay address with an optional port; 0 stands for the tunnel's.
type Endpoint struct{ netip.AddrPort }

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *Endpoint) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "" {
		return errors.New("empty: want an address such as 172.30.0.2 or 172.30.0.2:4789")
	}
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	if addr, err := netip.ParseAddr(bare); err == nil {
		*e = Endpoint{netip.AddrPortFrom(addr, 0)}
		return nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return fmt.Errorf("%q: want an address such as 172.30.0.2, 172.30.0.2:4789 or [2001:db8::2]:4789; names are not looked up", s)
	}
	*e = Endpoint{ap}
	return nil
}

// Prefix is an IP prefix; a bare address stands for a single host.
type Prefix struct{ netip.Prefix }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Prefix) UnmarshalText(text []byte) error {
	s := string(text)
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" && !addr.Is4In6() {
		*p = Prefix{netip.PrefixFrom(addr, addr.BitLen())}
		return nil
	}
	prefix, err := netip.ParsePrefix(s)
	if addr, addrErr := netip.ParseAddr(s); addrErr == nil {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err != nil || prefix.Addr().Zone() != "":
		return fmt.Errorf("%q: want a prefix such as 10.99.0.2/32 or 10.244.2.0/24", s)
	case prefix.Addr().Is4In6():
		return fmt.Errorf("%q: write the IPv4 prefix itself", s)
	case prefix != prefix.Masked():
		return fmt.Errorf("%q: has bits set behind the prefix; %s is the network, %s/%d the host",
			s, prefix.Masked(), prefix.Addr(), prefix.Addr().BitLen())
	}
	*p = Prefix{prefix}
	return nil
}

// Flood says which peers get broadcast, unknown and multicast frames.
type Flood struct {
	All   bool
	Names []string
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (f *Flood) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		*f = Flood{}
		return n.Decode(&f.Names)
	}
	switch n.Value {
	case "all":
		*f = Flood{All: true}
	case "none":
		*f = Flood{}
	default:
		return fmt.Errorf("%q: want all, none or a list of peer names", n.Value)
	}
	return nil
}

// None reports whether nobody gets them.
func (f Flood) None() bool { return !f.All && len(f.Names) == 0 }

func (f Flood) value() any {
	switch {
	case f.All:
		return "all"
	case f.None():
		return "none"
	}
	return f.Names
}

// MarshalYAML implements yaml.Marshaler.
func (f Flood) MarshalYAML() (any, error) { return f.value(), nil }

// MarshalJSON implements json.Marshaler.
func (f Flood) MarshalJSON() ([]byte, error) { return json.Marshal(f.value()) }

// deriveMAC returns a locally administered unicast MAC that depends on local and vni alone.
func deriveMAC(local netip.Addr, vni uint32) encap.MAC {
	a := local.As16()
	sum := sha256.Sum256(append(a[:], byte(vni>>16), byte(vni>>8), byte(vni)))
	m := encap.MAC(sum[:6])
	m[0] = m[0]&^3 | 2
	return m
}

// yamlOf lets JSON pass for YAML, of which it is a part but for two things: it may be indented with tabs, and a string
// may have \/ for a slash. Neither loses anything: a JSON string cannot hold a raw tab. Lines stay what they are.
func yamlOf(data []byte) []byte {
	if !json.Valid(data) {
		return data
	}
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i++ {
		switch {
		case data[i] == '\t':
			out = append(out, ' ')
		case data[i] == '\\' && data[i+1] == '/': // valid JSON: something follows a backslash
		case data[i] == '\\':
			out = append(out, data[i], data[i+1])
			i++
		default:
			out = append(out, data[i])
		}
	}
	return out
}
