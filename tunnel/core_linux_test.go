package tunnel

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own, whose cores nobody else inherits.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(done)
		f()
	}()
	<-done
}

func cores(t *testing.T) (set unix.CPUSet) {
	t.Helper()
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Error(err)
	}
	return set
}

func TestKeepCore(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("skipped: needs two cores")
	}
	onThread(func() {
		before := cores(t)
		for home := range 2 * runtime.NumCPU() {
			away := home + 1
			move := keepCore(home, away)
			for _, c := range []struct {
				to   Place
				core int
			}{{Home, home}, {Away, away}, {Home, home}} {
				move(c.to)
				if got := cores(t); got.Count() != 1 || !got.IsSet(fromLast(&before, c.core)) {
					t.Errorf("cores %d and %d, place %d: keeps to %v", home, away, c.to, got)
				}
			}
			if move(Roaming); cores(t) != before {
				t.Errorf("cores %d and %d: has %v afterwards, %v before", home, away, cores(t), before)
			}
		}
	})
	onThread(func() {
		before := cores(t)
		move := keepCore(0, 1)
		move(Home)
		var other unix.CPUSet
		other.Set(fromLast(&before, 1))
		if err := unix.SchedSetaffinity(0, &other); err != nil {
			t.Error(err)
		}
		if move(Roaming); cores(t) != other {
			t.Errorf("what somebody else set is %v now", cores(t))
		}
		if keepCore(0, 1) != nil {
			t.Error("there is a choice with one core")
		}
	})
}

// machine is a thread's cpuset, and the cores that the thread was given (sched_setaffinity(2)), which do not count when none is in the cpuset
// (kernel/sched/core.c, __set_cpus_allowed_ptr).
type machine struct{ cpuset, given unix.CPUSet }

func (m *machine) affinity() affinity {
	return affinity{
		get: func(set *unix.CPUSet) error {
			for i := range set {
				set[i] = m.cpuset[i] & m.given[i]
			}
			if set.Count() == 0 {
				*set = m.cpuset
			}
			return nil
		},
		set: func(set *unix.CPUSet) error { m.given = *set; return nil },
	}
}

// A thread follows its cpuset, unless somebody gave it fewer cores.
func TestRoamingFollowsTheCpuset(t *testing.T) {
	set := func(cores ...int) (s unix.CPUSet) {
		for _, core := range cores {
			s.Set(core)
		}
		return s
	}
	var every unix.CPUSet
	every.Fill()
	all := set(0, 1, 2, 3)
	for name, c := range map[string]struct{ given, want unix.CPUSet }{
		"never given any": {every, all},
		"given two":       {set(0, 1), set(0, 1)},
	} {
		m := &machine{cpuset: all, given: c.given}
		move := m.affinity().keep(0, 1)
		move(Home)
		m.cpuset = set(0)
		move(Away)
		move(Roaming)
		m.cpuset = all
		var got unix.CPUSet
		if _ = m.affinity().get(&got); got != c.want {
			t.Errorf("%s: has %v afterwards, want %v", name, got, c.want)
		}
	}
}

// A stream does not cost a worker the nice value that somebody gave it.
func TestBatchKeepsTheNiceValue(t *testing.T) {
	onThread(func() {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 3); err != nil {
			t.Fatal(err)
		}
		for _, on := range []bool{true, false} {
			setBatch(on)
			if got, err := unix.SchedGetAttr(0, 0); err != nil || got.Nice != 3 || (got.Policy == unix.SCHED_BATCH) != on {
				t.Errorf("batch %v: %+v, %v", on, got, err)
			}
		}
	})
}

func TestFromLast(t *testing.T) {
	var set unix.CPUSet
	for _, core := range []int{1, 4, 70} {
		set.Set(core)
	}
	for n, want := range []int{70, 4, 1, 70, 4} {
		if got := fromLast(&set, n); got != want {
			t.Errorf("%d from last: %d, want %d", n, got, want)
		}
	}
}
