package tunnel

import (
	"testing"
	"time"
)

// terrain is how much a stream moves with its worker in a place, and for how long it moves next to nothing after a move.
type terrain struct {
	gain  [3]float64
	dip   time.Duration
	sends bool // most of it goes out
}

// flow is a stream both ways; it returns the share of the time that the worker was wanted in each place.
func (c *clockwork) flow(over terrain, d time.Duration) (share [3]float64) {
	const step = 50 * time.Microsecond
	at, since := c.keeper.wanted, c.at
	for end := c.at + d; c.at < end; c.at += step {
		if c.keeper.wanted != at {
			at, since = c.keeper.wanted, c.at
		}
		bytes := int(over.gain[at] * (64 << 10))
		if c.at-since < over.dip {
			bytes /= 10
		}
		share[at] += float64(step) / float64(d)
		if over.sends {
			c.found(haul{1, 64}, haul{1, bytes})
		} else {
			c.found(haul{1, bytes}, haul{1, 64})
		}
	}
	return share
}

func newKept() *clockwork {
	c := newClockwork()
	c.keeper.able = true
	return c
}

func TestKeepsWhereItMovesMost(t *testing.T) {
	for name, c := range map[string]struct {
		terrain
		want Place
	}{
		"its core":                      {terrain{gain: [3]float64{1, 1.2, 1.1}}, Home},
		"the other core":                {terrain{gain: [3]float64{1, 0.9, 1.1}}, Away},
		"no core":                       {terrain{gain: [3]float64{1, 0.8, 0.9}}, Roaming},
		"all alike: where it is":        {terrain{gain: [3]float64{1, 1, 1}}, Away},
		"a little better: where it was": {terrain{gain: [3]float64{1.02, 1, 0.98}}, Home},
		"moves cost":                    {terrain{gain: [3]float64{1, 1.2, 1.1}, dip: settleIn}, Home},
		"it sends, no core":             {terrain{gain: [3]float64{1, 0.8, 2}, sends: true}, Roaming},
		"it sends, its core":            {terrain{gain: [3]float64{1, 1.2, 2}, sends: true}, Home},
	} {
		share := newKept().flow(c.terrain, time.Minute)
		if share[c.want] < 0.8 {
			t.Errorf("%s: %.2f of the time in each place, want most of it in place %d", name, share, c.want)
		}
		if c.sends && share[Away] > 0 {
			t.Errorf("%s: the end that sends was away for %.2f of the time", name, share[Away])
		}
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
			if sender.keeper.wanted == Roaming || receiver.keeper.wanted == Roaming {
				return 0.9
			}
			if sender.keeper.wanted != receiver.keeper.wanted {
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
			if sender.keeper.wanted == receiver.keeper.wanted {
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
			want Place
		}{{terrain{gain: [3]float64{1, 1.3, 1}}, Home}, {terrain{gain: [3]float64{1, 0.8, 0.8}}, Roaming}, {terrain{gain: [3]float64{1, 1, 1.3}}, Away}} {
			w.flow(c.terrain, 3*stayFor)
			if share := w.flow(c.terrain, stayFor); share[c.want] < 0.8 {
				t.Errorf("%.2f of the time in each place, where %d pays", share, c.want)
			}
		}
	}
}

func TestKeepingEndsWithTheStream(t *testing.T) {
	w := newKept()
	w.flow(terrain{gain: [3]float64{1, 1.2, 1}}, time.Second)
	if w.keeper.wanted != Home {
		t.Fatal("not kept amid the stream")
	}
	w.at += lull + time.Millisecond
	if w.again(); w.keeper.wanted != Roaming {
		t.Error("kept after the stream")
	}
}

func TestNoKeepingWithoutAStream(t *testing.T) {
	for name, run := range map[string]func(*clockwork){
		"requests and answers": func(c *clockwork) { c.exchange() },
		"one way":              func(c *clockwork) { c.stream(1, time.Millisecond) },
		"a burst":              func(c *clockwork) { c.stream(2, settled/2); c.at += 2 * lull },
	} {
		w := newKept()
		for range 5000 {
			if run(w); w.keeper.wanted != Roaming {
				t.Errorf("%s: kept to a core", name)
				break
			}
		}
	}
	w := newClockwork()
	if share := w.flow(terrain{gain: [3]float64{1, 1.2, 1.2}}, time.Second); share[Home]+share[Away] > 0 {
		t.Error("kept to a core without a choice")
	}
}
