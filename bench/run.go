package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/system"
)

// Listener hears how a run goes on.
type Listener interface {
	// Missing is called for each system that cannot run here.
	Missing(name, reason string)
	// Trouble is called when something went wrong that does not end the run.
	Trouble(err error)
	// Sampled is called after each sample; done of all samples are taken.
	Sampled(s *result.Sample, done, all int, left time.Duration)
}

// ErrNothing is returned when none of the chosen systems can run.
var ErrNothing = errors.New("none of the chosen systems can run here")

// attempts is how often a cell may fail in a row before its remaining samples are left out.
const attempts = 2

// saveEvery is how often results are written while a run goes on.
const saveEvery = 5 * time.Second

type runner struct {
	plan     Plan
	dir      string
	listener Listener
	results  *result.Results
	clock    *clock
	failures map[result.Cell]int
	saved    time.Time
	saving   time.Duration // how long that took
}

// Run measures what plan says and writes the results to dir as they come. When ctx ends, it stops and keeps the finished
// samples: the results are valid whatever the error.
func Run(ctx context.Context, plan Plan, dir string, listener Listener) (*result.Results, error) {
	if err := prepare(dir); err != nil {
		return nil, err
	}
	defer quietRuntime()()
	r := &runner{plan: plan, dir: dir, listener: listener, clock: newClock(plan.Options), failures: make(map[result.Cell]int), results: newResults(plan)}
	if err := r.inspectProfiles(ctx); err != nil {
		return nil, err
	}
	available, err := r.probe(ctx)
	if err != nil {
		return nil, err
	}
	r.results.Baseline = baseline(available)
	err = r.measure(ctx, plan.schedule(subjects(available, r.results.Baseline)))
	r.results.Finished = time.Now().UTC()
	r.results.Complete = err == nil
	if len(r.results.Samples) == 0 {
		return r.results, err
	}
	return r.results, errors.Join(err, r.results.Save(dir))
}

// prepare makes the directory, keeps the results of an earlier run there under another name, and finds out now whether
// anything can be written.
func prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory for results: %w", err)
	}
	probe, err := os.CreateTemp(dir, ".writable")
	if err != nil {
		return fmt.Errorf("write to directory for results: %w", err)
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return fmt.Errorf("write to directory for results: %w", err)
	}
	earlier, err := result.Load(dir)
	if err != nil {
		return nil // none, or none that this program can read
	}
	kept := filepath.Join(dir, "results-"+earlier.Started.Format("20060102-150405")+".json")
	if err := os.Rename(filepath.Join(dir, result.FileName), kept); err != nil {
		return fmt.Errorf("keep earlier results: %w", err)
	}
	return nil
}

// quietRuntime keeps the Go runtime out of the way of generators until the function that it returns is called: each of
// their threads has a processor of the scheduler even while many sleep in the kernel, and garbage is collected between
// samples only.
func quietRuntime() (restore func()) {
	const threads = 64
	processors, percent := runtime.GOMAXPROCS(runtime.NumCPU()+threads), debug.SetGCPercent(-1)
	return func() {
		runtime.GOMAXPROCS(processors)
		debug.SetGCPercent(percent)
	}
}

func newResults(p Plan) *result.Results {
	r := &result.Results{
		Schema: result.Schema, Command: p.Command, Started: time.Now().UTC(), Host: result.Fingerprint(p.Version, p.Commit), Profiles: p.Profiles,
		Settings: result.Settings{
			Repeats: p.Repeats, Warmup: result.Duration(p.Options.Warmup), Duration: result.Duration(p.Options.Duration), Generator: p.Options.Generator,
			UDPRate: p.Options.Rate, UDPPause: result.Duration(p.Options.Pause),
		},
	}
	if name := p.Options.Congestion; name != "" {
		r.Host.Congestion = name
	}
	for _, w := range p.Workloads {
		r.Workloads = append(r.Workloads, result.Workload{Name: w.Name, Summary: w.Summary, Primary: w.Primary})
	}
	return r
}

// inspectProfiles builds each profile once, and notes which offloads are on.
func (r *runner) inspectProfiles(ctx context.Context) error {
	for _, p := range r.plan.Profiles {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted before anything was measured: %w", context.Cause(ctx))
		}
		n, err := network.Build(p)
		if err != nil {
			return fmt.Errorf("build hosts: %w", err)
		}
		features, err := n.A.Host.Offloads(network.Device)
		if err = errors.Join(err, n.Close()); err != nil {
			return fmt.Errorf("profile %s: %w", p.Name, err)
		}
		var on []string
		for name, enabled := range features {
			if enabled {
				on = append(on, name)
			}
		}
		slices.Sort(on)
		r.results.Host.Offloads[p.Name] = on
	}
	return nil
}

