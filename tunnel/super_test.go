package tunnel_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/tunnel"
	"github.com/vxlane/vxlane/tunnel/tunneltest"
)

// super returns a TCP or UDP super-packet from a to b and the packets that it stands for, made by a splitter of its own.
func super(t *testing.T, kind encap.GSO, src, dst string, payload []byte, size int) (packet []byte, o encap.Offload, parts [][]byte) {
	t.Helper()
	packet = tcp(t, src, dst, payload)
	if kind == encap.GSOUDP {
		packet = udp(t, src, dst, 53, payload)
	}
	var h encap.Headers
	if r := encap.ParseIP(packet, &h); r != encap.None {
		t.Fatal(r)
	}
	encap.LeaveChecksum(packet, &h)
	o = encap.SuperOffload(&h, size)
	var s encap.Splitter
	if !s.Reset(packet, &h, o) {
		t.Fatal("cannot be split")
	}
	for buf := make([]byte, s.HeaderLen()); s.Next(buf); {
		parts = append(parts, append(bytes.Clone(s.Header()), s.Payload()...))
	}
	return packet, o, parts
}

func numbered(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// segments takes the packets out of a train.
func segments(t *testing.T, d tunnel.Datagram) (packets [][]byte) {
	t.Helper()
	size := d.SegmentSize
	if size == 0 {
		size = len(d.Data)
	}
	for data := d.Data; len(data) > 0; {
		n := min(size, len(data))
		packets = append(packets, data[22:n])
		data = data[n:]
	}
	return packets
}

// A super-packet leaves as trains that hold what it stands for, each at most as long as a kernel takes.
func TestTransmitSuperPacket(t *testing.T) {
	for _, kind := range []encap.GSO{encap.GSOTCP, encap.GSOUDP} {
		for _, c := range []struct{ payload, size int }{{60_000, 1398}, {64_000, 1398}, {500, 1398}, {1398, 1398}, {1399, 1398}, {65_000, 600}, {4000, 40}} {
			t.Run(fmt.Sprintf("%d/%d by %d", kind, c.payload, c.size), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, rigConfig())
					packet, o, want := super(t, kind, "10.99.0.1", "10.99.0.2", numbered(c.payload), c.size)
					r.device.Queue(0).Offload = o
					r.start()
					r.device.Queue(0).Put(packet)
					synctest.Wait()
					var got [][]byte
					for _, d := range sentTo(r, "172.30.0.2:8472") {
						if len(d.Data) > 65507 || d.Count > tunnel.MaxTrain || d.Count > 1 && d.SegmentSize == 0 {
							t.Errorf("train of %d bytes, %d datagrams of %d", len(d.Data), d.Count, d.SegmentSize)
						}
						got = append(got, segments(t, d)...)
					}
					equalPackets(t, got, want)
					if s := r.tunnel.Stats().Encap; s.Received != uint64(len(want)) || s.Delivered != s.Received || s.Bytes != uint64(total(want)) {
						t.Errorf("counters %+v, want %d packets", s, len(want))
					}
				})
			})
		}
	}
}

