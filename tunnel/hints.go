package tunnel

import (
	"math"
	"net/netip"
	"sync/atomic"

	"github.com/vxlane/vxlane/encap"
)

// hints remembers how large packets to a host may be. A super-packet that arrives on a plain socket does not say what
// its segments were to be; cut too large, they could not pass a narrower link behind this host, and the sender, which
// sends narrow segments already, could do nothing about it. But all that told the sender went out through this tunnel:
// the host's MSS, and any ICMP "fragmentation needed". So this end listens along.
//
// The table has a fixed size and is lossy: a lost entry costs a retransmission, never a packet that would have fitted.
type hints struct {
	slots [hintSlots]atomic.Uint64 // tag (48 bits), size (16 bits)
}

const (
	hintSlots = 4096
	// minHint and minHint6 keep a wild claim from making every packet tiny: what every host must take (RFC 791, RFC 8200).
	minHint  = 576
	minHint6 = 1280
)

// learn takes in what a packet to the underlay tells its receiver.
func (t *hints) learn(packet []byte, h *encap.Headers) {
	if h.Proto == encap.ProtoUDP {
		return
	}
	host, size, ok := encap.SizeHint(packet, h)
	if !ok {
		return
	}
	slot, tag := t.slot(host)
	lowest := minHint
	if host.Is6() {
		lowest = minHint6
	}
	size = min(max(size, lowest), math.MaxUint16)
	if old := slot.Load(); old>>16 == tag && int(old&0xffff) <= size {
		return
	}
	slot.Store(tag<<16 | uint64(size))
}

// limit returns the largest packet that is known to reach host, in bytes; 65535 when nothing is known.
func (t *hints) limit(host netip.Addr) int {
	slot, tag := t.slot(host)
	if v := slot.Load(); v>>16 == tag {
		return int(v & 0xffff)
	}
	return math.MaxUint16
}

func (t *hints) slot(host netip.Addr) (*atomic.Uint64, uint64) {
	hash := encap.HashAddr(host)
	return &t.slots[hash%hintSlots], hash >> 16
}
