package tunnel

import (
	"net/netip"
	"testing"
)

// takenApart has both kinds of tunnel take a datagram, or what claims to be a train, and checks that each packet is accounted for.
func takenApart(tb testing.TB, tunnels []*Tunnel, data []byte, segment int, whole bool) {
	tb.Helper()
	for _, tun := range tunnels {
		before := tun.Stats().Decap
		d := Datagram{Data: append([]byte(nil), data...), SegmentSize: segment, Whole: whole, Count: 1, Remote: netip.MustParseAddrPort("172.30.0.2:8472")}
		if err := tun.workers[0].receive.step([]Datagram{d, d}); err != nil {
			tb.Fatal(err)
		}
		s := tun.Stats().Decap
		in, out := s.Received-before.Received, s.Delivered-before.Delivered+s.Consumed-before.Consumed+s.Dropped-before.Dropped
		if in == 0 || in != out {
			tb.Errorf("%d bytes, segments of %d, whole %v: %d packets received, %d accounted for", len(data), segment, whole, in, out)
		}
	}
}

func hostileTunnels(tb testing.TB) []*Tunnel {
	routed, _, _ := loopForTest(tb, 64, true)
	return []*Tunnel{routed, bridged(tb, FDBConfig{})}
}

// What a stranger sends may claim to be a train of datagrams too short for any header.
func TestShortTrains(t *testing.T) {
	tunnels := hostileTunnels(t)
	for length := range 24 {
		for segment := 0; segment <= length; segment++ {
			takenApart(t, tunnels, make([]byte, length), segment, false)
			takenApart(t, tunnels, make([]byte, length), segment, true)
		}
	}
}

func FuzzReceive(f *testing.F) {
	_, _, datagrams := loopForTest(f, 64, true)
	train := tcpTrain(3, 100)
	f.Add(datagrams[0].Data, uint16(0), false)
	f.Add(train.Data, uint16(train.SegmentSize), false)
	f.Add(train.Data[:train.SegmentSize], uint16(50), true)
	f.Add([]byte{8, 0, 0}, uint16(2), false)
	tunnels := hostileTunnels(f)
	f.Fuzz(func(t *testing.T, data []byte, segment uint16, whole bool) {
		takenApart(t, tunnels, data[:min(len(data), 65507)], int(segment), whole)
	})
}
