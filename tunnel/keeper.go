package tunnel

import "time"

const (
	// settled is how long a stream must have been under way for its worker to try whether keeping to one core pays.
	settled = 20 * time.Millisecond
	// Each way is tried for tryFor, and the better one stays for stayFor. Keeping to a core must move worthKeeping times as much.
	tryFor, stayFor = 120 * time.Millisecond, 3 * time.Second
	worthKeeping    = 1.03
)

// keeper decides whether a worker keeps to one core: in a stream that goes both ways, when it moves more so. When the machine is busy, Linux looks for
// no idle core for a thread that is woken (kernel/sched/fair.c, select_idle_cpu and nr_idle_scan), but leaves it on the core of who woke it. For
// a worker that is the core of the sender and of the timers that pace it, where it waits while another core is idle. Keeping to a core may as well be the
// mistake, which nothing tells but the throughput (docs/decisions/0009).
type keeper struct {
	able   bool
	wanted bool

	began   time.Duration // when the attempt, or the stay, began; 0 when there is no stream
	until   time.Duration
	bytes   int                 // moved since
	next    func(time.Duration) // what comes when it is over
	roaming float64             // what was measured while the scheduler had the worker
}

// decide sets wanted, for a stream that has been under way for so long; 0 is none.
func (k *keeper) decide(now, stream time.Duration) {
	switch {
	case !k.able:
	case stream < settled:
		k.wanted, k.began = false, 0
	case k.began == 0:
		k.tryRoaming(now)
	case now >= k.until:
		k.next(now)
	}
}

func (k *keeper) begin(now, d time.Duration, keeping bool, next func(time.Duration)) {
	k.wanted, k.began, k.until, k.bytes, k.next = keeping, now, now+d, 0, next
}

func (k *keeper) tryRoaming(now time.Duration) { k.begin(now, tryFor, false, k.tryKeeping) }

func (k *keeper) tryKeeping(now time.Duration) {
	k.roaming = k.measured(now)
	k.begin(now, tryFor, true, k.stay)
}

func (k *keeper) stay(now time.Duration) {
	k.begin(now, stayFor, k.measured(now) > worthKeeping*k.roaming, k.tryRoaming)
}

// measured returns bytes a nanosecond.
func (k *keeper) measured(now time.Duration) float64 { return float64(k.bytes) / float64(now-k.began) }