// What super-packets of one flow leave free in a train, the next one fills; nothing follows a datagram that is shorter than the rest.
func TestSuperPacketsFillTrains(t *testing.T) {
	const size, most = 1398, 44
	for name, c := range map[string]struct {
		payloads []int
		small    int      // a small packet goes out before the one of this number
		to       []string // 10.99.0.2 when it is nil
		want     []int    // datagrams of each train
	}{
		"one":          {payloads: []int{46 * size}, want: []int{most, 2}},
		"two":          {payloads: []int{46 * size, 46 * size}, want: []int{most, most, 4}},
		"four":         {payloads: []int{46 * size, 46 * size, 46 * size, 46 * size}, want: []int{most, most, most, most, 8}},
		"short end":    {payloads: []int{45*size + 1, 46 * size}, want: []int{most, 2, most, 2}},
		"a bit more":   {payloads: []int{45 * size, 45*size + 1, size + 1}, want: []int{most, most, 3, 2}},
		"small first":  {payloads: []int{2 * size, 46 * size}, want: []int{most, 4}},
		"small within": {payloads: []int{46 * size, 46 * size}, small: 1, want: []int{most, 2, 1, most, 2}},
		"one alone":    {payloads: []int{45 * size, 46 * size}, small: 1, want: []int{most, 1, 1, most, 2}},
		"other host":   {payloads: []int{46 * size, 46 * size}, to: []string{"10.99.0.2", "10.244.2.22"}, want: []int{most, 2, most, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, rigConfig())
				var batch, want [][]byte
				var offload encap.Offload
				for i, n := range c.payloads {
					to := "10.99.0.2"
					if c.to != nil {
						to = c.to[i]
					}
					if c.small > 0 && i == c.small {
						small, _, parts := super(t, encap.GSOTCP, "10.99.0.1", to, numbered(7), size)
						batch, want = append(batch, small), append(want, parts...)
					}
					packet, o, parts := super(t, encap.GSOTCP, "10.99.0.1", to, numbered(n), size)
					batch, want, offload = append(batch, packet), append(want, parts...), o
				}
				r.device.Queue(0).Offload = offload
				r.start()
				r.device.Queue(0).Put(batch...)
				synctest.Wait()
				var got [][]byte
				var trains []int
				for _, d := range sentTo(r, "172.30.0.2:8472") {
					trains = append(trains, d.Count)
					if len(d.Data) > size && d.SegmentSize == 0 {
						t.Errorf("datagram %d of a super-packet is no train: another as short as its header could be sent as its continuation", len(trains))
					}
					got = append(got, segments(t, d)...)
				}
				equalPackets(t, got, want)
				if !slices.Equal(trains, c.want) {
					t.Errorf("trains of %v, want %v", trains, c.want)
				}
				if s := r.tunnel.Stats().Encap; s.Delivered != uint64(len(want)) || s.Bytes != uint64(total(want)) {
					t.Errorf("counters %+v, want %d packets of %d bytes", s, len(want), total(want))
				}
			})
		})
	}
}

func total(packets [][]byte) (n int) {
	for _, p := range packets {
		n += len(p)
	}
	return n
}

func equalPackets(t *testing.T, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d:\n%x\nwant\n%x", i, got[i], want[i])
		}
	}
}

// A super-packet waits for a MAC like any other.
func TestSuperPacketsWaitForTheMAC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		packet, o, want := super(t, encap.GSOUDP, "10.99.0.1", "10.99.0.3", numbered(10_000), 1000)
		r.device.Queue(0).Offload = o
		r.start()
		r.device.Queue(0).Put(packet)
		synctest.Wait()
		if s := r.tunnel.Stats().Encap; s.Held != 10 {
			t.Fatalf("counters %+v", s)
		}
		r.underlay.Receiver(0).Put(arpFrom("172.30.0.3", encap.ARPReply, hcMAC, "10.99.0.3", "10.99.0.1"))
		synctest.Wait()
		var got [][]byte
		for _, d := range sentTo(r, "172.30.0.3:8472") {
			got = append(got, segments(t, d)...)
		}
		equalPackets(t, got, want)
	})
}

// A checksum that the host left to the device is finished, wherever the device says it is.
func TestTransmitUnfinishedChecksum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		want := udp(t, "10.99.0.1", "10.99.0.2", 53, []byte("hello"))
		packet := bytes.Clone(want)
		leaveChecksumToDevice(packet)
		r.device.Queue(0).Offload = encap.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumField: 26}
		r.start()
		r.device.Queue(0).Put(packet, packet[:22])
		synctest.Wait()
		if sent := sentTo(r, "172.30.0.2:8472"); len(sent) != 1 || !bytes.Equal(sent[0].Data[22:], want) {
			t.Errorf("sent %+v", sent)
		}
	})
}

