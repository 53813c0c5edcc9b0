package tunnel

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// loopbackConfig returns the configuration of an underlay on a loopback port that was free a moment ago.
func loopbackConfig(tb testing.TB, receivers int) UDPConfig {
	tb.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	port := c.LocalAddr().(*net.UDPAddr).Port
	if err := c.Close(); err != nil {
		tb.Fatal(err)
	}
	return UDPConfig{
		Local: netip.MustParseAddr("127.0.0.1"), Port: uint16(port), Receivers: receivers,
		SourceLow: 32768, SourceHigh: 60999, Buckets: 16, TTL: 64,
	}
}

// receive waits until receiver i has something, and takes it.
func receive(t testing.TB, u *UDP, i int) []Datagram {
	for {
		batch, err := u.Receivers()[i].Receive()
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) > 0 {
			return batch
		}
		runtime.Gosched()
	}
}

func openUDP(t *testing.T, cfg UDPConfig) *UDP {
	t.Helper()
	u, err := OpenUDP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

func TestDatagramsArriveAsSent(t *testing.T) {
	for _, local := range []string{"127.0.0.1", "::1"} {
		cfg := loopbackConfig(t, 1)
		cfg.Local = netip.MustParseAddr(local)
		u := openUDP(t, cfg)
		sent := []Datagram{
			{Data: []byte("plain"), Flow: 1},
			{Data: []byte("congested"), TOS: 0xb8 | encap.CE, Flow: 1},
			{Data: bytes.Repeat([]byte("x"), 60000), Flow: 1},
			{Data: nil, TTL: 3, Flow: 1},
		}
		for i := range sent {
			sent[i].Count = 1
			sent[i].Remote = netip.AddrPortFrom(cfg.Local, cfg.Port)
		}
		u.NewSender().Send(sent)
		for got := 0; got < len(sent); {
			for _, d := range receive(t, u, 0) {
				want := sent[got]
				if !bytes.Equal(d.Data, want.Data) || d.TOS != want.TOS || d.Remote.Addr() != cfg.Local || !slices.Contains(u.SourcePorts(), d.Remote.Port()) {
					t.Errorf("%s: datagram %d arrived as %d bytes, TOS %#x, from %s", local, got, len(d.Data), d.TOS, d.Remote)
				}
				got++
			}
		}
	}
}

// A flow keeps its port; many flows use many ports, all of the range.
func TestSourcePortsFollowFlows(t *testing.T) {
	cfg := loopbackConfig(t, 1)
	cfg.SourceLow, cfg.SourceHigh, cfg.Buckets = 40000, 40063, 8
	u := openUDP(t, cfg)
	if ports := u.SourcePorts(); len(ports) != 8 || slices.Min(ports) < 40000 || slices.Max(ports) > 40063 {
		t.Fatalf("ports %v", ports)
	}
	sender, ports := u.NewSender(), make(map[uint32]uint16)
	for round := range 3 {
		for flow := range uint32(32) {
			d := []Datagram{{Data: []byte("x"), Count: 1, Remote: netip.AddrPortFrom(cfg.Local, cfg.Port), Flow: flow * 0x9e3779b9}}
			sender.Send(d)
			port := receive(t, u, 0)[0].Remote.Port()
			if round > 0 && ports[flow] != port {
				t.Errorf("flow %d: port %d, was %d", flow, port, ports[flow])
			}
			ports[flow] = port
		}
	}
	used := make(map[uint16]bool)
	for _, p := range ports {
		used[p] = true
	}
	if len(used) < 6 {
		t.Errorf("32 flows use %d of 8 ports", len(used))
	}
}

func TestFewerPortsThanBuckets(t *testing.T) {
	cfg := loopbackConfig(t, 1)
	cfg.SourceLow, cfg.SourceHigh, cfg.Buckets = 41000, 41002, 16
	if ports := openUDP(t, cfg).SourcePorts(); len(ports) != 3 {
		t.Errorf("ports %v of a range of three", ports)
	}
}

// A port that someone has is refused, also when both sides would share it (SO_REUSEPORT).
func TestTakenPortIsRefused(t *testing.T) {
	for _, receivers := range []int{1, 2} {
		cfg := loopbackConfig(t, receivers)
		openUDP(t, cfg)
		for _, again := range []int{1, 2} {
			cfg.Receivers = again
			if u, err := OpenUDP(cfg); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("%d receivers, then %d: %v, %v", receivers, again, u, err)
			}
		}
	}
}

