// Package cost measures what moving traffic takes: processor time of the machine and of the tunnel's processes, their
// context switches and peak memory, and their system calls.
package cost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/procfs"
)

// Cost is what a stretch of time took.
type Cost struct {
	Machine  time.Duration // processor time of the whole machine, whoever used it
	Steal    time.Duration // processor time that the hypervisor gave to others
	Tunnel   time.Duration // processor time of the tunnel's processes, all hosts together
	Switches uint64        // context switches of the tunnel's threads: Wakeups, and those that took the processor from one that had more to do
	Wakeups  uint64        // times that one of them had nothing to do, slept, and was woken
	// PeakMemory is the largest resident set of the tunnel's processes on one host since the stretch began, in bytes.
	PeakMemory uint64
}

// Meter measures the processes of a tunnel.
type Meter struct {
	proc      procfs.FS
	processes [][]int // of each host
	start     reading
}

// NewMeter returns a meter for the processes of each host.
func NewMeter(processes [][]int) (*Meter, error) {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return nil, fmt.Errorf("measure cost: %w", err)
	}
	return &Meter{proc: proc, processes: processes}, nil
}

type reading struct {
	machine, steal time.Duration
	processes      map[int]processReading
}

type processReading struct {
	cpu       time.Duration
	voluntary uint64 // context switches
	forced    uint64
}

// Begin begins a stretch.
func (m *Meter) Begin() error {
	for _, pids := range m.processes {
		for _, pid := range pids {
			// 5 resets the peak of the resident set, proc_pid_clear_refs(5).
			err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0)
			if err != nil && !gone(err) {
				return fmt.Errorf("measure cost: %w", err)
			}
		}
	}
	var err error
	m.start, err = m.read()
	return err
}

// End ends the stretch and returns what it took.
func (m *Meter) End() (Cost, error) {
	end, err := m.read()
	if err != nil {
		return Cost{}, err
	}
	c := Cost{Machine: end.machine - m.start.machine, Steal: end.steal - m.start.steal}
	for pid, now := range end.processes { // one that ended meanwhile is left out: what it took is not known
		before := m.start.processes[pid]
		c.Tunnel += now.cpu - before.cpu
		woken := now.voluntary - min(now.voluntary, before.voluntary) // threads that ended took theirs along
		c.Wakeups += woken
		c.Switches += woken + now.forced - min(now.forced, before.forced)
	}
	for _, pids := range m.processes {
		var host uint64
		for _, pid := range pids {
			status, err := m.status(pid)
			if err != nil {
				return Cost{}, fmt.Errorf("measure cost: %w", err)
			}
			host += status.VmHWM
		}
		c.PeakMemory = max(c.PeakMemory, host)
	}
	return c, nil
}

// status of a process that has ended is zero.
func (m *Meter) status(pid int) (procfs.ProcStatus, error) {
	p, err := m.proc.Proc(pid)
	if err != nil {
		return procfs.ProcStatus{}, ignoreGone(err)
	}
	s, err := p.NewStatus()
	return s, ignoreGone(err)
}

func (m *Meter) read() (r reading, err error) {
	stat, err := m.proc.Stat()
	if err != nil {
		return r, fmt.Errorf("measure cost: %w", err)
	}
	c := stat.CPUTotal
	r.machine = seconds(c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ)
	r.steal = seconds(c.Steal)
	r.processes = make(map[int]processReading)
	for _, pids := range m.processes {
		for _, pid := range pids {
			p, err := m.readProcess(pid)
			switch {
			case err == nil:
				r.processes[pid] = p
			case !gone(err):
				return r, fmt.Errorf("measure cost: %w", err)
			}
		}
	}
	return r, nil
}

func (m *Meter) readProcess(pid int) (r processReading, err error) {
	p, err := m.proc.Proc(pid)
	if err != nil {
		return r, err
	}
	stat, err := p.Stat()
	if err != nil {
		return r, err
	}
	r.cpu = seconds(stat.CPUTime())
	threads, err := m.proc.AllThreads(pid)
	if err != nil {
		return r, err
	}
	for _, t := range threads {
		s, err := t.NewStatus()
		if err != nil {
			if gone(err) {
				continue
			}
			return r, err
		}
		r.voluntary += s.VoluntaryCtxtSwitches
		r.forced += s.NonVoluntaryCtxtSwitches
	}
	return r, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// gone reports whether err says that a process has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, os.ErrProcessDone) || isNoProcess(err)
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}
