package tunnel

import (
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/encap"
)

// limiter bounds the ICMP errors that a tunnel originates, about as the kernel does (net.ipv4.icmp_msgs_per_sec,
// icmp_ratelimit): in all, and to each destination. One goroutine at a time may use it.
type limiter struct {
	now     func() time.Time
	all     bucket
	perHost [256]hostBucket
}

const (
	errorsPerSecond     = 1000
	errorBurst          = 50
	errorsPerHostSecond = 10
	errorHostBurst      = 6
)

type hostBucket struct {
	host netip.Addr
	bucket
}

func newLimiter() *limiter { return &limiter{now: time.Now} }

// allow reports whether one more error may go to host, and books it.
func (l *limiter) allow(host netip.Addr) bool {
	now := l.now()
	b := &l.perHost[encap.HashAddr(host)%uint64(len(l.perHost))]
	if b.host != host {
		*b = hostBucket{host: host}
	}
	return b.take(now, errorsPerHostSecond, errorHostBurst) && l.all.take(now, errorsPerSecond, errorBurst)
}

// bucket is a token bucket; the zero value is full.
type bucket struct {
	last   time.Time
	tokens float64
}

func (b *bucket) take(now time.Time, perSecond, burst float64) bool {
	return b.takeN(now, 1, perSecond, burst)
}

// takeN takes n tokens, or none when there are fewer.
func (b *bucket) takeN(now time.Time, n int, perSecond, burst float64) bool {
	if b.last.IsZero() {
		b.tokens = burst
	} else {
		b.tokens = min(burst, b.tokens+now.Sub(b.last).Seconds()*perSecond)
	}
	b.last = now
	if b.tokens < float64(n) {
		return false
	}
	b.tokens -= float64(n)
	return true
}
