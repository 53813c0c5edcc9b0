package tunnel

import "time"

// Looking again for a moment before sleeping saves the wake-up, most of the latency of a tunnel on a quiet machine
// (docs/decisions/0009). These bound what it may cost.
const (
	// spinWindow is how long to look after the last packet: a little more than an answer takes from a host next door.
	spinWindow = 400 * time.Microsecond
	// spinCredit is how much may be spent in vain at once; it is won back by finding something, and slowly by sleeping.
	spinCredit = 2 * time.Millisecond
	// spinShare is the share of the time asleep that is won back.
	spinShare = 64
	// yieldLimit tells a core that others need for long: giving it up then takes more than an application's answer.
	yieldLimit = time.Millisecond
	// crowdedFor is how long a core that others need is left to them.
	crowdedFor = 10 * time.Millisecond
	// sparse is how many packets there may be in rateWindow for looking to pay, a super-packet of the device counted as one.
	// When there are more, a sleeping worker finds many at once when it wakes, and moves them together; a watchful one would
	// move them one by one. Heavy is the same in bytes, which super-packets have many of: about a gigabit a second.
	sparse     = 60
	heavy      = 128 << 10
	rateWindow = time.Millisecond
	// oneWay is how many times in a row packets may go the same way before nobody is thought to wait for an answer.
	oneWay = 4
	// idleShare is how much of a core the machine must have idle, this worker's looking counted as idle, for looking to be
	// free: else it takes the time of those that have work. It is judged every idleWindow, as idle time counts in ticks.
	idleShare  = 0.3
	idleWindow = 100 * time.Millisecond
	// nearby is how soon packets must have followed each other, conversation times in a row, for looking to begin: an answer to a
	// packet after a pause is met asleep. Looking would keep the core from whoever has to be woken for it.
	nearby       = time.Millisecond
	conversation = 2
	// briefFor is how long after the last packet the next one is expected soon.
	briefFor = 200 * time.Millisecond
)

// spinner decides whether a worker that found nothing looks again at once or sleeps, and, by relief and keeper, whether it has a helper. Times count from
// start.
type spinner struct {
	now   func() time.Duration
	yield func() // gives others the core; nil: never spin
	// patient makes this thread one that does not preempt others when it is woken, or an ordinary one again.
	patient func(bool)
	// idle is how long the machine's cores have been idle, added up.
	idle func() time.Duration

	looking bool
	since   time.Duration // when looking began
	until   time.Duration
	credit  time.Duration
	slept   time.Duration // when sleep began
	quiet   time.Duration // no looking before
	last    time.Duration // when something was found
	fresh   bool          // something was found since last was set
	near    int           // how many times in a row something was found nearby

	moved   [2]haul       // since counted, by direction
	counted time.Duration // when counting began
	dense   bool          // it was more than sparse, or heavy
	crowded [2]bool       // one direction alone was
	way     Direction     // that packets went last
	same    int           // how many times in a row
	stream  bool          // what this thread was told last: that what it moves is a stream

	looked  time.Duration // spent looking since judged
	judged  time.Duration
	wasIdle time.Duration
	busy    bool // the machine has no idle core

	relief relief
	keeper keeper
}

func newSpinner(s Scheduler) spinner {
	start := time.Now()
	return spinner{now: func() time.Duration { return time.Since(start) }, yield: s.Yield, patient: s.Patient, idle: s.Idle, credit: spinCredit, last: -briefFor, relief: relief{streamed: -2 * lull}}
}

// haul is what a turn moved one way: packets, a super-packet of the device counted as one, and their bytes.
type haul struct{ packets, bytes int }

// dense reports whether so much in so many windows is a stream.
func (h haul) dense(windows float64) bool {
	return float64(h.packets) > sparse*windows || float64(h.bytes) > heavy*windows
}

