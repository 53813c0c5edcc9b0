//go:build netns

package main

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

// In a stream a worker tries whether keeping to one core pays; afterwards it may use those that it might before.
func TestWorkerKeepsToACore(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("skipped: needs two cores")
	}
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	p.addKernelPeer()
	pid := d.status().PID
	before := threadCores(t, pid)
	if len(before) != 1 {
		t.Fatalf("the threads' cores differ before there is traffic: %v", before)
	}
	kept := false
	for deadline := time.Now().Add(patience); !kept && time.Now().Before(deadline); {
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.tcp(p.a, p.b, overlayB[0], time.Second)
		}()
		for over := false; !over && !kept; {
			select {
			case <-done:
				over = true
			case <-time.After(10 * time.Millisecond):
				kept = slices.ContainsFunc(threadCores(t, pid), func(c []uint64) bool { return len(c) == 1 })
			}
		}
		<-done
	}
	if !kept {
		t.Error("no thread keeps to a core in a stream")
	}
	if !soon(func() bool { return len(threadCores(t, pid)) == 1 }) {
		t.Errorf("threads' cores after the stream: %v, before: %v", threadCores(t, pid), before)
	}
	if after := threadCores(t, pid); !slices.Equal(after[0], before[0]) {
		t.Errorf("threads' cores after the stream: %v, before: %v", after, before)
	}
	d.stop()
}

// threadCores returns the different sets of cores that the threads of a process may use.
func threadCores(t *testing.T, pid int) (sets [][]uint64) {
	t.Helper()
	threads, err := procfs.AllThreads(pid)
	must(t, err)
	for _, thread := range threads {
		status, err := thread.NewStatus()
		if err != nil {
			continue // it has ended
		}
		if !slices.ContainsFunc(sets, func(s []uint64) bool { return slices.Equal(s, status.CpusAllowedList) }) {
			sets = append(sets, status.CpusAllowedList)
		}
	}
	return sets
}
