package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// still is both ends of a tunnel in which nothing moves by itself: the steps of the loops are called by hand.
type still struct {
	receivers []Receiver
	joins     bool // takes super-packets
}

func (s *still) Queues() []Queue      { return []Queue{s} }
func (s *still) Read(*Batch) error    { return nil }
func (s *still) Joins(encap.GSO) bool { return s.joins }
func (s *still) Inject([]byte) error  { return nil }
func (s *still) Close() error         { return nil }
func (s *still) Carries(*Packet) bool { return false }

func (s *still) NewSender() Sender            { return s }
func (s *still) Receivers() []Receiver        { return s.receivers }
func (s *still) Receive() ([]Datagram, error) { return nil, nil }

func (s *still) Write(batch []Packet) error {
	for i := range batch {
		batch[i].Sent = batch[i].Count
	}
	return nil
}

func (s *still) Send(batch []Datagram) {
	for i := range batch {
		batch[i].Sent, batch[i].Reason = batch[i].Count, encap.None
	}
}

// testBatch is how many packets loopForTest makes.
const testBatch = 64

// loopForTest returns a tunnel with one peer, a batch of packets for it and a batch of datagrams from it.
func loopForTest(tb testing.TB, payload int, joins bool) (t *Tunnel, packets []Packet, datagrams []Datagram) {
	tb.Helper()
	ends := &still{joins: joins}
	ends.receivers = []Receiver{ends}
	t, err := New(Config{
		Framing: encap.FramingVXLAN, VNI: 1, MAC: encap.MAC{2, 5: 1}, Local: netip.MustParseAddr("172.30.0.1"), Port: 8472, MTU: 1450,
		TOSInherit: true, OuterCheck: CheckEnforce, InnerCheck: CheckEnforce,
	}, ends, ends)
	if err != nil {
		tb.Fatal(err)
	}
	remote := netip.MustParseAddrPort("172.30.0.2:8472")
	if _, err := t.SetPeers([]routing.Peer{{Name: "hb", Endpoint: remote, MAC: encap.MAC{2, 5: 2}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.99.0.2/32")}}}); err != nil {
		tb.Fatal(err)
	}
	batch := NewBatch()
	datagrams = make([]Datagram, testBatch)
	for i := range datagrams {
		if batch.Space() == nil {
			tb.Fatal("no room")
		}
		batch.Add(20+8+payload, encap.Offload{})
		p := &batch.Packets()[i]
		putUDPv4(p.Data, [4]byte{10, 99, 0, 1}, [4]byte{10, 99, 0, 2}, uint16(i%8))
		in := make([]byte, 22+len(p.Data))
		encap.PutVXLAN(in, 1)
		copy(in[8:], []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0})
		putUDPv4(in[22:], [4]byte{10, 99, 0, 2}, [4]byte{10, 99, 0, 1}, uint16(i%8))
		datagrams[i] = Datagram{Data: in, Count: 1, Remote: remote}
	}
	return t, batch.Packets(), datagrams
}

// putUDPv4 fills p with a UDP packet that has no checksums: nothing on the way looks at them.
func putUDPv4(p []byte, src, dst [4]byte, port uint16) {
	copy(p, []byte{0x45, 0, byte(len(p) >> 8), byte(len(p)), 0, 0, 0, 0, 64, encap.ProtoUDP, 0, 0})
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	copy(p[20:], []byte{byte(port >> 8), byte(port), 0, 53, byte((len(p) - 20) >> 8), byte(len(p) - 20), 0, 0})
}

// The loops allocate nothing for a packet, nor for a super-packet.
func TestLoopsDoNotAllocate(t *testing.T) {
	for _, joins := range []bool{false, true} {
		tun, packets, datagrams := loopForTest(t, 64, joins)
		for i := range datagrams {
			datagrams[i].Data = datagrams[0].Data[:len(datagrams[0].Data):len(datagrams[0].Data)] // one flow
		}
		x, r := tun.workers[0].transmit, tun.workers[0].receive
		for name, step := range map[string]func(){
			"transmit": func() { x.step(packets) },
			"receive":  func() { _ = r.step(datagrams) },
		} {
			if n := testing.AllocsPerRun(100, step); n != 0 {
				t.Errorf("super-packets %v, %s: %v allocations for a batch of %d", joins, name, n, testBatch)
			}
		}
		s := tun.Stats()
		if s.Encap.Delivered != 101*testBatch || s.Decap.Delivered != 101*testBatch {
			t.Errorf("nothing moved: %+v", s)
		}
	}
}

// tcpTrain returns a train of segments of one TCP stream, with good checksums, from the peer of loopForTest.
func tcpTrain(segments, payload int) Datagram {
	const headers = 8 + 14 + 20 + 20
	size := headers + payload
	train := make([]byte, segments*size)
	for i := range segments {
		d := train[i*size:][:size]
		encap.PutVXLAN(d, 1)
		copy(d[8:], []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0})
		ip, tcp := d[22:], d[42:]
		copy(ip, []byte{0x45, 0, byte(len(ip) >> 8), byte(len(ip)), 0, byte(i), 0x40, 0, 64, encap.ProtoTCP, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1})
		binary.BigEndian.PutUint16(ip[10:], ^encap.Sum(ip[:20], 0))
		copy(tcp, []byte{0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0x50, 0x10, 1, 1})
		binary.BigEndian.PutUint32(tcp[4:], uint32(i*payload))
		pseudo := []byte{0, encap.ProtoTCP, byte(len(tcp) >> 8), byte(len(tcp))}
		binary.BigEndian.PutUint16(tcp[16:], ^encap.Sum(tcp, encap.Sum(pseudo, encap.Sum(ip[12:20], 0))))
	}
	return Datagram{Data: train, SegmentSize: size, Count: segments, Remote: netip.MustParseAddrPort("172.30.0.2:8472")}
}

