package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

func datagramsOf(sizes ...int) []Datagram {
	batch := make([]Datagram, len(sizes))
	for i, n := range sizes {
		batch[i] = Datagram{Data: bytes.Repeat([]byte{byte(i)}, n), Count: 1, Remote: netip.MustParseAddrPort("192.0.2.1:8472")}
	}
	return batch
}

// What is as large as what is before it joins its train; something smaller ends it.
func TestTrains(t *testing.T) {
	repeat := func(n, size int) []int { return slices.Repeat([]int{size}, n) }
	for name, c := range map[string]struct {
		sizes []int
		edit  func([]Datagram)
		want  []int // datagrams in each message
	}{
		"equal":              {sizes: repeat(5, 100), want: []int{5}},
		"shorter at the end": {sizes: []int{100, 100, 7, 100}, want: []int{3, 1}},
		"growing":            {sizes: []int{100, 101, 102}, want: []int{1, 1, 1}},
		"mixed":              {sizes: []int{64, 64, 570, 64, 1400, 64}, want: []int{2, 2, 2}},
		"many":               {sizes: repeat(130, 100), want: []int{64, 64, 2}},
		"large":              {sizes: repeat(50, 1472), want: []int{44, 6}},
		"another peer":       {sizes: repeat(2, 100), edit: func(b []Datagram) { b[1].Remote = netip.MustParseAddrPort("192.0.2.2:8472") }, want: []int{1, 1}},
		"another TOS":        {sizes: repeat(2, 100), edit: func(b []Datagram) { b[1].TOS = 4 }, want: []int{1, 1}},
		"another TTL":        {sizes: repeat(2, 100), edit: func(b []Datagram) { b[1].TTL = 4 }, want: []int{1, 1}},
		"empty":              {sizes: []int{0, 0}, want: []int{1, 1}},
		"super-packet":       {sizes: repeat(3, 100), edit: func(b []Datagram) { b[1] = trainOf(100, 3) }, want: []int{1, 3, 1}},
		"end of one":         {sizes: repeat(2, 20), edit: func(b []Datagram) { b[0] = endOfTrain(20, 80) }, want: []int{2, 1}}, // pieces, as neither is a train
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{trains: true}
			batch := datagramsOf(c.sizes...)
			if c.edit != nil {
				c.edit(batch)
			}
			k.sender(1).Send(batch)
			if fmt.Sprint(k.counts) != fmt.Sprint(c.want) {
				t.Errorf("messages of %v datagrams, want %v", k.counts, c.want)
			}
			for i := range batch {
				if batch[i].Sent != batch[i].Count || batch[i].Reason != encap.None {
					t.Errorf("datagram %d: %+v", i, batch[i])
				}
			}
		})
	}
}

// trainOf returns a train of n datagrams in a piece each.
func trainOf(size, n int) Datagram {
	pieces := make([][]byte, n)
	for i := range pieces {
		pieces[i] = bytes.Repeat([]byte{byte(100 + i)}, size)
	}
	return Datagram{Data: pieces[0], Parts: pieces[1:], SegmentSize: size, Count: n, Remote: netip.MustParseAddrPort("192.0.2.1:8472")}
}

// A train is continued by what goes the same way, with the same outer header, in pieces of the same size, and by nothing else.
func TestContinuedBy(t *testing.T) {
	d := Datagram{Count: 43, SegmentSize: 1472, Remote: netip.MustParseAddrPort("192.0.2.1:8472"), Flow: 1, TOS: 2, TTL: 3, DF: true}
	for name, edit := range map[string]func(next *Datagram){
		"size":   func(next *Datagram) { next.SegmentSize-- },
		"remote": func(next *Datagram) { next.Remote = netip.MustParseAddrPort("192.0.2.2:8472") },
		"flow":   func(next *Datagram) { next.Flow++ },
		"TOS":    func(next *Datagram) { next.TOS++ },
		"TTL":    func(next *Datagram) { next.TTL++ },
		"DF":     func(next *Datagram) { next.DF = false },
	} {
		next := d
		if next.Count = 0; !d.continuedBy(&next, 44) || d.continuedBy(&next, 43) {
			t.Error("a train with room for one more, and one without, are not told apart")
		}
		if edit(&next); d.continuedBy(&next, 44) {
			t.Errorf("continued by a datagram of another %s", name)
		}
	}
}

// endOfTrain returns a train of one datagram, its header apart from its payload.
func endOfTrain(header, payload int) Datagram {
	d := trainOf(header+payload, 1)
	d.Data, d.Parts = d.Data[:header], [][]byte{d.Data[header:]}
	return d
}

