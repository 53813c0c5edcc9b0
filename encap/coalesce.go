package encap

import "encoding/binary"

// Glossary of this file: a packet is what was received; a run is consecutive packets of one flow that can be one
// super-packet; a part is one packet's payload in a run.

const (
	// maxParts is how many packets a run holds at most: the kernel's limit for UDP (UDP_GRO_CNT_MAX, net/ipv4/udp_offload.c).
	maxParts = 64
	// maxIPLen is the longest packet that an IP header can state.
	maxIPLen = 65535

	flowBuckets = 256
)

// tunnelPorts are the UDP ports of tunnels: VXLAN, Linux' VXLAN, flannel-UDP, GENEVE and GTP-U. A kernel that takes such a
// packet apart after it was joined may leave the inner one with a wrong length (fixed by Linux 3d010c8031e3).
var tunnelPorts = [...]uint16{4789, 8472, 8285, 6081, 2152}

// Super is what a Coalescer makes of a run: the packet is Header followed by Payload, borrowed until the next Reset.
type Super struct {
	First   int      // which of the packets added was the first of the run, from 0
	Header  []byte   // IP and transport header; for a packet that stayed alone, all of it
	Payload [][]byte // parts of the packets, in order; none for a packet that stayed alone
	Offload Offload
	Packets int // how many packets it stands for
}

// Coalescer joins packets that follow each other within their flows into super-packets: what the kernel's GRO does
// (net/ipv4/af_inet.c, tcp_offload.c, udp_offload.c), by its rules, and without copying payload. Splitter undoes it.
// Packets of a flow keep their order; flows may overtake each other.
//
//	c.Reset()
//	for … { c.Add(packet, &headers, checksumIsKnownGood) }
//	for super := range c.All { write(super.Header, super.Payload…) }
type Coalescer struct {
	packets []added
	runs    []run
	open    [flowBuckets]int32 // by flow hash: index of the run that may grow, plus one
	last    int32              // index of the run that the packet before is in, plus one
	payload [][]byte
	super   Super
}

// added is a packet and the next one of its run.
type added struct {
	packet  []byte
	payload []byte
	next    int32 // index, or -1
}

type run struct {
	h           Headers // of its first packet
	hash        uint32
	first, last int32 // indices of packets
	parts       int
	segment     int  // payload of its first packet, in bytes
	total       int  // payload of all its packets
	closed      bool // takes no more packets
	sameID      bool // IPv4: its packets have one identification
	flags       byte // TCP: FIN and PSH of its last packet
}

// NewCoalescer returns a Coalescer with room for n packets; it grows when more are added.
func NewCoalescer(n int) *Coalescer {
	return &Coalescer{packets: make([]added, 0, n), runs: make([]run, 0, n), payload: make([][]byte, 0, n)}
}

// Reset forgets all packets.
func (c *Coalescer) Reset() {
	c.packets, c.runs, c.payload = c.packets[:0], c.runs[:0], c.payload[:0]
	clear(c.open[:])
	c.last = 0
}

// Add takes one IP packet, or a frame that carries one, which stays borrowed until Reset, with its headers parsed. good says that its transport
// checksum was verified, so that it need not travel along; without that the packet stays as it is.
func (c *Coalescer) Add(packet []byte, h *Headers, good bool) {
	n := transportHeaderLen(packet, h)
	index := int32(len(c.packets))
	if h.L3 > 0 && len(packet) != h.Len {
		good = false // a frame keeps its padding
	} else if h.Len > 0 {
		packet = packet[:h.Len]
	}
	c.packets = append(c.packets, added{packet: packet, next: -1})
	if h.Fragment {
		clear(c.open[:]) // its flow is not known, and it must not be overtaken by what follows
	}
	good = good && joinable(packet, h, n)
	if good && c.last != 0 && c.append(&c.runs[c.last-1], packet, h, n, index) { // most follow the one before, and need no hash
		return
	}
	hash := h.FlowHash()
	bucket := &c.open[hash%flowBuckets]
	if i := *bucket - 1; good && i >= 0 && i != c.last-1 && c.runs[i].hash == hash && c.append(&c.runs[i], packet, h, n, index) {
		c.last = i + 1
		return
	}
	r := run{h: *h, hash: hash, first: index, last: index, parts: 1, closed: !good}
	if good {
		c.packets[index].payload = packet[h.L4+n : h.Len]
		r.segment = h.Len - h.L4 - n
		r.total = r.segment
		r.flags, r.closed = endFlags(packet, h)
	}
	c.runs = append(c.runs, r)
	c.last = int32(len(c.runs))
	*bucket = c.last // a run of the same flow that was open before is closed by this: order is kept
}

