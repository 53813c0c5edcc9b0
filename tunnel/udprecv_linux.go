package tunnel

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/routing"
)

// retryPause is how long a worker rests after a system call failed in a way that may pass.
const retryPause = time.Millisecond

// udpReceiver receives batches from one socket.
type udpReceiver struct {
	conn   syscall.RawConn
	closed *atomic.Bool
	calls  routing.Counter
	ovfl   atomic.Uint32 // the kernel's own count

	errnos errnoCounters // of calls that failed and were made again

	// The kernel, so that tests can stand in for it.
	recvmmsg func(fd int, msgs []mmsghdr) (int, error)

	slots    []receiveSlot
	msgs     []mmsghdr
	want     int
	got      int
	err      error
	readFunc func(fd uintptr) bool
}

// receiveSlot is the memory of one datagram: all that an mmsghdr points to.
type receiveSlot struct {
	control [128]byte // TOS, and the overflow count; first, for its alignment
	data    []byte
	iov     unix.Iovec
	name    unix.RawSockaddrInet6 // large enough for IPv4 too
}

func newUDPReceiver(file *os.File, closed *atomic.Bool) (*udpReceiver, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &udpReceiver{conn: conn, closed: closed, recvmmsg: recvmmsg, slots: make([]receiveSlot, BatchSize), msgs: make([]mmsghdr, BatchSize)}
	arena := make([]byte, BatchSize*slotSize)
	for i := range r.slots {
		s := &r.slots[i]
		s.data = arena[i*slotSize+Headroom : (i+1)*slotSize]
		s.iov.Base = unsafe.SliceData(s.data)
		s.iov.SetLen(len(s.data))
		hdr := &r.msgs[i].hdr
		hdr.Iov = &s.iov
		hdr.SetIovlen(1)
		hdr.Name = (*byte)(unsafe.Pointer(&s.name))
		hdr.Control = &s.control[0]
	}
	r.readFunc = r.receiveSome // bound once: a method value allocates
	return r, nil
}

// Receive implements Receiver.
func (r *udpReceiver) Receive(batch []Datagram) (int, error) {
	r.want = min(len(batch), len(r.msgs))
	r.got, r.err = 0, nil
	if err := r.conn.Read(r.readFunc); err != nil {
		return 0, closedOr(r.closed, err)
	}
	if r.err != nil {
		return 0, closedOr(r.closed, r.err)
	}
	for i := range r.got {
		r.describe(&batch[i], i)
	}
	return r.got, nil
}

// receiveSome takes what is there; false means wait.
func (r *udpReceiver) receiveSome(fd uintptr) bool {
	for i := range r.want {
		r.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
		r.msgs[i].hdr.SetControllen(len(r.slots[i].control))
	}
	for !r.closed.Load() {
		r.calls.Add(1)
		r.got, r.err = r.recvmmsg(int(fd), r.msgs[:r.want])
		switch r.err {
		case nil, unix.EBADF, unix.ENOTSOCK:
			return true
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default: // out of memory for a moment, or an ICMP error that is for no datagram of ours: nothing is lost by going on
			r.errnos.count(r.err)
			time.Sleep(retryPause)
		}
	}
	r.got, r.err = 0, ErrClosed
	return true
}

func (r *udpReceiver) describe(d *Datagram, i int) {
	m, s := &r.msgs[i], &r.slots[i]
	*d = Datagram{Data: s.data[:m.len], Remote: addrPort(&s.name)}
	r.readControl(d, s.control[:m.hdr.Controllen])
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
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(value) >= 4:
			r.ovfl.Store(binary.NativeEndian.Uint32(value))
		}
		b = b[min(unix.CmsgSpace(len(value)), len(b)):]
	}
}

// overflows returns how many datagrams found the socket's buffer full. The kernel counts in 32 bits.
func (r *udpReceiver) overflows() uint64 { return uint64(r.ovfl.Load()) }
