package encap

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// FlowHash returns a hash of the flow that a packet belongs to: addresses, and protocol and ports when the packet is no
// fragment, so that all fragments of a packet agree. A packet that is not IP hashes its MACs and Kind, as the kernel
// does (include/net/udp.h, udp_flow_src_port). The value is the same in every process.
func (h *Headers) FlowHash() uint32 {
	switch h.Kind {
	case KindIPv4, KindIPv6:
		var ports, proto uint64
		if !h.Fragment {
			ports, proto = uint64(h.SrcPort)<<16|uint64(h.DstPort), uint64(h.Proto)
		}
		acc := mix(HashAddr(h.Src), 0x9e3779b97f4a7c15)
		acc = mix(acc^HashAddr(h.Dst), 0xbf58476d1ce4e5b9)
		acc = mix(acc^(ports<<8|proto), 0x94d049bb133111eb)
		return uint32(acc ^ acc>>32)
	}
	acc := mix(h.Link.Src.Uint64(), 0x9e3779b97f4a7c15)
	acc = mix(acc^h.Link.Dst.Uint64()<<8^uint64(h.Kind), 0xbf58476d1ce4e5b9)
	return uint32(acc ^ acc>>32)
}

// HashAddr returns a 64-bit hash of an address, the same in every process.
func HashAddr(a netip.Addr) uint64 {
	b := a.As16()
	return mix(binary.BigEndian.Uint64(b[:8])^0x2545f4914f6cdd1d, binary.BigEndian.Uint64(b[8:])^0x9e6c63d0876a9a99)
}

// mix folds the 128-bit product of its arguments, the step of wyhash.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0xa0761d6478bd642f, b^0xe7037ed1a0b428db)
	return hi ^ lo
}

// SourcePort maps a flow hash to a port in [lo, hi), the way of the kernel's udp_flow_src_port (include/net/udp.h); when
// the range is empty or has one port, it is lo. The same hash always gets the same port.
func SourcePort(hash uint32, lo, hi uint16) uint16 {
	if hi <= lo {
		return lo
	}
	hash ^= hash << 16
	return uint16(uint64(hash)*uint64(hi-lo)>>32) + lo
}

// Bucket maps a flow hash to one of n buckets, n > 0, with the same arithmetic as SourcePort: where a socket per port
// is too many, one of n sockets stands for each stretch of the range.
func Bucket(hash uint32, n int) int {
	hash ^= hash << 16
	return int(uint64(hash) * uint64(n) >> 32)
}