// Nor does joining a train.
func TestJoiningDoesNotAllocate(t *testing.T) {
	tun, _, _ := loopForTest(t, 0, true)
	x := tun.workers[0].receive
	batch := []Datagram{tcpTrain(44, 1400)}
	first := bytes.Clone(batch[0].Data[:100])
	n := testing.AllocsPerRun(100, func() {
		copy(batch[0].Data, first) // its headers became the super-packet's
		_ = x.step(batch)
	})
	if n != 0 {
		t.Errorf("%v allocations for a train of 44", n)
	}
	if s := tun.Stats().Decap; s.Delivered != 101*44 || len(x.joined) != 1 {
		t.Errorf("%d super-packets, counters %+v", len(x.joined), s)
	}
}

// Cutting super-packets into trains allocates nothing either, once there was room for as many headers.
func TestCuttingDoesNotAllocate(t *testing.T) {
	for _, c := range []struct{ supers, segments, payload int }{{1, 50, 1000}, {24, 128, 64}} {
		tun, _, _ := loopForTest(t, 0, true)
		x := tun.workers[0].transmit
		batch := NewBatch()
		cut := func() {
			batch.Reset()
			for range c.supers {
				length := 28 + c.segments*c.payload
				putUDPv4(batch.Space()[Headroom:][:length], [4]byte{10, 99, 0, 1}, [4]byte{10, 99, 0, 2}, 7)
				batch.Add(length, encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumField: 26, GSO: encap.GSOUDP, SegmentSize: c.payload})
			}
			x.step(batch.Packets())
		}
		for range 5 {
			cut()
		}
		if n := testing.AllocsPerRun(100, cut); n != 0 {
			t.Errorf("%v allocations for %d super-packets of %d", n, c.supers, c.segments)
		}
		want := uint64(106 * c.supers * c.segments)
		if s := tun.Stats().Encap; s.Delivered != want || s.Received != want {
			t.Errorf("counters %+v, want %d packets", s, want)
		}
	}
}

// The loops over ends in memory: all that user space does for a batch, and nothing of the kernel.
func BenchmarkLoop(b *testing.B) {
	for _, payload := range []int{64, 1400} {
		tun, packets, datagrams := loopForTest(b, payload, true)
		for direction, step := range map[string]func() error{
			"transmit": func() error { tun.workers[0].transmit.step(packets); return nil },
			"receive":  func() error { return tun.workers[0].receive.step(datagrams) },
		} {
			b.Run(fmt.Sprintf("direction=%s/payload=%d", direction, payload), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := step(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*testBatch), "ns/packet")
			})
		}
	}
}

func BenchmarkTrain(b *testing.B) {
	const segments = 44
	tun, _, _ := loopForTest(b, 0, true)
	batch := []Datagram{tcpTrain(segments, 1400)}
	first := bytes.Clone(batch[0].Data[:100])
	b.ReportAllocs()
	for b.Loop() {
		copy(batch[0].Data, first)
		if err := tun.workers[0].receive.step(batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*segments), "ns/packet")
}