// A train that the kernel refuses goes datagram by datagram, each once, and trains are given up when that is what was
// wrong with it.
func TestRefusedTrains(t *testing.T) {
	for _, c := range []struct {
		name     string
		script   []answer
		sent     []byte
		withdraw bool
		reasons  map[int]encap.Reason // of datagrams
	}{
		{"no checksum offload", []answer{{err: unix.EIO}}, []byte{0, 1, 2}, true, nil},
		{"not known", []answer{{err: unix.EOPNOTSUPP}}, []byte{0, 1, 2}, true, nil},
		{"too large for the path, before Linux 6.14", []answer{{err: unix.EINVAL}}, []byte{0, 1, 2}, false, nil},
		{"too large for the path", []answer{{err: unix.EMSGSIZE}}, []byte{0, 1, 2}, false, nil},
		{"out of memory for a moment", []answer{{err: unix.ENOBUFS}}, []byte{0, 1, 2}, false, nil},
		{"interrupted", []answer{{err: unix.EIO}, {err: unix.EINTR}, {n: -1}, {err: unix.EAGAIN}}, []byte{0, 1, 2}, true, nil},
		{"nobody there", []answer{{err: unix.EIO}, {err: unix.ENETUNREACH}, {err: unix.ENETUNREACH}, {err: unix.ENETUNREACH}}, nil, false, map[int]encap.Reason{0: encap.UDPSend, 1: encap.UDPSend, 2: encap.UDPSend}},
		{"one of them refused too", []answer{{err: unix.EIO}, {n: -1}, {err: unix.EMSGSIZE}}, []byte{0, 2}, false, map[int]encap.Reason{1: encap.PktTooBig}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &kernel{trains: true, script: c.script}
			s := k.sender(1)
			batch := datagramsOf(100, 100, 100)
			s.Send(batch)
			if !bytes.Equal(k.sent, c.sent) {
				t.Errorf("sent %v, want %v", k.sent, c.sent)
			}
			for i := range batch {
				if batch[i].Reason != c.reasons[i] || batch[i].Sent == 1 != (c.reasons[i] == encap.None) {
					t.Errorf("datagram %d: sent %d, reason %s", i, batch[i].Sent, batch[i].Reason)
				}
			}
			if k.feature.on() == c.withdraw {
				t.Errorf("trains are on: %v", k.feature.on())
			}
		})
	}
}

// The pieces of a super-packet's datagrams stay together when they must go one by one, and each fate is counted.
func TestRefusedTrainOfPieces(t *testing.T) {
	k := &kernel{trains: true, script: []answer{{err: unix.EIO}, {n: -1}, {err: unix.ENOBUFS}}}
	d := Datagram{Count: 3, SegmentSize: 10, Remote: netip.MustParseAddrPort("192.0.2.1:8472")}
	for i := range 3 {
		d.Parts = append(d.Parts, bytes.Repeat([]byte{byte(i)}, 4), bytes.Repeat([]byte{byte(10 + i)}, 6-3*(i/2)))
	}
	d.Data, d.Parts = d.Parts[0], d.Parts[1:]
	batch := []Datagram{d}
	k.sender(1).Send(batch)
	if !bytes.Equal(k.sent, []byte{0, 10, 2, 12}) || batch[0].Sent != 2 || batch[0].Reason != encap.UDPSend {
		t.Errorf("sent %v, %+v", k.sent, batch[0])
	}
}

// Where trains are off, a super-packet's datagrams go one by one, without a train being tried, each with its own fate.
func TestSuperPacketWithoutTrains(t *testing.T) {
	k := &kernel{script: []answer{{n: 2}, {err: unix.EMSGSIZE}}}
	batch := []Datagram{trainOf(100, 2), trainOf(100, 4)}
	s := k.sender(1)
	s.Send(batch)
	if !slices.Equal(k.counts, []int{1, 1, 1, 1, 1}) || !bytes.Equal(k.sent, []byte{100, 101, 101, 102, 103}) {
		t.Errorf("sent %v in messages of %v pieces", k.sent, k.counts)
	}
	if batch[0].Sent != 2 || batch[0].Reason != encap.None || batch[1].Sent != 3 || batch[1].Reason != encap.PktTooBig {
		t.Errorf("%+v", batch)
	}
	for i := range s.headers {
		if s.headers[i].hdr.Controllen != 0 {
			t.Error("a datagram carries a segment size")
		}
	}
}

