package encap

import (
	"bytes"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func TestVXLANIPMakesWhatGopacketReads(t *testing.T) {
	c := NewVXLANIP(0xabcdef, StrictBits)
	for name, packet := range map[string][]byte{"IPv4": udp4(t, []byte("hello")), "IPv6": tcp6(t, []byte("hello"))} {
		h := mustParseIP(t, packet)
		datagram := append(make([]byte, c.Headroom()), packet...)
		if r := c.Encap(datagram[:c.Headroom()], datagram[c.Headroom():], h, Link{Dst: macB, Src: macA}); r != None {
			t.Fatal(name, r)
		}
		p := gopacket.NewPacket(datagram, layers.LayerTypeVXLAN, gopacket.NoCopy)
		vx, _ := p.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
		eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		if vx == nil || !vx.ValidIDFlag || vx.VNI != 0xabcdef || vx.GBPExtension {
			t.Errorf("%s: VXLAN header %+v", name, vx)
		}
		if eth == nil || MAC(eth.DstMAC) != macB || MAC(eth.SrcMAC) != macA || !bytes.Equal(eth.Payload, packet) {
			t.Errorf("%s: frame %+v", name, eth)
		}
		got, r := c.Decap(datagram, h)
		if r != None || !bytes.Equal(got, packet) || h.Link != (Link{Dst: macB, Src: macA}) || h.L3 != 0 || h.Len != len(packet) {
			t.Errorf("%s: decap gave %x, %s, %+v", name, got, r, h)
		}
	}
}

func TestVXLANIPDecapRefuses(t *testing.T) {
	c := NewVXLANIP(5, StrictBits)
	packet := udp4(t, []byte("hello"))
	good := append(make([]byte, c.Headroom()), packet...)
	if r := c.Encap(good[:c.Headroom()], good[c.Headroom():], mustParseIP(t, packet), Link{Dst: macB, Src: macA}); r != None {
		t.Fatal(r)
	}
	edit := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	for _, c2 := range []struct {
		name     string
		datagram []byte
		want     Reason
	}{
		{"other VNI", edit(6, 6), VXLANVNINotFound},
		{"reserved bit", edit(7, 1), VXLANInvalidHdr},
		{"no I flag", edit(0, 0), VXLANInvalidHdr},
		{"bad IP header", edit(22, 0x43), NotIP},
	} {
		var h Headers
		if _, r := c.Decap(c2.datagram, &h); r != c2.want {
			t.Errorf("%s: %s, want %s", c2.name, r, c2.want)
		}
	}
	for n := range good {
		var h Headers
		if _, r := c.Decap(good[:n], &h); r != PktTooSmall {
			t.Errorf("cut to %d bytes: %s, want %s", n, r, PktTooSmall)
		}
	}
}

func TestFlannelUDPTTL(t *testing.T) {
	c := NewFlannelUDP()
	for _, step := range []struct {
		name string
		do   func(packet []byte, h *Headers) Reason
	}{
		{"transmit", func(p []byte, h *Headers) Reason { return c.Encap(nil, p, h, Link{}) }},
		{"receive", c.Forward},
	} {
		for _, ttl := range []struct {
			in, out uint8
			reason  Reason
		}{{64, 63, None}, {2, 1, None}, {1, 1, TTLExpired}, {0, 0, TTLExpired}, {255, 254, None}} {
			packet := udp4(t, []byte("x"))
			h := mustParseIP(t, packet)
			UpdateChecksum(packet[10:12], uint16(packet[8])<<8|uint16(packet[9]), uint16(ttl.in)<<8|uint16(packet[9]))
			packet[8] = ttl.in
			r := step.do(packet, h)
			if r != ttl.reason || packet[8] != ttl.out {
				t.Errorf("%s: TTL %d became %d, %s; want %d, %s", step.name, ttl.in, packet[8], r, ttl.out, ttl.reason)
			}
			if Sum(packet[:20], 0) != 0xffff {
				t.Errorf("%s: TTL %d: header checksum is wrong", step.name, ttl.in)
			}
		}
	}
}

func TestFlannelUDPCarriesIPv4Only(t *testing.T) {
	c := NewFlannelUDP()
	var h Headers
	if _, r := c.Decap(udp6(t, nil), &h); r != NotIP {
		t.Errorf("decap of IPv6: %s", r)
	}
	packet := udp6(t, nil)
	if r := c.Encap(nil, packet, mustParseIP(t, packet), Link{}); r != NotIP {
		t.Errorf("encap of IPv6: %s", r)
	}
	v4 := append(udp4(t, []byte("x")), 0, 0, 0)
	got, r := c.Decap(v4, &h)
	if r != None || len(got) != len(v4)-3 {
		t.Errorf("decap of a padded packet: %d bytes, %s", len(got), r)
	}
}

func TestOverhead(t *testing.T) {
	for _, c := range []struct {
		codec Codec
		v6    bool
		want  int
	}{
		{NewVXLANIP(1, StrictBits), false, 50}, {NewVXLANIP(1, StrictBits), true, 70},
		{NewFlannelUDP(), false, 28}, {NewFlannelUDP(), true, 48},
	} {
		if got := Overhead(c.codec, c.v6); got != c.want {
			t.Errorf("%T, IPv6 %v: %d, want %d", c.codec, c.v6, got, c.want)
		}
	}
}
