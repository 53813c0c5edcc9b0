package tunnel

import (
	"net/netip"
	"slices"
	"time"

	"github.com/vxlane/vxlane/routing"
)

// Echo asks underlay addresses for answers: ICMP echo requests (RFC 792, RFC 4443 section 4.1), which a kernel's VTEP answers, too.
type Echo interface {
	// Send sends a request in one IP packet of so many bytes, which no router may fragment.
	Send(to netip.Addr, bytes int) error
	// Answers tells of answers.
	Answers() <-chan EchoAnswer
}

// EchoAnswer is an answer to a request.
type EchoAnswer struct {
	From      netip.Addr
	Bytes     int // of the request's IP packet
	RoundTrip time.Duration
}

// prober finds black holes: paths on which large packets vanish and nobody says so (RFC 2923 section 2.1). While packets flow to
// a peer that are larger than what is known to arrive, it asks the peer's address for an answer of that size; when there is none, but
// one to a small request, it searches for the largest size that is answered (as RFC 8899 does). One goroutine may use it.
type prober struct {
	echo   Echo
	kernel *paths // what the kernel knows
	floor  int    // bytes that every path is taken to carry
	limit  bucket
	paths  map[*routing.State]*pathProbe
}

const (
	probeAgain    = 500 * time.Millisecond // between checks of a size, while packets of it flow
	probeTries    = 2
	silentTries   = 3                      // as long as nothing is answered, small requests neither
	probePatience = 200 * time.Millisecond // for an answer, as long as the round trip is not known
	minPatience   = 50 * time.Millisecond
	probeLarger   = 10 * time.Second // between tries whether a black hole is gone, or takes more
	probeSilent   = 30 * time.Second // between tries where nothing is answered
	searchRounds  = 4
	searchSizes   = 15
	// searchExact is how many bytes the size that is found may be below the true one.
	searchExact = 8
	// confirmations is how often what was found must show again: a path that was away for a moment looks like a black hole.
	confirmations   = 2
	confirmTries    = 4
	probesPerSecond = 500
	// floor4 is what every IPv4 host takes (RFC 791), floor6 what every IPv6 path carries (RFC 8200 section 5).
	floor4 = 576
	floor6 = 1280
)

// plateaus are sizes that paths are likely to have: Ethernet's, less the headers of PPPoE, of tunnels in it, and jumbo frames.
var plateaus = []int{1006, 1280, 1360, 1380, 1400, 1412, 1420, 1430, 1438, 1442, 1450, 1458, 1460, 1472, 1476, 1480, 1484, 1492, 1500, 2000, 4000, 8000, 8900, 9000, 9216}

// phase is what a pathProbe is at.
type phase int

const (
	idle       phase = iota // until traffic brings it up; at due it is forgotten
	resting                 // until due, what was found out stands; only a larger packet brings it up
	silent                  // until due, nobody is asked
	checking                // of size
	searching               // between low and high
	confirming              // that low is answered, and nothing larger
)

// waits reports whether answers are waited for.
func (p phase) waits() bool { return p == checking || p == searching || p == confirming }

// pathProbe is what is being found out about the path to a peer.
type pathProbe struct {
	peer   *routing.Peer
	phase  phase
	due    time.Time
	trip   time.Duration // smoothed round trip; 0 when not known
	heard  bool          // of any size, since the check began
	late   bool          // this process had no time to hear, and waits once more
	want   int           // the largest size that packets had since the last rest
	size   int           // that is in question, or was last
	tries  int           // checking, confirming
	full   int           // the size at which a black hole was found
	larger time.Time     // when more than a black hole takes is tried again

	low, high int   // searching, confirming: the largest that is answered, the smallest that is not
	asked     []int // sizes of this round that were not answered yet
	rounds    int   // searching
	agreed    int   // confirming: tries that showed the same
}

func newProber(echo Echo, kernel *paths, six bool) *prober {
	p := &prober{echo: echo, kernel: kernel, floor: floor4, paths: make(map[*routing.State]*pathProbe)}
	if six {
		p.floor = floor6
	}
	return p
}

// next returns when tick is due.
func (p *prober) next() time.Time {
	at := time.Now().Add(time.Hour)
	for _, q := range p.paths {
		if q.due.Before(at) {
			at = q.due
		}
	}
	return at
}

// want has it found out whether packets of a size reach a peer, unless that is going on, or was just found out.
func (p *prober) want(peer *routing.Peer, size int, now time.Time) {
	q := p.paths[peer.State()]
	if q == nil {
		q = &pathProbe{peer: peer}
		p.paths[peer.State()] = q
	}
	q.want = max(q.want, size)
	mtu, hole := peer.State().Path.MTU()
	if q.phase == idle || q.phase == resting && size > q.size && !(hole && size > mtu) {
		p.begin(q, now)
	}
}

