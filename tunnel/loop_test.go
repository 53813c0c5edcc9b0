package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/tunnel"
	"github.com/vxlane/vxlane/tunnel/tunneltest"
)

func TestTransmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		packet := udp(t, "10.99.0.1", "10.99.0.2", 53, []byte("hello"), withTOS(0xb9))
		r.device.Queue(0).Put(packet, udp(t, "10.99.0.1", "10.88.0.1", 53, nil), packet)
		synctest.Wait()
		sent := sentTo(r, "172.30.0.2:8472")
		if len(sent) != 2 {
			t.Fatalf("%d datagrams, want 2", len(sent))
		}
		d := sent[0]
		if d.TOS != 0xb9 || d.TTL != 0 || d.DF || d.Flow != sent[1].Flow {
			t.Errorf("outer header: %+v", d)
		}
		p := gopacket.NewPacket(d.Data, layers.LayerTypeVXLAN, gopacket.Default)
		eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		if encap.MAC(eth.DstMAC) != peerMAC || encap.MAC(eth.SrcMAC) != ourMAC || !bytes.Equal(eth.Payload, packet) {
			t.Errorf("frame: %+v", eth)
		}
		s := r.tunnel.Stats()
		if s.Encap.Received != 3 || s.Encap.Delivered != 2 || s.Encap.Reasons["no_tx_target"] != 1 || s.Encap.Bytes != uint64(2*len(packet)) {
			t.Errorf("counters: %+v", s.Encap)
		}
		if hb := r.tunnel.Peers().LookupName("hb").State().Totals(); hb.EncapPackets != 2 || hb.EncapBytes != uint64(2*len(packet)) {
			t.Errorf("counters of the peer: %+v", hb)
		}
	})
}

// sentTo returns the datagrams for one endpoint that carry packets to it: what is sent to a group MAC, requests and
// announcements, is left out.
func sentTo(r *rig, endpoint string) (out []tunnel.Datagram) {
	for _, d := range r.underlay.Sent() {
		if d.Remote.String() == endpoint && (d.Data[0] != 8 || d.Data[8]&1 == 0) {
			out = append(out, d)
		}
	}
	return out
}

func TestReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		good := udp(t, "10.99.0.2", "10.99.0.1", 53, []byte("hello"))
		refused := udp(t, "10.99.0.2", "10.99.0.1", 99, nil)
		r.device.Queue(0).Refuse = func(p []byte) bool { return bytes.Equal(p, refused) }
		r.underlay.Receiver(0).Put(
			tunneltest.From("172.30.0.2", frame(good)),
			tunneltest.From("172.30.0.9", frame(good)),
			tunneltest.From("172.30.0.2", frame(refused)),
			tunneltest.From("::ffff:172.30.0.2", frame(good)),
		)
		synctest.Wait()
		if w := r.device.Queue(0).Written(); len(w) != 2 || !bytes.Equal(w[0], good) || !bytes.Equal(w[1], good) {
			t.Errorf("written: %x", w)
		}
		s := r.tunnel.Stats().Decap
		if s.Received != 4 || s.Delivered != 2 || s.Reasons["peer_unknown"] != 1 || s.Reasons["tun_write"] != 1 {
			t.Errorf("counters: %+v", s)
		}
		st := r.tunnel.PeerStatus()[0]
		if st.DecapPackets != 2 || st.LastReceive.IsZero() {
			t.Errorf("peer: %+v", st)
		}
	})
}

// A whole super-packet as a kernel vxlan peer over veth sends it: 64 KB, its checksum left to a device that never saw it.
func TestReceiveSuperPacket(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 4000)
	whole := tcp(t, "10.99.0.2", "10.99.0.1", payload)
	partial := bytes.Clone(whole)
	leaveChecksumToDevice(partial)
	damaged := bytes.Clone(whole)
	damaged[100] ^= 1
	for _, c := range []struct {
		name   string
		packet []byte
		count  int
		super  bool
		want   []byte
	}{
		{"unfinished", partial, 46, true, partial},
		{"finished", whole, 46, true, partial}, // a device that splits it expects the bare pseudo-header sum
		{"damaged", damaged, 1, false, damaged},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, rigConfig())
			r.start()
			r.underlay.Receiver(0).Put(tunneltest.From("172.30.0.2", frame(bytes.Clone(c.packet))))
			synctest.Wait()
			s := r.tunnel.Stats().Decap
			if s.Received != uint64(c.count) || s.Delivered != uint64(c.count) {
				t.Errorf("%s: counters %+v, want %d", c.name, s, c.count)
			}
			if w := r.device.Queue(0).Written(); len(w) != 1 || !bytes.Equal(w[0], c.want) || r.device.Queue(0).Offloads()[0].IsSuper() != c.super {
				t.Errorf("%s: the device was given something else", c.name)
			}
		})
	}
}

