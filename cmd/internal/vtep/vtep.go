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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// VTEP is one tunnel of this host.
type VTEP struct {
	Config      static.Tunnel // with every default filled in
	Tunnel      *tunnel.Tunnel
	Underlay    tunnel.UnderlayDevice
	SourcePorts []uint16
	options     Options
	device      *tunnel.TUN
	underlay    *tunnel.UDP
	link        *tunnel.Link
	echo        *tunnel.ICMPEcho // nil where noEcho says why not
	noEcho      error
	groupDevice tunnel.UnderlayDevice // with a group
	log         *slog.Logger

	direct *directRoutes // nil without Options.Direct

	mu       sync.Mutex // held while the set of peers changes, and the routes with it
	ready    bool
	routeErr error
}

// Options are what a program wants of a tunnel beyond its configuration.
type Options struct {
	// Reserved are ports that the program will receive on, which are not to be sent from.
	Reserved []uint16
	// Port, when not nil, is the underlay port that the tunnel shares with others of this process.
	Port *tunnel.SharedPort
	// Keep leaves device, addresses and routes behind at the end, and takes over what was left.
	Keep bool
	// Network, when valid, is what the one route through the device leads to, instead of one for each of the peers' prefixes.
	Network netip.Prefix
	// Direct, when not nil, says whether packets for a peer with that endpoint are to be routed to it past the tunnel; DirectWithin
	// holds the prefixes of all peers. The routes stay behind as Keep has it; without Direct, those that were left are removed.
	Direct       func(endpoint netip.Addr) bool
	DirectWithin netip.Prefix
}

// ErrNotReady is what SetPeers answers before the tunnel runs.
var ErrNotReady = errors.New("the tunnel is not ready yet; try again in a moment")

// maxDatagram is the largest IP packet, whatever the MTU of the loopback device says.
const maxDatagram = 65535

// ConfigError is a configuration that this host cannot run.
type ConfigError struct{ err error }

func (e *ConfigError) Error() string { return e.err.Error() }
func (e *ConfigError) Unwrap() error { return e.err }

