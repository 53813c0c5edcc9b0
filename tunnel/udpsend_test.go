package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// kernel stands in for sendmmsg: it follows a script of answers, and keeps what went.
type kernel struct {
	script []answer
	sent   []byte // first byte of each datagram that went
	sizes  []int  // how many messages each call had
	waits  int

	trains  bool // the sender may make trains
	feature *feature
	counts  []int // how many pieces each message had
}

type answer struct {
	n   int // how many go; -1: all
	err error
}

func (k *kernel) sendmmsg(_ int, msgs []mmsghdr) (int, error) {
	k.sizes = append(k.sizes, len(msgs))
	a := answer{n: -1}
	if len(k.script) > 0 {
		a, k.script = k.script[0], k.script[1:]
	}
	if a.err != nil {
		return 0, a.err
	}
	if a.n < 0 {
		a.n = len(msgs)
	}
	for i := range msgs[:a.n] {
		pieces := unsafe.Slice(msgs[i].hdr.Iov, msgs[i].hdr.Iovlen)
		k.counts = append(k.counts, len(pieces))
		for _, p := range pieces {
			k.sent = append(k.sent, *p.Base)
		}
	}
	return a.n, nil
}

// gso is the feature of a kernel with or without trains.
func (k *kernel) gso() *feature {
	f := new(feature)
	if !k.trains {
		f.disable("not in this test")
	}
	k.feature = f
	return f
}

func (k *kernel) sender(sockets int) *udpSender {
	fds := make([]int, sockets)
	s := newUDPSender(fds, sockets, 0, true, k.gso(), nil)
	s.sendmmsg = k.sendmmsg
	s.room.wait = func(int) error { k.waits++; return nil }
	return s
}

func numberedDatagrams(n int) []Datagram {
	batch := make([]Datagram, n)
	for i := range batch {
		batch[i] = Datagram{Data: []byte{byte(i)}, Count: 1, Remote: netip.MustParseAddrPort("192.0.2.1:8472")}
	}
	return batch
}

// Each errno concerns one datagram; the others go, each once, in order.
func TestSendErrnos(t *testing.T) {
	for _, c := range []struct {
		errno  unix.Errno
		reason encap.Reason
	}{
		{unix.EIO, encap.UDPSend}, {unix.ENOBUFS, encap.UDPSend}, {unix.EMSGSIZE, encap.PktTooBig}, {unix.EPERM, encap.UDPSend},
		{unix.ENETUNREACH, encap.UDPSend}, {unix.EHOSTUNREACH, encap.UDPSend}, {unix.EINVAL, encap.UDPSend}, {unix.ENETDOWN, encap.UDPSend},
		{unix.ECONNREFUSED, encap.UDPSend}, {unix.EACCES, encap.UDPSend}, {unix.ENOMEM, encap.UDPSend}, {unix.EBADF, encap.UDPSend},
	} {
		for _, at := range []int{0, 2, 4} {
			t.Run(fmt.Sprintf("%s at %d", unix.ErrnoName(c.errno), at), func(t *testing.T) {
				k := &kernel{script: []answer{{n: at}, {err: c.errno}}}
				if at == 0 {
					k.script = k.script[1:]
				}
				batch := numberedDatagrams(5)
				k.sender(1).Send(batch)
				var want []byte
				for i := range batch {
					if i == at {
						if batch[i].Reason != c.reason || batch[i].Sent != 0 {
							t.Errorf("datagram %d: %+v", i, batch[i])
						}
						continue
					}
					want = append(want, byte(i))
					if batch[i].Reason != encap.None || batch[i].Sent != 1 {
						t.Errorf("datagram %d: %+v", i, batch[i])
					}
				}
				if !slices.Equal(k.sent, want) {
					t.Errorf("sent %v, want %v", k.sent, want)
				}
			})
		}
	}
}

func TestSendAgainAfterWaiting(t *testing.T) {
	for name, script := range map[string][]answer{
		"EAGAIN":            {{err: unix.EAGAIN}},
		"EINTR":             {{err: unix.EINTR}, {err: unix.EINTR}},
		"partial":           {{n: 1}, {n: 2}, {n: 1}},
		"partial, EAGAIN":   {{n: 2}, {err: unix.EAGAIN}, {n: 1}, {err: unix.EAGAIN}},
		"nothing, no error": {{n: 0, err: unix.EAGAIN}},
	} {
		k := &kernel{script: script}
		batch := numberedDatagrams(5)
		k.sender(1).Send(batch)
		if !slices.Equal(k.sent, []byte{0, 1, 2, 3, 4}) {
			t.Errorf("%s: sent %v", name, k.sent)
		}
		for i := range batch {
			if batch[i].Sent != 1 || batch[i].Reason != encap.None {
				t.Errorf("%s: datagram %d: %+v", name, i, batch[i])
			}
		}
	}
}

