package tunnel_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/tunnel/tunneltest"
)

// Super-packets that the underlay carries go whole; when it refuses, those that it refused are cut, and nothing is lost,
// repeated or out of place.
func TestCarriedWhole(t *testing.T) {
	for _, left := range []int{0, 1, 3, 4} {
		t.Run(fmt.Sprintf("%d taken", left), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, rigConfig())
				packet, o, want := super(t, encap.GSOTCP, "10.99.0.1", "10.99.0.2", numbered(20_000), 1398)
				r.device.Queue(0).Offload = o
				r.underlay.CarryWhole, r.underlay.WholeLeft = true, left
				for range 4 {
					r.device.Queue(0).Put(bytes.Clone(packet))
				}
				r.start()
				synctest.Wait()
				var got [][]byte
				for i, d := range sentTo(r, "172.30.0.2:8472") {
					if i >= left {
						got = append(got, segments(t, d)...)
						continue
					}
					if d.Packet == nil || d.Count != len(want) || !bytes.Equal(d.Data[22:], packet) || d.Packet.Offload != o {
						t.Errorf("datagram %d: %d bytes, count %d, packet %+v", i, len(d.Data), d.Count, d.Packet)
					}
				}
				var rest [][]byte
				for range 4 - left {
					rest = append(rest, want...)
				}
				equalPackets(t, got, rest)
				n := 4 * len(want)
				if s := r.tunnel.Stats().Encap; s.Received != uint64(n) || s.Delivered != s.Received || s.Bytes != uint64(4*total(want)) {
					t.Errorf("counters %+v, want %d packets, %d bytes", s, n, 4*total(want))
				}
			})
		})
	}
}

// Nothing goes whole to a peer that takes no super-packets, and what goes to others does as before.
func TestSegmentedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		peers := rigPeers()
		peers[0].Segmented = true
		peers[1].MAC = encap.MAC{2, 5: 3}
		if _, err := r.tunnel.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
		far, o, want := super(t, encap.GSOTCP, "10.99.0.1", "10.99.0.2", numbered(20_000), 1398)
		other, _, _ := super(t, encap.GSOTCP, "10.99.0.1", "10.99.0.3", numbered(20_000), 1398)
		r.device.Queue(0).Offload, r.underlay.CarryWhole, r.underlay.WholeLeft = o, true, 2
		r.device.Queue(0).Put(far)
		r.device.Queue(0).Put(other)
		r.start()
		synctest.Wait()
		var got [][]byte
		for _, d := range sentTo(r, "172.30.0.2:8472") {
			if d.Packet != nil {
				t.Errorf("a super-packet of %d bytes went whole", len(d.Packet.Data))
			}
			got = append(got, segments(t, d)...)
		}
		equalPackets(t, got, want)
		if sent := sentTo(r, "172.30.0.3:8472"); len(sent) != 1 || sent[0].Packet == nil || sent[0].Count != len(want) {
			t.Errorf("to the other peer: %+v", sent)
		}
	})
}

// A refused single packet of a flow that has super-packets goes as any other, with its checksum as it was finished.
func TestCarriedSingle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, rigConfig())
		r.underlay.CarryWhole = true
		packet := tcp(t, "10.99.0.1", "10.99.0.2", []byte("hello"))
		want := bytes.Clone(packet)
		var h encap.Headers
		if reason := encap.ParseIP(packet, &h); reason != encap.None {
			t.Fatal(reason)
		}
		encap.LeaveChecksum(packet, &h)
		r.device.Queue(0).Offload = encap.PartialOffload(&h)
		r.start()
		r.device.Queue(0).Put(packet)
		synctest.Wait()
		sent := sentTo(r, "172.30.0.2:8472")
		if len(sent) != 1 || sent[0].Packet != nil || !bytes.Equal(sent[0].Data[22:], want) {
			t.Errorf("sent %+v, want %x", sent, want)
		}
	})
}

// A super-packet that comes with its metadata needs no guess; what its receiver found wrong is dropped, and counted as what it said.
func TestReceiveWhole(t *testing.T) {
	for _, kind := range []encap.GSO{encap.GSOTCP, encap.GSOUDP} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, rigConfig())
			r.device.Queue(0).TakesSupers = true
			r.start()
			const size = 701 // no MTU's
			packet, _, want := super(t, kind, "10.99.0.2", "10.99.0.1", numbered(30_500), size)
			d := tunneltest.From("172.30.0.2", frame(packet))
			d.SegmentSize, d.Whole = size, true
			bad := tunneltest.From("172.30.0.2", frame(packet))
			bad.Count, bad.Reason = 7, encap.OuterChecksum
			r.underlay.Receiver(0).Put(bad, d)
			synctest.Wait()
			writes := r.device.Queue(0).Written()
			if len(writes) != 1 {
				t.Fatalf("%d writes, want 1", len(writes))
			}
			equalPackets(t, split(t, writes[0], r.device.Queue(0).Offloads()[0]), want)
			n := uint64(len(want))
			if s := r.tunnel.Stats().Decap; s.Received != n+7 || s.Delivered != n || s.Reasons["udp_csum"] != 7 {
				t.Errorf("counters %+v, want %d packets", s, n)
			}
		})
	}
}