// Open makes the device and the sockets. Nothing on the host is changed beyond that until Run. key names the tunnel
// in errors.
func Open(c static.Tunnel, key string, o Options, log *slog.Logger) (*VTEP, error) {
	v := &VTEP{Config: c, options: o, log: log}
	if err := v.completeFromHost(key); err != nil {
		return nil, err
	}
	if err := v.open(); err != nil {
		if v.device != nil {
			err = errors.Join(err, v.device.Discard())
			v.device = nil
		}
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// completeFromHost fills in the defaults that depend on this host, and checks the MTU against it.
func (v *VTEP) completeFromHost(key string) error {
	u, d := &v.Config.Underlay, &v.Config.Device
	var err error
	if v.Underlay, err = tunnel.UnderlayLink(u.Local); err != nil {
		return &ConfigError{fmt.Errorf("%s.%w", key, err)}
	}
	v.groupDevice = v.Underlay
	if v.Underlay.Loopback && !u.Local.IsLoopback() {
		v.Underlay = v.routed()
		if v.group().IsValid() {
			if v.groupDevice, err = tunnel.RouteLink(v.group()); err != nil {
				return &ConfigError{fmt.Errorf("%s.fdb.group: %w: underlay.local is an address of the loopback device, so a route says which device the group is on: ip route add %s dev DEVICE", key, err, v.group())}
			}
		}
	}
	codec, err := u.Encap.Codec(encap.VNI(u.VNI), u.ReservedBits.Bits())
	if err != nil {
		return &ConfigError{fmt.Errorf("%s.underlay.%w", key, err)}
	}
	overhead := encap.Overhead(codec, u.Local.Is6()) // a frame's own header is a part of the IP codec's, and no part of a TAP device's MTU
	room := min(v.Underlay.MTU, maxDatagram) - overhead
	lowest := 68
	if slices.ContainsFunc(d.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		lowest = 1280
	}
	switch {
	case room < lowest:
		return &ConfigError{fmt.Errorf("%s.device.mtu: the underlay leaves %d bytes for a packet, and at least %d are needed (1280 with IPv6): %s has MTU %d, and %s over it adds %d bytes; raise the MTU of %s",
			key, room, lowest, v.Underlay.Name, v.Underlay.MTU, u.Encap, overhead, v.Underlay.Name)}
	case d.MTU == 0:
		d.MTU = room
	case d.MTU > room:
		return &ConfigError{fmt.Errorf("%s.device.mtu: %d does not fit the underlay: %s has MTU %d, and %s over it adds %d bytes; use %d or less, or raise the MTU of %s",
			key, d.MTU, v.Underlay.Name, v.Underlay.MTU, u.Encap, overhead, room, v.Underlay.Name)}
	}
	if d.Queues == 0 {
		d.Queues = min(workers(), static.MaxQueues)
	}
	return nil
}

// routed returns the device that datagrams leave through when the underlay address is one of the loopback device's, as routers have
// them: of those to the peers, and the group, the one with the smallest MTU.
func (v *VTEP) routed() tunnel.UnderlayDevice {
	const ethernet, enough = 1500, 64
	var to []netip.Addr
	if v.group().IsValid() {
		to = append(to, v.group())
	}
	for _, p := range v.Config.Peers[:min(len(v.Config.Peers), enough)] {
		to = append(to, p.Endpoint.Addr())
	}
	found := v.Underlay
	for _, a := range to {
		if d, err := tunnel.RouteLink(a); err == nil && !d.Loopback && (found.Loopback || d.MTU < found.MTU) {
			found = d
		}
	}
	if found.Loopback { // nobody knows yet
		found.MTU = min(found.MTU, ethernet)
	}
	return found
}

// group returns the multicast group of the tunnel, if it has one.
func (v *VTEP) group() netip.Addr {
	if v.Config.Device.Mode != static.ModeTAP {
		return netip.Addr{}
	}
	return v.Config.FDB.Group
}

func (v *VTEP) open() error {
	u, d := &v.Config.Underlay, &v.Config.Device
	var err error
	offloads := v.Config.Tier != static.TierPortable
	if v.device, err = tunnel.OpenTUN(tunnel.TUNConfig{Name: d.Name, Queues: d.Queues, Ethernet: d.Mode == static.ModeTAP, Offloads: offloads, Keep: v.options.Keep, Log: v.log}); err != nil {
		return explainDevice(err)
	}
	d.Name = v.device.Name()
	if v.underlay, err = tunnel.OpenUDP(v.udpConfig()); err != nil {
		return explainUnderlay(err, u)
	}
	if err := v.missing(); err != nil {
		return &kernelError{fmt.Errorf("tier %s: %w: use auto", v.Config.Tier, err)}
	}
	v.SourcePorts = v.underlay.SourcePorts()
	var echo tunnel.Echo
	if v.echo, v.noEcho = v.openEcho(); v.echo != nil {
		echo = v.echo
	}
	v.Tunnel, err = tunnel.New(tunnel.Config{
		Framing: u.Encap, VNI: encap.VNI(u.VNI), ReservedBits: u.ReservedBits.Bits(), MAC: d.MAC,
		Local: u.Local, Port: u.Port, MTU: d.MTU,
		TTLInherit: u.TTL.Inherit, TOSInherit: u.TOS.Inherit, TOS: u.TOS.Value,
		Bridge: d.Mode == static.ModeTAP, FDB: v.fdbConfig(), VLANs: v.Config.FDB.VLANs,
		DF: dfPolicies[u.DF], PathMTU: v.underlay.PathMTU, Echo: echo,
		OuterCheck: checks[u.SourceCheck.Outer], InnerCheck: checks[u.SourceCheck.Inner],
		Shared: v.options.Port, Scheduler: tunnel.KernelScheduler,
		Log: v.log,
	}, v.device, v.underlay)
	if err != nil {
		return err
	}
	if v.link, err = tunnel.OpenLink(d.Name, v.log); err != nil {
		return err
	}
	v.link.Replace = v.options.Keep
	if d.Mode == static.ModeTAP {
		if err := v.link.SetMAC(d.MAC); err != nil {
			return err
		}
	}
	if v.options.DirectWithin.IsValid() {
		v.direct, err = adoptDirect(v.options.DirectWithin)
	}
	return err
}

// openEcho opens what finds black holes, where datagrams are not fragmented on the way. A tunnel does without when it must.
func (v *VTEP) openEcho() (*tunnel.ICMPEcho, error) {
	switch u := &v.Config.Underlay; {
	case !u.PathProbe:
		return nil, errors.New("turned off (path_probe: false)")
	case u.Local.Is4() && u.DF == static.DFUnset:
		return nil, errors.New("not needed: datagrams may be fragmented on the way (df: unset)")
	default:
		return tunnel.OpenEcho(u.Local)
	}
}

func (v *VTEP) fdbConfig() tunnel.FDBConfig {
	f := &v.Config.FDB
	return tunnel.FDBConfig{
		Learning: f.Learning, Ageing: time.Duration(f.Ageing), Limit: f.Limit, PeerLimit: f.PeerLimit,
		Flood: f.Flood.Names, NoFlood: f.Flood.None(), Group: v.group(), Suppress: suppressions[f.Suppress],
	}
}

// suppressions are the ways to treat ARP and neighbour discovery, by their words in the configuration.
var suppressions = map[static.Suppress]tunnel.Suppression{static.SuppressOff: tunnel.SuppressNone, static.SuppressKnown: tunnel.SuppressKnown, static.SuppressDrop: tunnel.SuppressAll}

var dfPolicies = map[static.DF]tunnel.DFPolicy{static.DFUnset: tunnel.DFUnset, static.DFSet: tunnel.DFSet, static.DFInherit: tunnel.DFInherit}

// checks are the ways to check sources, by their words in the configuration.
var checks = map[static.Check]tunnel.Check{static.CheckOff: tunnel.CheckOff, static.CheckCount: tunnel.CheckCount, static.CheckEnforce: tunnel.CheckEnforce}

// workers returns how many queues a device has that is not told, each with a thread that moves its packets: one for every two cores, as
// the applications that packets come from and go to need about as much time as the tunnel (docs/decisions/0009).
func workers() int { return max(1, runtime.NumCPU()/2) }

// ReserveThreads lets a worker for each of a process's queues run, its second thread, and something beside them: who comes back from
// the kernel never waits for another to leave Go code.
func ReserveThreads(queues int) {
	const others = 2 // collector and control socket
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 2*queues+others))
}

