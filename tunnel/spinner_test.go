package tunnel

import (
	"runtime"
	"testing"
	"time"
)

// clockwork is a spinner whose time moves by hand: a look costs 1 µs.
type clockwork struct {
	spinner
	at      time.Duration
	others  time.Duration // how long others use the core when it is offered
	patient bool
	free    float64       // cores that are idle
	load    float64       // cores that the worker's threads take
	clock   time.Duration // what they took
}

func newClockwork() *clockwork {
	c := &clockwork{free: 1}
	c.spinner = newSpinner(Scheduler{
		Yield:   func() { c.at += time.Microsecond + c.others },
		Patient: func(on bool) { c.patient = on },
		Idle:    func() time.Duration { return time.Duration(c.free * float64(c.at)) },
	})
	c.now = func() time.Duration { return c.at }
	c.relief.spent = func() time.Duration { return c.clock }
	c.at = time.Hour
	return c
}

// stream is TCP that is cut and its acknowledgements, for so long. It ends as the spinner says whether a second thread is worth it.
func (c *clockwork) stream(ways int, d time.Duration) bool {
	for end := c.at + d; c.at < end; c.at += 50 * time.Microsecond {
		c.found(haul{}, haul{1, 64 << 10})
		if ways == 2 {
			c.found(haul{1, 0}, haul{})
		}
		c.clock += time.Duration(c.load * float64(50*time.Microsecond))
	}
	return c.relief.wanted
}

// idle looks until the spinner wants to sleep, and returns for how long that was.
func (c *clockwork) idle() time.Duration {
	start := c.at
	for c.again() {
	}
	return c.at - start
}

// exchange is a request that went out and an answer that came.
func (c *clockwork) exchange() {
	c.found(haul{}, haul{1, 64})
	c.at += 30 * time.Microsecond
	c.again()
	c.found(haul{1, 64}, haul{})
	c.at += 10 * time.Microsecond
}

// converse is enough exchanges for more to be expected.
func (c *clockwork) converse() {
	for range conversation {
		c.exchange()
	}
}

// One request after a pause, and its answer, are met asleep: whoever has to be woken for the answer may need this core.
func TestNoLookingAfterAPause(t *testing.T) {
	c := newClockwork()
	c.converse()
	for range 3 {
		c.at += 50 * time.Millisecond
		c.found(haul{}, haul{1, 64})
		if got := c.idle(); got != 0 {
			t.Errorf("looked for %v after a pause", got)
		}
		c.at += 200 * time.Microsecond
		c.found(haul{1, 64}, haul{})
		if got := c.idle(); got != 0 {
			t.Errorf("looked for %v after the answer", got)
		}
	}
}

func TestLooksForAnAnswer(t *testing.T) {
	c := newClockwork()
	for range 1000 {
		c.exchange()
	}
	if got := c.idle(); got != spinWindow {
		t.Errorf("looked for %v, want %v", got, spinWindow)
	}
	if !c.expects() {
		t.Error("nothing is expected right after an answer")
	}
}

func TestLookingInVainIsBounded(t *testing.T) {
	c := newClockwork()
	var looked time.Duration
	start := c.at
	const asleep = nearby / 2
	for range 10_000 { // a packet at times that nobody answers, and another way each time
		c.found(haul{}, haul{1, 64})
		looked += c.idle()
		c.at += asleep
		c.woken()
		c.found(haul{1, 64}, haul{})
		looked += c.idle()
		c.at += asleep
		c.woken()
	}
	if looked == 0 {
		t.Error("never looked")
	}
	if share := float64(looked) / float64(c.at-start); share > 1.5/spinShare {
		t.Errorf("%.1f %% of the time was spent in vain", 100*share)
	}
}

func TestNoLookingWithoutPackets(t *testing.T) {
	c := newClockwork()
	c.at += time.Hour
	c.idle()
	if c.expects() {
		t.Error("packets are expected after an hour without any")
	}
}

// Streams are waited for asleep, by a thread that lets its wakers go on.
func TestNoLookingWhileAStreamRuns(t *testing.T) {
	c := newClockwork()
	for range 1000 {
		c.found(haul{}, haul{1, 64})
		c.at += 5 * time.Microsecond
		c.again()
	}
	c.found(haul{}, haul{1, 64})
	if got := c.idle(); got != 0 || !c.patient {
		t.Errorf("looked for %v amid a stream, patient: %v", got, c.patient)
	}
	c.at += time.Second
	c.converse()
	if c.idle() == 0 || c.patient {
		t.Errorf("the stream is over, patient: %v", c.patient)
	}
}

// Few super-packets are a stream when they have to be cut or joined, and none when they travel whole.
func TestStreamOfSuperPackets(t *testing.T) {
	for bytes, stream := range map[int]bool{0: false, 64 << 10: true} {
		c := newClockwork()
		for range 1000 {
			c.found(haul{}, haul{1, bytes})
			c.at += 100 * time.Microsecond
			c.again()
			c.found(haul{1, 0}, haul{})
			c.at += 100 * time.Microsecond
			c.again()
		}
		if looked := c.idle() > 0; looked == stream || c.patient != stream {
			t.Errorf("super-packets of which %d bytes are cut: looked %v, patient %v", bytes, looked, c.patient)
		}
	}
}

