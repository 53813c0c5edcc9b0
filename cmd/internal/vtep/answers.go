package vtep

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/tunnel"
)

// What a control socket answers about a tunnel, whichever program runs it.

// Status returns what is known of the tunnel itself; ready says whether the program that runs it is done starting.
func (v *VTEP) Status(ready bool) control.Status {
	s := control.Status{
		Schema: control.SchemaStatus, Version: cli.Version(), PID: os.Getpid(), Started: v.Tunnel.Started(),
		Device:      control.DeviceStatus{Device: v.Config.Device, Up: v.IsUp(), AddressesNow: []string{}},
		Underlay:    control.UnderlayStatus{Underlay: v.Config.Underlay, Device: v.Underlay.Name, MTU: v.Underlay.MTU, SourcesUsed: v.SourcePorts},
		Tier:        v.Tier(),
		HostChanges: append([]string{}, v.HostChanges()...), Degraded: []string{},
		Capabilities: v.Capabilities(),
	}
	addrs, err := v.Addresses()
	if err != nil {
		s.Degraded = append(s.Degraded, err.Error())
	}
	for _, a := range addrs {
		s.Device.AddressesNow = append(s.Device.AddressesNow, a.String())
	}
	peers := v.Tunnel.PeerStatus()
	for _, p := range peers {
		s.Peers.Total++
		if p.Up() {
			s.Peers.Up++
		}
	}
	s.Paths = oddPaths(peers)
	if err := v.RouteErr(); err != nil {
		s.Degraded = append(s.Degraded, err.Error())
	}
	switch {
	case !ready:
		s.Degraded = append(s.Degraded, "not ready yet")
	case !s.Device.Up:
		s.Degraded = append(s.Degraded, fmt.Sprintf("device %s is down: ip link set %s up", v.Config.Device.Name, v.Config.Device.Name))
	}
	return s
}

// oddPaths says which peers are behind a black hole, and of which nobody could tell.
func oddPaths(peers []tunnel.PeerStatus) []string {
	all, silent := []string{}, []string{}
	for _, p := range peers {
		switch {
		case p.BlackHole:
			all = append(all, fmt.Sprintf("black hole to %s: of more than %d bytes nothing arrives, and no ICMP error tells of it; senders are told by this end", p.Peer.Name, p.PathMTU))
		case p.Echo == routing.EchoSilent:
			silent = append(silent, p.Peer.Name)
		}
	}
	const most = 10
	if len(silent) > most {
		silent = append(silent[:most], fmt.Sprintf("%d more", len(silent)-most))
	}
	if len(silent) > 0 {
		all = append(all, fmt.Sprintf("no answer to ICMP echo from %s: a black hole on the way there would not be found", strings.Join(silent, ", ")))
	}
	return all
}

// Peers returns the peers in force.
func (v *VTEP) Peers() control.Peers {
	out := control.Peers{Schema: control.SchemaPeers, Peers: []control.Peer{}}
	for _, p := range v.Tunnel.PeerStatus() {
		peer := control.Peer{
			Name: p.Peer.Name, Endpoint: p.Peer.Endpoint.String(), State: p.State, AllowedIPs: []string{}, Supers: !p.Peer.Segmented,
			Encap: control.PeerFlow{Packets: p.EncapPackets, Bytes: p.EncapBytes},
			Decap: control.PeerFlow{Packets: p.DecapPackets, Bytes: p.DecapBytes},
			Path:  control.PeerPath{MTU: p.PathMTU, BlackHole: p.BlackHole, Echo: p.Echo.String()},
		}
		if mac := p.Peer.LinkAddr(); !mac.IsZero() {
			peer.MAC = mac.String()
		}
		for _, prefix := range p.Peer.AllowedIPs {
			peer.AllowedIPs = append(peer.AllowedIPs, prefix.String())
		}
		if !p.LastReceive.IsZero() {
			peer.LastReceive = &p.LastReceive
		}
		out.Peers = append(out.Peers, peer)
	}
	return out
}

