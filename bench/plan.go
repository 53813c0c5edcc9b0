// Package bench measures tunnels side by side on one machine: every chosen system under every chosen workload and NIC
// profile, in turn, so that what the machine does meanwhile happens to all of them alike.
package bench

import (
	"slices"
	"time"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/system"
	"github.com/vxlane/vxlane/bench/workload"
)

// Plan is what a run measures.
type Plan struct {
	Systems   []system.System
	Workloads []workload.Workload
	Profiles  []network.Profile
	Repeats   int
	Options   workload.Options
	Version   string   // of this program
	Commit    string   // it was built from
	Command   []string // that asked for it, for the report
}

// subject is a system in a schedule, or the baseline for the second time.
type subject struct {
	system  system.System
	control bool
}

// step is one sample to take.
type step struct {
	subject
	workload workload.Workload
	profile  network.Profile
	repeat   int
}

func (s step) cell() result.Cell {
	return result.Cell{System: s.system.Name, Workload: s.workload.Name, Profile: s.profile.Name}
}

// schedule returns the samples in the order in which they are taken: within a repeat, all systems take turns there and
// back (A B C C B A), so that a drift of the machine falls on all alike. Repeats are outermost: an interrupted run has
// fewer samples of everything instead of none of something.
func (p *Plan) schedule(subjects []subject) []step {
	back := slices.Clone(subjects)
	slices.Reverse(back)
	turns := slices.Concat(subjects, back)
	var steps []step
	for repeat := range p.Repeats {
		for _, profile := range p.Profiles {
			for _, w := range p.Workloads {
				for _, s := range turns {
					steps = append(steps, step{s, w, profile, repeat})
				}
			}
		}
	}
	return steps
}

// subjects returns the systems that can run, and the baseline for the second time.
func subjects(available []system.System, baseline string) []subject {
	var all []subject
	for _, s := range available {
		all = append(all, subject{system: s})
	}
	for _, s := range available {
		if s.Name == baseline {
			all = append(all, subject{s, true})
		}
	}
	return all
}

// baseline returns the system that all others are compared with: the kernel's vxlan where it is there.
func baseline(available []system.System) string {
	for _, s := range available {
		if s.Name == system.Baseline {
			return s.Name
		}
	}
	return available[0].Name
}

// clock estimates how long the rest of a run takes, from how long samples of each workload took so far.
type clock struct {
	options workload.Options
	spent   map[string]time.Duration
	samples map[string]int
}

// overhead is a guess of what setting up and taking down takes, until it is known.
const overhead = 600 * time.Millisecond

func newClock(o workload.Options) *clock {
	return &clock{options: o, spent: make(map[string]time.Duration), samples: make(map[string]int)}
}

func (c *clock) took(w string, d time.Duration) {
	c.spent[w] += d
	c.samples[w]++
}

func (c *clock) left(rest []step) time.Duration {
	var left time.Duration
	for _, s := range rest {
		if n := c.samples[s.workload.Name]; n > 0 {
			left += c.spent[s.workload.Name] / time.Duration(n)
			continue
		}
		left += c.options.Warmup + c.options.Duration + overhead
	}
	return left.Round(time.Second)
}
