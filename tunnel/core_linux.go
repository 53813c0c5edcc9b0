package tunnel

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"
)

// yield offers the core to others (sched_yield(2)).
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// setBatch makes the calling thread one that does not preempt others (sched(7), SCHED_BATCH). Where that is forbidden,
// small packets are moved in smaller trains.
func setBatch(on bool) {
	policy := uint32(unix.SCHED_NORMAL)
	if on {
		policy = unix.SCHED_BATCH
	}
	was, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return
	}
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Policy: policy, Nice: was.Nice}, 0)
}

// idleTime reads how long the machine's cores have been idle, added up (proc_uptime(5)); 0 when that cannot be read.
func idleTime() time.Duration {
	fd, err := unix.Open("/proc/uptime", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var b [64]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return 0
	}
	return parseUptime(b[:n])
}

// threadClock makes a clock of the calling thread: its identifier is what the kernel makes of the thread's
// (include/linux/posix-timers_types.h, CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED).
func threadClock() func() time.Duration {
	id := int32(^unix.Gettid()<<3 | 4 | 2)
	return func() time.Duration {
		var t unix.Timespec
		if unix.ClockGettime(id, &t) != nil {
			return 0
		}
		return time.Duration(t.Nano())
	}
}

// parseUptime reads the second number of "12.34 56.78\n": seconds.
func parseUptime(b []byte) (d time.Duration) {
	at := bytes.IndexByte(b, ' ') + 1
	unit := time.Second
	for _, c := range b[at:] {
		switch {
		case c == '.':
			unit = time.Second / 10
		case c < '0' || c > '9':
			return d
		case unit == time.Second:
			d = 10*d + time.Duration(c-'0')*time.Second
		default:
			d += time.Duration(c-'0') * unit
			unit /= 10
		}
	}
	return d
}

// keepCore implements Scheduler.Keep. Cores are numbered from the last one that the thread may use on down, as interrupts that nobody spreads
// come to the first. What somebody else makes of the thread's cores meanwhile (taskset(1), its cpuset) stays.
func keepCore(home, away int) (move func(Place)) {
	own := affinity{
		get: func(set *unix.CPUSet) error { return unix.SchedGetaffinity(0, set) },
		set: func(set *unix.CPUSet) error { return unix.SchedSetaffinity(0, set) },
	}
	return own.keep(home, away)
}

// affinity is the kernel's, of the calling thread, or what a test puts in its place.
type affinity struct{ get, set func(*unix.CPUSet) error }

func (a affinity) keep(home, away int) (move func(Place)) {
	var own, now, were, allowed unix.CPUSet
	if a.get(&now) != nil || now.Count() < 2 {
		return nil
	}
	return func(to Place) {
		if a.get(&now) != nil || now.Count() == 0 { // none: its only core is going offline
			return
		}
		if now != own {
			were, allowed = now, a.asGiven(now, allowed)
		}
		own.Zero()
		switch to {
		case Home:
			own.Set(fromLast(&were, home))
		case Away:
			own.Set(fromLast(&were, away))
		default:
			_ = a.set(&allowed)
			return
		}
		_ = a.set(&own)
	}
}

// asGiven returns what gives the thread back the cores that it has now. When they are all of its cpuset, that is what it had before, or else every core, as
// those that a thread was once given are all it gets when its cpuset grows again (kernel/sched/core.c, user_cpus_ptr).
func (a affinity) asGiven(now, before unix.CPUSet) unix.CPUSet {
	var every, got unix.CPUSet
	every.Fill()
	if a.set(&every) != nil || a.get(&got) != nil || got != now {
		_ = a.set(&now)
		return now
	}
	for i := range now {
		if now[i]&^before[i] != 0 {
			return every
		}
	}
	return before
}

// fromLast returns the number of a core in the set, counted from the last one down, and around.
func fromLast(set *unix.CPUSet, n int) int {
	n %= set.Count()
	for core := len(set)*64 - 1; ; core-- {
		if set.IsSet(core) {
			if n == 0 {
				return core
			}
			n--
		}
	}
}
