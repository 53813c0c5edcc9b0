package encap_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/vxlane/vxlane/encap"
)

// What PutOuter writes, finished as a device would, is what gopacket writes.
func TestPutOuterAgainstGopacket(t *testing.T) {
	for _, c := range []struct {
		src, dst string
		outer    encap.Outer
		n        int
	}{
		{"172.30.0.1:33001", "172.30.0.2:8472", encap.Outer{TTL: 64, Checksum: true, ID: 7}, 100},
		{"172.30.0.1:65535", "172.30.0.2:1", encap.Outer{TTL: 1, TOS: 0xbb, DF: true, Checksum: true, ID: 0xffff}, 65507},
		{"172.30.0.1:33001", "172.30.0.2:8472", encap.Outer{TTL: 255}, 0},
		{"[fd00::1]:33001", "[fd00::2]:8472", encap.Outer{TTL: 64, TOS: 0xbb, Flow: 0xabcdef12, Checksum: true}, 1001},
		{"[fd00::1]:33001", "[fd00::2]:8472", encap.Outer{TTL: 3}, 64},
	} {
		t.Run(fmt.Sprint(c.dst, c.n), func(t *testing.T) {
			o := c.outer
			o.Src, o.Dst = netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
			payload := bytes.Repeat([]byte{0xa5, 3, 0xff}, c.n/3+1)[:c.n]
			head := encap.OuterHeaderLen(o.Dst.Addr().Is6())
			got := append(make([]byte, head), payload...)
			for i := range head {
				got[i] = 0xee // what was there before must not show
			}
			encap.PutOuter(got, &o, c.n)
			if l4 := head - 8; o.Checksum && !(encap.Offload{ChecksumStart: l4, ChecksumField: l4 + encap.UDPChecksumOffset}).FinishChecksum(got) {
				t.Fatal("checksum does not fit")
			}
			if want := gopacketOuter(t, o, payload); !bytes.Equal(got, want) {
				t.Errorf("got\n%x\nwant\n%x", got[:head], want[:head])
			}
			checkOuterRead(t, got, o, payload)
		})
	}
}

// checkOuterRead reads back what was written, padded, and damages each of its bytes that a checksum covers.
func checkOuterRead(t *testing.T, b []byte, want encap.Outer, payload []byte) {
	t.Helper()
	if want.Flow &= 0xfffff; want.Dst.Addr().Is4() {
		want.Flow = 0
	} else {
		want.ID = 0
	}
	var o encap.Outer
	got, r := encap.ParseOuter(append(bytes.Clone(b), 0xee, 0xee, 0xee), &o)
	if r != encap.None || o != want || !bytes.Equal(got, payload) || cap(got) != len(got) {
		t.Fatalf("read: %s, %+v, %d bytes, want %+v, %d bytes", r, o, len(got), want, len(payload))
	}
	if !encap.VerifyOuter(b, &o, got) {
		t.Error("checksum is not good")
	}
	for i := range min(len(b), 100) {
		b[i] ^= 0x40
		got, r := encap.ParseOuter(b, &o)
		if r == encap.None && o.Checksum && encap.VerifyOuter(b, &o, got) && !unsummed(&o, i) {
			t.Errorf("damage to byte %d is not seen: %+v", i, o)
		}
		b[i] ^= 0x40
	}
}

// unsummed reports whether no checksum covers byte i: traffic class, flow label and hop limit of IPv6.
func unsummed(o *encap.Outer, i int) bool { return o.Dst.Addr().Is6() && (i < 4 || i == 7) }

