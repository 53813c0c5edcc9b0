package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// This host answers itself, at the size that was asked, over both kinds of socket and both families.
func TestICMPEcho(t *testing.T) {
	for _, local := range []string{"127.0.0.1", "::1"} {
		for name, kind := range map[string]int{"raw": unix.SOCK_RAW, "ping": unix.SOCK_DGRAM} {
			t.Run(name+" "+local, func(t *testing.T) {
				a := netip.MustParseAddr(local)
				e, err := openEcho(a, kind)
				if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
					t.Skipf("skipped: %v: needs CAP_NET_RAW, or for a ping socket net.ipv4.ping_group_range", err)
				}
				if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
					t.Skipf("skipped: %v: needs IPv6", err)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer e.Close()
				for _, bytes := range []int{floor4, floor6, 1500, 9000} {
					if err := e.Send(a, bytes); err != nil {
						t.Fatal(err)
					}
					select {
					case got := <-e.Answers():
						if got.From != a || got.Bytes != bytes || got.RoundTrip <= 0 {
							t.Errorf("asked for %d bytes: %+v", bytes, got)
						}
					case <-time.After(20 * time.Second):
						t.Fatalf("no answer of %d bytes", bytes)
					}
				}
				if err := e.Send(a, 1<<17); err == nil {
					t.Error("a request larger than any packet was sent")
				}
			})
		}
	}
}

// What has not the secret of the requests is no answer, and nothing is read beyond what came.
func TestForgedEchoAnswers(t *testing.T) {
	e := &ICMPEcho{four: true, cookie: [8]byte{1, 2, 3}, started: time.Now()}
	good := make([]byte, echoHeaderLen+echoCookieLen)
	copy(good[echoHeaderLen:], e.cookie[:])
	from := &net.IPAddr{IP: net.IPv4(192, 0, 2, 1)}
	if a, ok := e.parse(good, from); !ok || a.From.String() != "192.0.2.1" || a.Bytes != 28+echoCookieLen {
		t.Errorf("%+v, %v", a, ok)
	}
	for n := range good {
		if _, ok := e.parse(good[:n], from); ok {
			t.Errorf("an answer of %d bytes was taken", n)
		}
	}
	for _, at := range []int{0, echoHeaderLen, echoHeaderLen + 7} {
		bad := append([]byte(nil), good...)
		bad[at] ^= 0x10
		if _, ok := e.parse(bad, from); ok {
			t.Errorf("an answer with another byte %d was taken", at)
		}
	}
}
