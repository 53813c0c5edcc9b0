package bench

import (
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/system"
	"github.com/vxlane/vxlane/bench/workload"
)

func testPlan(t *testing.T, repeats int, systems ...string) Plan {
	t.Helper()
	known := system.All(system.Tools{})
	p := Plan{Workloads: workload.All()[:2], Profiles: network.Profiles()[:2], Repeats: repeats}
	for _, name := range systems {
		s, err := system.Find(known, name)
		if err != nil {
			t.Fatal(err)
		}
		p.Systems = append(p.Systems, s)
	}
	return p
}

// Within each turn there and back, every system stands on average at the same place: a machine that gets slower all the
// time gets slower for all alike. And the baseline is there twice.
func TestScheduleIsFair(t *testing.T) {
	const repeats = 3
	p := testPlan(t, repeats, "direct", system.Baseline, "vxlane")
	subjects := subjects(p.Systems, baseline(p.Systems))
	steps := p.schedule(subjects)
	if want := repeats * 2 * 2 * 2 * 4; len(steps) != want {
		t.Fatalf("%d steps, want %d", len(steps), want)
	}
	type key struct {
		cell    result.Cell
		control bool
		repeat  int
	}
	turn := 2 * len(subjects)
	positions := make(map[key]int)
	count := make(map[key]int)
	for i, s := range steps {
		k := key{s.cell(), s.control, s.repeat}
		positions[k] += i % turn
		count[k]++
	}
	for k, n := range count {
		if n != 2 || positions[k] != turn-1 {
			t.Errorf("%+v: %d times, positions add up to %d; want 2 and %d", k, n, positions[k], turn-1)
		}
		if k.control && k.cell.System != system.Baseline {
			t.Errorf("the control is %s", k.cell.System)
		}
	}
	for i := 1; i < len(steps); i++ {
		if steps[i].repeat < steps[i-1].repeat {
			t.Fatal("repeats are not outermost: an interrupted run would lack some cells altogether")
		}
	}
}

func TestBaseline(t *testing.T) {
	if b := baseline(testPlan(t, 1, "direct", system.Baseline).Systems); b != system.Baseline {
		t.Errorf("got %s", b)
	}
	if b := baseline(testPlan(t, 1, "vxlane", "direct").Systems); b != "vxlane" {
		t.Errorf("without the kernel's: got %s, want the first", b)
	}
}

func TestTimeLeft(t *testing.T) {
	p := testPlan(t, 1, "direct")
	p.Options = workload.Options{Warmup: time.Second, Duration: 2 * time.Second}
	steps := p.schedule(subjects(p.Systems, "direct"))
	c := newClock(p.Options)
	if left, want := c.left(steps), time.Duration(len(steps))*(3*time.Second+overhead); left != want.Round(time.Second) {
		t.Errorf("before anything is known: %s, want %s", left, want)
	}
	for _, w := range p.Workloads {
		c.took(w.Name, 10*time.Second)
	}
	if left, want := c.left(steps), time.Duration(len(steps))*10*time.Second; left != want {
		t.Errorf("after a sample of each: %s, want %s", left, want)
	}
}
