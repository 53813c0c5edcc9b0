package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// Config is what a tunnel needs to know beyond its two ends and its peers.
type Config struct {
	Framing      encap.Framing
	VNI          encap.VNI
	ReservedBits encap.ReservedBits
	MAC          encap.MAC  // this VTEP's
	Local        netip.Addr // our underlay address
	Port         uint16     // our underlay port
	MTU          int        // of the device, in bytes

	TTLInherit bool  // outer TTL is the packet's; else the underlay's own
	TOSInherit bool  // outer DSCP is the packet's; else that of TOS
	TOS        uint8 // outer TOS when it is not inherited

	Bridge bool      // packets are Ethernet frames
	FDB    FDBConfig // with Bridge
	VLANs  bool      // with Bridge: stations of different VLANs may have one MAC

	OuterCheck Check // the outer source must be a peer's endpoint
	InnerCheck Check // the inner source must be in the peer's allowed prefixes

	// Shared, when not nil, is the port that the tunnel receives on together with others; it is its underlay's too (UDPConfig).
	Shared *SharedPort

	// DF is the underlay's policy for the don't-fragment bit, and PathMTU what the kernel knows of the way to an underlay
	// address, in bytes; nil where nothing is known. Echo, when not nil, finds what the kernel does not know.
	DF      DFPolicy
	PathMTU func(netip.Addr) (int, error)
	Echo    Echo

	// Scheduler is how workers, one for each queue of the device, sleep and share their cores: KernelScheduler for a kernel's device and sockets.
	Scheduler Scheduler

	Log *slog.Logger
}

// Tunnel moves packets between a device and an underlay.
type Tunnel struct {
	cfg        Config
	rules      Rules
	mtu        int
	device     Device
	underlay   Underlay
	table      *routing.Table
	own        atomic.Pointer[Addresses]
	told       atomic.Bool // SetPeers was called: who is not a peer is nobody
	hints      hints
	fdb        *fdb // with Bridge
	paths      *paths
	overhead   int // what encapsulation adds to a packet, in bytes
	log        *slog.Logger
	started    time.Time
	workers    []*worker
	neighbours *neighbours
	strays     strays
	slow       slowPath
}

// slowPath is what workers share when they answer for the tunnel.
type slowPath struct {
	mu        sync.Mutex
	buf       []byte
	limit     *limiter
	generated generated
}

