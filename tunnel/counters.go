package tunnel

import (
	"math/bits"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// Direction is one of the two ways through a tunnel.
type Direction int

// The directions, in the order of arrays indexed by them.
const (
	Encap Direction = iota // from the device to the underlay
	Decap                  // from the underlay to the device
)

// String returns the word for d in metrics and tables.
func (d Direction) String() string {
	if d == Decap {
		return "decap"
	}
	return "encap"
}

// batchBuckets is one for each power of two up to BatchSize.
const batchBuckets = 9

// counters is what one goroutine at a time counts in one direction. It is the only writer and shares no cache line.
type counters struct {
	_         [64]byte
	received  routing.Counter
	delivered routing.Counter
	bytes     routing.Counter // of delivered packets, headers of the underlay not included
	consumed  routing.Counter
	dropped   [encap.NumReasons]routing.Counter
	batches   [batchBuckets]routing.Counter // by ceil(log2(size))
	batchSum  routing.Counter
	split     routing.Counter // segments that super-packets were split into
	suspect   [encap.NumReasons]routing.Counter
	oddECN    routing.Counter                   // received packets with ECN fields that nobody should send
	copies    routing.Counter                   // further copies of flooded frames
	lost      [encap.NumReasons]routing.Counter // of these, those that were not sent
	_         [64]byte
}

func (c *counters) countBatch(n int) {
	c.batches[min(bits.Len(uint(n-1)), batchBuckets-1)].Add(1)
	c.batchSum.Add(uint64(n))
}

func (c *counters) drop(r encap.Reason, n int) {
	if r != encap.None && n > 0 {
		c.dropped[r].Add(uint64(n))
	}
}

// tally adds up what packets of a batch add to counters: adding to one of those is a locked instruction on some machines.
type tally struct {
	peer           *routing.Peer // nil: nobody's
	packets, bytes int
}

func (t *tally) add(packets, bytes int) { t.packets, t.bytes = t.packets+packets, t.bytes+bytes }

// addEncap adds to a worker's counters what went to the peer.
func (t *tally) addEncap(worker int) {
	if t.peer != nil {
		c := t.peer.State().Counters(worker)
		c.EncapPackets.Add(uint64(t.packets))
		c.EncapBytes.Add(uint64(t.bytes))
	}
}

// addDecap adds to a worker's counters what came from the peer, the last of it now.
func (t *tally) addDecap(worker int, now int64) {
	if t.peer != nil {
		t.peer.State().SetLastReceive(now)
		c := t.peer.State().Counters(worker)
		c.DecapPackets.Add(uint64(t.packets))
		c.DecapBytes.Add(uint64(t.bytes))
	}
}

// Flow is what became of the packets of one direction.
type Flow struct {
	Received  uint64 `json:"received"`
	Delivered uint64 `json:"delivered"`
	Consumed  uint64 `json:"consumed"`
	Dropped   uint64 `json:"dropped"`
	// Held packets wait for a peer's MAC: received, and nothing else yet.
	Held  uint64 `json:"held"`
	Bytes uint64 `json:"bytes"`
	// Reasons has a count for every drop reason that the direction ever used.
	Reasons map[string]uint64 `json:"reasons"`

	// Suspects are the delivered packets that a check would have dropped if it enforced, by the reason.
	Suspects map[string]uint64 `json:"suspects,omitempty"`

	// OddECN are the received packets, dropped or not, whose ECN fields nobody should have sent so (encap.OddECN).
	OddECN uint64 `json:"odd_ecn,omitempty"`

	// Copies are what flooding sent beside the one that counts as delivered.
	Copies uint64 `json:"flood_copies,omitempty"`
	// CopiesDropped are those that it did not send, by the reason.
	CopiesDropped map[string]uint64 `json:"flood_copies_dropped,omitempty"`

	byReason  [encap.NumReasons]uint64
	bySuspect [encap.NumReasons]uint64
	byCopy    [encap.NumReasons]uint64
	batches   [batchBuckets]uint64
	batchSum  uint64
	split     uint64
}

func (f *Flow) add(c *counters) {
	f.Received += c.received.Load()
	f.Delivered += c.delivered.Load()
	f.Bytes += c.bytes.Load()
	f.Consumed += c.consumed.Load()
	f.batchSum += c.batchSum.Load()
	f.split += c.split.Load()
	f.Copies += c.copies.Load()
	f.OddECN += c.oddECN.Load()
	for i := range c.dropped {
		f.byReason[i] += c.dropped[i].Load()
		f.bySuspect[i] += c.suspect[i].Load()
		f.byCopy[i] += c.lost[i].Load()
	}
	for i := range c.batches {
		f.batches[i] += c.batches[i].Load()
	}
}

// finish fills in the sums and the map from what add gathered.
func (f *Flow) finish() {
	f.Reasons, f.Suspects, f.CopiesDropped = byWord(&f.byReason), byWord(&f.bySuspect), byWord(&f.byCopy)
	for _, n := range f.byReason {
		f.Dropped += n
	}
}

// byWord returns the counts that are not 0.
func byWord(counts *[encap.NumReasons]uint64) map[string]uint64 {
	words := make(map[string]uint64)
	for r, n := range counts {
		if n > 0 {
			words[encap.Reason(r).String()] = n
		}
	}
	return words
}

// Generated counts what the tunnel sent of its own accord. One mutex-holder at a time writes it.
type generated struct {
	arpRequests, arpReplies, solicitations, advertisements, icmpErrors routing.Counter
}

// Generated is what the tunnel sent of its own accord, by kind.
type Generated struct {
	ARPRequests    uint64 `json:"arp_request"`
	ARPReplies     uint64 `json:"arp_reply"`
	Solicitations  uint64 `json:"neighbour_solicitation"`
	Advertisements uint64 `json:"neighbour_advertisement"`
	ICMPErrors     uint64 `json:"icmp_error"`
}

func (g *generated) load() Generated {
	return Generated{g.arpRequests.Load(), g.arpReplies.Load(), g.solicitations.Load(), g.advertisements.Load(), g.icmpErrors.Load()}
}
