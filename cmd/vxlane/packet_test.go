package main

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/static"
)

func TestTuples(t *testing.T) {
	for text, want := range map[string]string{
		"udp 10.99.0.1:40000 10.99.0.2:53":   "17 10.99.0.1:40000 10.99.0.2:53",
		"10.99.0.1:40000 10.99.0.2:53 tcp":   "6 10.99.0.1:40000 10.99.0.2:53",
		"tcp,10.99.0.1,40000,10.99.0.2,53":   "6 10.99.0.1:40000 10.99.0.2:53",
		"10.99.0.1 10.99.0.2 40000 53 udp":   "17 10.99.0.1:40000 10.99.0.2:53",
		"10.99.0.1 10.99.0.2 udp 40000 53":   "17 10.99.0.1:40000 10.99.0.2:53",
		"10.99.0.1 53 10.99.0.2 1234 udp":    "17 10.99.0.1:53 10.99.0.2:1234",
		"17 10.99.0.1 10.99.0.2 40000 53":    "17 10.99.0.1:40000 10.99.0.2:53",
		"udp 10.99.0.1 10.99.0.2 53":         "17 10.99.0.1:0 10.99.0.2:53",
		"udp 10.99.0.1:40000->10.99.0.2:53":  "17 10.99.0.1:40000 10.99.0.2:53",
		"udp 10.99.0.1:40000 > 10.99.0.2:53": "17 10.99.0.1:40000 10.99.0.2:53",
		"UDP [fd99::1]:40000 [fd99::2]:53":   "17 [fd99::1]:40000 [fd99::2]:53",
		"58 fd99:0:0:1::1 fd99:0:0:1::2":     "58 [fd99:0:0:1::1]:0 [fd99:0:0:1::2]:0",
		"icmp 10.99.0.1 10.99.0.2":           "1 10.99.0.1:0 10.99.0.2:0",
		"icmp fd99::1 fd99::2":               "58 [fd99::1]:0 [fd99::2]:0",
		"sctp 10.99.0.1 10.99.0.2":           "132 10.99.0.1:0 10.99.0.2:0",
		"10.99.0.1 10.99.0.2":                "which protocol?",
		"10.99.0.1 10.99.0.2 40000 53":       "which protocol?",
		"10.99.0.1 10.99.0.2 40000 53 17":    "which protocol?",
		"udp 17 10.99.0.1 10.99.0.2":         "which protocol?",
		"udp tcp 10.99.0.1 10.99.0.2":        `"tcp" is no protocol, address or port here`,
		"udp 10.99.0.1:1 10.99.0.2:2 3":      "more ports than addresses",
		"udp 10.99.0.1":                      "want a source and a destination",
		"udp 10.99.0.1 fd99::2":              "different address families",
		"udp 10.99.0.1 10.99.0.2 10.99.0.3":  `"10.99.0.3" is no protocol`,
		"udp hosta 10.99.0.2":                `"hosta" is no protocol`,
		"udp 10.99.0.1 10.99.0.2 70000":      `"70000" is no protocol`,
	} {
		packet, err := packetFromTuple(strings.Fields(text))
		got := fmt.Sprint(err)
		if err == nil {
			var h encap.Headers
			if r := encap.ParseIP(packet, &h); r != encap.None {
				t.Errorf("%s: %s", text, r)
			}
			got = fmt.Sprintf("%d %s %s", h.Proto, netip.AddrPortFrom(h.Src, h.SrcPort), netip.AddrPortFrom(h.Dst, h.DstPort))
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestHex(t *testing.T) {
	const want = "45000014000000004011000a0a630001"
	for _, text := range []string{
		want, "0x" + want, "4500 0014 0000 0000 4011 000a 0a63 0001", "0x45 0x00 0x00 0x14 0x00 0x00 0x00 0x00 0x40 0x11 0x00 0x0a 0x0a 0x63 0x00 0x01",
		"45:00:00:14:00:00:00:00:40:11:00:0a:0a:63:00:01", "45:00:00:14:00:00:00:00 40:11:00:0a:0a:63:00:01",
	} {
		if got, ok := parseHex(strings.Fields(text)); !ok || hex.EncodeToString(got) != want {
			t.Errorf("%s: %x, %v", text, got, ok)
		}
	}
	for _, text := range []string{"fd99::1 fd99::2", "58 fd99:0:0:1::1 fd99:0:0:1::2", "udp 10.99.0.1 10.99.0.2", "4500"} {
		if got, ok := parseHex(strings.Fields(text)); ok {
			t.Errorf("%s was taken for %x", text, got)
		}
	}
}

// place is a tunnel at 172.30.0.1 port 8472 with a peer at 172.30.0.2 port 4789.
func place() vantage {
	st := control.Status{Underlay: control.UnderlayStatus{Underlay: static.Underlay{Encap: encap.FramingVXLAN, Local: netip.MustParseAddr("172.30.0.1"), Port: 8472}}}
	return newVantage(st, control.Peers{Peers: []control.Peer{{Endpoint: "172.30.0.2:4789"}}})
}

func TestClassify(t *testing.T) {
	inner, err := packetFromTuple([]string{"udp", "10.99.0.1:1", "10.99.0.2:2"})
	if err != nil {
		t.Fatal(err)
	}
	frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, inner...)
	datagram := append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, frame...)
	outer := func(src, dst string) []byte {
		p, err := buildPacketWith(layers.IPProtocolUDP, netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), datagram)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	sent, received := outer("172.30.0.1:40000", "172.30.0.2:4789"), outer("172.30.0.2:40000", "172.30.0.1:8472")
	for _, c := range []struct {
		name string
		in   capturedFrame
		from string
		want control.TraceRequest
	}{
		{"a packet", capturedFrame{data: inner}, "", control.TraceRequest{Data: inner}},
		{"a frame", capturedFrame{data: frame}, "", control.TraceRequest{Data: inner}},
		{"a datagram that was sent, to a peer with another port", capturedFrame{data: sent, linkIP: true}, "", control.TraceRequest{Data: inner}},
		{"a datagram that was received", capturedFrame{data: received, linkIP: true}, "", control.TraceRequest{Decap: true, Data: datagram, Outer: "172.30.0.2"}},
		{"the same as from another", capturedFrame{data: received, linkIP: true}, "172.30.0.9", control.TraceRequest{Decap: true, Data: datagram, Outer: "172.30.0.9"}},
		{"a packet from a peer", capturedFrame{data: inner}, "172.30.0.2", control.TraceRequest{Decap: true, Data: inner, Bare: true, Outer: "172.30.0.2"}},
		{"a frame from a peer", capturedFrame{data: frame, linkEN: true}, "172.30.0.2", control.TraceRequest{Decap: true, Data: frame, Frame: true, Outer: "172.30.0.2"}},
		{"a frame in hex from a peer", capturedFrame{data: frame}, "172.30.0.2", control.TraceRequest{Decap: true, Data: frame, Frame: true, Outer: "172.30.0.2"}},
		{"a payload from a peer", capturedFrame{data: datagram}, "172.30.0.2", control.TraceRequest{Decap: true, Data: datagram, Outer: "172.30.0.2"}},
	} {
		if got := place().classify(c.in, c.from); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

// A pcapng file with two interfaces of different link types, as dumpcap writes when it listens on two devices.
func TestCaptureWithTwoLinkTypes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "two.pcapng")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w, err := pcapgo.NewNgWriterInterface(f, pcapgo.NgInterface{LinkType: layers.LinkTypeEthernet}, pcapgo.DefaultNgWriterOptions)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := w.AddInterface(pcapgo.NgInterface{LinkType: layers.LinkTypeRaw})
	if err != nil {
		t.Fatal(err)
	}
	packets := []struct {
		at   int
		data []byte
	}{{0, []byte("ethernet frame 1")}, {raw, []byte("raw packet 2")}, {0, []byte("ethernet frame 3")}}
	for _, p := range packets {
		info := gopacket.CaptureInfo{Timestamp: time.Unix(1, 0), CaptureLength: len(p.data), Length: len(p.data), InterfaceIndex: p.at}
		if err := w.WritePacket(info, p.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for i, p := range packets {
		got, err := readCaptured(file, i+1)
		if err != nil || string(got.data) != string(p.data) || got.linkIP != (p.at == raw) || got.linkEN == got.linkIP {
			t.Errorf("packet %d: %+v, %v", i+1, got, err)
		}
	}
	if _, err := readCaptured(file, 4); err == nil || !strings.Contains(err.Error(), "it has 3 packets") {
		t.Errorf("packet 4: %v", err)
	}
}