// A kernel that makes no progress and says nothing of it ends in a drop, not in a loop.
func TestSendWithoutProgress(t *testing.T) {
	k := &kernel{script: []answer{{n: 0}, {n: 0}}}
	batch := numberedDatagrams(3)
	k.sender(1).Send(batch)
	if !slices.Equal(k.sent, []byte{2}) || batch[0].Reason != encap.UDPSend || batch[1].Reason != encap.UDPSend {
		t.Errorf("sent %v, %+v", k.sent, batch)
	}
}

func TestSendWhenWaitingFails(t *testing.T) {
	k := &kernel{script: []answer{{err: unix.EAGAIN}}}
	s := k.sender(1)
	s.room.wait = func(int) error { return errors.New("poll failed") }
	batch := numberedDatagrams(2)
	s.Send(batch)
	if batch[0].Reason != encap.QueueFull || batch[1].Sent != 1 {
		t.Errorf("%+v", batch)
	}
}

// Sockets that stay full keep a worker no longer for a batch than for one datagram, and the next batch tries again.
func TestSendWaitsOnceInVain(t *testing.T) {
	for _, trains := range []bool{false, true} {
		t.Run(fmt.Sprintf("trains %v", trains), func(t *testing.T) {
			full := answer{err: unix.EAGAIN}
			k := &kernel{trains: trains, script: slices.Repeat([]answer{full}, 3*64)}
			s, waits := k.sender(2), 0
			s.room.wait = func(int) error { waits++; return unix.ETIMEDOUT }
			for n := 1; n <= 2; n++ {
				batch := datagramsOf(slices.Repeat([]int{100}, 64)...)
				for i := range batch {
					batch[i].Flow = uint32(i%2) << 31
				}
				s.Send(batch)
				if waits != n {
					t.Errorf("%d waits in %d batches", waits, n)
				}
				for i, d := range batch {
					if d.Sent != 0 || d.Reason != encap.QueueFull {
						t.Fatalf("datagram %d: sent %d, reason %s", i, d.Sent, d.Reason)
					}
				}
			}
			if !k.feature.on() && trains {
				t.Error("trains were given up")
			}
		})
	}
}

// A batch goes out in one call for each socket, and flows keep their order.
func TestSendGroupsBySocket(t *testing.T) {
	k := &kernel{}
	batch := numberedDatagrams(64)
	for i := range batch {
		batch[i].Flow = uint32(i%3) * 0x30000000
	}
	k.sender(16).Send(batch)
	if len(k.sizes) != 3 || len(k.sent) != 64 {
		t.Errorf("%d calls for %d datagrams of three flows", len(k.sizes), len(k.sent))
	}
	last := map[byte]byte{}
	for _, n := range k.sent {
		if prev, ok := last[n%3]; ok && prev > n {
			t.Fatalf("flow %d: %d after %d", n%3, n, prev)
		}
		last[n%3] = n
	}
}

func TestSendMoreThanABatch(t *testing.T) {
	k := &kernel{}
	batch := numberedDatagrams(3*BatchSize + 1)
	k.sender(1).Send(batch)
	if len(k.sent) != len(batch) {
		t.Errorf("%d of %d went", len(k.sent), len(batch))
	}
}

// Control messages carry the TOS where it differs from the socket's, and the TTL where one is given.
func TestControlMessages(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		s := newUDPSender([]int{0}, 1, 0, v4, new(feature), nil)
		for _, c := range []struct {
			d    Datagram
			want map[int32]int32 // type to value
		}{
			{Datagram{}, nil},
			{Datagram{TOS: 0xb9}, map[int32]int32{unix.IP_TOS: 0xb9}},
			{Datagram{TOS: 1, TTL: 9}, map[int32]int32{unix.IP_TOS: 1, unix.IP_TTL: 9}},
		} {
			c.d.Data, c.d.Remote = []byte{1}, netip.MustParseAddrPort("192.0.2.1:8472")
			var hdr unix.Msghdr
			s.fill(&hdr, &message{count: 1}, &c.d)
			got := map[int32]int32{}
			if hdr.Control != nil {
				messages, err := unix.ParseSocketControlMessage(unsafe.Slice(hdr.Control, hdr.Controllen))
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range messages {
					typ := m.Header.Type
					if !v4 {
						typ = map[int32]int32{unix.IPV6_TCLASS: unix.IP_TOS, unix.IPV6_HOPLIMIT: unix.IP_TTL}[typ]
					}
					got[typ] = *(*int32)(unsafe.Pointer(&m.Data[0]))
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) && len(got)+len(c.want) > 0 {
				t.Errorf("IPv4 %v, %+v: control messages %v, want %v", v4, c.d, got, c.want)
			}
		}
	}
}
