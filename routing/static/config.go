// Package static is the control plane of a tunnel that is described in a file: the configuration file's schema, its
// strict reader, its reference documentation, and the Source that follows the file.
//
// The struct tags are the reference: default and doc make docs/configuration.md.
package static

import (
	"crypto/sha256"
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/encap"
)

// Config is the whole configuration file.
type Config struct {
	Version int      `yaml:"version" json:"version" default:"required" doc:"Version of this format: 1."`
	Tunnels []Tunnel `yaml:"tunnels" json:"tunnels" default:"required" doc:"The tunnels of this process, at least one."`
	Metrics Metrics  `yaml:"metrics" json:"metrics"`

	read   fileStamp         // state of the file when it was read, so that no later change is missed
	digest [sha256.Size]byte // of what was read
}

// Tunnel is one device, the underlay that it uses, and its peers.
type Tunnel struct {
	Device   Device   `yaml:"device" json:"device"`
	Underlay Underlay `yaml:"underlay" json:"underlay"`
	Peers    []Peer   `yaml:"peers" json:"peers" default:"[]" doc:"The remote ends, all of them; can change while the tunnel runs."`
	Routes   bool     `yaml:"routes" json:"routes" default:"true, in tap mode false" doc:"Add a route through the device for each of the peers' allowed_ips. A device that is a port of a bridge has none of its own."`
	Tier     Tier     `yaml:"tier" json:"tier" default:"auto" doc:"Kernel offloads to use: auto (the best that works here), or one tier by name: tunnel-gso (TCP super-packets leave whole through a second device, and what arrives comes in through it, past netfilter; Linux 6.17, CAP_BPF), udp-gso (super-packets through the device, trains through the sockets), portable (neither: what a kernel that damages them leaves). With tunnel-gso, a peer on this same machine that is neither vxlane nor the kernel must take datagrams of 64 KB, or have super_packets: false."`
	FDB      FDB      `yaml:"fdb" json:"fdb"`
}

// Device is the overlay end of a tunnel.
type Device struct {
	Name      string         `yaml:"name" json:"name" default:"vxlane0, vxlane1, …" doc:"Name of the device: at most 15 characters. By default the first free number."`
	Mode      Mode           `yaml:"mode" json:"mode" default:"tun" doc:"What the device carries: tun (IP packets) or tap (Ethernet frames; the device can be a port of a bridge)."`
	Addresses []netip.Prefix `yaml:"addresses" json:"addresses" default:"[]" doc:"Addresses of the device, with prefix length."`
	MTU       int            `yaml:"mtu" json:"mtu" default:"underlay MTU - 50" doc:"Largest packet of the device, in bytes: 68-65535, 1280 or more with IPv6. The default leaves room for the outer headers: vxlan 50, over IPv6 70; flannel-udp 28, over IPv6 48."`
	MAC       encap.MAC      `yaml:"mac" json:"mac" default:"from local and vni" doc:"MAC of this VTEP, in tap mode the device's. The default is derived, so that it outlives restarts."`
	Queues    int            `yaml:"queues" json:"queues" default:"0" doc:"Queues of the device, each with its own worker: 0-128; 0 means one for every two cores, one at least."`
}

