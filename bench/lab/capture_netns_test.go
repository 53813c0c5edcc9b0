//go:build netns

package lab_test

import (
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
)

// What the underlay carries to a vxlan device of the kernel is merged there (GRO), watched or not.
func TestCaptureChangesNothing(t *testing.T) {
	needLab(t)
	l, err := lab.Build(lab.Topology{
		Hosts: []string{"a", "b"},
		Links: []lab.Link{{
			A:        lab.End{Host: "a", Device: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("172.30.0.1/24")}},
			B:        lab.End{Host: "b", Device: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("172.30.0.2/24")}},
			Offloads: map[string]bool{"tx-udp-segmentation": false, "tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false},
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
	for host, v := range map[*lab.Host]lab.VXLAN{
		a: {Remote: netip.MustParseAddr("172.30.0.2"), Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24")}},
		b: {Remote: netip.MustParseAddr("172.30.0.1"), Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.2/24")}},
	} {
		v.Device, v.ID, v.Port = "vxlan0", 1, 8472
		if err := host.AddVXLAN(v); err != nil {
			t.Fatal(err)
		}
	}
	stop, err := b.Capture("eth0", filepath.Join(t.TempDir(), "b.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	const bursts, packets, size = 50, 32, 1000
	messages := sendBursts(t, a, b, bursts, packets, size)
	if missed, err := stop(); missed != 0 || err != nil {
		t.Errorf("the capture missed %d frames: %v", missed, err)
	}
	if messages > bursts*packets/4 {
		t.Errorf("%d bursts of %d packets arrived in %d messages", bursts, packets, messages)
	}
}

// sendBursts sends bursts of UDP packets, size bytes each, from one host to the other, each burst after the one before has arrived, and returns how many
// messages the receiver got (UDP_GRO, udp(7)).
func sendBursts(t *testing.T, a, b *lab.Host, bursts, packets, size int) (messages int) {
	t.Helper()
	listen := func(h *lab.Host, addr string, option, value int) (c *net.UDPConn) {
		err := h.Run(func() (err error) {
			c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		unused := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, option, value) })
		if unused != nil || err != nil {
			t.Fatal(unused, err)
		}
		return c
	}
	from, to := listen(a, "10.99.0.1:0", unix.UDP_SEGMENT, size), listen(b, "10.99.0.2:5001", unix.UDP_GRO, 1)
	if err := to.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	out, in := make([]byte, packets*size), make([]byte, 1<<16)
	for i := range bursts {
		if _, err := from.WriteTo(out, to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(out); messages++ {
			n, _, err := to.ReadFrom(in)
			if err != nil {
				t.Fatalf("burst %d, byte %d: %v", i, got, err)
			}
			got += n
		}
	}
	return messages
}