func BenchmarkVerdict(b *testing.B) {
	tun, packets, datagrams := loopForTest(b, 1400, true)
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

// Real sockets, on loopback: a batch out and in again costs no allocation either, be it a train or not.
func TestSocketsDoNotAllocate(t *testing.T) {
	for _, offloads := range []bool{false, true} {
		cfg := loopbackConfig(t, 1)
		cfg.Offloads = offloads
		u := openUDP(t, cfg)
		sender := u.NewSender()
		out := make([]Datagram, 8)
		for i := range out {
			out[i] = Datagram{Data: make([]byte, 100), Count: 1, Remote: netip.AddrPortFrom(u.cfg.Local, u.cfg.Port), Flow: uint32(i / 4), TOS: 2}
		}
		n := testing.AllocsPerRun(100, func() {
			sender.Send(out)
			for got := 0; got < len(out); {
				for _, d := range receive(t, u, 0) {
					got += d.Count
				}
			}
		})
		if n != 0 {
			t.Errorf("offloads %v: %v allocations for %d datagrams", offloads, n, len(out))
		}
	}
}

// A train in pieces, as cutting leaves it, costs none either, nor what follows it in the same message.
func TestTrainsInPiecesDoNotAllocate(t *testing.T) {
	s := newUDPSender([]int{-1}, 1, 0, true, new(feature), nil)
	sent := 0
	s.sendmmsg = func(_ int, msgs []mmsghdr) (int, error) { sent += len(msgs); return len(msgs), nil }
	batch := []Datagram{trainOf(1000, 40), endOfTrain(50, 950), trainOf(100, 7)}
	if n := testing.AllocsPerRun(100, func() { s.Send(batch) }); n != 0 || sent < 101*2 {
		t.Errorf("%v allocations for trains of %d datagrams in %d messages", n, 48, sent)
	}
	for i := range batch {
		if batch[i].Sent != batch[i].Count {
			t.Errorf("datagram %d: %+v", i, batch[i])
		}
	}
}

// Nor do the queues of a device: packets and super-packets, whole, in parts, or split where it does not take them so.
func TestQueuesDoNotAllocate(t *testing.T) {
	for _, takes := range []bool{true, false} {
		for _, offloads := range []bool{true, false} {
			device, left, written := &TUN{cfg: TUNConfig{Offloads: offloads}}, 0, 0
			if !takes {
				device.tso.disable("not in this test")
				device.uso.disable("not in this test")
			}
			q := newTUNQueue(device, -1, -1)
			q.writev = func(int, []unix.Iovec) error { written++; return nil }
			q.read = func(_ int, b []byte) (int, error) {
				if left--; left < 0 {
					return 0, unix.EAGAIN
				}
				clear(b[:virtioHeaderLen])
				return 100, nil
			}
			whole, _ := superForTest(t, false)
			parts, _ := superForTest(t, true)
			single := Packet{Data: make([]byte, 100), Count: 1}
			out, in := []Packet{whole, single, parts}, NewBatch()
			n := testing.AllocsPerRun(100, func() {
				left, q.reader.drained = testBatch, false
				in.Reset()
				if err := errors.Join(q.Read(in), q.Write(out)); err != nil {
					t.Fatal(err)
				}
			})
			if n != 0 {
				t.Errorf("super-packets %v, header %v: %v allocations", takes, offloads, n)
			}
			want := 101 * 3
			if !takes {
				want = 101 * (1 + 2*whole.Count)
			}
			if len(in.Packets()) != testBatch || written != want {
				t.Errorf("%d packets read, %d written, want %d and %d", len(in.Packets()), written, testBatch, want)
			}
		}
	}
}

// Nor does the outer device, whichever way packets go through it.
func TestOuterDeviceDoesNotAllocate(t *testing.T) {
	null, err := unix.Open("/dev/null", unix.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	s := newOuterSender(&outerTAP{name: "vxgso9", writer: null}, outerConfig{local: netip.MustParseAddr("172.30.0.1"), ttl: 64, checksum: true})
	d := carried(t, "172.30.0.2:8472", true)
	if n := testing.AllocsPerRun(100, func() { s.send(d, 40000) }); n != 0 || d.Sent != d.Count {
		t.Errorf("%v allocations for a super-packet, of which %d of %d packets went", n, d.Sent, d.Count)
	}

	frame, left := outerFrame("172.30.0.1:40000", 0, 0, 0, make([]byte, 1400), true), 0
	r := new(frameKernel).receiver(t, "172.30.0.2", false)
	r.read = func(_ int, b []byte) (int, error) {
		if left--; left < 0 {
			return 0, unix.EAGAIN
		}
		return copy(b, frame), nil
	}
	var batch []Datagram
	n := testing.AllocsPerRun(100, func() {
		left = testBatch
		batch, err = r.Receive()
	})
	if n != 0 || err != nil || len(batch) != testBatch || batch[0].Reason != encap.None {
		t.Errorf("%v allocations for %d frames, want none for %d (%v)", n, len(batch), testBatch, err)
	}
}
