package encap

import "encoding/binary"

// TCP flags that segmentation and coalescing treat apart (RFC 9293 section 3.1, RFC 3168 section 6.1.2).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpECE = 0x40
	tcpCWR = 0x80
)

// Splitter cuts one super-packet, an IP packet or a frame that carries one, into segments. Payload is never copied: each segment is a header, written to the
// caller's buffer, and a slice of the super-packet. What net/ipv4/tcp_offload.c and udp_offload.c do in software.
//
//	var s Splitter
//	if !s.Reset(packet, &headers, offload) { … not a super-packet that can be split … }
//	for s.Next(header) { write(s.Header(), s.Payload()) }
type Splitter struct {
	packet   []byte
	h        *Headers
	headers  int // length of all headers: of the frame, when it is one, IP and transport
	payload  []byte
	size     int
	at       int    // index of the next segment
	template []byte // the super-packet's headers

	ipSum     uint16 // IPv4: sum of the header without length, identification and checksum
	pseudoSum uint16 // of the pseudo-header without length
	unsummed  bool   // UDP without a checksum

	header  []byte
	segment []byte
}

// Reset begins to split packet, which stays borrowed until the last Next. It reports false when the metadata does not
// fit the packet.
func (s *Splitter) Reset(packet []byte, h *Headers, o Offload) bool {
	n := transportHeaderLen(packet, h)
	fits := o.GSO == GSOTCP && h.Proto == ProtoTCP || o.GSO == GSOUDP && h.Proto == ProtoUDP
	if n == 0 || !fits || h.Fragment || o.SegmentSize <= 0 || h.Kind != KindIPv4 && h.Kind != KindIPv6 {
		return false
	}
	end := h.L4 + n
	*s = Splitter{packet: packet, h: h, headers: end, payload: packet[end:h.Len], size: o.SegmentSize}
	s.template = packet[:end]
	if ip := packet[h.L3:h.L4]; h.Kind == KindIPv4 {
		s.ipSum = Sum(ip[12:], addSum(Sum(ip[:2], 0), Sum(ip[6:10], 0)))
	}
	offset, _, _ := transportChecksumOffset(h.Proto)
	field := binary.BigEndian.Uint16(packet[h.L4+offset:])
	s.unsummed = h.Proto == ProtoUDP && field == 0
	if o.NeedsChecksum {
		s.pseudoSum = addSum(field, ^uint16(h.Len-h.L4)) // which knows where a packet with a source route goes in the end
	} else {
		s.pseudoSum = pseudoHeaderSum(packet, h, 0)
	}
	return true
}

// Next writes the headers of the next segment to buf, which must hold at least HeaderLen bytes, with both checksums
// finished. It returns false when no segment is left.
func (s *Splitter) Next(buf []byte) bool {
	if len(s.payload) == 0 {
		return false
	}
	n := min(s.size, len(s.payload))
	s.segment, s.payload = s.payload[:n], s.payload[n:]
	s.header = buf[:s.headers]
	copy(s.header, s.template)
	s.patchIP(n)
	if s.h.Proto == ProtoTCP {
		s.patchTCP()
	} else {
		binary.BigEndian.PutUint16(s.header[s.h.L4+4:], uint16(udpHeaderLen+n))
	}
	s.finishChecksum(n)
	s.at++
	return true
}

// HeaderLen returns the length of the headers that Next writes, in bytes.
func (s *Splitter) HeaderLen() int { return s.headers }

// Header returns the headers of the current segment: a part of the buffer given to Next.
func (s *Splitter) Header() []byte { return s.header }

// Payload returns the payload of the current segment: a part of the super-packet.
func (s *Splitter) Payload() []byte { return s.segment }

func (s *Splitter) patchIP(payload int) {
	ip := s.header[s.h.L3:]
	if s.h.Kind == KindIPv6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6HeaderLen+payload))
		return
	}
	length, id := uint16(len(ip)+payload), binary.BigEndian.Uint16(ip[4:])+uint16(s.at)
	binary.BigEndian.PutUint16(ip[2:], length)
	binary.BigEndian.PutUint16(ip[4:], id)
	binary.BigEndian.PutUint16(ip[10:], ^fold(uint64(s.ipSum)+uint64(length)+uint64(id)))
}

func (s *Splitter) patchTCP() {
	tcp := s.header[s.h.L4:]
	binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(s.at*s.size))
	if len(s.payload) > 0 {
		tcp[13] &^= tcpFIN | tcpPSH
	}
	if s.at > 0 {
		tcp[13] &^= tcpCWR
	}
}

func (s *Splitter) finishChecksum(payload int) {
	if s.unsummed {
		return
	}
	offset, _, _ := transportChecksumOffset(s.h.Proto)
	l4 := s.header[s.h.L4:]
	l4[offset], l4[offset+1] = 0, 0
	sum := addSum(s.pseudoSum, uint16(len(l4)+payload))
	sum = ^Sum(s.segment, Sum(l4, sum))
	if s.h.Proto == ProtoUDP && sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(l4[offset:], sum)
}