// joinable reports whether a packet can be part of a run at all. n is the length of its transport header.
func joinable(packet []byte, h *Headers, n int) bool {
	if n == 0 || h.Fragment || h.Len == h.L4+n {
		return false // a bare acknowledgement stands for itself
	}
	switch h.Kind {
	case KindIPv4: // without options, with a good header checksum, and not with the reserved flag
		const reserved = 0x80
		ip := packet[h.L3:h.L4]
		if len(ip) != ipv4MinHeaderLen || ip[6]&reserved != 0 || Sum(ip, 0) != 0xffff {
			return false
		}
	case KindIPv6: // without extension headers
		if h.L4-h.L3 != ipv6HeaderLen {
			return false
		}
	default:
		return false
	}
	if h.Proto == ProtoUDP {
		whole := int(binary.BigEndian.Uint16(packet[h.L4+4:])) == h.Len-h.L4 // nothing beyond it, such as UDP options
		return whole && packet[h.L4+6]|packet[h.L4+7] != 0 && !isTunnelPort(h.DstPort)
	}
	const joining = tcpFIN | tcpPSH | tcpACK | tcpECE
	return packet[h.L4+13]&^joining == 0
}

func isTunnelPort(port uint16) bool {
	for _, p := range tunnelPorts {
		if p == port {
			return true
		}
	}
	return false
}

// endFlags returns the TCP flags that end a run after the packet that has them, and whether it has one.
func endFlags(packet []byte, h *Headers) (flags byte, end bool) {
	if h.Proto != ProtoTCP {
		return 0, false
	}
	flags = packet[h.L4+13] & (tcpFIN | tcpPSH)
	return flags, flags != 0
}

// append adds a packet, which is joinable, to a run when it continues it.
func (c *Coalescer) append(r *run, packet []byte, h *Headers, n int, index int32) bool {
	length := h.Len - h.L4 - n
	headers := h.L4 + n
	if r.closed || r.parts == maxParts || length > r.segment || headers-h.L3+r.total+length > maxIPLen || !c.continues(r, packet, h, n) {
		return false
	}
	c.packets[index].payload = packet[h.L4+n : h.Len]
	c.packets[r.last].next = index
	r.last = index
	r.parts++
	r.total += length
	r.flags, r.closed = endFlags(packet, h)
	r.closed = r.closed || length < r.segment // a shorter one can only be the last
	return true
}

