package tunnel

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// udpSender sends batches through the sockets of its underlay. Within a batch, the datagrams of one socket go in one
// sendmmsg, in order; a flow has one socket, so flows keep their order. Datagrams of one socket that follow each other
// and are as large as each other travel as one train, whatever flow they are of.
//
// Glossary: a unit is a Datagram of the batch; a message is what one mmsghdr describes: one unit, or several that make a
// train.
type udpSender struct {
	sockets []int
	buckets int
	tos     uint8 // what the sockets set by themselves
	v4      bool
	gso     *feature
	log     *slog.Logger

	outer *outerSender // nil: there is none
	ports []uint16     // of sockets

	chains []chain // of the units of each socket
	used   []int   // sockets with units, in the order in which they were met
	next   []int   // of each unit: the next one of its socket, or none

	messages []message
	headers  []mmsghdr // of messages
	iov      []unix.Iovec
	units    []int // in the order of messages

	calls routing.Counter

	room room
	// The kernel, so that tests can stand in for it.
	sendmmsg func(fd int, msgs []mmsghdr) (int, error)
}

// room waits until full descriptors take more, for all of a batch no longer than for one: a device that stopped sending must not stop
// the worker.
type room struct {
	wait func(fd int) error
	none bool // it was waited for in vain, in this batch
}

// await reports whether there may be room now.
func (r *room) await(fd int) bool {
	r.none = r.none || r.wait(fd) != nil
	return !r.none
}

// message is what an mmsghdr points to, and what it is made of.
type message struct {
	control [controlSize]byte // first, for its alignment
	name4   unix.RawSockaddrInet4
	name6   unix.RawSockaddrInet6

	units  span // of udpSender.units
	iov    span // of udpSender.iov
	size   int  // of each datagram but the last
	bytes  int
	count  int  // datagrams
	closed bool // no datagram may follow
}

// span is a part of a slice.
type span struct{ from, to int }

// chain is the units of one socket.
type chain struct{ first, last int }

// controlSize has room for a TOS, a TTL and a segment size.
const controlSize = 3 * 24

// none ends a chain.
const none = -1

func newUDPSender(sockets []int, buckets int, tos uint8, v4 bool, gso *feature, log *slog.Logger) *udpSender {
	return &udpSender{
		sockets: sockets, buckets: buckets, tos: tos, v4: v4, gso: gso, log: log,
		messages: make([]message, 0, BatchSize),
		headers:  make([]mmsghdr, 0, BatchSize),
		iov:      make([]unix.Iovec, 0, 4*BatchSize),
		chains:   make([]chain, len(sockets)),
		used:     make([]int, 0, len(sockets)),
		next:     make([]int, 0, BatchSize),
		units:    make([]int, 0, BatchSize),
		room:     room{wait: waitWritable},
		sendmmsg: sendmmsg,
	}
}

// Send implements Sender.
func (s *udpSender) Send(batch []Datagram) {
	s.room.none = false
	s.sort(batch)
	if s.outer != nil {
		s.sendOuter(batch)
	}
	for _, socket := range s.used {
		s.gather(batch, s.chains[socket].first)
		s.flush(batch, s.sockets[socket])
	}
}

// Carries implements Sender.
func (s *udpSender) Carries(p *Packet) bool { return s.outer != nil && s.outer.takes(p) }

// sendOuter sends the units that carry a packet, as from the sockets of their flows.
func (s *udpSender) sendOuter(batch []Datagram) {
	s.outer.room.none = false
	for i := range batch {
		if d := &batch[i]; d.Packet != nil {
			s.outer.send(d, s.ports[s.pick(d)])
		}
	}
}