// leaveChecksumToDevice puts the bare pseudo-header sum into the checksum field of a TCP or UDP packet over IPv4.
func leaveChecksumToDevice(p []byte) {
	at := 20 + map[byte]int{encap.ProtoTCP: 16, encap.ProtoUDP: 6}[p[9]]
	pseudo := append(append([]byte(nil), p[12:20]...), 0, p[9], 0, 0)
	binary.BigEndian.PutUint16(pseudo[10:], uint16(len(p)-20))
	binary.BigEndian.PutUint16(p[at:], encap.Sum(pseudo, 0))
}

func TestUnfinishedChecksumIsFinished(t *testing.T) {
	for name, whole := range map[string][]byte{
		"tcp": tcp(t, "10.99.0.2", "10.99.0.1", []byte("hello")),
		"udp": udp(t, "10.99.0.2", "10.99.0.1", 53, []byte("hello")),
	} {
		damaged := bytes.Clone(whole)
		damaged[len(damaged)-1] ^= 1
		unfinished := bytes.Clone(whole)
		leaveChecksumToDevice(unfinished)
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, rigConfig())
			r.start()
			for _, p := range [][]byte{whole, unfinished, damaged} {
				r.underlay.Receiver(0).Put(tunneltest.From("172.30.0.2", frame(p)))
			}
			synctest.Wait()
			w := r.device.Queue(0).Written()
			if len(w) != 3 || !bytes.Equal(w[0], whole) || !bytes.Equal(w[1], whole) || !bytes.Equal(w[2], damaged) {
				t.Errorf("%s: whole, unfinished and damaged became\n%x", name, w)
			}
		})
	}
}

// Super-packets for a host that told us that it, or its path, takes less than the device are split smaller.
func TestSuperPacketsFollowSizeHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		syn := tcpSYN(t, "10.99.0.1", "10.99.0.2", 1000)
		r.device.Queue(0).Put(syn)
		synctest.Wait()
		r.underlay.Receiver(0).Put(tunneltest.From("172.30.0.2", frame(tcp(t, "10.99.0.2", "10.99.0.1", make([]byte, 10_000)))))
		synctest.Wait()
		if s := r.tunnel.Stats().Decap; s.Delivered != 10 {
			t.Errorf("10,000 bytes for an MSS of 1000 became %d segments", s.Delivered)
		}
	})
}

// What a host says of itself is a limit for what is cut, not for what arrives as it was sent.
func TestFinishedSegmentsStayWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		r.device.Queue(0).Put(tcpSYN(t, "10.99.0.1", "10.99.0.2", 1000))
		synctest.Wait()
		want := tcp(t, "10.99.0.2", "10.99.0.1", make([]byte, 1400))
		r.underlay.Receiver(0).Put(tunneltest.From("172.30.0.2", frame(want)))
		synctest.Wait()
		if got := r.device.Queue(0).Written(); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("written %x, want a segment of 1400 bytes as it was", got)
		}
	})
}

func tcpSYN(tb testing.TB, src, dst string, mss uint16) []byte {
	p := tcp(tb, src, dst, nil)
	p = append(p, 2, 4, byte(mss>>8), byte(mss))
	p[3], p[32], p[33] = byte(len(p)), 6<<4, 2 // total length, data offset, SYN
	return p
}

func TestECN(t *testing.T) {
	for _, c := range []struct {
		inner, outer, want uint8
		reason             encap.Reason
	}{
		{encap.ECT0, encap.CE, encap.CE, encap.None}, {encap.ECT0, encap.ECT1, encap.ECT1, encap.None},
		{encap.NotECT, encap.ECT0, encap.NotECT, encap.None}, {encap.NotECT, encap.CE, 0, encap.IPTunnelECN},
		{encap.CE, encap.NotECT, encap.CE, encap.None},
	} {
		for _, src := range []string{"10.99.0.2", "fd99::2"} {
			dst := map[bool]string{true: "10.99.0.1", false: "fd99::1"}[src == "10.99.0.2"]
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, rigConfig())
				r.start()
				d := tunneltest.From("172.30.0.2", frame(udp(t, src, dst, 53, nil, withTOS(0xb8|c.inner))))
				d.TOS = c.outer
				r.underlay.Receiver(0).Put(d)
				synctest.Wait()
				if c.reason != encap.None {
					if n := r.tunnel.Stats().Decap.Reasons[c.reason.String()]; n != 1 {
						t.Errorf("%+v: %d dropped", c, n)
					}
					return
				}
				w := r.device.Queue(0).Written()
				if len(w) != 1 || !bytes.Equal(w[0], udp(t, src, dst, 53, nil, withTOS(0xb8|c.want))) {
					t.Errorf("%+v, %s: written %x", c, src, w)
				}
			})
		}
	}
}

func TestFlannelUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := rigConfig()
		cfg.Framing, cfg.Port = encap.FramingFlannelUDP, 8285
		r := newRig(t, cfg)
		r.start()
		out := udp(t, "10.99.0.1", "10.99.0.2", 53, []byte("x"))
		dying := udp(t, "10.99.0.1", "10.99.0.2", 53, []byte("x"), withTTL(1))
		r.device.Queue(0).Put(out, dying, udp(t, "10.99.0.1", "10.88.0.1", 53, nil))
		r.underlay.Receiver(0).Put(
			tunneltest.From("172.30.0.2", udp(t, "10.99.0.2", "10.99.0.1", 53, nil, withTTL(9))),
			tunneltest.From("172.30.0.2", udp(t, "10.99.0.2", "10.99.0.1", 53, nil, withTTL(1))),
		)
		synctest.Wait()
		// ICMP is what the peer's sender is told of the packet that died on arrival.
		sent := sentTo(r, "172.30.0.2:8472")
		slices.SortFunc(sent, func(a, b tunnel.Datagram) int { return int(a.Data[9]) - int(b.Data[9]) })
		if len(sent) != 2 || !bytes.Equal(sent[0].Data[12:21], []byte{10, 99, 0, 1, 10, 99, 0, 2, 11}) || !bytes.Equal(sent[1].Data, udp(t, "10.99.0.1", "10.99.0.2", 53, []byte("x"), withTTL(63))) {
			t.Errorf("sent %+v", sent)
		}
		if w := r.device.Queue(0).Written(); len(w) != 1 || !bytes.Equal(w[0], udp(t, "10.99.0.2", "10.99.0.1", 53, nil, withTTL(8))) {
			t.Errorf("written %x", w)
		}
		s := r.tunnel.Stats()
		if s.Encap.Reasons["ttl_expired"] != 1 || s.Decap.Reasons["ttl_expired"] != 1 || s.Generated.ICMPErrors != 3 {
			t.Errorf("counters %+v", s)
		}
		answers := r.device.Injected()
		if len(answers) != 2 || answers[0][20] != 11 || !bytes.Equal(answers[0][12:16], []byte{10, 99, 0, 2}) || answers[1][20] != 3 || answers[1][21] != 0 {
			t.Errorf("ICMP errors %x, want time exceeded and net unreachable", answers)
		}
	})
}

// Nobody is told more often than the limits allow, and every drop is counted all the same.
func TestICMPErrorsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		for range 100 {
			r.device.Queue(0).Put(udp(t, "10.99.0.1", "10.88.0.1", 53, nil))
		}
		synctest.Wait()
		s := r.tunnel.Stats()
		if s.Encap.Reasons["no_tx_target"] != 100 || s.Generated.ICMPErrors == 0 || s.Generated.ICMPErrors > 10 {
			t.Errorf("counters %+v", s)
		}
		if a := r.device.Injected()[0]; a[20] != 3 || a[21] != 1 || !bytes.Equal(a[12:20], []byte{10, 88, 0, 1, 10, 99, 0, 1}) {
			t.Errorf("answer %x, want host unreachable from 10.88.0.1 to 10.99.0.1", a)
		}
	})
}

// What one send cannot do is that datagram's fate alone.
func TestSendFailuresAreCountedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		fates := []encap.Reason{encap.None, encap.UDPSend, encap.PktTooBig, encap.None}
		r.underlay.Refuse = func(d tunnel.Datagram) encap.Reason {
			if d.Remote.Addr().String() != "172.30.0.2" {
				return encap.None
			}
			defer func() { fates = fates[1:] }()
			return fates[0]
		}
		r.start()
		p := udp(t, "10.99.0.1", "10.99.0.2", 53, nil)
		r.device.Queue(0).Put(p, p, p, p)
		synctest.Wait()
		if s := r.tunnel.Stats().Encap; s.Delivered != 2 || s.Reasons["udp_send"] != 1 || s.Reasons["pkt_too_big"] != 1 {
			t.Errorf("counters %+v", s)
		}
	})
}

func TestDeviceThatIsGoneEndsTheTunnel(t *testing.T) {
	r := newRig(t, rigConfig())
	defer r.conserved()
	r.device.Queue(0).Gone = tunneltest.ErrGone
	r.underlay.Receiver(0).Put(tunneltest.From("172.30.0.2", frame(udp(t, "10.99.0.2", "10.99.0.1", 53, nil))))
	if err := r.tunnel.Run(t.Context()); !errors.Is(err, tunneltest.ErrGone) {
		t.Errorf("got %v", err)
	}
}

