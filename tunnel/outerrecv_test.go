package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// frameKernel stands in for a queue of an outer TAP device: it gives frames and errors in turn, and then has nothing.
type frameKernel struct {
	frames [][]byte
	errs   []error
}

func (k *frameKernel) read(_ int, b []byte) (int, error) {
	if len(k.frames) == 0 {
		return 0, unix.EAGAIN
	}
	frame, err := k.frames[0], k.errs[0]
	k.frames, k.errs = k.frames[1:], k.errs[1:]
	return copy(b, frame), err
}

func (k *frameKernel) add(frame []byte, err error) {
	k.frames, k.errs = append(k.frames, frame), append(k.errs, err)
}

// receiver returns one at 172.30.0.2 or fd00::2.
func (k *frameKernel) receiver(t *testing.T, local string, zero6 bool) *outerReceiver {
	t.Helper()
	r, err := newOuterReceiver(&outerTAP{name: "vxgso9"}, -1, ingressRule{local: netip.MustParseAddr(local), port: 8472}, zero6)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(r.quiet) })
	r.read = k.read
	return r
}

// outerFrame is what a TAP device gives for a datagram: a virtio-net header, an Ethernet header, and the packet.
func outerFrame(src string, flags, gso byte, size int, payload []byte, checksum bool) []byte {
	from := netip.MustParseAddrPort(src)
	to := netip.AddrPortFrom(netip.MustParseAddr("172.30.0.2"), 8472)
	if from.Addr().Is6() {
		to = netip.AddrPortFrom(netip.MustParseAddr("fd00::2"), 8472)
	}
	head := encap.OuterHeaderLen(from.Addr().Is6())
	packet := append(make([]byte, head), payload...)
	encap.PutOuter(packet, &encap.Outer{Src: from, Dst: to, TOS: 0xb9, TTL: 64, Checksum: checksum}, len(payload))
	if checksum && flags == 0 {
		(encap.Offload{ChecksumStart: head - 8, ChecksumField: head - 2}).FinishChecksum(packet)
	}
	b := make([]byte, virtioTunnelLen+encap.EthernetHeaderLen)
	b[0], b[1] = flags, gso
	binary.NativeEndian.PutUint16(b[4:], uint16(size))
	return append(b, packet...)
}

