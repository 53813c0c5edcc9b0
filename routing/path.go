package routing

import "sync/atomic"

// Path is what is known of the way to a peer's underlay address. Sizes are those of outer IP packets, in bytes. All methods are safe
// for concurrent use.
type Path struct {
	mtu    atomic.Uint32 // with blackHole
	proven atomic.Uint32
	wanted atomic.Uint32
	echo   atomic.Uint32
}

const blackHole = 1 << 31

// Echo says whether a peer's address answers ICMP echo requests, without which a black hole on the way to it cannot be found.
type Echo uint32

// What is known of it.
const (
	EchoUnknown Echo = iota
	EchoAnswered
	EchoSilent
)

// String returns the word for e in status.
func (e Echo) String() string {
	return [...]string{EchoUnknown: "unknown", EchoAnswered: "answered", EchoSilent: "silent"}[e]
}

// MTU returns the largest packet that is known to reach the peer, 0 when nothing is known, and whether larger ones vanish without
// an ICMP error.
func (p *Path) MTU() (bytes int, hole bool) {
	v := p.mtu.Load()
	return int(v &^ blackHole), v&blackHole != 0
}

// SetMTU stores the path MTU that the kernel knows; 0 forgets it. What was proven before is no more.
func (p *Path) SetMTU(bytes int) {
	p.mtu.Store(uint32(bytes))
	p.Unprove()
}

// SetBlackHole notes that packets of more than so many bytes vanish.
func (p *Path) SetBlackHole(bytes int) {
	p.mtu.Store(uint32(bytes) | blackHole)
	p.proven.Store(uint32(bytes))
}

// Proven returns the size of which a packet is known to have reached the peer lately, 0 when none is.
func (p *Path) Proven() int { return int(p.proven.Load()) }

// Prove notes that a packet of a size reaches the peer.
func (p *Path) Prove(bytes int) { p.proven.Store(uint32(bytes)) }

// Want notes that a packet of a size was sent that is not proven, and reports whether it is the largest such since Unprove.
func (p *Path) Want(bytes int) bool {
	for {
		before := p.wanted.Load()
		if uint32(bytes) <= before {
			return false
		}
		if p.wanted.CompareAndSwap(before, uint32(bytes)) {
			return true
		}
	}
}

// Unprove forgets what was proven and wanted.
func (p *Path) Unprove() {
	p.proven.Store(0)
	p.wanted.Store(0)
}

// Reset forgets everything: the peer is somewhere else.
func (p *Path) Reset() {
	p.SetMTU(0)
	p.SetEcho(EchoUnknown)
}

// Echo returns whether the peer answers echo requests.
func (p *Path) Echo() Echo { return Echo(p.echo.Load()) }

// SetEcho notes it.
func (p *Path) SetEcho(e Echo) { p.echo.Store(uint32(e)) }
