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
	bytes    int // of super-packets that were cut, since the worker's turn began
}

// headerSpace is room for the headers of most batches; more is made when a batch needs it.
const headerSpace = 64 << 10

func newCutter() cutter {
	space := make([]byte, headerSpace)
	return cutter{space: space, free: space, parts: make([][]byte, 0, 2*BatchSize)}
}

func (c *cutter) reset() { c.free, c.parts = c.space, c.parts[:0] }

// header returns n bytes that stay valid until reset.
func (c *cutter) header(n int) []byte {
	if len(c.free) < n {
		c.free = make([]byte, headerSpace)
	}
	h := c.free[:n:n]
	c.free = c.free[n:]
	return h
}

// cut makes trains of a super-packet. The codec wrote one header; every other segment's is a copy of it, so what Encap
// changes in the packet itself (flannel-UDP: the TTL) was changed once, before the split.
func (x *transmitter) cut(peer *routing.Peer, p *Packet) encap.Reason {
	outer, _ := p.withHeader(x.t.rules.Codec.Headroom())
	s := &x.cutter.splitter
	if !s.Reset(p.Data, &p.Headers, p.Offload) {
		return encap.NotIP
	}
	x.cutter.bytes += len(p.Data)
	size := len(outer) + s.HeaderLen() + p.Offload.SegmentSize
	most := min(MaxTrain, maxTrainBytes/size)
	if most == 0 {
		return encap.PktTooBig
	}
	train := x.t.datagram(&p.Headers, peer.Endpoint)
	for left := p.Count; left > 0; left -= train.Count {
		train.Count = min(left, most)
		bytes := x.assemble(&train, outer)
		if train.SegmentSize = size; train.Count == 1 {
			train.SegmentSize = 0
		}
		x.line(train, sent{peer: peer, bytes: bytes - train.Count*len(outer)})
	}
	return encap.None
}

// assemble gives train its next Count segments and returns how many bytes they have.
func (x *transmitter) assemble(train *Datagram, outer []byte) (bytes int) {
	c := &x.cutter
	from := len(c.parts)
	for range train.Count {
		header := c.header(len(outer) + c.splitter.HeaderLen())
		copy(header, outer)
		c.splitter.Next(header[len(outer):])
		c.parts = append(c.parts, header, c.splitter.Payload())
		bytes += len(header) + len(c.splitter.Payload())
	}
	train.Data, train.Parts = c.parts[from], c.parts[from+1:]
	return bytes
}
