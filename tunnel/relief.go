package tunnel

import "time"

// A helper begins when its worker's load, in cores, is more than loadForHelp and so many cores are idle as spareForHelp, and stays while there
// are loadWithHelp, of both, and spareWithHelp. A worker that is not busy itself is not what a stream waits for.
const (
	loadForHelp, loadWithHelp   = 0.8, 0.6
	spareForHelp, spareWithHelp = 0.25, 0.03
	// lull is how long a stream may pause: TCP's often do for a millisecond or two.
	lull = 50 * time.Millisecond
)

// relief decides whether a helper is worth it: in a stream that goes both ways.
type relief struct {
	wanted bool

	began    time.Duration // when the stream began
	from     time.Duration // what was before says nothing about load and spare
	streamed time.Duration // when it was seen last
	load     float64       // cores that worker and helper took, in this stream, but for looking; 0 while that is not known
	spare    float64       // cores of the machine that were idle meanwhile

	spent    func() time.Duration // how long worker and helper have been on a core; nil: there is no helper
	hadSpent time.Duration
}

// seen notes that the stream is under way.
func (r *relief) seen(now time.Duration) {
	if now-r.streamed > lull {
		r.began = now
		r.forget(now)
	}
	r.streamed = now
}

// forget begins anew.
func (r *relief) forget(now time.Duration) { r.wanted, r.from, r.load, r.spare = false, now, 0, 0 }

// stream returns for how long the stream has been under way; 0 when there is none.
func (r *relief) stream(now time.Duration) time.Duration {
	if now-r.streamed > lull {
		return 0
	}
	return now - r.began + 1
}

// weigh takes in how much of the span since a point in time the machine's cores were idle, added up, and for how much of it the worker
// looked for packets in vain, which is idle too. It counts when all of that was within the stream. Load and spare are averages, as idle time
// counts in ticks.
func (r *relief) weigh(since, span, idle, looked time.Duration) {
	if r.spent == nil {
		return
	}
	spent := r.spent()
	load, spare := float64(spent-r.hadSpent-looked)/float64(span), float64(idle)/float64(span)
	r.hadSpent = spent
	switch {
	case since < r.from:
		r.load, r.spare = 0, 0
	case r.load == 0:
		r.load, r.spare = load, spare
	default:
		r.load, r.spare = (r.load+load)/2, (r.spare+spare)/2
	}
}

// decide sets wanted.
func (r *relief) decide(now time.Duration) {
	load, spare := loadForHelp, spareForHelp
	if r.wanted {
		load, spare = loadWithHelp, spareWithHelp
	}
	r.wanted = r.stream(now) > 0 && r.load > load && r.spare > spare
}
