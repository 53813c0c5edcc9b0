package tunnel

import "time"

const (
	// settled is how long a stream must have been under way for its worker to try whether another layout pays.
	settled = 20 * time.Millisecond
	// Each layout is tried for tryFor, and the best one kept for stayFor. What is moved in the first settleIn does not count: congestion
	// control takes some round trips to find out what it may send.
	settleIn, tryFor, stayFor = 60 * time.Millisecond, 150 * time.Millisecond, 5 * time.Second
	// worthMoving is how many times as much another layout must move.
	worthMoving = 1.03
)

// Place is where the threads of a worker run.
type Place int32

const (
	Roaming Place = iota // wherever the scheduler puts them
	Home                 // the worker keeps to its core, and its helper to another one
	Away                 // each keeps to the other's core
)

// layout is how a worker does its work: where its threads run, and whether the helper takes part, whatever relief finds.
type layout struct {
	place  Place
	helped bool
}

// layouts are tried one after the other, over and over. In the last one each stream begins.
var layouts = [...]layout{{Away, false}, {Away, true}, {Home, false}, {Roaming, false}}

const initial = len(layouts) - 1

// keeper decides whether a worker keeps to one core, to which, and whether it always shares its work: in a stream that goes both ways, as it moves most. When
// the machine is busy, Linux looks for no idle core for a thread that is woken (kernel/sched/fair.c, select_idle_cpu and nr_idle_scan), but leaves it on the core
// of who woke it. For a worker that is the core of the sender and of the timers that pace it, where it waits while another core is idle. Which core is the right
// one, or none, and whether acknowledgements should have another one than data, nothing tells but the throughput (docs/decisions/0009).
type keeper struct {
	able   bool // there is a choice of cores
	shares bool // there is a helper
	wanted layout

	streamed time.Duration // when there was a heavy window last

	sends  bool // more than it receives, as the stream began
	best   int  // of layouts
	tried  int  // the one that is under way
	turn   int  // the one to try next
	trials int  // before the best one is stayed at

	begun    time.Duration // when the one under way was; 0 when there is no stream
	until    time.Duration
	counting bool
	since    time.Duration         // when counting began
	moved    [2]int                // bytes since, by direction
	rates    [len(layouts)]float64 // what each moved in this stream, in bytes a nanosecond, the last time counting most; 0: not tried
}

// moves notes the bytes of so many windows. Only what is heavy counts as a stream here: request and response may be many small packets both ways, and
// are faster where the scheduler has the worker.
func (k *keeper) moves(now time.Duration, sent, received int, windows float64) {
	if float64(sent+received) > heavy*windows {
		k.streamed = now
	}
	k.moved[Encap] += sent
	k.moved[Decap] += received
}

// decide sets wanted, for a stream that has been under way for so long; 0 is none.
func (k *keeper) decide(now, stream time.Duration) {
	switch {
	case !k.able:
	case stream == 0 || now-k.streamed > lull:
		*k = keeper{able: true, shares: k.shares}
	case stream < settled:
	case k.begun == 0:
		k.sends = k.moved[Encap] > k.moved[Decap]
		k.best, k.trials = initial, initial
		k.begin(now, initial, tryFor)
	case !k.counting && now >= k.begun+settleIn:
		k.counting, k.since, k.moved = true, now, [2]int{}
		k.until = max(k.until, now+tryFor-settleIn)
	case now >= k.until:
		k.learn(now)
		k.next(now)
	}
}

// next begins a trial or, when it is time, stays at the best layout. The first round is all of them, as nothing is known; later each stay is followed by one
// of another.
func (k *keeper) next(now time.Duration) {
	if k.trials == 0 {
		k.trials = 1
		k.begin(now, k.best, stayFor)
		return
	}
	k.trials--
	for k.turn == k.best || layouts[k.turn].helped && !k.shares {
		k.turn = (k.turn + 1) % len(layouts)
	}
	k.begin(now, k.turn, tryFor)
	k.turn = (k.turn + 1) % len(layouts)
}

// begin goes on in another layout. The ends of a tunnel that has no others try at the same time, as the stream is one, and see the same rates, so that they choose
// alike; when both are on this machine, their workers come apart only if one of them stays where it is: the one that sends more is never away.
func (k *keeper) begin(now time.Duration, i int, d time.Duration) {
	k.tried, k.wanted = i, layouts[i]
	if k.wanted.place == Away && k.sends {
		k.wanted.place = Home
	}
	k.begun, k.until, k.counting = now, now+d, false
}

// learn compares what was moved with what the best layout moves. When that moves more or less than it did, so would the others: the stream changed.
func (k *keeper) learn(now time.Duration) {
	rate := float64(k.moved[Encap]+k.moved[Decap]) / float64(now-k.since)
	if before := k.rates[k.tried]; before > 0 {
		rate = (before + rate) / 2
		if k.tried == k.best {
			for i := range k.rates {
				k.rates[i] *= rate / before
			}
		}
	}
	if k.rates[k.tried] = rate; rate > worthMoving*k.rates[k.best] {
		k.best = k.tried
	}
}
