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
		})
	}
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