func (v *VTEP) udpConfig() tunnel.UDPConfig {
	u, nic := &v.Config.Underlay, v.Underlay.Name
	if v.Underlay.Loopback {
		nic = "" // no route says yet
	}
	return tunnel.UDPConfig{
		Group: v.group(), Device: v.groupDevice, Reserved: v.options.Reserved,
		Local: u.Local, Port: u.Port, Shared: v.options.Port, VNI: encap.VNI(u.VNI), NIC: nic, Receivers: v.Config.Device.Queues,
		SourceLow: u.SourcePorts.Range.Low, SourceHigh: u.SourcePorts.Range.High, Buckets: u.SourcePorts.Buckets,
		TTL: u.TTL.Value, TOS: u.TOS.Value, DF: dfPolicies[u.DF], NoChecksum: !u.Checksum,
		NoChecksum6TX: u.ZeroChecksum6.TX, NoChecksum6RX: u.ZeroChecksum6.RX,
		Offloads: v.Config.Tier != static.TierPortable, TunnelGSO: v.Config.Tier == static.TierTunnelGSO, KernelGRO: u.KernelGRO, Log: v.log,
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
	if v.options.Keep {
		if err := v.link.DropAddresses(v.Config.Device.Addresses); err != nil {
			return err
		}
	}
	if err := v.link.AddAddresses(v.Config.Device.Addresses); err != nil {
		return explainAddress(err)
	}
	if err := v.link.WatchAddresses(ctx, v.Tunnel.SetAddresses); err != nil {
		return err
	}
	if err := v.link.WatchUp(ctx, v.restore); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.options.Keep { // peers come later; until then what was left keeps leading to those of before
		if v.routeErr = v.link.AdoptRoutes(); v.options.Network.IsValid() && v.routeErr == nil {
			v.setRoutes()
		}
	} else if _, err := v.setPeers(v.Config.RoutingPeers()); err != nil {
		return &ConfigError{err}
	}
	v.ready = v.routeErr == nil
	return v.routeErr
}

// SetPeers replaces the whole set of peers, and the routes to them. Routes that cannot be added do not hold the peers
// back: RouteErr tells of them.
func (v *VTEP) SetPeers(peers []routing.Peer) (routing.Change, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.ready {
		return routing.Change{}, ErrNotReady
	}
	change, err := v.setPeers(peers)
	if err == nil && v.routeErr != nil {
		v.log.Error("some routes are missing", "device", v.Config.Device.Name, "err", v.routeErr)
	}
	return change, err
}

// RouteErr says which routes could not be added; nil when all are there.
func (v *VTEP) RouteErr() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.routeErr
}

