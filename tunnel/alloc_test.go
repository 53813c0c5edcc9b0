package tunnel

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// still is both ends of a tunnel in which nothing moves by itself: the steps of the loops are called by hand.
type still struct{ receivers []Receiver }

func (s *still) Queues() []Queue                 { return []Queue{s} }
func (s *still) Read([]Packet) (int, error)      { return 0, ErrClosed }
func (s *still) Inject([]byte) error             { return nil }
func (s *still) Close() error                    { return nil }
func (s *still) NewSender() Sender               { return s }
func (s *still) Receivers() []Receiver           { return s.receivers }
func (s *still) Receive([]Datagram) (int, error) { return 0, ErrClosed }

func (s *still) Write(batch []Packet) error {
	for i := range batch {
		batch[i].Sent = batch[i].Count
	}
	return nil
}

func (s *still) Send(batch []Datagram) {
	for i := range batch {
		batch[i].Sent, batch[i].Reason = 1, encap.None
	}
}

// loopForTest returns a tunnel with one peer, a batch of packets for it and a batch of datagrams from it.
func loopForTest(tb testing.TB, payload int) (t *Tunnel, packets []Packet, datagrams []Datagram) {
	tb.Helper()
	ends := new(still)
	ends.receivers = []Receiver{ends}
	t, err := New(Config{
		Framing: encap.FramingVXLAN, VNI: 1, MAC: encap.MAC{2, 5: 1}, Local: netip.MustParseAddr("172.30.0.1"), Port: 8472, MTU: 1450,
		TOSInherit: true, OuterCheck: true, InnerCheck: true,
	}, ends, ends)
	if err != nil {
		tb.Fatal(err)
	}
	remote := netip.MustParseAddrPort("172.30.0.2:8472")
	if _, err := t.SetPeers([]routing.Peer{{Name: "hb", Endpoint: remote, MAC: encap.MAC{2, 5: 2}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.99.0.2/32")}}}); err != nil {
		tb.Fatal(err)
	}
	packets = NewPackets(BatchSize)
	datagrams = make([]Datagram, BatchSize)
	for i := range packets {
		p := &packets[i]
		p.Data, p.Count = p.Space()[:20+8+payload], 1
		putUDPv4(p.Data, [4]byte{10, 99, 0, 1}, [4]byte{10, 99, 0, 2}, uint16(i%8))
		in := make([]byte, 22+len(p.Data))
		encap.PutVXLAN(in, 1)
		copy(in[8:], []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0})
		putUDPv4(in[22:], [4]byte{10, 99, 0, 2}, [4]byte{10, 99, 0, 1}, uint16(i%8))
		datagrams[i] = Datagram{Data: in, Remote: remote}
	}
	return t, packets, datagrams
}

// putUDPv4 fills p with a UDP packet that has no checksums: nothing on the way looks at them.
func putUDPv4(p []byte, src, dst [4]byte, port uint16) {
	copy(p, []byte{0x45, 0, byte(len(p) >> 8), byte(len(p)), 0, 0, 0, 0, 64, encap.ProtoUDP, 0, 0})
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	copy(p[20:], []byte{byte(port >> 8), byte(port), 0, 53, byte((len(p) - 20) >> 8), byte(len(p) - 20), 0, 0})
}

// The loops allocate nothing for a packet.
func TestLoopsDoNotAllocate(t *testing.T) {
	tun, packets, datagrams := loopForTest(t, 64)
	x, r := tun.transmitters[0], tun.receivers[0]
	for name, step := range map[string]func(){
		"transmit": func() { x.step(packets) },
		"receive":  func() { _ = r.step(datagrams) },
	} {
		if n := testing.AllocsPerRun(100, step); n != 0 {
			t.Errorf("%s: %v allocations for a batch of %d", name, n, BatchSize)
		}
	}
	s := tun.Stats()
	if s.Encap.Delivered != 101*BatchSize || s.Decap.Delivered != 101*BatchSize {
		t.Errorf("nothing moved: %+v", s)
	}
}

// The loops over ends in memory: all that user space does for a batch, and nothing of the kernel.
func BenchmarkLoop(b *testing.B) {
	for _, payload := range []int{64, 1400} {
		tun, packets, datagrams := loopForTest(b, payload)
		for direction, step := range map[string]func() error{
			"transmit": func() error { tun.transmitters[0].step(packets); return nil },
			"receive":  func() error { return tun.receivers[0].step(datagrams) },
		} {
			b.Run(fmt.Sprintf("direction=%s/payload=%d", direction, payload), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := step(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*BatchSize), "ns/packet")
			})
		}
	}
}

func BenchmarkVerdict(b *testing.B) {
	tun, packets, datagrams := loopForTest(b, 1400)
	view, remote := tun.view(), datagrams[0].Remote.Addr()
	var h encap.Headers
	for direction, decide := range map[string]func() Verdict{
		"transmit": func() Verdict { return DecideTransmit(&tun.rules, view, packets[0].Data, &h) },
		"receive": func() Verdict {
			_, v := DecideReceive(&tun.rules, view, datagrams[0].Data, remote, &h)
			return v
		},
	} {
		b.Run("direction="+direction, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if v := decide(); v.Peer == nil || v.Reason != encap.None {
					b.Fatal(v)
				}
			}
		})
	}
}

// Real sockets, on loopback: a batch out and in again costs no allocation either.
func TestSocketsDoNotAllocate(t *testing.T) {
	u, err := OpenUDP(loopbackConfig(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close(); _ = u.CloseSenders() }()
	sender, receiver := u.NewSender(), u.Receivers()[0]
	out, in := make([]Datagram, 8), make([]Datagram, BatchSize)
	for i := range out {
		out[i] = Datagram{Data: make([]byte, 100), Remote: netip.AddrPortFrom(u.cfg.Local, u.cfg.Port), Flow: uint32(i), TOS: 2}
	}
	n := testing.AllocsPerRun(100, func() {
		sender.Send(out)
		for got := 0; got < len(out); {
			n, err := receiver.Receive(in)
			if err != nil {
				panic(err)
			}
			got += n
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for %d datagrams", n, len(out))
	}
}