// Trains over loopback arrive whole at a receiver with UDP_GRO, datagram by datagram at one without.
func TestTrainsArrive(t *testing.T) {
	for _, local := range []string{"127.0.0.1", "::1"} {
		for _, gro := range []bool{true, false} {
			cfg := loopbackConfig(t, 1)
			cfg.Local, cfg.Offloads = netip.MustParseAddr(local), true
			u := openUDP(t, cfg)
			for _, c := range u.Capabilities() {
				if (c.Name == "gso" || c.Name == "gro") && !c.Enabled {
					t.Skipf("needs a kernel with %s: %s", c.Name, c.Reason)
				}
			}
			if !gro {
				if err := setOption(u.receivers[0].(*udpReceiver).socket.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0, "UDP_GRO"); err != nil {
					t.Fatal(err)
				}
			}
			batch := datagramsOf(slices.Repeat([]int{1000}, 60)...)
			batch = append(batch, datagramsOf(slices.Repeat([]int{900}, 5)...)...)
			want := []byte{}
			for i := range batch {
				batch[i].Remote, batch[i].TOS = netip.AddrPortFrom(cfg.Local, cfg.Port), encap.ECT0
				want = append(want, batch[i].Data...)
			}
			u.NewSender().Send(batch)
			var got []byte
			messages := 0
			for len(got) < len(want) {
				for _, d := range receive(t, u, 0) {
					if d.TOS != encap.ECT0 {
						t.Errorf("TOS %d", d.TOS)
					}
					got = append(got, d.Data...)
					messages++
				}
			}
			if !bytes.Equal(got, want) || gro != (messages < 10) || !gro != (messages == 65) {
				t.Errorf("%s, GRO %v: %d messages, %d bytes", local, gro, messages, len(got))
			}
		}
	}
}

// Without UDP checksums the kernel makes no trains; that is told, and datagrams go one by one.
func TestNoTrainsWithoutChecksum(t *testing.T) {
	cfg := loopbackConfig(t, 1)
	cfg.Offloads, cfg.NoChecksum = true, true
	u := openUDP(t, cfg)
	if c := u.Capabilities()[0]; c.Name != "gso" || c.Enabled || c.Reason == "" {
		t.Errorf("capability %+v", c)
	}
	batch := datagramsOf(100, 100)
	for i := range batch {
		batch[i].Remote = netip.AddrPortFrom(cfg.Local, cfg.Port)
	}
	u.NewSender().Send(batch)
	for got := 0; got < 2; {
		got += len(receive(t, u, 0))
	}
}

// tunKernel stands in for a device: it refuses what it is told to, and keeps the rest.
type tunKernel struct {
	refuse  func(super bool) error
	written [][]byte
}

func (k *tunKernel) writev(_ int, iov []unix.Iovec) error {
	var b []byte
	for _, v := range iov {
		b = append(b, iovecBytes(v)...)
	}
	o := readVirtio(b)
	if err := k.refuse(o.IsSuper()); err != nil {
		return err
	}
	k.written = append(k.written, b[virtioHeaderLen:])
	return nil
}

// A super-packet that the device refuses is split and written so; super-packets are given up when that is what was wrong.
func TestRefusedSuperPackets(t *testing.T) {
	for _, c := range []struct {
		name     string
		refuse   func(super bool) error
		sent     int
		withdraw bool
	}{
		{"taken", func(bool) error { return nil }, 10, false},
		{"not known", func(super bool) error { return errorIf(super, unix.EINVAL) }, 10, true},
		{"nothing is taken", func(bool) error { return unix.EINVAL }, 0, false},
		{"down", func(bool) error { return unix.EIO }, 0, false},
		{"out of memory", func(super bool) error { return errorIf(super, unix.ENOMEM) }, 0, false},
	} {
		for _, parts := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/in parts %v", c.name, parts), func(t *testing.T) {
				k := &tunKernel{refuse: c.refuse}
				q := newTUNQueue(&TUN{cfg: TUNConfig{Offloads: true}}, -1, -1)
				q.writev = k.writev
				p, want := superForTest(t, parts)
				batch := []Packet{p}
				if err := q.Write(batch); err != nil {
					t.Fatal(err)
				}
				if batch[0].Sent != c.sent || q.t.tso.on() == c.withdraw {
					t.Errorf("%d of 10 written, super-packets are on: %v", batch[0].Sent, q.t.tso.on())
				}
				if len(k.written) == 10 && !slices.EqualFunc(k.written, want, bytes.Equal) {
					t.Errorf("written %x", k.written)
				}
			})
		}
	}
}