func (v *VTEP) setPeers(peers []routing.Peer) (routing.Change, error) {
	change, err := v.Tunnel.SetPeers(peers)
	if err != nil || !v.Config.Routes {
		return change, err
	}
	v.setRoutes()
	return change, nil
}

// setRoutes makes the routes those of the peers in force.
func (v *VTEP) setRoutes() {
	if v.options.Network.IsValid() {
		v.routeErr = v.link.SetRoutes([]netip.Prefix{v.options.Network})
		return
	}
	var prefixes []netip.Prefix
	var direct []*routing.Peer
	for _, p := range v.Tunnel.Peers().Peers() {
		if v.options.Direct != nil && v.options.Direct(p.Endpoint.Addr()) {
			direct = append(direct, p)
			continue
		}
		prefixes = append(prefixes, p.AllowedIPs...)
	}
	v.routeErr = nil
	if v.direct != nil { // first: a peer that changes to it has a way at all times
		v.routeErr = v.direct.set(direct)
	}
	v.routeErr = errors.Join(v.routeErr, v.link.SetRoutes(prefixes))
	if v.routeErr == nil {
		v.routeErr = v.checkUnderlay()
	}
}

// checkUnderlay makes sure that no peer's endpoint is reached through the tunnel itself. Only those that some peer's
// allowed_ips contain can be.
func (v *VTEP) checkUnderlay() error {
	peers := v.Tunnel.Peers()
	for _, p := range peers.Peers() {
		prefix, owner := peers.LookupPrefix(p.Endpoint.Addr())
		if owner == nil {
			continue
		}
		inside, err := v.link.Reaches(p.Endpoint.Addr())
		if err == nil && inside {
			return fmt.Errorf("the route to peer %s at %s leads into the tunnel itself, by %s of peer %s: take it out of allowed_ips, or set routes: false", p.Name, p.Endpoint.Addr(), prefix, owner.Name)
		}
	}
	return nil
}

// RetryRoutes tries again to add the routes that could not be.
func (v *VTEP) RetryRoutes() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.ready || v.routeErr == nil {
		return
	}
	if v.setRoutes(); v.routeErr == nil {
		v.log.Info("all routes are there now", "device", v.Config.Device.Name)
	}
}

