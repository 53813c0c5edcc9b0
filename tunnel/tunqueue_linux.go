package tunnel

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// tunQueue is one queue of a TUN device. Read and Write may be called by a thread each.
type tunQueue struct {
	t      *TUN
	virtio int // bytes in front of each packet: virtioHeaderLen, or 0
	writer int // descriptor

	// The kernel, so that tests can stand in for it.
	read   func(fd int, b []byte) (int, error)
	writev func(fd int, iov []unix.Iovec) error

	// Read's alone.
	reader input
	reads  routing.Counter
	_      [64]byte // no cache line in common

	// Write's alone.
	header   [virtioHeaderLen]byte
	iov      []unix.Iovec
	splitter encap.Splitter
	scratch  [256]byte // the headers of a segment
	joined   []byte    // a super-packet that must be split after all
	writes   routing.Counter
	errnos   errnoCounters
}

func newTUNQueue(t *TUN, reader, writer int) *tunQueue {
	q := &tunQueue{t: t, reader: input{fd: reader}, writer: writer, read: read, writev: writev, iov: make([]unix.Iovec, 0, 2*MaxTrain)}
	if t.cfg.Offloads {
		q.virtio = virtioHeaderLen
	}
	return q
}

func (q *tunQueue) inputs() []*input { return []*input{&q.reader} }

// Joins implements Queue.
func (q *tunQueue) Joins(g encap.GSO) bool {
	switch g {
	case encap.GSOTCP:
		return q.t.tso.on()
	case encap.GSOUDP:
		return q.t.uso.on()
	}
	return false
}

// Read implements Queue.
func (q *tunQueue) Read(b *Batch) error {
	for !q.reader.drained {
		space := b.Space()
		if space == nil {
			return nil
		}
		space = space[Headroom-q.virtio:]
		n, err := q.read(q.reader.fd, space)
		q.reads.Add(1)
		switch {
		case err == unix.EAGAIN:
			q.reader.exhausted()
			return nil
		case err == unix.EINTR:
		case err == unix.EBADFD:
			return q.t.gone(err)
		case err != nil:
			return err
		case q.virtio == 0:
			b.Add(n, encap.Offload{})
		case n >= q.virtio:
			b.Add(n-q.virtio, readVirtio(space))
		}
	}
	return nil
}

// Write implements Queue.
func (q *tunQueue) Write(packets []Packet) error {
	for i := range packets {
		if err := q.writePacket(&packets[i]); err != nil {
			return err
		}
	}
	return nil
}

func (q *tunQueue) writePacket(p *Packet) error {
	p.Sent = 0
	switch {
	case p.Offload.IsSuper():
		return q.writeSuper(p)
	case p.Offload.NeedsChecksum && q.virtio == 0:
		p.Offload.FinishChecksum(p.Data)
		p.Offload = encap.Offload{}
	}
	err := q.write(p.Offload, p, p.Data, nil)
	if err == nil {
		p.Sent = 1
	}
	return q.refused(err)
}

// writeSuper writes a super-packet whole, and split where the device does not take it so. Nothing was written when the
// kernel refuses one.
func (q *tunQueue) writeSuper(p *Packet) error {
	if !q.Joins(p.Offload.GSO) {
		return q.writeSegments(p)
	}
	err := q.write(p.Offload, p, p.Data, p.Parts)
	switch err {
	case nil:
		p.Sent = p.Count
		return nil
	case unix.EINVAL:
	default:
		return q.refused(err)
	}
	if splitErr := q.writeSegments(p); splitErr != nil {
		return splitErr
	}
	if p.Sent == p.Count { // the packet was good, so it was the super-packet that was refused
		if p.Offload.GSO == encap.GSOTCP {
			q.t.tso.withdraw(q.t.cfg.Log, "tso", err)
		} else {
			q.t.uso.withdraw(q.t.cfg.Log, "uso", err)
		}
	}
	return nil
}

// writeSegments splits a super-packet. The headers are copied, the payload is not, unless it is in parts.
func (q *tunQueue) writeSegments(p *Packet) error {
	whole := p.Data
	if len(p.Parts) > 0 {
		q.joined = append(q.joined[:0], p.Data...)
		for _, part := range p.Parts {
			q.joined = append(q.joined, part...)
		}
		whole = q.joined
	}
	if !q.splitter.Reset(whole, &p.Headers, p.Offload) || q.splitter.HeaderLen() > len(q.scratch) {
		return nil
	}
	for q.splitter.Next(q.scratch[:]) {
		err := q.write(encap.Offload{}, p, q.splitter.Header(), [][]byte{q.splitter.Payload()})
		if err == nil {
			p.Sent++
		}
		if err := q.refused(err); err != nil {
			return err
		}
	}
	return nil
}

// refused counts a write that the device did not take. Only one that tells that the device is gone is an error.
func (q *tunQueue) refused(err error) error {
	if err == unix.EBADFD {
		return q.t.gone(err)
	}
	if err != nil {
		q.errnos.count(err)
	}
	return nil
}

// write hands one packet, in pieces, to the device.
func (q *tunQueue) write(o encap.Offload, p *Packet, data []byte, parts [][]byte) error {
	q.iov = q.iov[:0]
	if q.virtio > 0 {
		headers := 0
		if o.IsSuper() {
			headers = p.Headers.HeaderLen(p.Data)
		}
		putVirtio(q.header[:], o, p.Headers.Kind, headers)
		q.iov = appendIovec(q.iov, q.header[:])
	}
	q.iov = appendIovec(q.iov, data)
	for _, part := range parts {
		q.iov = appendIovec(q.iov, part)
	}
	for {
		q.writes.Add(1)
		err := q.writev(q.writer, q.iov)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && waitWritable(q.writer) == nil:
		default:
			return err
		}
	}
}

func appendIovec(iov []unix.Iovec, b []byte) []unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return append(iov, v)
}