// Stats returns the counters.
func (v *VTEP) Stats() control.Stats {
	c := v.Counts()
	return control.Stats{
		Schema: control.SchemaStats, Device: v.Config.Device.Name, Stats: v.Tunnel.Stats(),
		Syscalls: c.Syscalls, QueueOverflows: c.QueueOverflows, DeviceErrors: c.DeviceErrors, ReceiveErrors: c.ReceiveErrors, OuterDrops: c.OuterDrops,
	}
}

// FDB returns the forwarding database.
func (v *VTEP) FDB() (control.FDB, error) {
	entries, stats, err := v.Tunnel.FDB()
	if err != nil {
		return control.FDB{}, &control.UsageError{Err: err}
	}
	return control.FDB{Schema: control.SchemaFDB, Device: v.Config.Device.Name, Entries: entries, Stats: stats}, nil
}

// ChangeFDB changes the forwarding database as asked.
func (v *VTEP) ChangeFDB(req control.FDBRequest) (control.FDBChange, error) {
	n, err := v.changeFDB(req)
	if err != nil {
		return control.FDBChange{}, &control.UsageError{Err: err}
	}
	return control.FDBChange{Schema: control.SchemaEdit, Count: n}, nil
}

func (v *VTEP) changeFDB(req control.FDBRequest) (int, error) {
	if req.Op == "flush" {
		if req.Peer != "" && v.Tunnel.Peers().LookupName(req.Peer) == nil {
			return 0, fmt.Errorf("peer %q: there is none of that name; see vxlane peer list", req.Peer)
		}
		return v.Tunnel.DeleteFDB(func(_ tunnel.FDBKey, e tunnel.FDBEntry) bool {
			return (req.All || e.Kind == tunnel.FDBLearned) && (req.Peer == "" || req.Peer == e.Peer)
		})
	}
	mac, err := encap.ParseMAC(req.MAC)
	if err != nil {
		return 0, err
	}
	key := tunnel.FDBKey{MAC: mac, VLAN: req.VLAN}
	if req.VLAN > 0 && (!v.Config.FDB.VLANs || req.VLAN > 4094) {
		return 0, fmt.Errorf("vlan %d: want 1-4094, and fdb.vlans: true in the configuration", req.VLAN)
	}
	if mac.IsZero() {
		return 0, fmt.Errorf("mac %s: stands for those who get what is for all; they follow from fdb.flood and fdb.group in the configuration", mac)
	}
	switch req.Op {
	case "add":
		return 1, v.Tunnel.AddFDB(key, req.Peer)
	case "del":
		n, err := v.Tunnel.DeleteFDB(func(k tunnel.FDBKey, _ tunnel.FDBEntry) bool { return k == key })
		if err == nil && n == 0 {
			err = fmt.Errorf("mac %s: there is no static or learned entry; see vxlane fdb show", mac)
		}
		return n, err
	}
	return 0, fmt.Errorf("operation %q: want add, del or flush", req.Op)
}

// WatchFDB sends changes of the forwarding database.
func (v *VTEP) WatchFDB(ctx context.Context) (<-chan tunnel.FDBEvent, error) {
	events, err := v.Tunnel.WatchFDB(ctx)
	if err != nil {
		return nil, &control.UsageError{Err: err}
	}
	return events, nil
}

// Trace says what would become of a packet.
func (v *VTEP) Trace(req control.TraceRequest) (control.Trace, error) {
	r := tunnel.TraceRequest{Data: req.Data, Bare: req.Bare, Frame: req.Frame, OuterTOS: req.TOS, From: req.FromMAC, To: req.ToMAC, VLAN: req.VLAN}
	if req.Decap {
		r.Direction = tunnel.Decap
		outer, err := netip.ParseAddr(req.Outer)
		if err != nil {
			return control.Trace{}, &control.UsageError{Err: fmt.Errorf("outer source address: %w", err)}
		}
		r.Outer = outer
	}
	result, err := v.Tunnel.Trace(r)
	if err != nil {
		return control.Trace{}, &control.UsageError{Err: fmt.Errorf("trace: %w", err)}
	}
	return control.Trace{Schema: control.SchemaTrace, TraceResult: result}, nil
}
