package tunnel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// outerReceiver receives datagrams as frames from one queue of an outer TAP device: trains and super-packets whole, as the device takes
// them from the underlay's. What IP and UDP check for a socket it checks itself.
type outerReceiver struct {
	tap   *outerTAP
	queue input
	quiet int // an eventfd that never has anything, for the place of queue
	local netip.AddrPort
	zero6 bool // datagrams over IPv6 may come without checksum

	arena []byte // frames, packed densely
	batch []Datagram
	outer encap.Outer // of the frame that is looked at

	calls  routing.Counter
	errnos errnoCounters

	// The kernel, so that tests can stand in for it.
	read func(fd int, b []byte) (int, error)
}

// frameSpace is the room for a frame and what comes in front of it.
const frameSpace = virtioTunnelLen + encap.EthernetHeaderLen + maxPacket

func newOuterReceiver(tap *outerTAP, queue int, rule ingressRule, zero6 bool) (*outerReceiver, error) {
	quiet, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &outerReceiver{
		tap: tap, queue: input{fd: queue}, quiet: quiet, local: netip.AddrPortFrom(rule.local, rule.port), zero6: zero6, read: read,
		arena: make([]byte, receiveBytes+frameSpace), batch: make([]Datagram, 0, receiveSlots),
	}, nil
}

func (r *outerReceiver) inputs() []*input { return []*input{&r.queue} }

// Receive implements Receiver. A batch is as large as one from a socket (udpReceiver.adapt).
func (r *outerReceiver) Receive() ([]Datagram, error) {
	r.batch = r.batch[:0]
	for at, packets := 0, 0; !r.queue.drained && len(r.batch) < cap(r.batch) && packets < receivePackets && len(r.arena)-at >= frameSpace; {
		b := r.arena[at : at+frameSpace]
		n, err := r.read(r.queue.fd, b)
		r.calls.Add(1)
		if err == nil || err == unix.EINVAL { // of which the metadata cannot be told is lost (drivers/net/tun.c, tun_put_user)
			d := r.datagram(b[:n:n])
			r.batch = append(r.batch, d)
			packets += d.Count
			const line = 64 // bytes of a cache line
			at += (n + line - 1) &^ (line - 1)
			continue
		}
		switch err {
		case unix.EAGAIN:
			r.queue.exhausted()
			return r.batch, nil
		case unix.EINTR:
			return r.batch, nil
		case unix.EBADFD:
			return r.batch, r.end()
		}
		r.errnos.count(err)
		time.Sleep(retryPause)
		return r.batch, nil
	}
	return r.batch, nil
}

// datagram returns the datagram, or the train, that a frame holds.
func (r *outerReceiver) datagram(frame []byte) Datagram {
	const head = virtioTunnelLen + encap.EthernetHeaderLen
	if len(frame) < head {
		return Datagram{Count: 1, Reason: encap.NotIP}
	}
	packet := frame[head:]
	payload, reason := encap.ParseOuter(packet, &r.outer)
	d := Datagram{Data: payload, Count: 1, Remote: r.outer.Src, TOS: r.outer.TOS, Reason: reason}
	if gso := frame[1]; gso != virtioGSONone {
		d.SegmentSize = int(binary.NativeEndian.Uint16(frame[4:]))
		d.Whole = gso&(virtioGSOTunnelIPv4|virtioGSOTunnelIPv6) != 0
		if d.SegmentSize > 0 && !d.Whole {
			d.Count = max(1, (len(payload)+d.SegmentSize-1)/d.SegmentSize)
		}
	}
	switch {
	case reason != encap.None:
	case r.outer.Dst != r.local, r.martian(r.outer.Src.Addr()):
		d.Reason = encap.PeerUnknown
	case !r.sound(frame[0], packet, payload):
		d.Reason = encap.OuterChecksum
	}
	return d
}

// martian reports whether a datagram cannot come from here: the kernel's IP drops it before any socket (net/ipv4/route.c,
// ip_route_input_slow; net/ipv6/ip6_input.c, ip6_rcv_core). Of this host's addresses it knows the tunnel's only; the kernel refuses
// all over IPv4.
func (r *outerReceiver) martian(src netip.Addr) bool {
	return src == r.local.Addr() || src.IsMulticast() || src.IsLoopback() || src.IsUnspecified() || src.Is4In6() || src == broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// sound reports whether the outer checksum is good, was found good by a device, is yet to be made, as between hosts on one machine, or is
// none where there may be none.
func (r *outerReceiver) sound(flags byte, packet, payload []byte) bool {
	o := &r.outer
	if !o.Checksum {
		return r.zero6 || o.Dst.Addr().Is4()
	}
	return flags&(virtioNeedsChecksum|virtioDataValid) != 0 || encap.VerifyOuter(packet, o, payload)
}

// end gives up a queue whose device is gone: the sockets receive. The quiet descriptor takes its place, as a waiter would find one of a
// device that is gone ready for ever.
func (r *outerReceiver) end() error {
	r.tap.endIngress(r.tap.name + " is gone")
	if err := unix.Dup3(r.quiet, r.queue.fd, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("replace the queue of %s, which is gone: %w", r.tap.name, err)
	}
	return nil
}
