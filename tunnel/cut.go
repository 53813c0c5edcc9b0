package tunnel

import (
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// cutter makes trains of super-packets: for each segment a header of its own, which is written here, and a part of the
// payload, which stays where it is.
type cutter struct {
	splitter encap.Splitter
	space    []byte // for headers
	free     []byte // what is left of it
	parts    [][]byte

	open  int // index of the train in the batch that may be continued, or none
	start int // of its parts
}

// headerSpace is room for the headers of most batches; there is more once a batch needed it.
const headerSpace = 64 << 10

func newCutter() cutter {
	space := make([]byte, headerSpace)
	return cutter{space: space, free: space, parts: make([][]byte, 0, 2*BatchSize), open: none}
}

func (c *cutter) reset() { c.free, c.parts, c.open = c.space, c.parts[:0], none }

// header returns n bytes that stay valid until reset.
func (c *cutter) header(n int) []byte {
	if len(c.free) < n {
		c.space = make([]byte, 2*len(c.space)) // and so from the next batch on; what is used of the old one stays with those who have it
		c.free = c.space
	}
	h := c.free[:n:n]
	c.free = c.free[n:]
	return h
}

// cut makes trains of a super-packet, the first of them by filling the one before. The codec wrote one header; every other segment's
// is a copy of it, so what Encap changes in the packet itself (flannel-UDP: the TTL) was changed once, before the split.
func (x *transmitter) cut(peer *routing.Peer, p *Packet) encap.Reason {
	outer, _ := p.withHeader(x.t.rules.Codec.Headroom())
	s := &x.cutter.splitter
	if !s.Reset(p.Data, &p.Headers, p.Offload) {
		return encap.NotIP
	}
	d := x.t.datagram(&p.Headers, peer.Endpoint)
	d.SegmentSize = len(outer) + s.HeaderLen() + p.Offload.SegmentSize
	most := min(MaxTrain, maxTrainBytes/d.SegmentSize)
	if most == 0 {
		return encap.PktTooBig
	}
	for left := p.Count; left > 0; {
		train, origin := x.train(&d, most, peer)
		n := min(left, most-train.Count)
		origin.bytes += x.assemble(train, outer, n)
		left -= n
	}
	return encap.None
}

// train returns the last train of the batch when datagrams like d continue it, or else lines up a new one.
func (x *transmitter) train(d *Datagram, most int, peer *routing.Peer) (*Datagram, *sent) {
	c, last := &x.cutter, len(x.datagrams)-1
	if last < 0 || c.open != last || !x.datagrams[last].continuedBy(d, most) {
		x.line(*d, sent{peer: peer})
		last++
		c.open, c.start = last, len(c.parts)
	}
	return &x.datagrams[last], &x.origin[last]
}

// continuedBy reports whether datagrams like next can be a part of the train, which may have so many.
func (d *Datagram) continuedBy(next *Datagram, most int) bool {
	return d.Count < most && d.SegmentSize == next.SegmentSize && d.Flow == next.Flow &&
		d.Remote == next.Remote && d.TOS == next.TOS && d.TTL == next.TTL && d.DF == next.DF
}

// assemble gives the open train the next n segments, and returns how many bytes these have, headers of the underlay not included.
func (x *transmitter) assemble(train *Datagram, outer []byte, n int) (bytes int) {
	c := &x.cutter
	for range n {
		header := c.header(len(outer) + c.splitter.HeaderLen())
		copy(header, outer)
		c.splitter.Next(header[len(outer):])
		c.parts = append(c.parts, header, c.splitter.Payload())
		bytes += c.splitter.HeaderLen() + len(c.splitter.Payload())
	}
	train.Data, train.Parts = c.parts[c.start], c.parts[c.start+1:]
	train.Count += n
	if bytes < n*(train.SegmentSize-len(outer)) {
		c.open = none // only the last datagram of a train may be shorter
	}
	return bytes
}
