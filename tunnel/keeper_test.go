package tunnel

import (
	"testing"
	"time"
)

// terrain is how much a stream moves by layout, and for how long it moves a fifth of it after a change.
type terrain struct {
	gain   [3]float64 // by place
	helped float64    // times as much when the helper always takes part
	dip    time.Duration
	sends  bool // most of it goes out
}

// flow is a stream both ways; it returns the share of the time that each layout was wanted.
func (c *clockwork) flow(over terrain, d time.Duration) map[layout]float64 {
	const step = 50 * time.Microsecond
	share := map[layout]float64{}
	at, since := c.keeper.wanted, c.at
	for end := c.at + d; c.at < end; c.at += step {
		if c.keeper.wanted != at {
			at, since = c.keeper.wanted, c.at
		}
		moved := over.gain[at.place] * (64 << 10)
		if at.helped {
			moved *= over.helped
		}
		if c.at-since < over.dip {
			moved /= 5
		}
		share[at] += float64(step) / float64(d)
		c.clock += time.Duration(c.load * float64(step))
		if over.sends {
			c.found(haul{1, 64}, haul{1, int(moved)})
		} else {
			c.found(haul{1, int(moved)}, haul{1, 64})
		}
	}
	return share
}

func newKept() *clockwork {
	c := newClockwork()
	c.keeper.able, c.keeper.shares = true, true
	return c
}

func TestKeepsWhereItMovesMost(t *testing.T) {
	for name, c := range map[string]struct {
		terrain
		want layout
	}{
		"its core":                  {terrain{gain: [3]float64{1, 1.2, 1.1}, helped: 0.9}, layout{Home, false}},
		"the other core":            {terrain{gain: [3]float64{1, 0.9, 1.1}, helped: 0.9}, layout{Away, false}},
		"no core":                   {terrain{gain: [3]float64{1, 0.8, 0.9}, helped: 1}, layout{Roaming, false}},
		"the other core, shared":    {terrain{gain: [3]float64{1, 1.1, 1}, helped: 1.2}, layout{Away, true}},
		"all alike: as it is":       {terrain{gain: [3]float64{1, 1, 1}, helped: 1}, layout{Roaming, false}},
		"a little better: as it is": {terrain{gain: [3]float64{1, 1.02, 1.01}, helped: 1.01}, layout{Roaming, false}},
		"changes cost":              {terrain{gain: [3]float64{1, 1.2, 1.1}, helped: 0.9, dip: settleIn}, layout{Home, false}},
		"it sends, no core":         {terrain{gain: [3]float64{1, 0.8, 2}, helped: 1.1, sends: true}, layout{Roaming, false}},
		"it sends, its core":        {terrain{gain: [3]float64{1, 1.2, 2}, helped: 0.9, sends: true}, layout{Home, false}},
		"it sends, shared":          {terrain{gain: [3]float64{1, 0.9, 2}, helped: 1.3, sends: true}, layout{Home, true}},
	} {
		share := newKept().flow(c.terrain, time.Minute)
		if share[c.want] < 0.85 {
			t.Errorf("%s: %v of the time, want most of it %v", name, share, c.want)
		}
		if c.sends && share[layout{Away, false}]+share[layout{Away, true}] > 0 {
			t.Errorf("%s: the end that sends was away: %v", name, share)
		}
	}
}

// Where no core is better than the scheduler's choice, a short stream hardly leaves it.
func TestTheSchedulerIsTriedFirst(t *testing.T) {
	share := newKept().flow(terrain{gain: [3]float64{1, 0.5, 0.5}, helped: 1}, time.Second)
	if share[layout{Roaming, false}] < 0.5 {
		t.Errorf("%v of the first second", share)
	}
}

// A stream that moves less in all layouts alike stays in its own.
func TestKeepingSurvivesASlowerStream(t *testing.T) {
	w := newKept()
	all := terrain{gain: [3]float64{1, 1.2, 1.1}, helped: 0.9}
	w.flow(all, 4*stayFor)
	for i := range all.gain {
		all.gain[i] /= 3
	}
	w.flow(all, stayFor) // the stay that has both
	if share := w.flow(all, 4*stayFor); share[layout{Home, false}] < 0.9 {
		t.Errorf("%v of the time", share)
	}
}

// One good trial is not enough to leave what was best.
func TestOneTrialDoesNotDecide(t *testing.T) {
	usual := terrain{gain: [3]float64{1, 1.2, 1}, helped: 0.9}
	lucky := terrain{gain: [3]float64{1, 1.2, 1.3}, helped: 0.9}
	w := newKept()
	w.flow(usual, 4*stayFor)
	for w.keeper.wanted != (layout{Away, false}) {
		w.flow(usual, time.Millisecond)
	}
	w.flow(lucky, tryFor)
	if share := w.flow(usual, stayFor); share[layout{Home, false}] < 0.9 {
		t.Errorf("%v of the time", share)
	}
}

