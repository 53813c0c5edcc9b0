// Package vtep puts a tunnel together as a command runs it: device, sockets, workers, and what the host is told of them
// (MTU, addresses, routes), and takes all of it down again.
package vtep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// VTEP is one tunnel of this host.
type VTEP struct {
	Config        static.Tunnel // with every default filled in
	Tunnel        *tunnel.Tunnel
	UnderlayName  string // device that has the underlay address
	UnderlayMTU   int
	SourcePorts   []uint16
	device        *tunnel.TUN
	underlay      *tunnel.UDP
	link          *tunnel.Link
	log           *slog.Logger
	routesWanted  bool
	deviceAddress []netip.Prefix
}

// ConfigError is a configuration that this host cannot run.
type ConfigError struct{ err error }

func (e *ConfigError) Error() string { return e.err.Error() }
func (e *ConfigError) Unwrap() error { return e.err }

// Open makes the device and the sockets. Nothing on the host is changed beyond that until Start. key names the tunnel
// in errors.
func Open(c static.Tunnel, key string, log *slog.Logger) (*VTEP, error) {
	v := &VTEP{Config: c, log: log, routesWanted: c.Routes, deviceAddress: c.Device.Addresses}
	if err := v.completeFromHost(key); err != nil {
		return nil, err
	}
	if err := v.open(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// completeFromHost fills in the defaults that depend on this host, and checks the MTU against it.
func (v *VTEP) completeFromHost(key string) error {
	u, d := &v.Config.Underlay, &v.Config.Device
	var err error
	if v.UnderlayName, v.UnderlayMTU, err = tunnel.UnderlayLink(u.Local); err != nil {
		return &ConfigError{fmt.Errorf("%s.%w", key, err)}
	}
	codec, err := u.Encap.Codec(encap.VNI(u.VNI), u.ReservedBits.Bits())
	if err != nil {
		return &ConfigError{fmt.Errorf("%s.underlay.%w", key, err)}
	}
	overhead := encap.Overhead(codec, u.Local.Is6())
	room := v.UnderlayMTU - overhead
	switch {
	case d.MTU == 0:
		d.MTU = min(room, 65535)
	case d.MTU > room:
		return &ConfigError{fmt.Errorf("%s.device.mtu: %d does not fit the underlay: %s has MTU %d, and %s over it adds %d bytes; use %d or less, or raise the MTU of %s",
			key, d.MTU, v.UnderlayName, v.UnderlayMTU, u.Encap, overhead, room, v.UnderlayName)}
	}
	if d.Queues == 0 {
		d.Queues = runtime.GOMAXPROCS(0)
	}
	return nil
}

func (v *VTEP) open() error {
	u, d := &v.Config.Underlay, &v.Config.Device
	var err error
	if v.device, err = tunnel.OpenTUN(d.Name, d.Queues); err != nil {
		return explainDevice(err)
	}
	d.Name = v.device.Name()
	if v.underlay, err = tunnel.OpenUDP(v.udpConfig()); err != nil {
		return explainUnderlay(err, u)
	}
	v.SourcePorts = v.underlay.SourcePorts()
	v.Tunnel, err = tunnel.New(tunnel.Config{
		Framing: u.Encap, VNI: encap.VNI(u.VNI), ReservedBits: u.ReservedBits.Bits(), MAC: d.MAC,
		Local: u.Local, Port: u.Port, MTU: d.MTU,
		TTLInherit: u.TTL.Inherit, TOSInherit: u.TOS.Inherit, TOS: u.TOS.Value,
		OuterCheck: u.SourceCheck.Outer, InnerCheck: u.SourceCheck.Inner,
		Log: v.log,
	}, v.device, v.underlay)
	if err != nil {
		return err
	}
	v.link, err = tunnel.OpenLink(d.Name, v.log)
	return err
}

func (v *VTEP) udpConfig() tunnel.UDPConfig {
	u := &v.Config.Underlay
	df := map[static.DF]tunnel.DFPolicy{static.DFUnset: tunnel.DFUnset, static.DFSet: tunnel.DFSet, static.DFInherit: tunnel.DFInherit}
	return tunnel.UDPConfig{
		Local: u.Local, Port: u.Port, Receivers: v.Config.Device.Queues,
		SourceLow: u.SourcePorts.Range.Low, SourceHigh: u.SourcePorts.Range.High, Buckets: u.SourcePorts.Buckets,
		TTL: u.TTL.Value, TOS: u.TOS.Value, DF: df[u.DF], NoChecksum: !u.Checksum,
		NoChecksum6TX: u.ZeroChecksum6.TX, NoChecksum6RX: u.ZeroChecksum6.RX,
	}
}

// Run moves packets until ctx ends; ready is called once it does. Everything is taken down before it returns.
func (v *VTEP) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := v.link.Up(v.Config.Device.MTU); err != nil {
		return errors.Join(err, v.Close())
	}
	finished := make(chan error, 1)
	go func() { finished <- v.Tunnel.Run(ctx) }()
	err := v.announce(ctx)
	if err == nil {
		ready()
		err = <-finished
	} else {
		cancel()
		err = errors.Join(err, <-finished)
	}
	return errors.Join(err, v.Close())
}

// announce tells the host about the tunnel, which moves packets already.
func (v *VTEP) announce(ctx context.Context) error {
	if err := v.link.AddAddresses(v.deviceAddress); err != nil {
		return err
	}
	if err := v.link.WatchAddresses(ctx, v.Tunnel.SetAddresses); err != nil {
		return err
	}
	if _, err := v.Tunnel.SetPeers(v.Config.RoutingPeers()); err != nil {
		return &ConfigError{err}
	}
	return v.syncRoutes()
}

// SetPeers replaces the whole set of peers, and the routes to them.
func (v *VTEP) SetPeers(peers []routing.Peer) (routing.Change, error) {
	change, err := v.Tunnel.SetPeers(peers)
	if err != nil {
		return change, err
	}
	if err := v.syncRoutes(); err != nil {
		v.log.Error("some routes are missing", "device", v.Config.Device.Name, "err", err)
	}
	return change, nil
}

func (v *VTEP) syncRoutes() error {
	if !v.routesWanted {
		return nil
	}
	var prefixes []netip.Prefix
	for _, p := range v.Tunnel.Peers().Peers() {
		prefixes = append(prefixes, p.AllowedIPs...)
	}
	return v.link.SetRoutes(prefixes)
}

// Close takes down what Open and Run have put up. It can be called at any stage.
func (v *VTEP) Close() error {
	var errs []error
	if v.link != nil {
		errs = append(errs, v.link.Undo())
	}
	if v.device != nil {
		errs = append(errs, v.device.Close())
	}
	if v.underlay != nil {
		errs = append(errs, v.underlay.Close(), v.underlay.CloseSenders())
	}
	return errors.Join(errs...)
}

// IsUp reports whether the device is there and up.
func (v *VTEP) IsUp() bool { return v.link.IsUp() }

// Addresses returns the addresses that the device has now.
func (v *VTEP) Addresses() ([]netip.Prefix, error) { return v.link.Addresses() }

// Counts returns what the kernel interfaces count.
func (v *VTEP) Counts() tunnel.Counts {
	c := tunnel.Counts{Syscalls: make(map[string]uint64), DeviceErrors: make(map[string]uint64)}
	v.device.AddTo(&c)
	v.underlay.AddTo(&c)
	return c
}

// Capabilities returns the kernel features, in use and not.
func (v *VTEP) Capabilities() []tunnel.Capability { return tunnel.Capabilities(v.Config.Device.Queues) }
