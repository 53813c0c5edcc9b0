package tunnel

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/routing"
)

const (
	// receiveSlots is the most messages that one call takes. Many, because only what comes in one call can be joined.
	receiveSlots = 128
	// receiveBytes and receivePackets are how much a call should bring at most, by what the last one brought: what comes
	// in one go should still be in the cache when it goes out again.
	receiveBytes   = 4 << 16
	receivePackets = 1024
	// retryPause is how long a worker rests after a system call failed in a way that may pass.
	retryPause = time.Millisecond
)

// udpReceiver receives batches from one socket.
type udpReceiver struct {
	socket input
	calls  routing.Counter
	ovfl   atomic.Uint32 // the kernel's own count
	errnos errnoCounters // of calls that failed and were made again

	slots []receiveSlot
	msgs  []mmsghdr
	batch []Datagram
	want  int // messages to ask for
	used  int // messages whose headers the kernel wrote to

	// The kernel, so that tests can stand in for it.
	recvmmsg func(fd int, msgs []mmsghdr) (int, error)
}

// receiveSlot is the memory of one message: all that an mmsghdr points to.
type receiveSlot struct {
	control [128]byte // TOS, segment size and the overflow count; first, for its alignment
	data    []byte
	iov     unix.Iovec
	name    unix.RawSockaddrInet6 // large enough for IPv4 too
}

func newUDPReceiver(socket int) *udpReceiver {
	r := &udpReceiver{
		socket: input{fd: socket}, recvmmsg: recvmmsg, want: receiveSlots,
		slots: make([]receiveSlot, receiveSlots), msgs: make([]mmsghdr, receiveSlots), batch: make([]Datagram, receiveSlots),
	}
	arena := make([]byte, receiveSlots*maxPacket)
	for i := range r.slots {
		s := &r.slots[i]
		s.data = arena[i*maxPacket : (i+1)*maxPacket]
		s.iov.Base = unsafe.SliceData(s.data)
		s.iov.SetLen(len(s.data))
		hdr := &r.msgs[i].hdr
		hdr.Iov = &s.iov
		hdr.SetIovlen(1)
		hdr.Name = (*byte)(unsafe.Pointer(&s.name))
		hdr.Control = &s.control[0]
		r.offer(i)
	}
	return r
}

// offer gives the kernel all the room that message i has.
func (r *udpReceiver) offer(i int) {
	r.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
	r.msgs[i].hdr.SetControllen(len(r.slots[i].control))
}

func (r *udpReceiver) inputs() []*input { return []*input{&r.socket} }

// Receive implements Receiver.
func (r *udpReceiver) Receive() ([]Datagram, error) {
	if r.socket.drained {
		return nil, nil
	}
	for i := range r.used {
		r.offer(i)
	}
	r.used = 0
	r.calls.Add(1)
	n, err := r.recvmmsg(r.socket.fd, r.msgs[:r.want])
	switch err {
	case nil:
	case unix.EAGAIN:
		r.socket.exhausted()
		return nil, nil
	case unix.EINTR:
		return nil, nil
	case unix.EBADF, unix.ENOTSOCK:
		return nil, fmt.Errorf("receive from underlay: %w", err)
	default: // out of memory for a moment, or an ICMP error that is for no datagram of ours: nothing is lost by going on
		r.errnos.count(err)
		time.Sleep(retryPause)
		return nil, nil
	}
	if r.used = n; n < r.want {
		r.socket.exhausted()
	}
	bytes, packets := 0, 0
	for i := range n {
		d := &r.batch[i]
		r.describe(d, i)
		bytes += len(d.Data)
		packets += d.Count
	}
	r.adapt(n, bytes, packets)
	return r.batch[:n], nil
}

// adapt chooses how many messages the next call asks for.
func (r *udpReceiver) adapt(n, bytes, packets int) {
	if n == 0 {
		return
	}
	byBytes, byPackets := receiveBytes*n/max(bytes, 1), receivePackets*n/max(packets, 1)
	r.want = max(2, min(receiveSlots, byBytes, byPackets))
}

func (r *udpReceiver) describe(d *Datagram, i int) {
	m, s := &r.msgs[i], &r.slots[i]
	*d = Datagram{Data: s.data[:m.len], Count: 1, Remote: addrPort(&s.name)}
	r.readControl(d, s.control[:m.hdr.Controllen])
	if d.SegmentSize > 0 {
		d.Count = (len(d.Data) + d.SegmentSize - 1) / d.SegmentSize
	}
}

// readControl walks the control messages (cmsg(3)).
func (r *udpReceiver) readControl(d *Datagram, b []byte) {
	for len(b) >= unix.CmsgLen(0) {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len)
		if size < unix.CmsgLen(0) || size > len(b) {
			return
		}
		value := b[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(value) >= 1:
			d.TOS = value[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(value) >= 4:
			d.TOS = uint8(binary.NativeEndian.Uint32(value))
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(value) >= 4:
			d.SegmentSize = int(binary.NativeEndian.Uint32(value))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(value) >= 4:
			r.ovfl.Store(binary.NativeEndian.Uint32(value))
		}
		b = b[min(unix.CmsgSpace(len(value)), len(b)):]
	}
}

// overflows returns how many datagrams found the socket's buffer full. The kernel counts in 32 bits.
func (r *udpReceiver) overflows() uint64 { return uint64(r.ovfl.Load()) }