// sort chains the units of each socket.
func (s *udpSender) sort(batch []Datagram) {
	for i := range s.chains {
		s.chains[i].first = none
	}
	s.used, s.next = s.used[:0], s.next[:0]
	for i := range batch {
		d := &batch[i]
		d.Sent, d.Reason, d.Refused = 0, encap.None, false
		s.next = append(s.next, none)
		if d.Packet != nil {
			continue
		}
		socket := s.pick(d)
		c := &s.chains[socket]
		if c.first == none {
			c.first = i
			s.used = append(s.used, socket)
		} else {
			s.next[c.last] = i
		}
		c.last = i
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

// gather makes messages of the chain that begins with unit i.
func (s *udpSender) gather(batch []Datagram, i int) {
	s.messages, s.iov, s.units = s.messages[:0], s.iov[:0], s.units[:0]
	gso := s.gso.on()
	for ; i != none; i = s.next[i] {
		d := &batch[i]
		if !gso && d.SegmentSize != 0 {
			s.addSegments(i, d)
			continue
		}
		if n := len(s.messages); n == 0 || !gso || !s.messages[n-1].takes(&batch[s.units[s.messages[n-1].units.from]], d) {
			s.begin(d)
		}
		s.add(&s.messages[len(s.messages)-1], i, d)
	}
	s.seal(batch)
}

// begin starts a message for d.
func (s *udpSender) begin(d *Datagram) {
	size := d.SegmentSize
	if size == 0 {
		size = len(d.Data)
	}
	s.messages = append(s.messages, message{size: size, units: span{len(s.units), 0}, iov: span{len(s.iov), 0}})
}

// add makes unit i, which is d, the last of m, the last message.
func (s *udpSender) add(m *message, i int, d *Datagram) {
	m.closed = len(d.Data) < m.size || d.SegmentSize != 0
	m.count += d.Count
	m.bytes += len(d.Data)
	s.iov = appendIovec(s.iov, d.Data)
	for _, p := range d.Parts {
		s.iov = appendIovec(s.iov, p)
		m.bytes += len(p)
	}
	s.units = append(s.units, i)
	m.units.to, m.iov.to = len(s.units), len(s.iov)
}

// addSegments makes a message of each datagram of unit i, a train, where the kernel makes no trains.
func (s *udpSender) addSegments(i int, d *Datagram) {
	var m *message
	for k := -1; k < len(d.Parts); k++ {
		piece := d.Data
		if k >= 0 {
			piece = d.Parts[k]
		}
		if m == nil || m.bytes == m.size {
			s.begin(d)
			m = &s.messages[len(s.messages)-1]
			m.count, m.closed = 1, true
			s.units = append(s.units, i)
			m.units.to = len(s.units)
		}
		s.iov = appendIovec(s.iov, piece)
		m.bytes += len(piece)
		m.iov.to = len(s.iov)
	}
}

// takes reports whether a single datagram can be the next of the train that m is, or becomes by it.
func (m *message) takes(first, d *Datagram) bool {
	return !m.closed && d.SegmentSize == 0 && len(d.Data) <= m.size && len(d.Data) > 0 && m.count < MaxTrain && m.bytes+len(d.Data) <= maxTrainBytes &&
		d.Remote == first.Remote && d.TOS == first.TOS && d.TTL == first.TTL
}

// seal makes the headers of all messages, once nothing moves in memory any more.
func (s *udpSender) seal(batch []Datagram) {
	s.headers = s.headers[:0]
	for i := range s.messages {
		m := &s.messages[i]
		s.headers = append(s.headers, mmsghdr{})
		s.fill(&s.headers[i].hdr, m, &batch[s.units[m.units.from]])
		setIovec(&s.headers[i].hdr, s.iov[m.iov.from:m.iov.to])
	}
}

func setIovec(hdr *unix.Msghdr, iov []unix.Iovec) {
	hdr.Iov = unsafe.SliceData(iov)
	hdr.SetIovlen(len(iov))
}

// fill sets the address and the control messages.
func (s *udpSender) fill(hdr *unix.Msghdr, m *message, d *Datagram) {
	s.setName(hdr, m, d.Remote)
	n := 0
	if d.TOS != s.tos {
		n += s.putControl(m.control[n:], unix.IP_TOS, unix.IPV6_TCLASS, int32(d.TOS))
	}
	if d.TTL != 0 {
		n += s.putControl(m.control[n:], unix.IP_TTL, unix.IPV6_HOPLIMIT, int32(d.TTL))
	}
	if m.count > 1 {
		n += putSegmentSize(m.control[n:], m.size)
	}
	if n > 0 {
		hdr.Control = &m.control[0]
		hdr.SetControllen(n)
	}
}

func (s *udpSender) setName(hdr *unix.Msghdr, m *message, to netip.AddrPort) {
	if s.v4 {
		m.name4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: htons(to.Port()), Addr: to.Addr().As4()}
		hdr.Name, hdr.Namelen = (*byte)(unsafe.Pointer(&m.name4)), unix.SizeofSockaddrInet4
		return
	}
	m.name6 = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: htons(to.Port()), Addr: to.Addr().As16()}
	hdr.Name, hdr.Namelen = (*byte)(unsafe.Pointer(&m.name6)), unix.SizeofSockaddrInet6
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

// putSegmentSize writes the control message that makes a train (udp(7), UDP_SEGMENT) and returns the space it takes.
func putSegmentSize(b []byte, size int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(size))
	return unix.CmsgSpace(2)
}

