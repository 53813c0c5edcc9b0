package encap_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/vxlane/vxlane/encap"
)

// goldenVNI is the VNI of the captured tunnels.
const goldenVNI = 0xabcde

// Frames that the kernel's vxlan device wrote, see testdata/kernel/README.md.
func TestGoldenFrames(t *testing.T) {
	files, err := filepath.Glob("testdata/kernel/*.pcap")
	if err != nil || len(files) != 4 {
		t.Fatalf("captures: %q, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { checkKernelCapture(t, file) })
	}
}

// checkKernelCapture takes every datagram of a capture apart, compares what comes out with gopacket's view, and puts it
// together again: the header must come out as the kernel wrote it.
func checkKernelCapture(t *testing.T, file string) {
	kinds := make(map[encap.Kind]int)
	ports := make(map[uint32]layers.UDPPort) // by flow
	for _, frame := range readCapture(t, file) {
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if udp == nil || udp.DstPort != encap.VXLANPort {
			continue
		}
		kind, flow, ported := checkDatagram(t, udp.Payload)
		kinds[kind]++
		if !ported {
			continue // the kernel hashes more of such packets than we do, such as ARP's addresses
		}
		if port, ok := ports[flow]; ok && port != udp.SrcPort {
			t.Errorf("the kernel changes the source port of a flow from %d to %d", port, udp.SrcPort)
		}
		ports[flow] = udp.SrcPort
	}
	for _, kind := range []encap.Kind{encap.KindIPv4, encap.KindIPv6, encap.KindARP} {
		if kinds[kind] == 0 {
			t.Errorf("no packet of EtherType %#x in the capture", kind.EtherType())
		}
	}
}

func checkDatagram(t *testing.T, datagram []byte) (kind encap.Kind, flow uint32, ported bool) {
	t.Helper()
	codec := encap.NewVXLANIP(goldenVNI, encap.StrictBits)
	var h encap.Headers
	packet, r := codec.Decap(datagram, &h)
	if r != encap.None {
		t.Fatalf("%x: %s", datagram, r)
	}
	again := make([]byte, codec.Headroom())
	if r := codec.Encap(again, packet, &h, h.Link); r != encap.None || !bytes.Equal(again, datagram[:len(again)]) {
		t.Errorf("%s: header %x, the kernel's is %x", r, again, datagram[:len(again)])
	}
	inner := gopacket.NewPacket(datagram, layers.LayerTypeVXLAN, gopacket.Default)
	if n := inner.NetworkLayer(); n != nil {
		src, dst := n.NetworkFlow().Endpoints()
		if addrOf(src.Raw()) != h.Src || addrOf(dst.Raw()) != h.Dst {
			t.Errorf("addresses %s and %s, gopacket reads %s and %s", h.Src, h.Dst, src, dst)
		}
	}
	if s := encap.InspectChecksum(packet, &h); s == encap.ChecksumBad {
		t.Errorf("inner checksum of %x is bad", packet)
	}
	return h.Kind, h.FlowHash(), h.HasPorts
}

func addrOf(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Each truncation of what the kernel wrote is noticed (reliability goal R1).
func TestGoldenFramesCut(t *testing.T) {
	codec := encap.NewVXLANIP(goldenVNI, encap.StrictBits)
	for _, frame := range readCapture(t, "testdata/kernel/udpcsum-ipv4.pcap") {
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if udp == nil {
			continue
		}
		var h encap.Headers
		whole, r := codec.Decap(udp.Payload, &h)
		if r != encap.None || h.Kind == encap.KindARP {
			continue // ARP says nothing of its length
		}
		for n := range codec.Headroom() + len(whole) {
			if _, r := codec.Decap(udp.Payload[:n], &h); r != encap.PktTooSmall {
				t.Fatalf("cut to %d of %d bytes: %s", n, len(udp.Payload), r)
			}
		}
	}
}

func readCapture(t *testing.T, file string) (frames [][]byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, data)
	}
}
