//go:build netns

package encap_test

import (
	"context"
	"flag"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

var update = flag.Bool("update", false, "write the golden captures anew")

// The golden captures are made here, and made and checked anew on each kernel that the tests run on:
//
//	a  172.30.0.1, fd30::1  eth0 ----- eth0  172.30.0.2, fd30::2  b
//	a  10.99.0.1, fd99::1  vxlan0     vxlan0  10.99.0.2, fd99::2  b     (both the kernel's)
func TestKernelFrames(t *testing.T) {
	if err := lab.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	for _, c := range []struct {
		name string
		edit func(v *lab.VXLAN)
		v6   bool
	}{
		{"udpcsum-ipv4", func(*lab.VXLAN) {}, false},
		{"noudpcsum-ipv4", func(v *lab.VXLAN) { v.NoChecksum = true }, false},
		{"ipv6", func(*lab.VXLAN) {}, true},
		{"udp6zerocsum-ipv6", func(v *lab.VXLAN) { v.ZeroTX6, v.ZeroRX6 = true, true }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if *update {
				dir = "testdata/kernel"
			}
			file := filepath.Join(dir, c.name+".pcap")
			captureKernel(t, file, c.v6, c.edit)
			checkKernelCapture(t, file)
		})
	}
}

func captureKernel(t *testing.T, file string, v6 bool, edit func(v *lab.VXLAN)) {
	t.Helper()
	p := netip.MustParsePrefix
	l, err := lab.Build(lab.Topology{
		Hosts: []string{"a", "b"},
		Links: []lab.Link{{
			A:        lab.End{Host: "a", Device: "eth0", Addresses: []netip.Prefix{p("172.30.0.1/24"), p("fd30::1/64")}},
			B:        lab.End{Host: "b", Device: "eth0", Addresses: []netip.Prefix{p("172.30.0.2/24"), p("fd30::2/64")}},
			Offloads: map[string]bool{"tx-checksum-ip-generic": false, "tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	a, b := l.Host("a"), l.Host("b")
	stop, err := b.Capture("eth0", file)
	if err != nil {
		t.Fatal(err)
	}
	addVTEP(t, a, 1, 2, v6, edit)
	addVTEP(t, b, 2, 1, v6, edit)
	for _, dst := range []string{"10.99.0.2", "fd99::2"} {
		for _, size := range []int{0, 56, 1000} {
			if _, err := traffic.Ping(a, netip.MustParseAddr(dst), size, 5*time.Second); err != nil {
				t.Error(err)
			}
		}
		// One block: enough for a handshake, data and a farewell.
		if _, err := traffic.TCP(context.Background(), a, b, netip.MustParseAddr(dst), 0); err != nil {
			t.Error(err)
		}
	}
	if missed, err := stop(); missed != 0 || err != nil {
		t.Fatalf("the capture missed %d frames: %v", missed, err)
	}
}

// addVTEP makes the kernel's vxlan device of host own, whose peer is host other.
func addVTEP(t *testing.T, h *lab.Host, own, other byte, v6 bool, edit func(v *lab.VXLAN)) {
	t.Helper()
	local, remote := netip.AddrFrom4([4]byte{172, 30, 0, own}), netip.AddrFrom4([4]byte{172, 30, 0, other})
	if v6 {
		local, remote = netip.AddrFrom16([16]byte{0xfd, 0x30, 15: own}), netip.AddrFrom16([16]byte{0xfd, 0x30, 15: other})
	}
	v := lab.VXLAN{
		Device: "vxlan0", ID: goldenVNI, Local: local, Remote: remote, Link: "eth0", Port: 8472, MAC: net.HardwareAddr{2, 0, 0, 0, 0, own},
		Addresses: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, own}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x99, 15: own}), 64),
		},
	}
	edit(&v)
	if err := h.AddVXLAN(v); err != nil {
		t.Fatal(err)
	}
}