// begin starts a check: of what goes onto the wire, where this host cuts what the kernel knows not to fit, and of what a black hole
// takes, but now and then of what it did not.
func (p *prober) begin(q *pathProbe, now time.Time) {
	q.size = q.want
	if mtu, hole := q.peer.State().Path.MTU(); hole {
		if q.size = min(q.size, mtu); !now.Before(q.larger) {
			q.size, q.larger = max(q.want, q.full), now.Add(probeLarger)
		}
	}
	if known, err := p.kernel.mtu(q.peer.Endpoint.Addr()); err == nil {
		q.size = min(q.size, known)
	}
	if q.size <= p.floor {
		q.rest(resting, now, probeAgain)
		return
	}
	q.phase, q.tries, q.heard = checking, 0, false
	p.try(q, now)
}

// try asks once more for the size that is checked and, when it is not known that anything is answered, for a small one.
func (p *prober) try(q *pathProbe, now time.Time) {
	if !p.limit.takeN(now, 2, probesPerSecond, probesPerSecond) {
		q.due = now.Add(minPatience)
		return
	}
	q.tries, q.late = q.tries+1, false
	p.send(q, q.size) // before the small one: a peer that answers so many and no more answers this one
	if q.tries > 1 || q.trip == 0 {
		p.send(q, p.floor)
	}
	q.due = now.Add(q.patience())
}

func (p *prober) send(q *pathProbe, bytes int) {
	if err := p.echo.Send(q.peer.Endpoint.Addr(), bytes); err != nil {
		p.kernel.log.Debug("cannot send an echo request", "peer", q.peer.Name, "bytes", bytes, "err", err)
	}
}

// patience is how long to wait for an answer.
func (q *pathProbe) patience() time.Duration {
	if q.trip == 0 {
		return probePatience
	}
	return max(minPatience, 2*q.trip)
}

// rest lets a path be for a while.
func (q *pathProbe) rest(as phase, now time.Time, pause time.Duration) {
	q.phase, q.due = as, now.Add(pause)
}

// gone drops what is being found out about a path that its peer has no more, and reports whether it did.
func (p *prober) gone(q *pathProbe) bool {
	if now := p.kernel.current(q.peer); now.Endpoint.Addr() != q.peer.Endpoint.Addr() {
		delete(p.paths, q.peer.State())
		return true
	}
	return false
}

// answered takes in an answer.
func (p *prober) answered(a EchoAnswer, now time.Time) {
	for _, q := range p.paths {
		if q.peer.Endpoint.Addr() != a.From || p.gone(q) {
			continue
		}
		q.heard = true
		q.peer.State().Path.SetEcho(routing.EchoAnswered)
		if q.trip == 0 {
			q.trip = a.RoundTrip
		}
		q.trip += (a.RoundTrip - q.trip) / 4
		switch q.phase {
		case checking:
			if a.Bytes >= q.size {
				p.proven(q, now)
			}
		case searching:
			q.asked = slices.DeleteFunc(q.asked, func(n int) bool { return n <= a.Bytes })
			if q.low = max(q.low, a.Bytes); q.low >= q.size {
				p.proven(q, now)
			}
		case confirming:
			q.asked = slices.DeleteFunc(q.asked, func(n int) bool { return n <= a.Bytes })
			if a.Bytes >= q.size {
				p.proven(q, now)
			} else if a.Bytes > q.low { // what the search lost was lost for another reason
				q.phase, q.low, q.rounds, q.asked = searching, a.Bytes, 1, nil
			}
		}
	}
}

// proven ends a check: packets of the size arrive.
func (p *prober) proven(q *pathProbe, now time.Time) {
	path := &q.peer.State().Path
	if mtu, hole := path.MTU(); mtu > 0 && q.size > mtu {
		if hole {
			p.kernel.log.Info("the black hole is gone", "peer", q.peer.Name, "bytes", q.size)
		}
		path.SetMTU(0)
		q.full = 0
	}
	path.Prove(q.size)
	q.rest(resting, now, probeAgain)
}

// tick does what is due.
func (p *prober) tick(now time.Time) {
	for state, q := range p.paths {
		late := now.Sub(q.due)
		switch {
		case late < 0 || p.gone(q):
		case q.phase.waits() && late > minPatience/2 && !q.late:
			q.late, q.due = true, now.Add(minPatience)
		case q.phase == checking && (q.tries < probeTries || !q.heard && q.tries < silentTries):
			p.try(q, now)
		case q.phase == checking:
			p.unanswered(q, now)
		case q.phase == searching:
			p.narrow(q, now)
		case q.phase == confirming:
			p.agree(q, now)
		case q.phase == idle:
			if _, hole := state.Path.MTU(); hole {
				state.Path.SetMTU(0)
			}
			state.Path.SetEcho(routing.EchoUnknown)
			delete(p.paths, state)
		default:
			state.Path.Unprove() // and the next packet asks again
			q.want = 0
			q.rest(idle, now, pathExpires)
		}
	}
}