// What is not a whole, unfragmented datagram is refused, and said why.
func TestParseOuterRefuses(t *testing.T) {
	four, six := make([]byte, 28+4), make([]byte, 48+4)
	encap.PutOuter(four, &encap.Outer{Src: netip.MustParseAddrPort("172.30.0.1:5"), Dst: netip.MustParseAddrPort("172.30.0.2:8472"), TTL: 64}, 4)
	encap.PutOuter(six, &encap.Outer{Src: netip.MustParseAddrPort("[fd00::1]:5"), Dst: netip.MustParseAddrPort("[fd00::2]:8472"), TTL: 64}, 4)
	for _, c := range []struct {
		name string
		base []byte
		edit func(b []byte) []byte
		want encap.Reason
	}{
		{"nothing", four, func([]byte) []byte { return nil }, encap.PktTooSmall},
		{"cut IPv4", four, func(b []byte) []byte { return b[:len(b)-1] }, encap.PktTooSmall},
		{"cut IPv6", six, func(b []byte) []byte { return b[:len(b)-1] }, encap.PktTooSmall},
		{"IPv6 header cut", six, func(b []byte) []byte { return b[:39] }, encap.PktTooSmall},
		{"version 5", four, func(b []byte) []byte { b[0] = 0x55; return b }, encap.NotIP},
		{"IPv4 options", four, func(b []byte) []byte { b[0] = 0x46; return b }, encap.NotIP},
		{"first fragment", four, func(b []byte) []byte { b[6] = 0x20; return b }, encap.NotIP},
		{"later fragment", four, func(b []byte) []byte { b[7] = 1; return b }, encap.NotIP},
		{"TCP", four, func(b []byte) []byte { b[9] = encap.ProtoTCP; return b }, encap.NotIP},
		{"extension header", six, func(b []byte) []byte { b[6] = 44; return b }, encap.NotIP},
		{"IPv4 length too small", four, func(b []byte) []byte { b[2], b[3] = 0, 19; return b }, encap.PktTooSmall},
		{"IPv4 without UDP", four, func(b []byte) []byte { b[2], b[3] = 0, 27; return resum(b) }, encap.PktTooSmall},
		{"IPv6 without UDP", six, func(b []byte) []byte { b[4], b[5] = 0, 7; return b }, encap.PktTooSmall},
		{"UDP longer than IP", four, func(b []byte) []byte { b[25]++; return b }, encap.PktTooSmall},
		{"UDP shorter than its header", six, func(b []byte) []byte { b[45] = 7; return b }, encap.PktTooSmall},
		{"header checksum", four, func(b []byte) []byte { b[8]--; return b }, encap.OuterChecksum},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o encap.Outer
			if payload, r := encap.ParseOuter(c.base, &o); r != encap.None || len(payload) != 4 {
				t.Fatalf("as it was: %s", r)
			}
			if payload, r := encap.ParseOuter(c.edit(bytes.Clone(c.base)), &o); r != c.want || payload != nil {
				t.Errorf("%s with %d bytes, want %s", r, len(payload), c.want)
			}
		})
	}
}

// resum mends the header checksum of an IPv4 packet.
func resum(b []byte) []byte {
	b[10], b[11] = 0, 0
	sum := ^encap.Sum(b[:20], 0)
	b[10], b[11] = byte(sum>>8), byte(sum)
	return b
}

func gopacketOuter(t *testing.T, o encap.Outer, payload []byte) []byte {
	t.Helper()
	u := &layers.UDP{SrcPort: layers.UDPPort(o.Src.Port()), DstPort: layers.UDPPort(o.Dst.Port())}
	ip4 := &layers.IPv4{Version: 4, TOS: o.TOS, TTL: o.TTL, Id: o.ID, Protocol: layers.IPProtocolUDP, SrcIP: o.Src.Addr().AsSlice(), DstIP: o.Dst.Addr().AsSlice()}
	if o.DF {
		ip4.Flags = layers.IPv4DontFragment
	}
	ip6 := &layers.IPv6{Version: 6, TrafficClass: o.TOS, FlowLabel: o.Flow & 0xfffff, HopLimit: o.TTL, NextHeader: layers.IPProtocolUDP, SrcIP: o.Src.Addr().AsSlice(), DstIP: o.Dst.Addr().AsSlice()}
	var ip interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	} = ip4
	if o.Dst.Addr().Is6() {
		ip = ip6
	}
	if err := u.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	// The sum of a UDP header covers its length, so lengths come first.
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, u, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	if b := buf.Bytes(); !o.Checksum {
		l4 := encap.OuterHeaderLen(o.Dst.Addr().Is6()) - 8
		b[l4+6], b[l4+7] = 0, 0
	}
	return buf.Bytes()
}
