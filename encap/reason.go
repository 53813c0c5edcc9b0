package encap

import "fmt"

// Reason is why a packet was dropped; the zero value, None, means that it was not. The set is closed: the same word
// stands in metrics, logs, `vxlane stats` and `vxlane trace`. Where the kernel has a word (include/net/dropreason-core.h),
// it is the kernel's.
type Reason uint8

// The drop reasons. Their order is the order of tables and never of meaning.
const (
	None Reason = iota
	VXLANInvalidHdr
	VXLANVNINotFound
	PktTooSmall
	PktTooBig
	OuterChecksum
	PeerUnknown
	InnerSourceNotAllowed
	InnerMartian
	NestedTunnel
	MACInvalidSource
	LocalMAC
	OtherHost
	IPTunnelECN
	NotIP
	TTLExpired
	NoTXTarget
	NeighbourUnresolved
	RateLimited
	FloodLimit
	ExtensionNotEnabled
	QueueFull
	TUNWrite
	UDPSend
	numReasons
)

// NumReasons is the number of values of Reason, None included: the size of an array indexed by it.
const NumReasons = int(numReasons)

var reasons = [NumReasons]struct{ word, meaning string }{
	None:                  {"none", "not dropped"},
	VXLANInvalidHdr:       {"vxlan_invalid_hdr", "VXLAN header without the I flag, or with a flag or reserved bit set that the configuration does not accept (underlay.reserved_bits)"},
	VXLANVNINotFound:      {"vxlan_vni_not_found", "VXLAN header with a VNI that no tunnel here has"},
	PktTooSmall:           {"pkt_too_small", "datagram or packet cut off before its headers or its stated length end"},
	PktTooBig:             {"pkt_too_big", "datagram larger than the underlay takes, while it may not be fragmented (underlay.df)"},
	OuterChecksum:         {"udp_csum", "outer IP or UDP checksum that is wrong, or missing over IPv6 (underlay.zero_checksum6.rx), of what came in through the outer TAP device (tier tunnel-gso); what comes to sockets the kernel verifies, and counts as UdpInCsumErrors"},
	PeerUnknown:           {"peer_unknown", "datagram from an outer source address that is no peer's endpoint (underlay.source_check.outer)"},
	InnerSourceNotAllowed: {"inner_source_not_allowed", "inner source address not in the allowed_ips of the peer that sent it (underlay.source_check.inner)"},
	InnerMartian:          {"inner_martian", "inner source that cannot come from a peer: own, loopback, multicast or unspecified address"},
	NestedTunnel:          {"nested_tunnel", "packet that is itself a datagram of this tunnel, to a peer's endpoint or to our own"},
	MACInvalidSource:      {"mac_invalid_source", "inner source MAC that is multicast or zero"},
	LocalMAC:              {"local_mac", "inner source MAC that is this VTEP's own: a loop"},
	OtherHost:             {"otherhost", "inner destination MAC of another host"},
	IPTunnelECN:           {"ip_tunnel_ecn", "congestion mark on the outer header, while the inner packet cannot carry it (RFC 6040 section 4.2)"},
	NotIP:                 {"not_ip", "neither IPv4 nor IPv6, or a header that contradicts itself"},
	TTLExpired:            {"ttl_expired", "TTL used up on the way through a flannel-UDP hop"},
	NoTXTarget:            {"no_tx_target", "no peer's allowed_ips contain the destination"},
	NeighbourUnresolved:   {"neighbour_unresolved", "the peer's MAC is not known: it was asked for and did not answer, or more packets wait for it than may"},
	RateLimited:           {"rate_limited", "over a limit on what this host answers or asks"},
	FloodLimit:            {"flood_limit", "over the limit on replicated broadcast, unknown and multicast frames"},
	ExtensionNotEnabled:   {"extension_not_enabled", "GBP or GPE header, which is not enabled"},
	QueueFull:             {"queue_full", "a bounded queue had no room"},
	TUNWrite:              {"tun_write", "the device refused the packet"},
	UDPSend:               {"udp_send", "the underlay socket refused the datagram"},
}

// String returns the word for r.
func (r Reason) String() string {
	if int(r) >= NumReasons {
		return fmt.Sprintf("reason(%d)", uint8(r))
	}
	return reasons[r].word
}

// Meaning returns one sentence about r, without a full stop.
func (r Reason) Meaning() string {
	if int(r) >= NumReasons {
		return ""
	}
	return reasons[r].meaning
}

// Reasons returns every drop reason, None excluded, in order. The slice is the caller's.
func Reasons() []Reason {
	all := make([]Reason, 0, NumReasons-1)
	for r := None + 1; r < numReasons; r++ {
		all = append(all, r)
	}
	return all
}
