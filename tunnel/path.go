package tunnel

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// paths learns how large outer packets to a peer may be, where they must not be fragmented. The kernel keeps path MTUs (RFC 1191,
// RFC 8201) and refuses what does not fit; then it is asked, and from there on the packet's sender hears of it.
type paths struct {
	mtu   func(netip.Addr) (int, error) // of the kernel; nil: nothing is learned
	table *routing.Table
	log   *slog.Logger
	asks  chan *routing.Peer
}

const (
	// pathExpires is how long a path MTU is believed: as long as the kernel believes it (net.ipv4.route.mtu_expires).
	pathExpires = 10 * time.Minute
	// pathPause is how long an answer stands before the kernel is asked again.
	pathPause = time.Second
	// minInner is the smallest MTU that IPv6 allows, minInner4 what IPv4 does (RFC 8200 section 5, RFC 791).
	minInner  = 1280
	minInner4 = 68
)

func newPaths(mtu func(netip.Addr) (int, error), table *routing.Table, log *slog.Logger) *paths {
	const waiting = 64
	return &paths{mtu: mtu, table: table, log: log, asks: make(chan *routing.Peer, waiting)}
}

// ask has the path to a peer looked up. It never blocks; what does not fit is asked for with the next packet.
func (p *paths) ask(peer *routing.Peer) {
	select {
	case p.asks <- peer:
	default:
	}
}

// run answers until ctx ends.
func (p *paths) run(ctx context.Context) {
	if p.mtu == nil {
		return
	}
	known := make(map[*routing.State]time.Time)
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case peer := <-p.asks:
			if now := successor(peer, p.table.Load()); now != nil {
				peer = now
			}
			if time.Since(known[peer.State()]) >= pathPause {
				p.learn(peer, known)
			}
		case now := <-ticker.C:
			for state, since := range known {
				if now.Sub(since) >= pathExpires {
					state.SetPathMTU(0) // larger ones are tried again
					delete(known, state)
				}
			}
		}
	}
}

func (p *paths) learn(peer *routing.Peer, known map[*routing.State]time.Time) {
	known[peer.State()] = time.Now()
	mtu, err := p.mtu(peer.Endpoint.Addr())
	if err != nil {
		p.log.Warn("cannot learn the path MTU", "peer", peer.Name, "err", err)
		return
	}
	if peer.State().PathMTU() != mtu {
		p.log.Info("path MTU", "peer", peer.Name, "bytes", mtu)
	}
	peer.State().SetPathMTU(mtu)
}

// fits reports whether the datagrams of p can reach the peer: all do that may be fragmented on the way.
func (t *Tunnel) fits(peer *routing.Peer, p *Packet) bool {
	mtu := peer.State().PathMTU()
	if mtu == 0 || t.cfg.DF == DFUnset || t.cfg.DF == DFInherit && !p.Headers.DF && p.Headers.Kind != encap.KindIPv6 {
		return true
	}
	return t.overhead+p.longest() <= mtu
}

// innerMTU returns the largest IP packet that reaches the peer without being fragmented, as an ICMP error tells it.
func (t *Tunnel) innerMTU(peer *routing.Peer, p *Packet) int {
	lowest := minInner4
	if p.Headers.Kind == encap.KindIPv6 {
		lowest = minInner
	}
	return max(peer.State().PathMTU()-t.overhead-p.Headers.L3, lowest)
}