// continues reports whether the headers of a packet differ from those of the run's first only in what a split restores.
func (c *Coalescer) continues(r *run, packet []byte, h *Headers, n int) bool {
	first, f := c.packets[r.first].packet, &r.h
	if h.Kind != f.Kind || h.Proto != f.Proto || h.Src != f.Src || h.Dst != f.Dst || h.SrcPort != f.SrcPort || h.DstPort != f.DstPort {
		return false
	}
	if h.L3 != f.L3 || string(packet[:h.L3]) != string(first[:f.L3]) { // addresses and tags of the frame
		return false
	}
	if h.TOS != f.TOS || h.TTL != f.TTL || h.DF != f.DF || !sameFlow6(first, packet, h) || !c.nextID(r, packet, h) {
		return false
	}
	if h.Proto == ProtoUDP {
		return true
	}
	was, is := first[f.L4:], packet[h.L4:]
	if was[12] != is[12] { // header length and the reserved bits
		return false
	}
	next := binary.BigEndian.Uint32(was[4:]) + uint32(r.total)
	sameFlags := (was[13]^is[13])&^(tcpFIN|tcpPSH) == 0
	sameAck := binary.BigEndian.Uint32(was[8:]) == binary.BigEndian.Uint32(is[8:])
	sameWindow := binary.BigEndian.Uint16(was[14:]) == binary.BigEndian.Uint16(is[14:])
	sameUrgent := binary.BigEndian.Uint16(was[18:]) == binary.BigEndian.Uint16(is[18:])
	return binary.BigEndian.Uint32(is[4:]) == next && sameFlags && sameAck && sameWindow && sameUrgent && string(was[tcpMinHeaderLen:n]) == string(is[tcpMinHeaderLen:n])
}

// sameFlow6 reports whether the flow labels are the same; IPv4 has none.
func sameFlow6(first, packet []byte, h *Headers) bool {
	return h.Kind != KindIPv6 || binary.BigEndian.Uint32(first[h.L3:]) == binary.BigEndian.Uint32(packet[h.L3:])
}

// nextID reports whether an IPv4 identification is the one that a split gives. As in the kernel, one that stays the same is
// taken too where it has no meaning, in packets that must not be fragmented (RFC 6864 section 4.1); a split counts it up.
func (c *Coalescer) nextID(r *run, packet []byte, h *Headers) bool {
	if h.Kind != KindIPv4 {
		return true
	}
	first, id := binary.BigEndian.Uint16(c.packets[r.first].packet[h.L3+4:]), binary.BigEndian.Uint16(packet[h.L3+4:])
	if id == first+uint16(r.parts) {
		return !r.sameID
	}
	if !h.DF || id != first || r.parts > 1 && !r.sameID {
		return false
	}
	r.sameID = true
	return true
}

// All yields what the packets came to, in an order that keeps that of each flow. The first packet of a run is changed:
// its headers become those of the super-packet.
func (c *Coalescer) All(yield func(*Super) bool) {
	for i := range c.runs {
		if !yield(c.assemble(&c.runs[i])) {
			return
		}
	}
}

func (c *Coalescer) assemble(r *run) *Super {
	first := c.packets[r.first].packet
	c.super = Super{First: int(r.first), Header: first, Packets: r.parts}
	if r.parts == 1 {
		return &c.super
	}
	from := len(c.payload)
	for i := r.first; i >= 0; i = c.packets[i].next {
		c.payload = append(c.payload, c.packets[i].payload)
	}
	headers := len(first) - r.segment
	c.super.Header, c.super.Payload = first[:headers], c.payload[from:]
	c.super.Offload = SuperOffload(&r.h, r.segment)
	r.patch(first[:headers])
	return &c.super
}

// patch makes the headers of the first packet those of the whole run.
func (r *run) patch(header []byte) {
	l4 := r.h.L4
	length := len(header) - l4 + r.total
	if ip := header[r.h.L3:]; r.h.Kind == KindIPv4 {
		old, total := binary.BigEndian.Uint16(ip[2:]), uint16(l4-r.h.L3+length)
		binary.BigEndian.PutUint16(ip[2:], total)
		UpdateChecksum(ip[10:12], old, total)
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
	}
	offset, _, _ := transportChecksumOffset(r.h.Proto)
	binary.BigEndian.PutUint16(header[l4+offset:], pseudoHeaderSum(header, &r.h, length))
	if r.h.Proto == ProtoUDP {
		binary.BigEndian.PutUint16(header[l4+4:], uint16(length))
		return
	}
	header[l4+13] |= r.flags
}
