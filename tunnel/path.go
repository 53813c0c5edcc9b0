package tunnel

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// paths learns how large outer packets to a peer may be, where routers may not cut them: the kernel keeps path MTUs (RFC 1191,
// RFC 8201) and refuses what does not fit; where ICMP errors get lost, a prober finds out. From there on the packet's sender hears
// of it.
type paths struct {
	mtu   func(netip.Addr) (int, error) // of the kernel; nil: nothing is learned
	probe *prober                       // nil: nothing is probed
	table *routing.Table
	log   *slog.Logger
	asks  chan *routing.Peer // a datagram was refused as too big
	wants chan wish
	known map[*routing.State]*knownPath // of whom the kernel was asked; run's alone
}

// wish is a datagram that was sent of which nobody knows whether it arrives.
type wish struct {
	peer *routing.Peer
	size int // of the IP packet, in bytes
}

// knownPath is a path of which the kernel was asked.
type knownPath struct {
	peer  *routing.Peer
	asked time.Time // for a packet that did not fit
}

const (
	// pathExpires is how long a path MTU is believed: as long as the kernel believes it (net.ipv4.route.mtu_expires).
	pathExpires = 10 * time.Minute
	// pathPause is how long an answer stands before the kernel is asked again, pathRefresh when it is asked without a packet that
	// does not fit: a route may have changed, and the path MTU with it.
	pathPause   = time.Second
	pathRefresh = 5 * time.Second
	// minInner is the smallest MTU that IPv6 allows, minInner4 what IPv4 does (RFC 8200 section 5, RFC 791).
	minInner  = 1280
	minInner4 = 68
	// pathsWaiting is how many peers are waiting to be looked at; more are noted with their next packets.
	pathsWaiting = 64
)

func newPaths(cfg *Config, table *routing.Table, log *slog.Logger) *paths {
	p := &paths{
		mtu: cfg.PathMTU, table: table, log: log, asks: make(chan *routing.Peer, pathsWaiting), wants: make(chan wish, pathsWaiting),
		known: make(map[*routing.State]*knownPath),
	}
	if cfg.Echo != nil && cfg.PathMTU != nil {
		p.probe = newProber(cfg.Echo, p, cfg.Local.Is6())
	}
	return p
}

// ask has the path to a peer looked up. It never blocks; what does not fit is asked for with the next packet.
func (p *paths) ask(peer *routing.Peer) {
	select {
	case p.asks <- peer:
	default:
	}
}

// want has it found out whether packets of a size reach a peer. It never blocks.
func (p *paths) want(peer *routing.Peer, size int) {
	if p.probe == nil || size <= p.probe.floor || peer.Endpoint.Addr().IsMulticast() {
		return
	}
	path := &peer.State().Path
	if !path.Want(size) {
		return
	}
	select {
	case p.wants <- wish{peer, size}:
	default:
		path.Unprove()
	}
}

// run answers until ctx ends.
func (p *paths) run(ctx context.Context) {
	if p.mtu == nil {
		return
	}
	ticker := time.NewTicker(pathRefresh)
	ticker.Stop() // an idle tunnel sleeps
	defer ticker.Stop()
	var answers <-chan EchoAnswer
	if p.probe != nil {
		answers = p.probe.echo.Answers()
	}
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	for {
		before := len(p.known)
		select {
		case <-ctx.Done():
			return
		case peer := <-p.asks:
			p.asked(p.current(peer))
		case w := <-p.wants:
			p.probe.want(p.current(w.peer), w.size, time.Now())
		case a := <-answers:
			p.probe.answered(a, time.Now())
		case <-due.C: // which tells when it was due, not when it is
			p.probe.tick(time.Now())
		case <-ticker.C:
			p.refresh(time.Now())
		}
		if p.probe != nil {
			due.Reset(time.Until(p.probe.next()))
		}
		switch after := len(p.known); {
		case before == 0 && after > 0:
			ticker.Reset(pathRefresh)
		case after == 0:
			ticker.Stop()
		}
	}
}

// current returns a peer as it is now, or as it was last when it left.
func (p *paths) current(peer *routing.Peer) *routing.Peer {
	if now := successor(peer, p.table.Load()); now != nil {
		return now
	}
	return peer
}

// asked looks up the path of a packet that did not fit.
func (p *paths) asked(peer *routing.Peer) {
	now := time.Now()
	if k := p.known[peer.State()]; k != nil && now.Sub(k.asked) < pathPause {
		return
	}
	p.known[peer.State()] = &knownPath{peer, now}
	if err := p.learn(peer); err != nil {
		p.log.Warn("cannot learn the path MTU", "peer", peer.Name, "err", err)
	}
}

// refresh looks up again what was asked for, and forgets what was asked for long ago: larger packets are tried again.
func (p *paths) refresh(now time.Time) {
	for state, k := range p.known {
		if now.Sub(k.asked) < pathExpires {
			_ = p.learn(p.current(k.peer)) // a packet that does not fit will tell what is wrong
			continue
		}
		if _, hole := state.Path.MTU(); !hole {
			state.Path.SetMTU(0)
		}
		delete(p.known, state)
	}
}

// learn asks the kernel.
func (p *paths) learn(peer *routing.Peer) error {
	mtu, err := p.mtu(peer.Endpoint.Addr())
	if err != nil {
		return err
	}
	before, hole := peer.State().Path.MTU()
	if hole && before <= mtu || before == mtu {
		return nil // what was found out is narrower than what the kernel knows
	}
	p.log.Info("path MTU", "peer", peer.Name, "bytes", mtu)
	peer.State().Path.SetMTU(mtu)
	return nil
}

// fits reports whether the datagrams of p can reach the peer: all do that routers may cut. Of those that nobody may cut, and that are
// larger than any that is known to have arrived, it is being found out.
func (t *Tunnel) fits(peer *routing.Peer, p *Packet) bool {
	if t.cutOnTheWay(p) {
		return true
	}
	path, size := &peer.State().Path, t.overhead+p.longest()
	if size <= path.Proven() {
		return true
	}
	t.paths.want(peer, size)
	return t.reaches(path, p, size)
}

// cutOnTheWay reports whether routers may fragment the datagrams of p.
func (t *Tunnel) cutOnTheWay(p *Packet) bool { return t.cfg.Local.Is4() && !t.staysWhole(p) }

// reaches reports whether datagrams of p, of the given size, reach a peer by what is known of the path. Over IPv6 this host cuts what
// the kernel knows not to fit; what it does not know of, nobody cuts.
func (t *Tunnel) reaches(path *routing.Path, p *Packet, size int) bool {
	mtu, hole := path.MTU()
	return mtu == 0 || size <= mtu || !hole && !t.staysWhole(p)
}

// staysWhole reports whether the datagrams of p must not be fragmented.
func (t *Tunnel) staysWhole(p *Packet) bool {
	return t.cfg.DF == DFSet || t.cfg.DF == DFInherit && (p.Headers.DF || p.Headers.Kind == encap.KindIPv6)
}

// knowsPath reports whether something is known of the path to a peer that its senders can be told.
func (t *Tunnel) knowsPath(peer *routing.Peer) bool {
	mtu, _ := peer.State().Path.MTU()
	return mtu > 0
}

// innerMTU returns the largest IP packet that reaches the peer without being fragmented, as an ICMP error tells it.
func (t *Tunnel) innerMTU(peer *routing.Peer, p *Packet) int {
	lowest := minInner4
	if p.Headers.Kind == encap.KindIPv6 {
		lowest = minInner
	}
	mtu, _ := peer.State().Path.MTU()
	return max(mtu-t.overhead-p.Headers.L3, lowest)
}
