package tunnel_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vxlane/vxlane/tunnel"
)

// keptRig is a machine of two cores, which knows the core that each thread keeps to: by the core that is its own, and roaming while it keeps to none.
type keptRig struct {
	*rig
	traffic
	mu    sync.Mutex
	cores map[int]int
}

const roaming, workers, helpers = -1, 0, 1

// newKeptRig has a worker that takes so many cores.
func newKeptRig(t *testing.T, load float64) *keptRig {
	k := &keptRig{cores: map[int]int{workers: roaming, helpers: roaming}}
	cfg := helpedConfig(load)
	cfg.Scheduler.Keep = func(home, away int) func(tunnel.Place) {
		return func(to tunnel.Place) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.cores[home] = map[tunnel.Place]int{tunnel.Roaming: roaming, tunnel.Home: home, tunnel.Away: away}[to]
		}
	}
	k.rig = newRig(t, cfg)
	k.traffic = traffic{r: k.rig}
	return k
}

// places returns where the worker and its helper are.
func (k *keptRig) places() [2]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return [2]int{k.cores[workers], k.cores[helpers]}
}

// heavy is a stream for so long, of which more comes in where that pays. It returns how many milliseconds worker and helper spent where.
func (k *keptRig) heavy(d time.Duration, pays func(places [2]int, helped bool) bool) map[[2]int]int {
	spent := map[[2]int]int{}
	for range d / time.Millisecond {
		in := 110
		if pays(k.places(), k.tunnel.Helped(0)) {
			in = 150
		}
		k.move(10, in, 1400)
		spent[k.places()]++
	}
	return spent
}

// A heavy stream goes where it moves most, and its helper with it. Afterwards the scheduler has both threads again.
func TestStreamsGoWhereTheyMoveMost(t *testing.T) {
	for name, c := range map[string]struct {
		pays func(places [2]int, helped bool) bool
		want [2]int
	}{
		"its core":               {func(p [2]int, helped bool) bool { return p[0] == workers }, [2]int{workers, roaming}},
		"the other core":         {func(p [2]int, helped bool) bool { return p[0] == helpers && !helped }, [2]int{helpers, roaming}},
		"the other core, shared": {func(p [2]int, helped bool) bool { return helped }, [2]int{helpers, workers}},
	} {
		synctest.Test(t, func(t *testing.T) {
			k := newKeptRig(t, 0.2)
			k.start()
			k.heavy(700*time.Millisecond, c.pays) // every layout's trial
			spent := k.heavy(300*time.Millisecond, c.pays)
			if spent[c.want] < 290 {
				t.Errorf("%s: worker and helper spent %v ms, want all of it at %v", name, spent, c.want)
			}
			k.check()
			for range 100 {
				k.exchange(1)
			}
			if got := k.places(); got != [2]int{roaming, roaming} {
				t.Errorf("%s: worker and helper keep to %v after the stream", name, got)
			}
			k.check()
		})
	}
}

// A worker that is busy has its helper in every layout, on the other core.
func TestHelperKeepsToTheOtherCore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeptRig(t, 0.95)
		k.start()
		home := func(p [2]int, _ bool) bool { return p[0] == workers }
		k.heavy(700*time.Millisecond, home)
		if spent := k.heavy(300*time.Millisecond, home); spent[[2]int{workers, helpers}] < 290 {
			t.Errorf("worker and helper spent %v ms", spent)
		}
		k.check()
	})
}