// Each frame is a datagram, a train, or a datagram with a super-packet; what a kernel would not give to a socket is marked.
func TestOuterReceive(t *testing.T) {
	const v4, v6 = "172.30.0.1:40000", "[fd00::1]:40000"
	payload := bytes.Repeat([]byte{8, 1, 2, 3}, 700)
	damaged := outerFrame(v4, 0, 0, 0, payload, true)
	damaged[len(damaged)-1] ^= 1
	for _, c := range []struct {
		name  string
		frame []byte
		zero6 bool
		want  Datagram // Data and Remote aside
	}{
		{"datagram", outerFrame(v4, 0, 0, 0, payload, true), false, Datagram{Count: 1}},
		{"over IPv6", outerFrame(v6, 0, 0, 0, payload, true), false, Datagram{Count: 1}},
		{"without checksum", outerFrame(v4, 0, 0, 0, payload, false), false, Datagram{Count: 1}},
		{"over IPv6 without checksum", outerFrame(v6, 0, 0, 0, payload, false), false, Datagram{Count: 1, Reason: encap.OuterChecksum}},
		{"over IPv6 without checksum, unfinished", outerFrame(v6, virtioNeedsChecksum, 0, 0, payload, false), false, Datagram{Count: 1, Reason: encap.OuterChecksum}},
		{"over IPv6 without checksum, accepted", outerFrame(v6, 0, 0, 0, payload, false), true, Datagram{Count: 1}},
		{"checksum left undone", outerFrame(v4, virtioNeedsChecksum, 0, 0, payload, true), false, Datagram{Count: 1}},
		{"checksum verified by a device", outerFrame(v6, virtioDataValid, 0, 0, payload, true), false, Datagram{Count: 1}},
		{"damaged", damaged, false, Datagram{Count: 1, Reason: encap.OuterChecksum}},
		{"train", outerFrame(v4, virtioNeedsChecksum, virtioGSOUDP, 1000, payload, true), false, Datagram{Count: 3, SegmentSize: 1000}},
		{"train over IPv6, ECN", outerFrame(v6, virtioNeedsChecksum, virtioGSOUDP|virtioGSOECN, 1400, payload, true), false, Datagram{Count: 2, SegmentSize: 1400}},
		{"TCP super-packet", outerFrame(v4, virtioNeedsChecksum, virtioGSOTCPv4|virtioGSOTunnelIPv4, 1398, payload, true), false, Datagram{Count: 1, SegmentSize: 1398, Whole: true}},
		{"UDP super-packet over IPv6", outerFrame(v6, virtioNeedsChecksum, virtioGSOUDP|virtioGSOTunnelIPv6, 1000, payload, true), false, Datagram{Count: 1, SegmentSize: 1000, Whole: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := new(frameKernel)
			k.add(c.frame, nil)
			local := "172.30.0.2"
			if c.frame[virtioTunnelLen+encap.EthernetHeaderLen]>>4 == 6 {
				local = "fd00::2"
			}
			got, err := k.receiver(t, local, c.zero6).Receive()
			if err != nil || len(got) != 1 {
				t.Fatalf("%d datagrams, %v", len(got), err)
			}
			d := got[0]
			if want := c.frame[len(c.frame)-len(payload):]; !bytes.Equal(d.Data, want) || d.Remote.Port() != 40000 || d.TOS != 0xb9 {
				t.Errorf("%d bytes from %s, TOS %#x", len(d.Data), d.Remote, d.TOS)
			}
			if d.Count != c.want.Count || d.SegmentSize != c.want.SegmentSize || d.Whole != c.want.Whole || d.Reason != c.want.Reason {
				t.Errorf("got %d of %d bytes, whole %v, %s; want %+v", d.Count, d.SegmentSize, d.Whole, d.Reason, c.want)
			}
		})
	}
}

