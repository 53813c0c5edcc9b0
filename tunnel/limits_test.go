package tunnel

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vxlane/vxlane/encap"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter()
	l.now = func() time.Time { return now }
	host := netip.MustParseAddr("10.0.0.1")
	allowed := func(n int, at func(i int) netip.Addr) (count int) {
		for i := range n {
			if l.allow(at(i)) {
				count++
			}
		}
		return count
	}
	if got := allowed(100, func(int) netip.Addr { return host }); got != errorHostBurst {
		t.Errorf("one host at once: %d, want %d", got, errorHostBurst)
	}
	now = now.Add(time.Second)
	if got := allowed(100, func(int) netip.Addr { return host }); got != errorHostBurst {
		t.Errorf("one host a second later: %d, want %d", got, errorHostBurst)
	}
	now = now.Add(time.Hour)
	many := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }
	if got := allowed(5000, many); got > errorBurst {
		t.Errorf("many hosts at once: %d, want at most %d", got, errorBurst)
	}
}

func TestHintsAreBounded(t *testing.T) {
	h := new(hints)
	host := netip.MustParseAddr("10.0.0.1")
	learn := func(mss int) {
		p := make([]byte, 44)
		copy(p, []byte{0x45, 0, 0, 44, 0, 0, 0, 0, 64, encap.ProtoTCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
		p[32], p[33] = 6<<4, 2
		copy(p[40:], []byte{2, 4, byte(mss >> 8), byte(mss)})
		var hdr encap.Headers
		if r := encap.ParseIP(p, &hdr); r != encap.None {
			t.Fatal(r)
		}
		h.learn(p, &hdr)
	}
	if h.limit(host) != 65535 {
		t.Error("a limit without a hint")
	}
	learn(1400)
	if h.limit(host) != 1440 {
		t.Errorf("limit %d", h.limit(host))
	}
	learn(1460)
	if h.limit(host) != 1440 {
		t.Errorf("a larger hint raised the limit to %d", h.limit(host))
	}
	learn(1)
	if h.limit(host) != minHint {
		t.Errorf("a wild hint made the limit %d", h.limit(host))
	}
	if h.limit(netip.MustParseAddr("10.0.0.2")) != 65535 {
		t.Error("the hint concerns another host")
	}
}