func TestNewRefusesUnequalEnds(t *testing.T) {
	if _, err := tunnel.New(rigConfig(), tunneltest.NewDevice(2), tunneltest.NewUnderlay(1)); err == nil {
		t.Error("two queues and one receiver were accepted")
	}
	cfg := rigConfig()
	cfg.Framing = "geneve"
	if _, err := tunnel.New(cfg, tunneltest.NewDevice(1), tunneltest.NewUnderlay(1)); err == nil {
		t.Error("an unknown framing was accepted")
	}
}

// Datagrams and packets with every bit flipped in turn, whole and cut: each has exactly one fate.
func TestConservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.start()
		good := frame(udp(t, "10.99.0.2", "10.99.0.1", 53, []byte("hello")))
		for i := range 2000 {
			d := bytes.Clone(good)
			d[i%len(d)] ^= byte(1 << (i / len(d) % 8))
			r.underlay.Receiver(0).Put(tunneltest.From(fmt.Sprintf("172.30.0.%d", 2+i%3), d[:len(d)-i%7]))
			r.device.Queue(0).Put(d[22:])
			synctest.Wait()
		}
		s := r.tunnel.Stats()
		if s.Encap.Received != 2000 || s.Decap.Received != 2000 || len(s.Decap.Reasons) < 6 || s.Decap.Delivered == 0 {
			t.Errorf("encap %+v, decap %+v", s.Encap, s.Decap)
		}
	})
}

func TestTrace(t *testing.T) {
	r := newRig(t, rigConfig())
	good := udp(t, "10.99.0.2", "10.99.0.1", 53, nil)
	for _, c := range []struct {
		name                  string
		req                   tunnel.TraceRequest
		verdict, reason, peer string
	}{
		{"sent", tunnel.TraceRequest{Data: udp(t, "10.99.0.1", "10.99.0.2", 53, nil)}, "deliver", "", "hb"},
		{"to nobody", tunnel.TraceRequest{Data: udp(t, "10.99.0.1", "10.88.0.1", 53, nil)}, "drop", "no_tx_target", ""},
		{"unresolved", tunnel.TraceRequest{Data: udp(t, "10.99.0.1", "10.99.0.3", 53, nil)}, "drop", "neighbour_unresolved", "hc"},
		{"received", tunnel.TraceRequest{Direction: tunnel.Decap, Data: frame(good), Outer: peerAddr}, "deliver", "", "hb"},
		{"received, bare", tunnel.TraceRequest{Direction: tunnel.Decap, Data: good, Bare: true, Outer: peerAddr}, "deliver", "", "hb"},
		{"congested", tunnel.TraceRequest{Direction: tunnel.Decap, Data: frame(good), Outer: peerAddr, OuterTOS: encap.CE}, "drop", "ip_tunnel_ecn", "hb"},
		{"other VNI", tunnel.TraceRequest{Direction: tunnel.Decap, Data: frame(good, setByte(6, 9)), Outer: peerAddr}, "drop", "vxlan_vni_not_found", "hb"},
		{"garbage", tunnel.TraceRequest{Data: []byte("\x10garbage")}, "drop", "not_ip", ""},
		{"nothing", tunnel.TraceRequest{}, "drop", "pkt_too_small", ""},
	} {
		got, err := r.tunnel.Trace(c.req)
		if err != nil {
			t.Errorf("%+v: %v", c.req, err)
		}
		if got.Verdict != c.verdict || got.Reason != c.reason || got.Peer != c.peer || got.Why == "" || len(got.Steps) == 0 {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if s := r.tunnel.Stats(); s.Encap.Received+s.Decap.Received != 0 {
		t.Errorf("tracing counted: %+v", s)
	}
}

// An underlay that always has more keeps no packet of the device waiting.
func TestEndlessReceiverStarvesNobody(t *testing.T) {
	r := newRig(t, rigConfig())
	packet := udp(t, "10.99.0.1", "10.99.0.2", 53, []byte("hello"))
	received := 0
	r.underlay.Receiver(0).Endless = func() []tunnel.Datagram {
		if received++; received%1000 == 0 && received <= 100_000 {
			r.device.Queue(0).Put(packet)
		}
		return []tunnel.Datagram{tunneltest.From("172.30.0.2", frame(udp(t, "10.99.0.2", "10.99.0.1", 53, nil)))}
	}
	r.start()
	for received := uint64(0); received < 100_000; received = r.tunnel.Stats().Decap.Received {
		runtime.Gosched()
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if sent := sentTo(r, "172.30.0.2:8472"); len(sent) < 99 {
		t.Errorf("%d packets sent of 100 that the device had meanwhile", len(sent))
	}
}
