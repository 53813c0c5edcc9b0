package tunnel

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// udpSender sends batches through the sockets of its underlay. Within a batch, the datagrams of one socket go in one
// sendmmsg, in order; a flow has one socket, so flows keep their order.
type udpSender struct {
	sockets []int
	buckets int
	tos     uint8 // what the sockets set by themselves
	v4      bool

	messages []message
	run      []mmsghdr // the messages of one socket
	index    []int     // for each of run, its datagram
	calls    routing.Counter

	// The kernel, so that tests can stand in for it.
	sendmmsg func(fd int, msgs []mmsghdr) (int, error)
	wait     func(fd int) error
}

// message is the memory of one datagram on its way: all that an mmsghdr points to.
type message struct {
	control [controlSize]byte // first, for its alignment
	iov     unix.Iovec
	name4   unix.RawSockaddrInet4
	name6   unix.RawSockaddrInet6
	socket  int // index into sockets
}

// controlSize has room for a TOS and a TTL: two control messages with an int each.
const controlSize = 2 * 32

func newUDPSender(sockets []int, buckets int, tos uint8, v4 bool) *udpSender {
	return &udpSender{
		sockets: sockets, buckets: buckets, tos: tos, v4: v4,
		messages: make([]message, BatchSize),
		run:      make([]mmsghdr, 0, BatchSize),
		index:    make([]int, 0, BatchSize),
		sendmmsg: sendmmsg,
		wait:     waitWritable,
	}
}

// Send implements Sender.
func (s *udpSender) Send(batch []Datagram) {
	for len(batch) > BatchSize {
		s.Send(batch[:BatchSize])
		batch = batch[BatchSize:]
	}
	const done = -1
	for i := range batch {
		s.messages[i].socket = s.pick(&batch[i])
	}
	for i := range batch {
		if socket := s.messages[i].socket; socket != done {
			s.gather(batch, i, socket, done)
			s.flush(batch, s.sockets[socket])
		}
	}
}

// pick returns the socket for a datagram: its flow's bucket, and the set with the don't-fragment bit it wants.
func (s *udpSender) pick(d *Datagram) int {
	socket := encap.Bucket(d.Flow, s.buckets)
	if d.DF && len(s.sockets) > s.buckets {
		socket += s.buckets
	}
	return socket
}

// gather lines up the messages from index first on that go through socket.
func (s *udpSender) gather(batch []Datagram, first, socket, done int) {
	s.run, s.index = s.run[:0], s.index[:0]
	for i := first; i < len(batch); i++ {
		m := &s.messages[i]
		if m.socket != socket {
			continue
		}
		m.socket = done
		s.run = append(s.run, mmsghdr{})
		s.fill(&s.run[len(s.run)-1].hdr, m, &batch[i])
		s.index = append(s.index, i)
	}
}

func (s *udpSender) fill(hdr *unix.Msghdr, m *message, d *Datagram) {
	m.iov.Base = unsafe.SliceData(d.Data)
	m.iov.SetLen(len(d.Data))
	hdr.Iov = &m.iov
	hdr.SetIovlen(1)
	if s.v4 {
		m.name4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: htons(d.Remote.Port()), Addr: d.Remote.Addr().As4()}
		hdr.Name, hdr.Namelen = (*byte)(unsafe.Pointer(&m.name4)), unix.SizeofSockaddrInet4
	} else {
		m.name6 = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: htons(d.Remote.Port()), Addr: d.Remote.Addr().As16()}
		hdr.Name, hdr.Namelen = (*byte)(unsafe.Pointer(&m.name6)), unix.SizeofSockaddrInet6
	}
	n := 0
	if d.TOS != s.tos {
		n += s.putControl(m.control[n:], unix.IP_TOS, unix.IPV6_TCLASS, int32(d.TOS))
	}
	if d.TTL != 0 {
		n += s.putControl(m.control[n:], unix.IP_TTL, unix.IPV6_HOPLIMIT, int32(d.TTL))
	}
	if n > 0 {
		hdr.Control = &m.control[0]
		hdr.SetControllen(n)
	}
}

// putControl writes one control message with an int (ip(7), ipv6(7)) and returns the space it takes.
func (s *udpSender) putControl(b []byte, type4, type6, value int32) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_IPV6, type6
	if s.v4 {
		h.Level, h.Type = unix.IPPROTO_IP, type4
	}
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(value))
	return unix.CmsgSpace(4)
}

// flush sends the run and notes the fate of each datagram. A message that the kernel refuses is dropped with a reason;
// those behind it go on. Nothing is ever sent twice.
func (s *udpSender) flush(batch []Datagram, fd int) {
	for at := 0; at < len(s.run); {
		s.calls.Add(1)
		n, err := s.sendmmsg(fd, s.run[at:])
		for _, i := range s.index[at : at+n] {
			batch[i].Sent, batch[i].Reason = 1, encap.None
		}
		at += n
		switch {
		case n > 0, err == unix.EINTR:
			continue
		case err == unix.EAGAIN && s.wait(fd) == nil:
			continue
		}
		d := &batch[s.index[at]]
		d.Sent, d.Reason = 0, encap.UDPSend
		switch err {
		case unix.EMSGSIZE:
			d.Reason = encap.PktTooBig
		case unix.EAGAIN:
			d.Reason = encap.QueueFull
		}
		at++
	}
}

// waitWritable waits until a socket's send buffer has room, for a moment only: a device that stopped sending must not stop
// the worker for good.
func waitWritable(fd int) error {
	const patience = 100 // milliseconds
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		switch n, err := unix.Poll(fds, patience); {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		default:
			return nil
		}
	}
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// addrPort reads the address that the kernel wrote.
func addrPort(name *unix.RawSockaddrInet6) netip.AddrPort {
	if name.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), htons(v4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), htons(name.Port))
}
