package vtep

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/tunnel"
)

// What a control socket answers about a tunnel, whichever program runs it.

// Status returns what is known of the tunnel itself; ready says whether the program that runs it is done starting.
func (v *VTEP) Status(ready bool) control.Status {
	s := control.Status{
		Schema: control.SchemaStatus, Version: cli.Version(), PID: os.Getpid(), Started: v.Tunnel.Started(),
		Device:      control.DeviceStatus{Device: v.Config.Device, Up: v.IsUp(), AddressesNow: []string{}},
		Underlay:    control.UnderlayStatus{Underlay: v.Config.Underlay, Device: v.UnderlayName, MTU: v.UnderlayMTU, SourcesUsed: v.SourcePorts},
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
	for _, p := range v.Tunnel.PeerStatus() {
		s.Peers.Total++
		if p.Up() {
			s.Peers.Up++
		}
	}
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

// Peers returns the peers in force.
func (v *VTEP) Peers() control.Peers {
	out := control.Peers{Schema: control.SchemaPeers, Peers: []control.Peer{}}
	for _, p := range v.Tunnel.PeerStatus() {
		peer := control.Peer{
			Name: p.Peer.Name, Endpoint: p.Peer.Endpoint.String(), State: p.State, AllowedIPs: []string{},
			Encap: control.PeerFlow{Packets: p.EncapPackets, Bytes: p.EncapBytes},
			Decap: control.PeerFlow{Packets: p.DecapPackets, Bytes: p.DecapBytes},
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

// Trace says what would become of a packet.
func (v *VTEP) Trace(req control.TraceRequest) (control.Trace, error) {
	r := tunnel.TraceRequest{Data: req.Data, Bare: req.Bare, Frame: req.Frame, OuterTOS: req.TOS}
	if req.Decap {
		r.Direction = tunnel.Decap
		outer, err := netip.ParseAddr(req.Outer)
		if err != nil {
			return control.Trace{}, &control.UsageError{Err: fmt.Errorf("outer source address: %w", err)}
		}
		r.Outer = outer
	}
	return control.Trace{Schema: control.SchemaTrace, TraceResult: v.Tunnel.Trace(r)}, nil
}
