package encap

import (
	"encoding/binary"
	"fmt"
)

// Link is what an Ethernet frame around a packet needs; framings without one ignore it.
type Link struct {
	Dst, Src MAC
}

// Codec is one framing of packets as datagrams. Implementations are immutable and safe for concurrent use.
type Codec interface {
	// Headroom returns how many bytes Encap writes in front of a packet.
	Headroom() int

	// Encap makes the datagram hdr|packet: it writes the header to hdr, which has exactly Headroom bytes, and may change
	// the packet's own header (TTL). h is the packet parsed. When the reason is not None nothing has been written.
	Encap(hdr, packet []byte, h *Headers, link Link) Reason

	// Decap takes the header off datagram and parses what it carries into h. The packet is a part of datagram, without
	// bytes past its stated length; offsets in h count from its start. h.Link is set for Ethernet framings only.
	// Decap changes nothing.
	Decap(datagram []byte, h *Headers) (packet []byte, r Reason)

	// Forward does what this hop owes a packet from Decap that is going to be delivered (flannel-UDP: the TTL).
	// When the reason is not None nothing has been written.
	Forward(packet []byte, h *Headers) Reason
}

// vxlanIP carries IP packets in Ethernet frames in VXLAN.
type vxlanIP struct {
	vni  VNI
	bits ReservedBits
}

// NewVXLANIP returns the codec for IP packets, and the ARP that serves them, over VXLAN: encapsulation adds an Ethernet header to talk to an Ethernet
// world, decapsulation returns what the frame carries. Frames that carry no IP (ARP among them) are returned without
// their Ethernet header too; h.Kind says what they are.
func NewVXLANIP(vni VNI, bits ReservedBits) Codec { return vxlanIP{vni, bits} }

func (c vxlanIP) Headroom() int { return VXLANHeaderLen + EthernetHeaderLen }

func (c vxlanIP) Encap(hdr, packet []byte, h *Headers, link Link) Reason {
	etherType := h.Kind.EtherType()
	if etherType == 0 {
		return NotIP
	}
	_ = hdr[VXLANHeaderLen+EthernetHeaderLen-1]
	PutVXLAN(hdr, c.vni)
	putEthernet(hdr[VXLANHeaderLen:], link, etherType)
	return None
}

func (c vxlanIP) Decap(datagram []byte, h *Headers) ([]byte, Reason) {
	*h = Headers{}
	vni, r := DecodeVXLAN(datagram, c.bits)
	if r != None {
		return nil, r
	}
	if vni != c.vni {
		return nil, VXLANVNINotFound
	}
	frame := datagram[VXLANHeaderLen:]
	if r := ParseFrame(frame, h); r != None {
		return nil, r
	}
	packet := frame[h.L3:]
	h.rebase(h.L3)
	return packet[:h.Len], None
}

func (c vxlanIP) Forward([]byte, *Headers) Reason { return None }

// vxlanEthernet carries Ethernet frames in VXLAN, as they are.
type vxlanEthernet struct {
	vni  VNI
	bits ReservedBits
}

// NewVXLANEthernet returns the codec for Ethernet frames over VXLAN. A packet is a frame: offsets in its Headers count from the
// Ethernet header, and what follows the IP packet in it (padding) stays.
func NewVXLANEthernet(vni VNI, bits ReservedBits) Codec { return vxlanEthernet{vni, bits} }

func (c vxlanEthernet) Headroom() int { return VXLANHeaderLen }

func (c vxlanEthernet) Encap(hdr, _ []byte, _ *Headers, _ Link) Reason {
	PutVXLAN(hdr, c.vni)
	return None
}

func (c vxlanEthernet) Decap(datagram []byte, h *Headers) ([]byte, Reason) {
	*h = Headers{}
	vni, r := DecodeVXLAN(datagram, c.bits)
	if r != None {
		return nil, r
	}
	if vni != c.vni {
		return nil, VXLANVNINotFound
	}
	frame := datagram[VXLANHeaderLen:]
	if r := ParseAnyFrame(frame, h); r != None {
		return nil, r
	}
	return frame, None
}

func (c vxlanEthernet) Forward([]byte, *Headers) Reason { return None }

// flannelUDP is the framing of flannel's udp backend: the payload is one bare IPv4 packet (pkg/backend/udp/proxy_amd64.c).
type flannelUDP struct{}

// FlannelUDPPort is the UDP port of flannel's udp backend.
const FlannelUDPPort = 8285

// NewFlannelUDP returns the codec for flannel-UDP. As flannel's proxy does, it takes one from the TTL on transmit and one
// on receive; a packet whose TTL that uses up is TTLExpired. A TTL of 0 never wraps.
func NewFlannelUDP() Codec { return flannelUDP{} }

func (flannelUDP) Headroom() int { return 0 }

func (flannelUDP) Encap(_, packet []byte, h *Headers, _ Link) Reason {
	if h.Kind != KindIPv4 {
		return NotIP
	}
	return decrementTTL(packet, h)
}

func (flannelUDP) Decap(datagram []byte, h *Headers) ([]byte, Reason) {
	if r := ParseIP(datagram, h); r != None {
		return nil, r
	}
	if h.Kind != KindIPv4 {
		return nil, NotIP
	}
	return datagram[:h.Len], None
}

func (flannelUDP) Forward(packet []byte, h *Headers) Reason { return decrementTTL(packet, h) }

// decrementTTL takes one hop from an IPv4 packet and mends its header checksum (RFC 1624).
func decrementTTL(packet []byte, h *Headers) Reason {
	ttl := packet[8]
	if ttl <= 1 {
		return TTLExpired
	}
	old := binary.BigEndian.Uint16(packet[8:])
	packet[8] = ttl - 1
	UpdateChecksum(packet[10:12], old, binary.BigEndian.Uint16(packet[8:]))
	h.TTL = ttl - 1
	return None
}

// Overhead returns how many bytes an encapsulation adds to a packet on the wire: outer IP and UDP headers and the
// codec's own. It is what the device's MTU must leave room for.
func Overhead(c Codec, underlayIPv6 bool) int {
	const udp = 8
	if underlayIPv6 {
		return ipv6HeaderLen + udp + c.Headroom()
	}
	return ipv4MinHeaderLen + udp + c.Headroom()
}

// EthernetOverhead is Overhead for a codec whose packets are Ethernet frames: the device's MTU does not count their headers, nor
// does the kernel's vxlan device count VLAN tags (include/net/vxlan.h, VXLAN_HEADROOM).
func EthernetOverhead(c Codec, underlayIPv6 bool) int {
	return Overhead(c, underlayIPv6) + EthernetHeaderLen
}

// Framing names a codec in configuration.
type Framing string

// The framings that underlay.encap knows.
const (
	FramingVXLAN      Framing = "vxlan"
	FramingFlannelUDP Framing = "flannel-udp"
)

// DefaultPort returns the UDP port that f uses unless told otherwise.
func (f Framing) DefaultPort() uint16 {
	if f == FramingFlannelUDP {
		return FlannelUDPPort
	}
	return VXLANPort
}

// Codec returns the codec for IP packets in framing f.
func (f Framing) Codec(vni VNI, bits ReservedBits) (Codec, error) {
	switch f {
	case FramingVXLAN:
		return NewVXLANIP(vni, bits), nil
	case FramingFlannelUDP:
		return NewFlannelUDP(), nil
	}
	return nil, fmt.Errorf("encap %q: want %s or %s", f, FramingVXLAN, FramingFlannelUDP)
}