// Underlay is the network that the datagrams cross.
type Underlay struct {
	Encap         encap.Framing `yaml:"encap" json:"encap" default:"vxlan" doc:"Framing: vxlan (RFC 7348) or flannel-udp (flannel's udp backend: bare IPv4 packets)."`
	VNI           uint32        `yaml:"vni" json:"vni" default:"1" doc:"VXLAN network identifier: 0-16777215. Unused by flannel-udp."`
	Local         netip.Addr    `yaml:"local" json:"local" default:"required" doc:"Address of this host that datagrams leave from and arrive at: IPv4 or IPv6."`
	Port          uint16        `yaml:"port" json:"port" default:"8472" doc:"UDP port: 1-65535. By default 8472, with flannel-udp 8285."`
	SourcePorts   SourcePorts   `yaml:"source_ports" json:"source_ports"`
	TTL           TTL           `yaml:"ttl" json:"ttl" default:"64" doc:"TTL (hop limit) of the outer header: 1-255, inherit to copy the packet's, or auto for the system's default (to a multicast group 1)."`
	TOS           TOS           `yaml:"tos" json:"tos" default:"inherit" doc:"TOS (traffic class) of the outer header: 0-255, or inherit to copy the packet's. The ECN bits always follow RFC 6040."`
	DF            DF            `yaml:"df" json:"df" default:"unset" doc:"Don't-fragment bit of the outer header: unset, set, or inherit to copy the packet's. Over IPv6, set forbids fragmentation at this host."`
	Checksum      bool          `yaml:"checksum" json:"checksum" default:"true" doc:"Outer UDP checksum over IPv4. Receiving accepts datagrams with and without."`
	ZeroChecksum6 ZeroChecksum6 `yaml:"zero_checksum6" json:"zero_checksum6"`
	ReservedBits  ReservedBits  `yaml:"reserved_bits" json:"reserved_bits" default:"strict" doc:"VXLAN header with a flag or reserved bit set: strict drops it, as Linux does; ignore accepts it, as RFC 7348 says."`
	PathProbe     bool          `yaml:"path_probe" json:"path_probe" default:"true" doc:"Find paths that drop large datagrams without an ICMP error, by ICMP echo requests of that size to the peers, while such datagrams go there. Only where datagrams are not fragmented on the way: df set or inherit, and IPv6. Turn it off where a firewall drops large ICMP, but not large UDP."`
	KernelGRO     bool          `yaml:"kernel_gro" json:"kernel_gro" default:"true" doc:"Tier tunnel-gso only, where the underlay's device does GRO at the start: let the kernel merge the TCP that comes in, by a vxlan device of its own that has the port, on all addresses of the host, instead of this tunnel's sockets. UDP is not merged then, unless the device has rx-udp-gro-forwarding."`
	SourceCheck   SourceCheck   `yaml:"source_check" json:"source_check"`
}

// SourcePorts says which UDP ports datagrams are sent from.
type SourcePorts struct {
	Range   PortRange `yaml:"range" json:"range" default:"32768-60999" doc:"Ports that datagrams are sent from; a flow keeps its port."`
	Buckets int       `yaml:"buckets" json:"buckets" default:"16" doc:"How many ports of the range are in use, each a socket: 1-256. Flows are spread over them by their hash."`
}

// ZeroChecksum6 is about UDP over IPv6 without a checksum (RFC 6935, RFC 6936).
type ZeroChecksum6 struct {
	TX bool `yaml:"tx" json:"tx" default:"false" doc:"Send datagrams over IPv6 without a UDP checksum."`
	RX bool `yaml:"rx" json:"rx" default:"false" doc:"Accept datagrams over IPv6 without a UDP checksum."`
}

// SourceCheck says what is checked of a datagram's origin. These are reverse-path checks, not authentication.
type SourceCheck struct {
	Outer Check `yaml:"outer" json:"outer" default:"true" doc:"The outer source address must be a peer's endpoint: true drops what fails, count delivers and counts it, false does not look."`
	Inner Check `yaml:"inner" json:"inner" default:"true" doc:"The inner source address must be in the allowed_ips of the peer that sent it: true, count or false, as for outer."`
}

// Peer is one remote end.
type Peer struct {
	Name         string    `yaml:"name" json:"name" default:"the endpoint" doc:"Name of the peer, unique in the tunnel; counters follow it over reloads."`
	Endpoint     Endpoint  `yaml:"endpoint" json:"endpoint" default:"required" doc:"Underlay address of the peer, with or without a port; the port is the tunnel's unless given."`
	MAC          encap.MAC `yaml:"mac" json:"mac" default:"asked for" doc:"MAC of the peer's VTEP. By default asked for by ARP or neighbour discovery of the first single host in allowed_ips. In tap mode a static forwarding entry, and optional."`
	AllowedIPs   []Prefix  `yaml:"allowed_ips" json:"allowed_ips" default:"required in tun mode" doc:"Addresses behind the peer: packets to them go to it, and only packets from them are accepted from it. The longest prefix wins. In tap mode optional: frames go by their MAC, and IP packets from other addresses are not accepted from the peer."`
	SuperPackets bool      `yaml:"super_packets" json:"super_packets" default:"true" doc:"Tier tunnel-gso only: send TCP super-packets to the peer whole, which the host or its NIC segments on the way out. false for a peer on this same machine that receives through sockets without room for 64 KB; it gets what udp-gso sends."`
}