// A worker without a helper has none to try.
func TestNoHelpWithoutAHelper(t *testing.T) {
	w := newKept()
	w.keeper.shares = false
	share := w.flow(terrain{gain: [3]float64{1, 1.2, 1.1}, helped: 3}, time.Minute)
	if share[layout{Away, true}] > 0 || share[layout{Home, false}] < 0.85 {
		t.Errorf("%v", share)
	}
}

// While a helper takes part to find out whether that pays, relief learns nothing from the load.
func TestReliefForgetsTheTrial(t *testing.T) {
	w := newKept()
	w.load, w.free = 1.5, 0.5
	flat := terrain{gain: [3]float64{1, 1, 1}, helped: 0.5}
	for w.flow(flat, time.Millisecond); !w.keeper.wanted.helped; w.flow(flat, time.Millisecond) {
	}
	for w.keeper.wanted.helped {
		w.flow(flat, time.Millisecond)
	}
	if w.load = 0.5; w.shared() {
		t.Error("the helper outlived its trial")
	}
	if w.flow(flat, tryFor); w.shared() {
		t.Error("what the trial took is held against the worker")
	}
}

// Two ends on one machine try together and apart.
func TestEndsOfOneMachineComeApart(t *testing.T) {
	for name, c := range map[string]struct {
		together, apart float64
		want            bool
	}{"apart": {1, 1.2, true}, "together": {1.2, 1, false}} {
		sender, receiver := newKept(), newKept()
		gain := func() float64 {
			if sender.keeper.wanted.place == Roaming || receiver.keeper.wanted.place == Roaming || sender.keeper.wanted.helped {
				return 0.9
			}
			if sender.keeper.wanted.place != receiver.keeper.wanted.place {
				return c.apart
			}
			return c.together
		}
		same := 0
		const steps = 200_000
		for range steps {
			bytes := int(gain() * (64 << 10))
			sender.found(haul{1, 64}, haul{1, bytes})
			receiver.found(haul{1, bytes}, haul{1, 64})
			sender.at += 50 * time.Microsecond
			receiver.at += 50 * time.Microsecond
			if sender.keeper.wanted.place == receiver.keeper.wanted.place {
				same++
			}
		}
		if apart := 1 - float64(same)/steps; apart > 0.5 != c.want {
			t.Errorf("%s: %.2f of the time on different cores", name, apart)
		}
	}
}

// What was right is tried anew, as others come and go on the cores.
func TestKeepingIsTriedAnew(t *testing.T) {
	w := newKept()
	for range 3 {
		for _, c := range []struct {
			terrain
			want layout
		}{
			{terrain{gain: [3]float64{1, 1.3, 1}, helped: 0.9}, layout{Home, false}},
			{terrain{gain: [3]float64{1, 0.8, 0.8}, helped: 0.9}, layout{Roaming, false}},
			{terrain{gain: [3]float64{1, 1, 1.3}, helped: 0.9}, layout{Away, false}},
			{terrain{gain: [3]float64{1, 1, 1}, helped: 1.3}, layout{Away, true}},
		} {
			w.flow(c.terrain, 8*stayFor)
			if share := w.flow(c.terrain, stayFor); share[c.want] < 0.8 {
				t.Errorf("%v of the time, where %v pays", share, c.want)
			}
		}
	}
}

func TestKeepingEndsWithTheStream(t *testing.T) {
	w := newKept()
	w.flow(terrain{gain: [3]float64{1, 1.2, 1}, helped: 1}, time.Second)
	if w.keeper.wanted != (layout{Home, false}) {
		t.Fatal("not kept amid the stream")
	}
	w.at += lull + time.Millisecond
	if w.again(); w.keeper.wanted != (layout{}) {
		t.Error("kept after the stream")
	}
}

func TestNoKeepingWithoutAStream(t *testing.T) {
	for name, run := range map[string]func(*clockwork){
		"requests and answers": func(c *clockwork) { c.exchange() },
		"one way":              func(c *clockwork) { c.stream(1, time.Millisecond) },
		"many small packets":   func(c *clockwork) { c.found(haul{1, 64}, haul{1, 64}); c.at += 20 * time.Microsecond },
		"a burst":              func(c *clockwork) { c.stream(2, settled/2); c.at += 2 * lull },
	} {
		w := newKept()
		for range 5000 {
			if run(w); w.keeper.wanted != (layout{}) {
				t.Errorf("%s: kept to a core", name)
				break
			}
		}
	}
	w := newClockwork()
	if share := w.flow(terrain{gain: [3]float64{1, 1.2, 1.2}, helped: 1.2}, time.Second); len(share) > 1 {
		t.Error("kept to a core without a choice")
	}
}