// probe brings each system up once and returns those that work here.
func (r *runner) probe(ctx context.Context) ([]system.System, error) {
	var available []system.System
	var reasons []error
	for _, s := range r.plan.Systems {
		about, err := probeSystem(ctx, s, r.plan.Profiles[0])
		if ctx.Err() != nil {
			return nil, fmt.Errorf("interrupted before anything was measured: %w", context.Cause(ctx))
		}
		info := result.System{Name: s.Name, Summary: s.Summary, About: about}
		if err != nil {
			info.Missing = oneLine(err)
			reasons = append(reasons, err)
			r.listener.Missing(s.Name, info.Missing)
		} else {
			available = append(available, s)
		}
		r.results.Systems = append(r.results.Systems, info)
	}
	if len(available) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrNothing, errors.Join(reasons...))
	}
	return available, nil
}

func probeSystem(ctx context.Context, s system.System, p network.Profile) (about map[string]string, err error) {
	n, err := network.Build(p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	in, err := s.Start(ctx, n)
	if err != nil {
		return nil, err
	}
	return in.About(), nil
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (r *runner) measure(ctx context.Context, steps []step) error {
	r.results.Planned = len(steps)
	for i, s := range steps {
		if r.failures[s.cell()] >= attempts {
			continue
		}
		runtime.GC()
		sample := r.sample(ctx, s)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %d of %d samples are kept", len(r.results.Samples), len(steps))
		}
		if r.failures[s.cell()]++; sample.Error == "" {
			r.failures[s.cell()] = 0
		}
		r.results.Samples = append(r.results.Samples, sample)
		r.clock.took(s.workload.Name, time.Duration(sample.Seconds*float64(time.Second)))
		r.listener.Sampled(&sample, i+1, len(steps), r.clock.left(r.worthwhile(steps[i+1:])))
		r.saveNowAndThen()
	}
	return nil
}

// saveNowAndThen takes at most a hundredth of the time. What cannot be saved now may be at the end: a night's run is not
// given up for a full disk.
func (r *runner) saveNowAndThen() {
	if time.Since(r.saved) < max(saveEvery, 100*r.saving) {
		return
	}
	start := time.Now()
	if err := r.results.Save(r.dir); err != nil {
		r.listener.Trouble(err)
	}
	r.saved = time.Now()
	r.saving = r.saved.Sub(start)
}

// worthwhile returns the steps that will be taken: those of a cell that was given up are not.
func (r *runner) worthwhile(steps []step) []step {
	return slices.DeleteFunc(slices.Clone(steps), func(s step) bool { return r.failures[s.cell()] >= attempts })
}

// sample measures one system once, on hosts made for it.
func (r *runner) sample(ctx context.Context, s step) result.Sample {
	sample := result.Sample{Cell: s.cell(), Control: s.control, Repeat: s.repeat, Started: time.Now().UTC()}
	if err := r.take(ctx, s, &sample); err != nil {
		sample.Values, sample.Histogram, sample.Error = nil, "", oneLine(err)
	}
	sample.Seconds = time.Since(sample.Started).Seconds()
	return sample
}

// patience is how much longer than planned a sample may take; what hangs counts as failed.
const patience = 30 * time.Second

func (r *runner) take(ctx context.Context, s step, sample *result.Sample) (err error) {
	if err := s.workload.Supports(r.plan.Options.Generator); err != nil {
		return err
	}
	limit := 10*(r.plan.Options.Warmup+r.plan.Options.Duration) + patience
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not finished after %s", limit))
	defer cancel()
	n, err := network.Build(s.profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	in, err := s.system.Start(ctx, n)
	if err != nil {
		return err
	}
	if s.workload.Forwarded {
		if err := in.ConnectPods(ctx, n); err != nil {
			return err
		}
	}
	if err := in.Settle(); err != nil {
		return err
	}
	outcome, err := s.workload.Run(ctx, n, in.Hosts, r.plan.Options)
	if err = errors.Join(err, in.Check()); err != nil {
		return err
	}
	sample.Values, sample.Histogram, sample.Notes = outcome.Values, outcome.Histogram, outcome.Notes
	return nil
}
