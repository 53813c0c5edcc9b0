package encap

import (
	"encoding/binary"
	"math/bits"
)

// Internet checksum, RFC 1071. A sum here is a 16-bit one's complement sum, not inverted; a checksum is its complement.

// Sum adds the bytes of b to a sum, as big-endian 16-bit words, an odd last byte padded with zero. To add up several
// slices, all but the last must have an even length.
func Sum(b []byte, initial uint16) uint16 {
	// One's complement sums commute with byte order (RFC 1071 section 2 (B)): add native little-endian words, swap once.
	acc := uint64(bits.ReverseBytes16(initial))
	whole := b
	if len(b) >= vectorMin && hasVectorSum {
		var sum uint64
		sum, b = vectorSum(b)
		acc += uint64(fold(sum))
	}
	var carry uint64
	for len(b) >= 64 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[0:]), 0)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[32:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[40:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[48:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[56:]), carry)
		acc += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	if n := len(b); n > 0 {
		acc, carry = bits.Add64(acc, lastBytes(whole, n), 0)
		acc += carry
	}
	return bits.ReverseBytes16(fold(acc))
}

// lastBytes returns the last n bytes of b, 1 to 7, as a little-endian word.
func lastBytes(b []byte, n int) uint64 {
	if len(b) >= 8 {
		return binary.LittleEndian.Uint64(b[len(b)-8:]) >> (64 - 8*uint(n))
	}
	var word [8]byte
	copy(word[:], b[len(b)-n:])
	return binary.LittleEndian.Uint64(word[:])
}

// fold reduces a 64-bit one's complement accumulator to 16 bits.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// addSum adds two sums.
func addSum(a, b uint16) uint16 { return fold(uint64(a) + uint64(b)) }

// UpdateChecksum mends the checksum in field (2 bytes) after one 16-bit word that it covers changed from old to new
// (RFC 1624 equation 3).
func UpdateChecksum(field []byte, old, new uint16) {
	sum := addSum(addSum(^binary.BigEndian.Uint16(field), ^old), new)
	binary.BigEndian.PutUint16(field, ^sum)
}

// pseudoHeaderSum is the sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) for a transport header
// and payload of length bytes. h is the packet parsed.
func pseudoHeaderSum(packet []byte, h *Headers, length int) uint16 {
	sum := uint64(length) + uint64(h.Proto) // of 32-bit words, too few to overflow
	if h.Kind == KindIPv4 {
		a := packet[h.L3+12 : h.L3+20]
		return fold(sum + uint64(binary.BigEndian.Uint32(a)) + uint64(binary.BigEndian.Uint32(a[4:])))
	}
	src, dst := packet[h.L3+8:h.L3+24], packet[h.L3+24:h.L3+40]
	if h.FinalDst != 0 {
		dst = packet[h.FinalDst : h.FinalDst+16]
	}
	for i := 0; i < 16; i += 4 {
		sum += uint64(binary.BigEndian.Uint32(src[i:])) + uint64(binary.BigEndian.Uint32(dst[i:]))
	}
	return fold(sum)
}

// transportChecksumOffset returns where in the transport header the checksum stands, for the protocols whose senders
// leave it to hardware.
func transportChecksumOffset(proto uint8) (offset, minHeader int, ok bool) {
	switch proto {
	case ProtoTCP:
		return 16, tcpMinHeaderLen, true
	case ProtoUDP:
		return 6, udpHeaderLen, true
	}
	return 0, 0, false
}

// ChecksumState is what a packet's transport checksum was found to be.
type ChecksumState uint8

// The states of a transport checksum.
const (
	// ChecksumOpaque: no TCP or UDP checksum to speak of: another protocol, a fragment, UDP without a checksum.
	ChecksumOpaque ChecksumState = iota
	// ChecksumWhole: the sum of the pseudo-header, the header and the payload is right.
	ChecksumWhole
	// ChecksumPartial: the field holds the pseudo-header's sum alone: a sender on this machine left the rest to a
	// device that never saw the packet (Documentation/networking/checksum-offloads.rst).
	ChecksumPartial
	// ChecksumBad: neither; the packet was damaged, and its receiver must be the one to say so.
	ChecksumBad
)

// transportChecksum returns the checksum field of a packet that has one to speak of, and the sum of its pseudo-header.
func transportChecksum(packet []byte, h *Headers) (field []byte, pseudo uint16, ok bool) {
	if h.L4 == 0 || h.Fragment {
		return nil, 0, false
	}
	offset, minHeader, ok := transportChecksumOffset(h.Proto)
	if !ok || h.Len < h.L4+minHeader {
		return nil, 0, false
	}
	field = packet[h.L4+offset : h.L4+offset+2]
	if h.Proto == ProtoUDP && field[0] == 0 && field[1] == 0 {
		return nil, 0, false
	}
	return field, pseudoHeaderSum(packet, h, h.Len-h.L4), true
}

// HasPartialChecksum reports whether the TCP or UDP checksum field of packet holds the pseudo-header's sum alone, without
// reading the payload. One whole checksum in 65,535 looks the same; finishing it gives the same value again.
func HasPartialChecksum(packet []byte, h *Headers) bool {
	field, pseudo, ok := transportChecksum(packet, h)
	return ok && binary.BigEndian.Uint16(field) == pseudo
}

// InspectChecksum tells how the TCP or UDP checksum of packet stands; it reads the payload.
func InspectChecksum(packet []byte, h *Headers) ChecksumState {
	field, pseudo, ok := transportChecksum(packet, h)
	switch {
	case !ok:
		return ChecksumOpaque
	case Sum(packet[h.L4:h.Len], pseudo) == 0xffff:
		return ChecksumWhole
	case binary.BigEndian.Uint16(field) == pseudo:
		return ChecksumPartial
	}
	return ChecksumBad
}

// LeaveChecksum puts the bare pseudo-header sum into the TCP or UDP checksum field of packet, which leaves the rest to a
// device.
func LeaveChecksum(packet []byte, h *Headers) {
	if field, pseudo, ok := transportChecksum(packet, h); ok {
		binary.BigEndian.PutUint16(field, pseudo)
	}
}