// restore puts back what the kernel took away when the device was down: IPv6 addresses, and all routes.
func (v *VTEP) restore() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.ready {
		return
	}
	if err := v.link.AddAddresses(v.Config.Device.Addresses); err != nil {
		v.log.Error("cannot restore the device's addresses", "device", v.Config.Device.Name, "err", err)
	}
	if v.Config.Routes {
		v.setRoutes()
	}
	v.log.Info("device is up again", "device", v.Config.Device.Name)
}

// Close takes down what Open and Run have put up. It can be called at any stage.
func (v *VTEP) Close() error {
	var errs []error
	if v.link != nil && !v.options.Keep {
		errs = append(errs, v.link.Undo())
	}
	if v.device != nil {
		errs = append(errs, v.device.Close())
	}
	if v.underlay != nil {
		errs = append(errs, v.underlay.Close())
	}
	if v.echo != nil {
		errs = append(errs, v.echo.Close())
	}
	return errors.Join(errs...)
}

// IsUp reports whether the device is there and up.
func (v *VTEP) IsUp() bool { return v.link.IsUp() }

// Addresses returns the addresses that the device has now.
func (v *VTEP) Addresses() ([]netip.Prefix, error) { return v.link.Addresses() }

// Counts returns what the kernel interfaces count.
func (v *VTEP) Counts() tunnel.Counts {
	c := tunnel.Counts{Syscalls: make(map[string]uint64), DeviceErrors: make(map[string]uint64), ReceiveErrors: make(map[string]uint64), OuterDrops: make(map[string]uint64)}
	v.device.AddTo(&c)
	v.underlay.AddTo(&c)
	return c
}

// Capabilities returns the kernel features, in use and not.
func (v *VTEP) Capabilities() []tunnel.Capability {
	probing := tunnel.Capability{Name: "path-probe", Enabled: v.echo != nil}
	if v.noEcho != nil {
		probing.Reason = v.noEcho.Error()
	}
	all := append(v.offloads(), probing)
	all = append(all, tunnel.SharedCapabilities(v.Config.Device.Queues)...)
	return append(all, v.underlay.NICCapabilities(v.Underlay.Name, v.Tier())...)
}

// LogCapabilities says once, in one line, which kernel features are in use, and why the others are not.
func (v *VTEP) LogCapabilities() {
	on, off := summary(v.Capabilities())
	v.log.Info("kernel features", "device", v.Config.Device.Name, "tier", v.Tier(), "on", on, "off", off)
}

func summary(features []tunnel.Capability) (on, off string) {
	var used, missed []string
	for _, c := range features {
		if c.Enabled {
			used = append(used, c.Name)
		} else {
			missed = append(missed, c.Name+" ("+c.Reason+")")
		}
	}
	return strings.Join(used, " "), strings.Join(missed, "; ")
}

// Tier returns the tier in use now: the highest that the kernel has any of, up to what was asked for.
func (v *VTEP) Tier() tunnel.Tier { return tunnel.TierOf(v.offloads()) }

func (v *VTEP) offloads() []tunnel.Capability {
	return append(v.device.Capabilities(), v.underlay.Capabilities()...)
}

// missing says why a tier that was asked for by name cannot be had; nil when it is.
func (v *VTEP) missing() error {
	asked := tunnel.Tier(v.Config.Tier)
	if v.Config.Tier == static.TierAuto || v.Tier() == asked {
		return nil
	}
	var reasons []error
	for _, c := range v.offloads() {
		if !c.Enabled && tunnel.TierOf([]tunnel.Capability{{Name: c.Name, Enabled: true}}) == asked {
			reasons = append(reasons, fmt.Errorf("%s: %s", c.Name, c.Reason))
		}
	}
	return errors.Join(reasons...)
}

// HostChanges says what was made on this host beyond the tunnel's own device, addresses and routes.
func (v *VTEP) HostChanges() []string { return v.underlay.HostChanges() }