// New returns a tunnel over device and underlay, which must have as many queues as receivers. It has no peers yet.
// The ends stay the caller's to close.
func New(cfg Config, device Device, underlay Underlay) (*Tunnel, error) {
	codec, err := cfg.codec()
	if err != nil {
		return nil, err
	}
	queues, receivers := device.Queues(), underlay.Receivers()
	if len(queues) == 0 || len(queues) != len(receivers) {
		return nil, fmt.Errorf("new tunnel: %d queues and %d receivers: want as many of each, at least one", len(queues), len(receivers))
	}
	t := &Tunnel{
		cfg: cfg, mtu: cfg.MTU, device: device, underlay: underlay, log: cfg.Log, started: time.Now(),
		rules: Rules{
			Codec: codec, Ethernet: cfg.Framing == encap.FramingVXLAN && !cfg.Bridge, Bridge: cfg.Bridge, MAC: cfg.MAC, Group: cfg.FDB.Group,
			Local: cfg.Local, Port: cfg.Port, OuterCheck: cfg.OuterCheck, InnerCheck: cfg.InnerCheck,
		},
		table: routing.NewTable(len(queues) + 2), // shares more: packets that waited for a MAC, and strays
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.own.Store(NewAddresses(nil))
	t.paths, t.overhead = newPaths(&cfg, t.table, t.log), encap.Overhead(codec, cfg.Local.Is6())
	if cfg.Bridge {
		detach := func(a netip.Addr) *routing.Peer { return t.table.Detached(netip.AddrPortFrom(a, cfg.Port)) }
		t.fdb = newFDB(cfg.FDB, detach, t.log)
	}
	t.slow.limit = newLimiter()
	for i, q := range queues {
		w := &worker{transmit: newTransmitter(t, i, q, underlay.NewSender()), receive: newReceiver(t, i, q, receivers[i]), spinner: newSpinner(cfg.Scheduler)}
		if cfg.Scheduler.Yield != nil && cfg.Scheduler.Cores > len(queues) {
			w.helper = newHelper(w.receive, &t.cfg.Scheduler)
		}
		t.workers = append(t.workers, w)
	}
	t.neighbours = newNeighbours(t, underlay.NewSender())
	if cfg.Shared != nil {
		t.strays.receiver = newReceiver(t, t.slowWorker()+1, injector{device}, nil)
		t.strays.count = t.strays.receiver.count
	}
	return t, nil
}

// cores returns the numbers of the cores that a worker and its helper keep to, when they do.
func (t *Tunnel) cores(worker int) (own, helpers int) { return worker, len(t.workers) + worker }

// slowWorker is the index of the counters that packets released by the neighbour table are booked under.
func (t *Tunnel) slowWorker() int { return len(t.workers) }

func (t *Tunnel) view() View {
	v := View{Peers: t.table.Load(), Own: t.own.Load()}
	if t.fdb != nil {
		v.Stations, v.VLANs = t.fdb.current.Load(), t.cfg.VLANs
	}
	return v
}

func (cfg *Config) codec() (encap.Codec, error) {
	if !cfg.Bridge {
		return cfg.Framing.Codec(cfg.VNI, cfg.ReservedBits)
	}
	if cfg.Framing != encap.FramingVXLAN {
		return nil, fmt.Errorf("encap %q: Ethernet frames travel in %s only", cfg.Framing, encap.FramingVXLAN)
	}
	return encap.NewVXLANEthernet(cfg.VNI, cfg.ReservedBits), nil
}

// SetPeers replaces the whole set of peers, or refuses it with an error that names what clashes, and nothing changes.
func (t *Tunnel) SetPeers(peers []routing.Peer) (routing.Change, error) {
	snapshot, err := routing.NewSnapshot(peers)
	if err != nil {
		return routing.Change{}, err
	}
	defer t.told.Store(true)
	before := t.table.Load()
	change := t.neighbours.apply(snapshot)
	for _, p := range snapshot.Peers() {
		if old := before.LookupName(p.Name); old != nil && old.Endpoint != p.Endpoint {
			p.State().Path.Reset() // it was that of another path
		}
	}
	if t.fdb != nil {
		t.fdb.follow(snapshot)
	}
	return change, nil
}

// Peers returns the snapshot in force.
func (t *Tunnel) Peers() *routing.Snapshot { return t.table.Load() }

// SetAddresses tells the tunnel which addresses this host has on the device: those it answers ARP and neighbour
// solicitations for.
func (t *Tunnel) SetAddresses(prefixes []netip.Prefix) { t.own.Store(NewAddresses(prefixes)) }

// Run moves packets until ctx ends or an end fails, and returns once every worker has stopped. It can be called once.
func (t *Tunnel) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := t.openWaiters(); err != nil {
		return errors.Join(err, t.closeWaiters())
	}
	if t.cfg.Shared != nil {
		t.cfg.Shared.enter(t)
		defer t.cfg.Shared.leave(t)
	}
	failures := make(chan error, 2*len(t.workers))
	var running sync.WaitGroup
	for _, w := range t.workers {
		running.Go(func() { failures <- w.run() })
		if w.helper != nil {
			running.Go(func() {
				if err := w.helper.run(); err != nil {
					failures <- err
				}
			})
		}
	}
	running.Go(func() { t.neighbours.run(ctx) })
	running.Go(func() { t.paths.run(ctx) })
	if t.fdb != nil {
		running.Go(func() { t.fdb.run(ctx) })
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-failures:
	}
	cancel()
	for _, w := range t.workers {
		w.stop()
	}
	running.Wait()
	return errors.Join(err, t.closeWaiters())
}

func (t *Tunnel) openWaiters() (err error) {
	for _, w := range t.workers {
		if err = w.open(&t.cfg.Scheduler); err != nil {
			return fmt.Errorf("prepare worker: %w", err)
		}
	}
	return nil
}

func (t *Tunnel) closeWaiters() error {
	var errs []error
	for _, w := range t.workers {
		for _, sleeper := range w.waiters {
			errs = append(errs, sleeper.Close())
		}
	}
	return errors.Join(errs...)
}
