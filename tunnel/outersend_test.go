package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// outerKernel stands in for an outer TAP device: it answers from a script, then takes all, and keeps what it took.
type outerKernel struct {
	script []error
	frames [][]byte
}

func (k *outerKernel) writev(_ int, iov []unix.Iovec) error {
	if len(k.script) > 0 {
		err := k.script[0]
		if k.script = k.script[1:]; err != nil {
			return err
		}
	}
	var b []byte
	for _, v := range iov {
		b = append(b, iovecBytes(v)...)
	}
	k.frames = append(k.frames, b)
	return nil
}

func (k *outerKernel) sender(cfg outerConfig) *outerSender {
	s := newOuterSender(&outerTAP{name: "vxgso9"}, cfg)
	s.writev = k.writev
	s.room.wait = func(int) error { return nil }
	return s
}

// carried returns a datagram that carries a TCP packet of 64 KB, or a small one.
func carried(t *testing.T, remote string, super bool) *Datagram {
	t.Helper()
	packet := bytes.Clone(probeTCP4)
	if super {
		packet = append(packet, bytes.Repeat([]byte{1, 2, 3, 4}, 15_000)...)
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	}
	p := &Packet{Data: packet, Count: 1}
	if r := encap.ParseIP(packet, &p.Headers); r != encap.None {
		t.Fatal(r)
	}
	if super {
		p.Offload = encap.SuperOffload(&p.Headers, 1398)
		p.Count = p.Offload.Segments(packet, &p.Headers)
	}
	whole := append(make([]byte, 22), packet...)
	return &Datagram{Data: whole, Packet: p, Count: p.Count, Remote: netip.MustParseAddrPort(remote), TOS: 0xb8}
}

// What is written is a frame that gopacket reads, behind a virtio-net header that says where everything is.
func TestOuterFrame(t *testing.T) {
	for _, c := range []struct {
		remote string
		cfg    outerConfig
		ttl    uint8 // of the datagram
		df     bool
		want   layers.IPv4
	}{
		{"172.30.0.2:8472", outerConfig{local: netip.MustParseAddr("172.30.0.1"), ttl: 64, checksum: true}, 0, true, layers.IPv4{TTL: 64}},
		{"172.30.0.2:4789", outerConfig{local: netip.MustParseAddr("172.30.0.1"), ttl: 64, df: DFInherit}, 9, true, layers.IPv4{TTL: 9, Flags: layers.IPv4DontFragment}},
		{"172.30.0.2:4789", outerConfig{local: netip.MustParseAddr("172.30.0.1"), ttl: 3, df: DFSet, checksum: true}, 0, false, layers.IPv4{TTL: 3, Flags: layers.IPv4DontFragment}},
		{"[fd00::2]:8472", outerConfig{local: netip.MustParseAddr("fd00::1"), ttl: 64, checksum: true}, 0, false, layers.IPv4{TTL: 64}},
		{"[fd00::2]:8472", outerConfig{local: netip.MustParseAddr("fd00::1"), ttl: 64}, 2, false, layers.IPv4{TTL: 2}},
	} {
		for _, super := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s checksum %v super %v", c.remote, c.cfg.checksum, super), func(t *testing.T) {
				k := new(outerKernel)
				d := carried(t, c.remote, super)
				d.TTL, d.DF = c.ttl, c.df
				k.sender(c.cfg).send(d, 40_000)
				if d.Sent != d.Count || d.Reason != encap.None || d.Refused || len(k.frames) != 1 {
					t.Fatalf("%+v, %d frames", d, len(k.frames))
				}
				header, frame := k.frames[0][:24], k.frames[0][24:]
				checkOuterFrame(t, frame, d, c.want)
				checkTunnelVirtio(t, header, frame, d, c.cfg.checksum)
			})
		}
	}
}

func checkOuterFrame(t *testing.T, frame []byte, d *Datagram, want layers.IPv4) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if udp == nil || p.ErrorLayer() != nil {
		t.Fatalf("not UDP: %v", p)
	}
	if udp.SrcPort != 40_000 || uint16(udp.DstPort) != d.Remote.Port() || int(udp.Length) != 8+len(d.Data) || !bytes.Equal(udp.Payload, d.Data) {
		t.Errorf("UDP %v", udp)
	}
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		if encap.Sum(frame[14:34], 0) != 0xffff || ip.TTL != want.TTL || ip.Flags != want.Flags || ip.TOS != 0xb8 || int(ip.Length) != len(frame)-14 {
			t.Errorf("IPv4 %+v, want %+v", ip, want)
		}
	case *layers.IPv6:
		if ip.HopLimit != want.TTL || ip.TrafficClass != 0xb8 || int(ip.Length) != len(frame)-54 {
			t.Errorf("IPv6 %+v, want %+v", ip, want)
		}
	}
}