// flush sends the messages and notes the fate of each unit. A message that the kernel refuses is dropped with a reason,
// or, when it is a train, sent again datagram by datagram: nothing of it went. Nothing is ever sent twice.
func (s *udpSender) flush(batch []Datagram, fd int) {
	for at := 0; at < len(s.headers); {
		n, err := s.send(fd, s.headers[at:])
		for i := range s.messages[at : at+n] {
			s.book(batch, &s.messages[at+i], 0, s.messages[at+i].count, encap.None)
		}
		at += n
		if err == nil {
			continue
		}
		m := &s.messages[at]
		if m.count == 1 || err == unix.EAGAIN {
			s.book(batch, m, 0, m.count, reasonOf(err))
		} else {
			s.unhitch(batch, m, fd, err)
		}
		at++
	}
}

// send sends some of headers, at least one when err is nil.
func (s *udpSender) send(fd int, headers []mmsghdr) (n int, err error) {
	for {
		s.calls.Add(1)
		n, err = s.sendmmsg(fd, headers)
		switch {
		case n > 0:
			return n, nil
		case err == unix.EINTR:
		case err == unix.EAGAIN && s.room.await(fd):
		case err == nil:
			return 0, unix.EIO // no progress, and nothing said of it
		default:
			return 0, err
		}
	}
}

// unhitch sends the datagrams of a train that the kernel refused one by one. When they go, trains are what it refuses.
func (s *udpSender) unhitch(batch []Datagram, m *message, fd int, refusal error) {
	all, iov := true, s.iov[m.iov.from:m.iov.to]
	for i := range m.count {
		n, size := 0, 0
		for ; n < len(iov) && size < m.size; n++ {
			size += int(iov[n].Len)
		}
		single := message{count: 1}
		var header [1]mmsghdr
		s.fill(&header[0].hdr, &single, &batch[s.units[m.units.from]])
		setIovec(&header[0].hdr, iov[:n])
		iov = iov[n:]
		_, err := s.send(fd, header[:])
		if err != nil {
			all = false
		}
		s.book(batch, m, i, 1, reasonOf(err))
	}
	if all && refusesTrains(refusal) {
		s.gso.withdraw(s.log, "gso", refusal)
	}
}

// refusesTrains reports whether an errno tells of the feature. EINVAL does not: of a kernel that makes trains it is what EMSGSIZE is, datagrams
// longer than one peer's path, before Linux 6.14 (net/ipv4/udp.c, udp_send_skb; 235174b2bed8).
func refusesTrains(err error) bool {
	return err == unix.EIO || err == unix.EOPNOTSUPP || err == unix.ENOPROTOOPT
}

// book notes the fate of n datagrams of m, from the given one on.
func (s *udpSender) book(batch []Datagram, m *message, from, n int, r encap.Reason) {
	for _, i := range s.units[m.units.from:m.units.to] {
		d := &batch[i]
		if from >= d.Count {
			from -= d.Count
			continue
		}
		here := min(n, d.Count-from)
		if r == encap.None {
			d.Sent += here
		} else {
			d.Reason = r
		}
		n, from = n-here, 0
		if n == 0 {
			return
		}
	}
}

// reasonOf says why a datagram that was refused with err is dropped.
func reasonOf(err error) encap.Reason {
	switch err {
	case nil:
		return encap.None
	case unix.EMSGSIZE:
		return encap.PktTooBig
	case unix.EAGAIN:
		return encap.QueueFull
	}
	return encap.UDPSend
}

// waitWritable waits until a descriptor has room, for a moment only.
func waitWritable(fd int) error {
	return waitFor(fd, unix.POLLOUT, 100)
}

// waitFor waits for one of the events of poll(2), some milliseconds at most after the last signal; the Go runtime sends some to its
// threads. unix.ETIMEDOUT tells that none came.
func waitFor(fd int, events int16, patience int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
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
