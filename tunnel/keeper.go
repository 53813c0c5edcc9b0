package tunnel

import "time"

const (
	// settled is how long a stream must have been under way for its worker to try whether keeping to a core pays.
	settled = 20 * time.Millisecond
	// Each place is tried for tryFor, and the best one kept for stayFor. What is moved in the first settleIn does not count: congestion
	// control takes some round trips to find out what it may send.
	settleIn, tryFor, stayFor = 60 * time.Millisecond, 150 * time.Millisecond, 5 * time.Second
	// worthMoving is how many times as much another place must move.
	worthMoving = 1.03
)

// Place is where the threads of a worker run.
type Place int32

const (
	Roaming Place = iota // wherever the scheduler puts them
	Home                 // the worker keeps to its core, and its helper to another one
	Away                 // each keeps to the other's core
)

// others are what is tried besides a place.
var others = [...][2]Place{Roaming: {Away, Home}, Home: {Roaming, Away}, Away: {Roaming, Home}}

// keeper decides whether a worker keeps to one core, and to which: in a stream that goes both ways, where it moves most. When the machine is busy, Linux
// looks for no idle core for a thread that is woken (kernel/sched/fair.c, select_idle_cpu and nr_idle_scan), but leaves it on the core of who woke it. For
// a worker that is the core of the sender and of the timers that pace it, where it waits while another core is idle. Which core is the right one, or none,
// nothing tells but the throughput (docs/decisions/0009).
type keeper struct {
	able   bool
	wanted Place

	place    Place // that is tried, or stayed at
	stays    Place // that was the best one
	round    []Place
	staying  bool
	began    time.Duration // when it got there; 0 when there is no stream
	until    time.Duration
	counting bool
	since    time.Duration // when counting began
	moved    [2]int        // bytes since, by direction
	rates    [3]float64    // what each place moved in this stream, in bytes a nanosecond, the last time counting most; 0: not tried
}

// decide sets wanted, for a stream that has been under way for so long; 0 is none.
func (k *keeper) decide(now, stream time.Duration) {
	switch {
	case !k.able:
	case stream == 0:
		*k = keeper{able: true}
	case stream < settled:
	case k.began == 0:
		k.staying = true
		k.next(now)
	case !k.counting && now >= k.began+settleIn:
		k.counting, k.since, k.moved = true, now, [2]int{}
	case now >= k.until:
		k.learn(now)
		k.next(now)
	}
}

// next goes on with the round, or stays, or begins a round: the first one of a stream as if roaming had been found best, as that is where it began.
func (k *keeper) next(now time.Duration) {
	switch {
	case len(k.round) > 0:
		k.begin(now, k.round[0], tryFor)
		k.round = k.round[1:]
	case k.staying:
		k.staying, k.round = false, others[k.stays][:]
		k.next(now)
	default:
		k.staying, k.stays = true, k.best()
		k.begin(now, k.stays, stayFor)
	}
}

// begin goes to a place. Both ends of a tunnel try at the same time, as the stream is one, and see the same rates, so that they choose alike; when both are on this
// machine, their workers come apart only if one of them stays where it is: the one that sends more is never away.
func (k *keeper) begin(now time.Duration, where Place, d time.Duration) {
	k.place, k.wanted = where, where
	if where == Away && k.moved[Encap] > k.moved[Decap] {
		k.wanted = Home
	}
	k.began, k.until, k.counting = now, now+d, false
}

func (k *keeper) learn(now time.Duration) {
	rate := float64(k.moved[Encap]+k.moved[Decap]) / float64(now-k.since)
	if before := k.rates[k.place]; before > 0 {
		rate = (before + rate) / 2
	}
	k.rates[k.place] = rate
}

func (k *keeper) best() Place {
	best, least := k.stays, worthMoving*k.rates[k.stays]
	for _, p := range others[k.stays] {
		if k.rates[p] > least {
			best, least = p, k.rates[p]
		}
	}
	return best
}