// Nobody else, whoever runs it, gets datagrams of a tunnel that has one receiver.
func TestLoneReceiverSharesWithNobody(t *testing.T) {
	cfg := loopbackConfig(t, 1)
	openUDP(t, cfg)
	share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		unused := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(unused, err)
	}}
	c, err := share.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(cfg.Local, cfg.Port).String())
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("another socket on the port: %v, %v", c, err)
	}
}

func TestAddressOfAnotherHostIsRefused(t *testing.T) {
	cfg := loopbackConfig(t, 1)
	cfg.Local = netip.MustParseAddr("192.0.2.1")
	if _, err := OpenUDP(cfg); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("got %v", err)
	}
}

// Too large for any datagram, and too large for a path that may not fragment.
func TestTooBig(t *testing.T) {
	for _, df := range []DFPolicy{DFUnset, DFSet, DFInherit} {
		cfg := loopbackConfig(t, 1)
		cfg.DF = df
		u := openUDP(t, cfg)
		d := []Datagram{{Data: make([]byte, 65508), Count: 1, Remote: netip.AddrPortFrom(cfg.Local, cfg.Port), DF: true}}
		u.NewSender().Send(d)
		if d[0].Reason != encap.PktTooBig || d[0].Sent != 0 {
			t.Errorf("policy %d: %+v", df, d[0].Reason)
		}
	}
}

// What may pass is counted, and the socket is asked again the next time; what cannot pass is an error.
func TestReceiveErrnos(t *testing.T) {
	u := openUDP(t, loopbackConfig(t, 1))
	r := u.receivers[0].(*udpReceiver)
	for _, errno := range []error{unix.ENOMEM, unix.EINTR, unix.EAGAIN, unix.ECONNREFUSED, unix.ENOMEM} {
		r.recvmmsg = func(int, []mmsghdr) (int, error) { return 0, errno }
		if batch, err := r.Receive(); len(batch) != 0 || err != nil {
			t.Errorf("%v: %d, %v", errno, len(batch), err)
		}
	}
	counts := Counts{Syscalls: map[string]uint64{}, ReceiveErrors: map[string]uint64{}}
	u.AddTo(&counts)
	if counts.ReceiveErrors["ENOMEM"] != 2 || counts.ReceiveErrors["ECONNREFUSED"] != 1 || len(counts.ReceiveErrors) != 2 || counts.Syscalls["recvmmsg"] != 5 {
		t.Errorf("counted %+v", counts)
	}
	r.recvmmsg = func(int, []mmsghdr) (int, error) { return 0, unix.EBADF }
	if _, err := r.Receive(); !errors.Is(err, unix.EBADF) {
		t.Errorf("a socket that is none: %v", err)
	}
}

// Flows from different ports are spread over the receivers, and each stays with one.
func TestReceiversShareThePort(t *testing.T) {
	u := openUDP(t, loopbackConfig(t, 2))
	sender := u.NewSender()
	const flows, rounds = 64, 3
	for range rounds {
		for flow := range uint32(flows) {
			sender.Send([]Datagram{{Data: []byte{byte(flow)}, Count: 1, Remote: netip.AddrPortFrom(u.cfg.Local, u.cfg.Port), Flow: flow * 0x9e3779b9}})
		}
	}
	seen := make(map[uint16]int)
	total := 0
	for i, r := range u.Receivers() {
		for {
			batch, err := r.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if len(batch) == 0 {
				break
			}
			for _, d := range batch {
				if at, ok := seen[d.Remote.Port()]; ok && at != i {
					t.Errorf("port %d came to receivers %d and %d", d.Remote.Port(), at, i)
				}
				seen[d.Remote.Port()] = i
			}
			total += len(batch)
		}
	}
	if total != flows*rounds {
		t.Errorf("%d of %d datagrams arrived", total, flows*rounds)
	}
}