func checkTunnelVirtio(t *testing.T, b, frame []byte, d *Datagram, checksum bool) {
	t.Helper()
	field := func(at int) int { return int(binary.NativeEndian.Uint16(b[at:])) }
	udp := len(frame) - len(d.Data) - 8
	inner := len(frame) - len(d.Packet.Data)
	outerSum := binary.BigEndian.Uint16(frame[udp+6:])
	if (outerSum != 0) != checksum {
		t.Errorf("outer checksum field %#x, want one: %v", outerSum, checksum)
	}
	if !d.Packet.Offload.IsSuper() {
		want := [3]int{0, 0, 0}
		if checksum {
			want = [3]int{virtioNeedsChecksum, udp, 6}
		}
		if got := [3]int{int(b[0]), field(6), field(8)}; got != want || b[1] != 0 {
			t.Errorf("flags, start and offset %v, GSO type %d, want %v", got, b[1], want)
		}
		return
	}
	flags, gso := byte(virtioNeedsChecksum), byte(virtioGSOTCPv4|virtioGSOTunnelIPv4)
	if checksum {
		flags |= virtioTunnelChecksum
	}
	if d.Remote.Addr().Is6() {
		gso = virtioGSOTCPv4 | virtioGSOTunnelIPv6
	}
	if b[0] != flags || b[1] != gso {
		t.Errorf("flags %#x, GSO type %#x, want %#x, %#x", b[0], b[1], flags, gso)
	}
	for at, want := range map[int]int{2: inner + 40, 4: 1398, 6: inner + 20, 8: 16, 20: udp, 22: inner} {
		if got := field(at); got != want {
			t.Errorf("field at %d is %d, want %d", at, got, want)
		}
	}
}

// A refusal ends the use of the device; what it did not take is given back, and counts as nothing.
func TestOuterRefuses(t *testing.T) {
	for _, c := range []struct {
		err     error
		refused bool
		reason  encap.Reason
	}{
		{unix.EINVAL, true, encap.None},
		{unix.EBADFD, true, encap.None},
		{unix.EIO, true, encap.None},
		{unix.ENOBUFS, false, encap.UDPSend},
	} {
		k := &outerKernel{script: []error{nil, unix.EINTR, unix.EAGAIN, nil, c.err}}
		s := k.sender(outerConfig{local: netip.MustParseAddr("172.30.0.1"), ttl: 64})
		u := newUDPSender([]int{0, 0}, 2, 0, true, new(feature), nil)
		u.outer, u.ports = s, []uint16{1, 2}
		batch := make([]Datagram, 4)
		for i := range batch {
			batch[i] = *carried(t, "172.30.0.2:8472", true)
		}
		if !u.Carries(batch[0].Packet) {
			t.Fatal("carries nothing")
		}
		u.Send(batch)
		for i, d := range batch[:2] {
			if d.Sent != d.Count || d.Refused {
				t.Errorf("%v: datagram %d: %+v", c.err, i, d)
			}
		}
		if d := batch[2]; d.Refused != c.refused || d.Reason != c.reason || d.Sent != 0 {
			t.Errorf("%v: %+v", c.err, d)
		}
		if d := batch[3]; d.Refused != c.refused || c.refused == (d.Sent == d.Count) {
			t.Errorf("%v, the next one: %+v", c.err, d)
		}
		if u.Carries(batch[0].Packet) == c.refused {
			t.Errorf("%v: carries packets: %v", c.err, !c.refused)
		}
	}
}

// What the redirect asks the routes about is the length of the packets on the wire, not of what was written.
func TestOuterWireLength(t *testing.T) {
	for _, super := range []bool{false, true} {
		k := new(outerKernel)
		s := k.sender(outerConfig{local: netip.MustParseAddr("172.30.0.1"), ttl: 64, checksum: true})
		d := carried(t, "172.30.0.2:8472", super)
		if allocs := testing.AllocsPerRun(10, func() { s.putHeaders(d, 9) }); allocs != 0 {
			t.Errorf("super %v: %v allocations", super, allocs)
		}
		s.send(d, 9)
		want := 28 + 22 + len(d.Packet.Data)
		if super {
			want = 28 + 22 + 40 + 1398
		}
		if got := int(binary.NativeEndian.Uint16(k.frames[0][virtioTunnelLen+wireLenAt:])); got != want {
			t.Errorf("super %v: %d, want %d", super, got, want)
		}
	}
}

// Packets of other protocols, and fragments, go through the sockets.
func TestOuterTakesTCPAlone(t *testing.T) {
	s := new(outerKernel).sender(outerConfig{})
	for _, c := range []struct {
		h    encap.Headers
		size int
		want bool
	}{
		{encap.Headers{Proto: encap.ProtoTCP}, 40, true},
		{encap.Headers{Proto: encap.ProtoTCP}, 65_000, true},
		{encap.Headers{Proto: encap.ProtoTCP}, 65_500, false},
		{encap.Headers{Proto: encap.ProtoTCP, Fragment: true}, 40, false},
		{encap.Headers{Proto: encap.ProtoUDP}, 40, false},
		{encap.Headers{}, 40, false},
	} {
		if got := s.takes(&Packet{Headers: c.h, Data: make([]byte, c.size)}); got != c.want {
			t.Errorf("%+v with %d bytes: %v", c.h, c.size, got)
		}
	}
}

// Answers of the routes keep their names.
func TestExplainBPF(t *testing.T) {
	err := explainBPF("load BPF program", fmt.Errorf("verifier: %w", unix.EPERM))
	if !errors.Is(err, unix.EPERM) || err.Error() != "load BPF program: verifier: operation not permitted: need CAP_BPF besides CAP_NET_ADMIN" {
		t.Error(err)
	}
}