// unanswered ends a check whose size was not answered.
func (p *prober) unanswered(q *pathProbe, now time.Time) {
	path := &q.peer.State().Path
	mtu, hole := path.MTU()
	known, err := p.kernel.mtu(q.peer.Endpoint.Addr())
	switch {
	case !q.heard:
		if path.Echo() != routing.EchoSilent {
			p.kernel.log.Info("no answer to ICMP echo requests: a black hole on the path would not be found", "peer", q.peer.Name, "address", q.peer.Endpoint.Addr())
		}
		path.SetEcho(routing.EchoSilent)
		q.trip = 0
		q.rest(silent, now, probeSilent)
	case err == nil && known < q.size: // the request itself has brought the ICMP error
		p.kernel.asked(q.peer)
		q.rest(resting, now, 0)
	case hole && q.size > mtu: // it may take more than before
		p.search(q, mtu, now)
	default:
		p.search(q, p.floor, now)
	}
}

// search begins to look for the largest size that arrives: low does.
func (p *prober) search(q *pathProbe, low int, now time.Time) {
	q.phase, q.low, q.high, q.rounds, q.asked = searching, low, q.size, 0, nil
	p.round(q, now)
}

// narrow takes in a round's answers, and the lack of them, and goes on where the largest size that arrives is not known well yet.
func (p *prober) narrow(q *pathProbe, now time.Time) {
	if q.low >= q.high {
		q.high = q.size
	}
	for _, n := range q.asked {
		if n > q.low {
			q.high = min(q.high, n)
		}
	}
	if q.high-q.low > searchExact && q.rounds < searchRounds {
		p.round(q, now)
		return
	}
	if mtu, hole := q.peer.State().Path.MTU(); hole && mtu == q.low {
		p.found(q, now)
		return
	}
	q.phase, q.tries, q.agreed = confirming, 0, 0
	p.confirm(q, now)
}

// confirm asks once more for what the search found not to arrive, and then for what it found to.
func (p *prober) confirm(q *pathProbe, now time.Time) {
	sizes := slices.Compact([]int{q.size, q.high, q.low})
	if !p.limit.takeN(now, len(sizes), probesPerSecond, probesPerSecond) {
		q.asked, q.due = nil, now.Add(minPatience)
		return
	}
	q.tries, q.late, q.asked = q.tries+1, false, sizes
	for _, n := range slices.Clone(q.asked) {
		p.send(q, n)
	}
	q.due = now.Add(q.patience())
}

// agree takes in the answers to confirm: nothing larger than low was among them.
func (p *prober) agree(q *pathProbe, now time.Time) {
	if len(q.asked) > 0 && !slices.Contains(q.asked, q.low) {
		q.agreed++
	}
	switch {
	case q.agreed == confirmations:
		p.found(q, now)
	case q.tries == confirmTries: // it comes and goes, which says nothing of sizes
		q.rest(resting, now, probeAgain)
	default:
		p.confirm(q, now)
	}
}

// found ends a search: packets of more than low vanish, unless an ICMP error has come late.
func (p *prober) found(q *pathProbe, now time.Time) {
	if known, err := p.kernel.mtu(q.peer.Endpoint.Addr()); err == nil && known < q.size {
		p.kernel.asked(q.peer)
		q.rest(resting, now, 0)
		return
	}
	path := &q.peer.State().Path
	if mtu, hole := path.MTU(); !hole || mtu != q.low {
		p.kernel.log.Warn("black hole: larger packets vanish on the path, and no ICMP error tells of it", "peer", q.peer.Name, "address", q.peer.Endpoint.Addr(), "bytes", q.low)
		path.SetBlackHole(q.low)
	}
	q.full = max(q.full, q.size)
	q.larger = now.Add(probeLarger)
	q.rest(resting, now, probeAgain)
}

// round asks for sizes between low and high: first for those that are likely, then for some all over.
func (p *prober) round(q *pathProbe, now time.Time) {
	sizes := q.sizes()
	if !p.limit.takeN(now, len(sizes), probesPerSecond, probesPerSecond) {
		q.due = now.Add(minPatience)
		return
	}
	q.asked, q.late = sizes, false
	q.rounds++
	for _, n := range slices.Clone(sizes) {
		p.send(q, n)
	}
	q.due = now.Add(q.patience())
}

// sizes returns what a round asks for.
func (q *pathProbe) sizes() (sizes []int) {
	if q.rounds == 0 {
		sizes = append(sizes, q.size) // once more: it may have been lost
		for _, n := range plateaus {
			if n > q.low && n < q.high {
				sizes = append(sizes, n)
			}
		}
	}
	if q.rounds > 0 || len(sizes) == 1 {
		for i := 1; i <= searchSizes; i++ {
			if n := q.low + (q.high-q.low)*i/(searchSizes+1); n > q.low && !slices.Contains(sizes, n) {
				sizes = append(sizes, n)
			}
		}
	}
	return sizes
}