// found notes that there were packets.
func (s *spinner) found(received, sent haul) {
	s.count(Decap, received)
	s.count(Encap, sent)
	way := Encap
	if received.packets > 0 {
		way = Decap
	}
	s.same++
	if way != s.way || received.packets > 0 && sent.packets > 0 {
		s.way, s.same = way, 0
	}
	if s.looking {
		s.looking, s.credit = false, spinCredit
		s.looked += s.now() - s.since
	}
	s.fresh = true
	if s.yield != nil {
		s.measure(s.now())
	}
}

// count notes how much went one way.
func (s *spinner) count(d Direction, h haul) {
	s.moved[d].packets += h.packets
	s.moved[d].bytes += h.bytes
}

// measure closes windows that are over.
func (s *spinner) measure(now time.Duration) {
	if span := now - s.counted; span >= rateWindow {
		windows := float64(span) / float64(rateWindow)
		sent, received := s.moved[Encap], s.moved[Decap]
		s.dense = haul{sent.packets + received.packets, sent.bytes + received.bytes}.dense(windows)
		s.crowded = [2]bool{Encap: sent.dense(windows), Decap: received.dense(windows)}
		if s.dense && sent.packets > 0 && received.packets > 0 {
			s.relief.seen(now)
		}
		s.keeper.moves(now, sent.bytes, received.bytes, windows)
		s.moved, s.counted = [2]haul{}, now
		s.follow(s.crowded[Encap] || s.dense && !s.shared())
	}
	if now-s.judged >= idleWindow {
		s.judge(now)
	}
	helped := s.keeper.wanted.helped
	s.relief.decide(now)
	s.keeper.decide(now, s.relief.stream(now))
	if helped && !s.keeper.wanted.helped {
		s.relief.forget(now)
	}
}

// shared reports whether the helper is to work.
func (s *spinner) shared() bool { return s.relief.wanted || s.keeper.wanted.helped }

// again reports whether to look again; then the core has been offered to others before it returns.
func (s *spinner) again() bool {
	now := s.now()
	if s.fresh {
		s.near++
		if now-s.last > nearby {
			s.near = 0
		}
		s.last, s.fresh = now, false
	}
	if s.yield == nil {
		return false
	}
	s.measure(now)
	if !s.looking {
		if s.near < conversation || now < s.quiet || s.busy || s.dense || s.shared() || s.same >= oneWay {
			return s.sleep(now)
		}
		s.looking, s.since, s.until = true, now, now+min(spinWindow, s.credit)
	}
	if now >= s.until {
		s.looked += now - s.since
		s.credit = max(0, s.credit-(now-s.since))
		return s.sleep(now)
	}
	s.yield()
	if after := s.now(); after-now > yieldLimit {
		s.quiet, s.until = after+crowdedFor, 0 // one look more, then sleep
	}
	return true
}

// judge finds out whether the machine has an idle core.
func (s *spinner) judge(now time.Duration) {
	idle := s.idle()
	free := idle - s.wasIdle + s.looked
	span := now - s.judged
	s.busy = span < 2*idleWindow && free < time.Duration(idleShare*float64(span))
	s.relief.weigh(s.judged, span, free, s.looked)
	s.judged, s.wasIdle, s.looked = now, idle, 0
}

// follow makes the thread one that does not preempt whom it is woken by while a stream is under way: the sender is likely
// not done yet, on this very core, and what it adds need not wake anyone.
func (s *spinner) follow(stream bool) {
	if stream != s.stream {
		s.stream = stream
		s.patient(stream)
	}
}

func (s *spinner) sleep(now time.Duration) bool {
	s.looking, s.slept = false, now
	return false
}

// expects reports whether more packets are likely soon.
func (s *spinner) expects() bool { return s.slept-s.last < briefFor }

// woken notes that sleep is over.
func (s *spinner) woken() {
	if s.credit < spinCredit {
		s.credit = min(spinCredit, s.credit+(s.now()-s.slept)/spinShare)
	}
}