// FDB configures the forwarding database of tap mode. It has no effect in tun mode.
type FDB struct {
	Learning  bool       `yaml:"learning" json:"learning" default:"false" doc:"Tap mode only: learn MACs from received frames. Where source_check.outer lets frames of VTEPs pass that are no peers, what is behind those is learned as well."`
	Ageing    Duration   `yaml:"ageing" json:"ageing" default:"300s" doc:"Tap mode only: how long a learned MAC stays without traffic."`
	Limit     int        `yaml:"limit" json:"limit" default:"4096" doc:"Tap mode only: how many learned MACs there may be."`
	PeerLimit int        `yaml:"peer_limit" json:"peer_limit" default:"1024" doc:"Tap mode only: how many learned MACs there may be behind one peer."`
	VLANs     bool       `yaml:"vlans" json:"vlans" default:"false" doc:"Tap mode only: look MACs up by VLAN, too; a MAC may then be behind one peer in one VLAN and behind another in the next."`
	Flood     Flood      `yaml:"flood" json:"flood" default:"all" doc:"Tap mode only: who gets broadcast, unknown and multicast frames: all, none, or a list of peer names."`
	Group     netip.Addr `yaml:"group" json:"group" default:"\"\"" doc:"Tap mode only: underlay multicast group for such frames, such as 239.1.1.1 or ff05::100, joined on the device that has underlay.local, or when that is the loopback device on the one that the route to the group says. They go to it instead of to all peers one by one, and besides to those that flood lists. Its datagrams have the TTL of the others, with ttl: auto 1."`
	Suppress  Suppress   `yaml:"suppress" json:"suppress" default:"false" doc:"Tap mode only: answer ARP and neighbour discovery of the device here where peers' mac and a single host in allowed_ips say what the answer is. true floods what is not known, as flood says; drop drops it. Announcements, and probes of one's own address, always pass."`
}

// Metrics configures the Prometheus endpoint.
type Metrics struct {
	Listen   string `yaml:"listen" json:"listen" default:"\"\" (off)" doc:"Address and port that serves /metrics, such as 127.0.0.1:9472."`
	MaxPeers int    `yaml:"max_peers" json:"max_peers" default:"1000" doc:"How many peers have series of their own; the rest are summed up as peer=\"other\"."`
}

// The defaults below are what a section has before the file is read. Those that depend on other keys are filled in by
// complete.

func (t *Tunnel) setDefaults() { t.Routes, t.Tier = true, TierAuto }

func (d *Device) setDefaults() { d.Mode = ModeTUN }

func (u *Underlay) setDefaults() {
	*u = Underlay{Encap: encap.FramingVXLAN, VNI: 1, TTL: TTL{Value: 64}, TOS: TOS{Inherit: true}, DF: DFUnset,
		Checksum: true, ReservedBits: ReservedStrict, PathProbe: true, KernelGRO: true}
}

func (s *SourcePorts) setDefaults() { *s = SourcePorts{Range: PortRange{32768, 60999}, Buckets: 16} }

func (s *SourceCheck) setDefaults() { *s = SourceCheck{Outer: CheckEnforce, Inner: CheckEnforce} }

func (p *Peer) setDefaults() { p.SuperPackets = true }

func (f *FDB) setDefaults() {
	*f = FDB{Ageing: Duration(300 * time.Second), Limit: 4096, PeerLimit: 1024, Flood: Flood{All: true}, Suppress: SuppressOff}
}

func (m *Metrics) setDefaults() { m.MaxPeers = 1000 }

// NewTunnel returns a tunnel with every default that depends on no other key.
func NewTunnel() Tunnel {
	var t Tunnel
	applyDefaults(&t)
	return t
}

// NewPeer returns a peer with every default that depends on no other key.
func NewPeer() Peer {
	var p Peer
	applyDefaults(&p)
	return p
}

// complete fills in the defaults that follow from other keys.
func (t *Tunnel) complete() {
	if t.Underlay.Port == 0 {
		t.Underlay.Port = t.Underlay.Encap.DefaultPort()
	}
	t.Underlay.Local = t.Underlay.Local.Unmap()
	if t.Device.MAC.IsZero() {
		t.Device.MAC = deriveMAC(t.Underlay.Local, t.Underlay.VNI)
	}
	t.completePeers(t.Peers)
}

func (t *Tunnel) completePeers(peers []Peer) {
	for i := range peers {
		p := &peers[i]
		if !p.Endpoint.IsValid() {
			continue
		}
		addr, port := p.Endpoint.Addr().Unmap(), p.Endpoint.Port()
		if p.Name == "" {
			p.Name = addr.String()
			if port != 0 && port != t.Underlay.Port {
				p.Name = netip.AddrPortFrom(addr, port).String()
			}
		}
		if port == 0 {
			port = t.Underlay.Port
		}
		p.Endpoint = Endpoint{netip.AddrPortFrom(addr, port)}
	}
}