// Trains, single datagrams and both mixed, of several flows: the device gets super-packets that stand for just what was
// sent, each flow in order.
func TestReceiveJoins(t *testing.T) {
	for _, kind := range []encap.GSO{encap.GSOTCP, encap.GSOUDP} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, rigConfig())
			r.device.Queue(0).TakesSupers = true
			r.start()
			_, _, want := super(t, kind, "10.99.0.2", "10.99.0.1", numbered(30_500), 1000)
			other := udp(t, "10.99.0.2", "10.99.0.1", 99, []byte("of another flow"))
			var train []byte
			for _, p := range want[:20] {
				train = append(train, frame(p)...)
			}
			first := tunneltest.From("172.30.0.2", train)
			first.SegmentSize, first.Count = len(frame(want[0])), 20
			batch := []tunnel.Datagram{first, tunneltest.From("172.30.0.2", frame(other))}
			for _, p := range want[20:] {
				batch = append(batch, tunneltest.From("172.30.0.2", frame(p)))
			}
			r.underlay.Receiver(0).Put(batch...)
			synctest.Wait()
			var got [][]byte
			writes := r.device.Queue(0).Written()
			for i, p := range writes {
				if !bytes.Equal(p, other) {
					got = append(got, split(t, p, r.device.Queue(0).Offloads()[i])...)
				}
			}
			equalPackets(t, got, want)
			if len(writes) != 2 {
				t.Errorf("%d writes, want 2", len(writes))
			}
			s := r.tunnel.Stats().Decap
			if n := uint64(len(want) + 1); s.Received != n || s.Delivered != n || s.Bytes != uint64(total(want)+len(other)) {
				t.Errorf("counters %+v, want %d packets of %d bytes", s, n, total(want)+len(other))
			}
		})
	}
}

func split(t *testing.T, packet []byte, o encap.Offload) (parts [][]byte) {
	t.Helper()
	if !o.IsSuper() {
		return [][]byte{packet}
	}
	var h encap.Headers
	if r := encap.ParseIP(packet, &h); r != encap.None {
		t.Fatal(r)
	}
	var s encap.Splitter
	if !s.Reset(packet, &h, o) {
		t.Fatalf("metadata %+v does not fit", o)
	}
	for buf := make([]byte, s.HeaderLen()); s.Next(buf); {
		parts = append(parts, append(bytes.Clone(s.Header()), s.Payload()...))
	}
	return parts
}

// What the device refuses of a super-packet, or all of it, is counted as what it stands for.
func TestRefusedSuperPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		q := r.device.Queue(0)
		q.TakesSupers, q.Refuse = true, func([]byte) bool { return true }
		r.start()
		_, _, parts := super(t, encap.GSOUDP, "10.99.0.2", "10.99.0.1", numbered(5000), 1000)
		var batch []tunnel.Datagram
		for _, p := range parts {
			batch = append(batch, tunneltest.From("172.30.0.2", frame(p)))
		}
		r.underlay.Receiver(0).Put(batch...)
		synctest.Wait()
		if s := r.tunnel.Stats().Decap; s.Received != 5 || s.Reasons["tun_write"] != 5 {
			t.Errorf("counters %+v", s)
		}
	})
}

// A UDP super-packet that a kernel vxlan peer on this machine sent whole comes with the size of the packets in it, as a
// train does with the size of its datagrams.
func TestReceiveUDPSuperPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.device.Queue(0).TakesSupers = true
		r.start()
		packet, _, want := super(t, encap.GSOUDP, "10.99.0.2", "10.99.0.1", numbered(30_500), 1000)
		d := tunneltest.From("172.30.0.2", frame(packet))
		d.SegmentSize = 1000
		r.underlay.Receiver(0).Put(d)
		synctest.Wait()
		writes := r.device.Queue(0).Written()
		if len(writes) != 1 {
			t.Fatalf("%d writes, want 1", len(writes))
		}
		equalPackets(t, split(t, writes[0], r.device.Queue(0).Offloads()[0]), want)
		if s := r.tunnel.Stats().Decap; s.Received != 31 || s.Delivered != 31 {
			t.Errorf("counters %+v", s)
		}
	})
}

// A damaged packet is no part of a super-packet, which would get a new checksum, and keeps its place in its flow.
func TestDamageIsNotJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.device.Queue(0).TakesSupers = true
		r.start()
		_, _, parts := super(t, encap.GSOUDP, "10.99.0.2", "10.99.0.1", numbered(6000), 1000)
		parts[2][500] ^= 1
		var batch []tunnel.Datagram
		for _, p := range parts {
			batch = append(batch, tunneltest.From("172.30.0.2", frame(p)))
		}
		r.underlay.Receiver(0).Put(batch...)
		synctest.Wait()
		var got [][]byte
		for i, p := range r.device.Queue(0).Written() {
			got = append(got, split(t, p, r.device.Queue(0).Offloads()[i])...)
		}
		equalPackets(t, got, parts)
	})
}