// What is read in one go is there at once, in order; an error ends a batch and loses nothing behind it.
func TestOuterReceiveBatches(t *testing.T) {
	k := new(frameKernel)
	long := bytes.Repeat([]byte{7}, 60_000)
	var want []int
	for i := range 3 * receiveSlots {
		n := i%1400 + 1
		if i%10 == 0 {
			n = len(long)
		}
		if i == 50 || i == 51 {
			k.add(nil, unix.EINVAL)
		}
		k.add(outerFrame("172.30.0.1:1", 0, 0, 0, long[:n], true), nil)
		want = append(want, n)
	}
	k.add([]byte("too short to be one"), nil)
	r := k.receiver(t, "172.30.0.2", false)
	var got []int
	lost := 0 // twice its metadata could not be told, once it was no frame
	for calls := 0; len(k.frames) > 0; calls++ {
		batch, err := r.Receive()
		if err != nil || calls > len(want) {
			t.Fatalf("%d batches, %v", calls, err)
		}
		for _, d := range batch {
			if d.Reason == encap.NotIP && d.Count == 1 {
				lost++
				continue
			}
			if d.Reason != encap.None || bytes.Count(d.Data, []byte{7}) != len(d.Data) {
				t.Fatalf("datagram %d: %s", len(got), d.Reason)
			}
			got = append(got, len(d.Data))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got lengths %v\nwant %v", got, want)
	}
	if lost != 3 {
		t.Errorf("%d lost, want 3", lost)
	}
}

// A batch has no more packets than the receiver's memory is made for; trains count as what they are.
func TestOuterReceiveBoundsPackets(t *testing.T) {
	k := new(frameKernel)
	for range 100 {
		k.add(outerFrame("172.30.0.1:1", virtioNeedsChecksum, virtioGSOUDP, 10, make([]byte, 640), true), nil)
	}
	r, total := k.receiver(t, "172.30.0.2", false), 0
	for len(k.frames) > 0 {
		batch, err := r.Receive()
		if err != nil {
			t.Fatal(err)
		}
		packets := 0
		for _, d := range batch {
			packets += d.Count
		}
		if total += packets; packets >= receivePackets+MaxTrain {
			t.Errorf("%d packets in a batch", packets)
		}
	}
	if total != 6400 {
		t.Errorf("%d packets, want 6400", total)
	}
}

// What a socket would not have got, as IP drops it before, is no peer's.
func TestOuterReceiveMartians(t *testing.T) {
	for _, c := range []struct{ local, src string }{
		{"172.30.0.9", "172.30.0.1:1"}, // to another address than is listened at
		{"172.30.0.2", "172.30.0.2:1"},
		{"172.30.0.2", "127.0.0.1:1"},
		{"172.30.0.2", "0.0.0.0:1"},
		{"172.30.0.2", "224.0.0.5:1"},
		{"172.30.0.2", "255.255.255.255:1"},
		{"fd00::2", "172.30.0.1:1"}, // the other family's
		{"fd00::2", "[fd00::2]:1"},
		{"fd00::2", "[::1]:1"},
		{"fd00::2", "[::]:1"},
		{"fd00::2", "[ff02::1]:1"},
		{"fd00::2", "[::ffff:172.30.0.1]:1"},
	} {
		k := new(frameKernel)
		k.add(outerFrame(c.src, 0, 0, 0, make([]byte, 60), true), nil)
		if got, err := k.receiver(t, c.local, false).Receive(); err != nil || len(got) != 1 || got[0].Reason != encap.PeerUnknown {
			t.Errorf("from %s at %s: %+v, %v", c.src, c.local, got, err)
		}
	}
}

// Without its device the queue is quiet, for a waiter as well, and the sockets receive.
func TestOuterReceiveWithoutDevice(t *testing.T) {
	k := new(frameKernel)
	k.add(outerFrame("172.30.0.1:1", 0, 0, 0, []byte("the last one"), true), nil)
	k.add(nil, unix.EBADFD)
	r := k.receiver(t, "172.30.0.2", false)
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r.queue.fd = ends[0]
	defer unix.Close(ends[0])
	if err := unix.Close(ends[1]); err != nil { // hung up: ready for ever
		t.Fatal(err)
	}
	if !ready(t, r.queue.fd) {
		t.Fatal("a pipe that is hung up is not ready")
	}
	if batch, err := r.Receive(); len(batch) != 1 || err != nil {
		t.Fatalf("%d datagrams, %v", len(batch), err)
	}
	if ready(t, r.queue.fd) {
		t.Error("ready, with nothing to read")
	}
	r.read = read
	if batch, err := r.Receive(); len(batch) > 0 || err != nil {
		t.Errorf("%d datagrams, %v", len(batch), err)
	}
}

func ready(t *testing.T, fd int) bool {
	t.Helper()
	err := waitFor(fd, unix.POLLIN, 0)
	if err != nil && err != unix.ETIMEDOUT {
		t.Fatal(err)
	}
	return err == nil
}

// Two ends are asked in turn, so that none starves, and one that has nothing holds nobody up.
func TestInTurn(t *testing.T) {
	a, b, never := new(frameKernel), new(frameKernel), new(frameKernel)
	for range 2 * receiveSlots {
		a.add(outerFrame("172.30.0.1:1", 0, 0, 0, []byte("a"), true), nil)
	}
	b.add(outerFrame("172.30.0.1:2", 0, 0, 0, []byte("b"), true), nil)
	const local = "172.30.0.2"
	p := inTurn(inTurn(a.receiver(t, local, false), never.receiver(t, local, false)), b.receiver(t, local, false))
	var order []byte
	for range 4 {
		batch, err := p.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) > 0 {
			order = append(order, batch[0].Data[0])
		}
	}
	if string(order) != "aba" {
		t.Errorf("order %q", order)
	}
	if got := p.inputs(); len(got) != 3 {
		t.Errorf("descriptors %v", got)
	}
}
