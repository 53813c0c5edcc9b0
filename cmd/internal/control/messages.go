package control

import (
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// Schemas of the answers. Fields are only ever added.
const (
	SchemaStatus = "vxlane/status/v1"
	SchemaList   = "vxlane/list/v1" // several answers, from several tunnels
	SchemaPeers  = "vxlane/peers/v1"
	SchemaApply  = "vxlane/peer-apply/v1"
	SchemaStats  = "vxlane/stats/v1"
	SchemaTrace  = "vxlane/trace/v1"
	SchemaReload = "vxlane/reload/v1"
	SchemaFDB    = "vxlane/fdb/v1"
	SchemaEvent  = "vxlane/fdb-event/v1"
	SchemaEdit   = "vxlane/fdb-change/v1"
)

// Status is what a tunnel is and how it is.
type Status struct {
	Schema       string              `json:"schema"`
	Version      string              `json:"version"`
	PID          int                 `json:"pid"`
	Started      time.Time           `json:"started"`
	Device       DeviceStatus        `json:"device"`
	Underlay     UnderlayStatus      `json:"underlay"`
	Tier         tunnel.Tier         `json:"tier"`
	Capabilities []tunnel.Capability `json:"capabilities"`
	Peers        PeerCount           `json:"peers"`
	Paths        []string            `json:"paths"` // black holes on the way to peers, and peers of which they could not be found
	Config       *ConfigStatus       `json:"config,omitempty"`
	HostChanges  []string            `json:"host_changes"` // what was changed beyond the tunnel's own device and routes
	Degraded     []string            `json:"degraded"`     // what is wrong; empty when all is well
}

// DeviceStatus is the overlay end.
type DeviceStatus struct {
	static.Device
	Up bool `json:"up"`
	// AddressesNow are the addresses that the device has, whoever gave them to it.
	AddressesNow []string `json:"addresses_now"`
}

// UnderlayStatus is the underlay end.
type UnderlayStatus struct {
	static.Underlay
	Device      string   `json:"device"` // that has the local address
	MTU         int      `json:"mtu"`
	SourcesUsed []uint16 `json:"source_ports_used"`
}

// PeerCount says how many peers there are, and how many of them can be sent to.
type PeerCount struct {
	Total int `json:"total"`
	Up    int `json:"up"`
}

// ConfigStatus is about the configuration file.
type ConfigStatus struct {
	File       string    `json:"file"`
	LastReload time.Time `json:"last_reload"`
	OK         bool      `json:"ok"`
	Error      string    `json:"error,omitempty"`
}

// Peers is the set of peers in force.
type Peers struct {
	Schema string `json:"schema"`
	Peers  []Peer `json:"peers"`
}

// Peer is one of them.
type Peer struct {
	Name        string                `json:"name"`
	Endpoint    string                `json:"endpoint"`
	MAC         string                `json:"mac"` // configured or resolved; empty when not known
	State       tunnel.NeighbourState `json:"state"`
	AllowedIPs  []string              `json:"allowed_ips"`
	Supers      bool                  `json:"super_packets"` // may be sent to it whole
	Encap       PeerFlow              `json:"encap"`
	Decap       PeerFlow              `json:"decap"`
	LastReceive *time.Time            `json:"last_receive"` // null when nothing was received
	Path        PeerPath              `json:"path"`
}

// PeerPath is what is known of the way to a peer.
type PeerPath struct {
	MTU       int    `json:"mtu"`        // bytes of the largest outer IP packet that is known to arrive; 0 when nothing is known
	BlackHole bool   `json:"black_hole"` // larger ones vanish without an ICMP error
	Echo      string `json:"echo"`       // unknown, answered or silent: whether a black hole can be found
}

// PeerFlow counts one direction of a peer.
type PeerFlow struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Stats are a tunnel's counters.
type Stats struct {
	Schema string `json:"schema"`
	Device string `json:"device"`
	tunnel.Stats
	Syscalls       map[string]uint64 `json:"syscalls"`
	QueueOverflows uint64            `json:"udp_receive_queue_overflows"`
	DeviceErrors   map[string]uint64 `json:"tun_errors"`         // by errno
	ReceiveErrors  map[string]uint64 `json:"udp_receive_errors"` // by errno
	OuterDrops     map[string]uint64 `json:"outer_drops"`        // tunnel-gso: by what the host's routes said
}

// FDB is the forwarding database of a tunnel in Ethernet mode.
type FDB struct {
	Schema  string            `json:"schema"`
	Device  string            `json:"device"`
	Entries []tunnel.FDBEntry `json:"entries"`
	Stats   tunnel.FDBStats   `json:"stats"`
}

// FDBEvent is one change of it.
type FDBEvent struct {
	Schema string `json:"schema"`
	Device string `json:"device"`
	tunnel.FDBEvent
}

// FDBRequest changes it.
type FDBRequest struct {
	Op   string `json:"op"`             // add, del or flush
	MAC  string `json:"mac,omitempty"`  // add and del: the station
	VLAN uint16 `json:"vlan,omitempty"` // add and del: its VLAN
	Peer string `json:"peer,omitempty"` // add: the peer that it is behind; flush: entries of this peer alone
	All  bool   `json:"all,omitempty"`  // flush: static entries, too
}

// FDBChange says what a request changed.
type FDBChange struct {
	Schema string `json:"schema"`
	Count  int    `json:"count"` // of entries
}

// TraceRequest asks what would happen to a packet.
type TraceRequest struct {
	Decap bool   `json:"decap"` // as the underlay would deliver it; else as the device would
	Data  []byte `json:"data"`  // packet; with decap, the datagram's payload
	Bare  bool   `json:"bare"`  // with decap, or in Ethernet mode: data is the packet, to be framed as the peer or a station would
	Frame bool   `json:"frame"` // with decap: data is an Ethernet frame without its VXLAN header
	Outer string `json:"outer"` // with decap: outer source address
	TOS   uint8  `json:"tos"`   // with decap: outer TOS

	// Stations of the frame that is made of a bare packet in Ethernet mode, and its VLAN; empty and 0 where the configuration says.
	FromMAC encap.MAC `json:"from_mac"`
	ToMAC   encap.MAC `json:"to_mac"`
	VLAN    uint16    `json:"vlan"`
}

// Trace is the answer.
type Trace struct {
	Schema string `json:"schema"`
	tunnel.TraceResult
}

// Change says what a new set of peers changed.
type Change struct {
	Schema string `json:"schema"`
	Result string `json:"result"` // a sentence
	static.Report
	// Problems are what did not work although the peers are in force, such as routes that another device has.
	Problems []string `json:"problems"`
}

// Error is what a refused request gets.
type Error struct {
	Error string `json:"error"`
	// Usage: the request was wrong, not the tunnel.
	Usage bool `json:"usage"`
}