// What comes after a day of silence is no stream.
func TestNoStreamAfterADay(t *testing.T) {
	c := newClockwork()
	for range 3 {
		c.at += 24 * time.Hour
		c.exchange()
		if c.patient {
			t.Fatalf("an exchange after a day is taken for a stream")
		}
	}
}

// A core that others need is left to them.
func TestNoLookingOnACrowdedCore(t *testing.T) {
	c := newClockwork()
	c.converse()
	c.others = 3 * time.Millisecond
	if got := c.idle(); got > 2*c.others {
		t.Errorf("looked for %v on a core that others needed", got)
	}
	c.others = 0
	c.converse()
	if got := c.idle(); got != 0 {
		t.Errorf("looked again for %v at once", got)
	}
	c.at += time.Second
	c.woken()
	c.converse()
	if c.idle() == 0 {
		t.Error("never looked again")
	}
}

// On a machine without an idle core, looking takes time from those that have work.
func TestNoLookingOnABusyMachine(t *testing.T) {
	for free, want := range map[float64][2]int{0: {0, 1000}, 1: {90_000, 100_000}} {
		c := newClockwork()
		c.free = free
		looked := 0
		for range 100_000 {
			c.converse()
			c.at += 200 * time.Microsecond // work
			if c.again() {
				looked++
			}
		}
		if looked < want[0] || looked > want[1] {
			t.Errorf("%v cores idle: looked %d times of 100,000", free, looked)
		}
	}
}

// A second thread is for streams both ways that keep the worker busy, while a core is idle.
func TestSecondThread(t *testing.T) {
	for _, c := range []struct {
		name       string
		ways       int
		load, free float64
		want       bool
	}{
		{"busy worker", 2, 0.95, 0.5, true},
		{"worker with time left", 2, 0.75, 0.5, false},
		{"busy machine", 2, 0.95, 0.1, false},
		{"one way only", 1, 0.95, 0.5, false},
	} {
		w := newClockwork()
		w.at = 0
		w.load, w.free = c.load, c.free
		if got := w.stream(c.ways, time.Second); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// Once there, it stays while both threads have something to do, through the pauses of a stream, and not much longer than the stream.
func TestSecondThreadLeaves(t *testing.T) {
	for _, c := range []struct {
		name  string
		load  float64
		free  float64
		pause time.Duration
		want  bool
	}{
		{"both busy", 1.1, 0.2, 0, true},
		{"less to do", 0.7, 0.2, 0, true},
		{"little to do", 0.3, 0.2, 0, false},
		{"no idle core", 1.1, 0, 0, false},
		{"pause", 1.1, 0.2, lull - 5*time.Millisecond, true},
		{"end", 1.1, 0.2, lull + 5*time.Millisecond, false},
	} {
		w := newClockwork()
		w.at = 0
		w.load, w.free = 0.95, 0.5
		if !w.stream(2, time.Second) {
			t.Fatal("no second thread")
		}
		idle, from := w.spinner.idle(), w.at
		w.spinner.idle = func() time.Duration { return idle + time.Duration(c.free*float64(w.at-from)) }
		w.load = c.load
		w.stream(2, time.Second)
		w.at += c.pause
		w.again()
		if w.relief.wanted != c.want {
			t.Errorf("%s: %v", c.name, w.relief.wanted)
		}
	}
}

func TestNoSecondThreadForConversation(t *testing.T) {
	c := newClockwork()
	c.load, c.free = 0.95, 0.5
	for range 50_000 {
		before := c.at
		c.exchange()
		c.clock += time.Duration(c.load * float64(c.at-before))
		if c.relief.wanted {
			t.Fatal("a second thread for requests and answers")
		}
	}
}

// A worker that looks for packets is on a core all the time, but has no load: a burst amid a conversation is no reason for a second thread.
func TestLookingIsNoLoad(t *testing.T) {
	c := newClockwork()
	c.free = 0.5
	for range 1000 {
		for range 60 { // 26 ms: shorter than the lull that ends a stream
			c.exchange()
			c.idle()
			c.clock = c.at
		}
		c.found(haul{70, 0}, haul{70, 0})
		c.at += time.Millisecond
		if c.again(); c.relief.wanted {
			t.Fatal("a second thread for a conversation")
		}
	}
}

// The clock of a thread goes on while that one works, and at no other time.
func TestThreadClock(t *testing.T) {
	work := func() (sum int) {
		for i := range 10_000_000 {
			sum += i
		}
		return sum
	}
	clock, begin, worked := make(chan func() time.Duration), make(chan struct{}), make(chan int)
	go func() {
		runtime.LockOSThread()
		clock <- threadClock()
		<-begin
		worked <- work()
		<-t.Context().Done()
	}()
	c := <-clock
	before := c()
	close(begin)
	<-worked
	if c() <= before {
		t.Error("the clock of a thread that worked stands still")
	}
	for range 100 { // it may be on its way to sleep
		before := c()
		if work(); c() == before {
			return
		}
	}
	t.Error("the clock of a thread that sleeps goes on")
}

func TestParseUptime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"350735.47 234388.90\n": 234388*time.Second + 900*time.Millisecond,
		"1.00 0.05\n":           50 * time.Millisecond,
		"1.00":                  time.Second,
		"":                      0,
		"1.00 x":                0,
	} {
		if got := parseUptime([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
