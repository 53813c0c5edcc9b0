package tunnel

import (
	"testing"
	"time"
)

// flow is a stream both ways that moves so much more when its worker keeps to a core; it returns the share of the time that the worker did.
func (c *clockwork) flow(gain float64, d time.Duration) float64 {
	var kept time.Duration
	for end := c.at + d; c.at < end; c.at += 50 * time.Microsecond {
		bytes := 64 << 10
		if c.keeper.wanted {
			bytes = int(float64(bytes) * gain)
			kept += 50 * time.Microsecond
		}
		c.found(haul{1, 64}, haul{1, bytes})
	}
	return float64(kept) / float64(d)
}

func TestKeepsToACoreWhenThatPays(t *testing.T) {
	for _, c := range []struct{ gain, least, most float64 }{{1.2, 0.9, 1}, {0.8, 0.02, 0.06}, {1, 0.02, 0.06}} {
		w := newClockwork()
		w.keeper.able = true
		if kept := w.flow(c.gain, time.Minute); kept < c.least || kept > c.most {
			t.Errorf("gain %.1f: kept for %.2f of the time, want %.2f to %.2f", c.gain, kept, c.least, c.most)
		}
	}
}

// What was right is tried anew, as others come and go on the cores.
func TestKeepingIsTriedAnew(t *testing.T) {
	w := newClockwork()
	w.keeper.able = true
	for range 3 {
		w.flow(1.2, 2*stayFor)
		if kept := w.flow(1.2, stayFor); kept < 0.9 {
			t.Errorf("kept for %.2f of the time where it pays", kept)
		}
		w.flow(0.8, 2*stayFor)
		if kept := w.flow(0.8, stayFor); kept > 0.1 {
			t.Errorf("kept for %.2f of the time where it does not pay", kept)
		}
	}
}

func TestKeepingEndsWithTheStream(t *testing.T) {
	w := newClockwork()
	w.keeper.able = true
	w.flow(1.2, time.Second)
	if !w.keeper.wanted {
		t.Fatal("not kept amid the stream")
	}
	w.at += lull + time.Millisecond
	if w.again(); w.keeper.wanted {
		t.Error("kept after the stream")
	}
}

func TestNoKeepingWithoutAStream(t *testing.T) {
	for name, run := range map[string]func(*clockwork){
		"requests and answers": func(c *clockwork) { c.exchange() },
		"one way":              func(c *clockwork) { c.stream(1, time.Millisecond) },
		"a burst":              func(c *clockwork) { c.stream(2, settled/2); c.at += 2 * lull },
	} {
		w := newClockwork()
		w.keeper.able = true
		for range 5000 {
			if run(w); w.keeper.wanted {
				t.Errorf("%s: kept to a core", name)
				break
			}
		}
	}
	w := newClockwork()
	if w.flow(1.2, time.Second) > 0 {
		t.Error("kept to a core without a choice")
	}
}