// Packets that the loop joined are all written when the device refuses the super-packet after all, and a kind of
// super-packet that the device does not take is not made.
func TestJoinedPacketsSurviveRefusal(t *testing.T) {
	for _, c := range []struct {
		name   string
		off    bool // before the first packet
		refuse func(super bool) error
	}{
		{"refused", false, func(super bool) error { return errorIf(super, unix.EINVAL) }},
		{"off", true, func(super bool) error { return errorIf(super, unix.EPERM) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			tun, _, _ := loopForTest(t, 0, true)
			device := &TUN{cfg: TUNConfig{Offloads: true}}
			if c.off {
				device.uso.disable("in this test")
			}
			k := &tunKernel{refuse: c.refuse}
			q := newTUNQueue(device, -1, -1)
			q.writev = k.writev
			x := tun.workers[0].receive
			x.queue = q
			var batch []Datagram
			var want [][]byte
			for i := range 10 {
				p := make([]byte, 128)
				putUDPv4(p, [4]byte{10, 99, 0, 2}, [4]byte{10, 99, 0, 1}, 7)
				p[4], p[5], p[50] = 0, byte(i), byte(i)
				finishUDPv4(t, p)
				want = append(want, bytes.Clone(p))
				d := append([]byte{8, 6: 1, 8: 2, 13: 1, 14: 2, 19: 2, 20: 8, 21: 0}, p...)
				batch = append(batch, Datagram{Data: d, Count: 1, Remote: netip.MustParseAddrPort("172.30.0.2:8472")})
			}
			if err := x.step(batch); err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(k.written, want, bytes.Equal) {
				t.Errorf("%d of %d packets written:\n%x\nwant\n%x", len(k.written), len(want), k.written, want)
			}
			if s := tun.Stats().Decap; s.Delivered != 10 || s.Dropped != 0 || device.uso.on() {
				t.Errorf("counters %+v, super-packets are on: %v", s, device.uso.on())
			}
		})
	}
}

// finishUDPv4 computes the checksums of a packet from putUDPv4.
func finishUDPv4(t *testing.T, p []byte) {
	t.Helper()
	sum := ^encap.Sum(p[:20], 0)
	p[10], p[11] = byte(sum>>8), byte(sum)
	p[26] = 1 // zero would mean that there is none
	var h encap.Headers
	if r := encap.ParseIP(p, &h); r != encap.None {
		t.Fatal(r)
	}
	encap.LeaveChecksum(p, &h)
	encap.PartialOffload(&h).FinishChecksum(p)
}

func errorIf(is bool, err error) error {
	if is {
		return err
	}
	return nil
}

// A device that is gone is an error, not a drop.
func TestGoneDevice(t *testing.T) {
	q := newTUNQueue(&TUN{cfg: TUNConfig{Offloads: true}}, -1, -1)
	q.writev = func(int, []unix.Iovec) error { return unix.EBADFD }
	q.read = func(int, []byte) (int, error) { return 0, unix.EBADFD }
	p, _ := superForTest(t, false)
	if err := q.Write([]Packet{p}); !errors.Is(err, unix.EBADFD) {
		t.Errorf("write: %v", err)
	}
	if err := q.Read(NewBatch()); !errors.Is(err, unix.EBADFD) {
		t.Errorf("read: %v", err)
	}
}

// superForTest returns a TCP super-packet of ten, and these ten.
func superForTest(t *testing.T, inParts bool) (p Packet, want [][]byte) {
	t.Helper()
	b := append(bytes.Clone(probeTCP4[:40]), bytes.Repeat([]byte("0123456789"), 100)...)
	b[2], b[3] = byte(len(b)>>8), byte(len(b))
	if r := encap.ParseIP(b, &p.Headers); r != encap.None {
		t.Fatal(r)
	}
	encap.LeaveChecksum(b, &p.Headers)
	p.Offload, p.Count, p.Data = encap.SuperOffload(&p.Headers, 100), 10, b
	var s encap.Splitter
	s.Reset(b, &p.Headers, p.Offload)
	for buf := make([]byte, 40); s.Next(buf); {
		want = append(want, append(bytes.Clone(s.Header()), s.Payload()...))
	}
	if inParts {
		p.Data, p.Parts = b[:40], [][]byte{b[40:540], b[540:]}
	}
	return p, want
}

func TestVirtioHeader(t *testing.T) {
	for _, o := range []encap.Offload{
		{},
		{NeedsChecksum: true, ChecksumStart: 20, ChecksumField: 36},
		{NeedsChecksum: true, ChecksumStart: 40, ChecksumField: 46, GSO: encap.GSOUDP, SegmentSize: 1200},
		{NeedsChecksum: true, ChecksumStart: 60, ChecksumField: 76, GSO: encap.GSOTCP, SegmentSize: 1398},
	} {
		for _, kind := range []encap.Kind{encap.KindIPv4, encap.KindIPv6} {
			b := bytes.Repeat([]byte{0xff}, virtioHeaderLen)
			for _, headers := range []int{60, 0, 1, 65535} { // what the kernel says there is a hint, and may be anything
				putVirtio(b, o, kind, headers)
				if got := readVirtio(b); got != o {
					t.Errorf("%+v became %+v", o, got)
				}
			}
		}
	}
}

func iovecBytes(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }
