package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vxlane/vxlane/bench"
	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/load"
	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/system"
	"github.com/vxlane/vxlane/bench/workload"
	"github.com/vxlane/vxlane/cmd/internal/cli"
)

const runLong = `Measure systems under workloads and NIC profiles, and write results.json, report.md and report.html.

--system, --workload and --profile take comma lists and may be repeated; "all" stands for every name; vxlane-bench list shows the
names. Without them a standard set runs, with --quick a small one. Systems take turns there and back (A B B A); the system that
all others are compared with, kernel-vxlan, is measured twice, so that the noise is known (A/A).

A system that cannot run here is reported with the reason, and so is a measurement that fails. Ctrl-C keeps the finished samples.

`

const runExample = `  vxlane-bench run --quick
  vxlane-bench run --system kernel-vxlan,vxlane --workload tcp-1,rr --profile full,wire --repeat 5 --out results
  vxlane-bench run --system kernel-vxlan --system 'exec:wireguard-go:./wg.sh' --workload tcp-1`

// runFlags are the options of a run.
type runFlags struct {
	systems, workloads, profiles []string
	quick                        bool
	out, generator, vxlane       string
	repeats                      int
	duration, warmup             time.Duration
	rate                         float64
	pause                        time.Duration
	congestion                   string
}

func newRun() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run", Short: "measure tunnels side by side", Long: runLong + system.ExecHelp, Example: runExample, Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := f.plan(cmd.Flags())
			if err != nil {
				return err
			}
			if err := lab.Available(); err != nil {
				return fmt.Errorf("run: %w: %w", err, os.ErrPermission)
			}
			return f.run(cmd, plan)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func (f *runFlags) add(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.BoolVar(&f.quick, "quick", false, "a small set, in less than five minutes")
	fs.StringVar(&f.out, "out", "", "`DIR` for the results (default: vxlane-bench-DATE-TIME)")
	fs.StringArrayVar(&f.systems, "system", nil, "`NAMES` of the systems to measure")
	fs.StringArrayVar(&f.workloads, "workload", nil, "`NAMES` of the workloads to measure them with")
	fs.StringArrayVar(&f.profiles, "profile", nil, "`NAMES` of the NIC profiles to measure them under")
	fs.IntVar(&f.repeats, "repeat", 0, "`N` repeats; each takes every sample twice (default 3, with --quick 2)")
	fs.DurationVar(&f.duration, "duration", time.Second, "how long a sample is measured")
	fs.DurationVar(&f.warmup, "warmup", 300*time.Millisecond, "how long traffic flows before")
	fs.Float64Var(&f.rate, "udp-rate", 0, "packets a second that UDP workloads offer (default: as many as the sender can)")
	fs.DurationVar(&f.pause, "udp-pause", load.ReceivePause, "how long a UDP receiver sleeps when its queue is empty; 0 is until there is a packet")
	fs.StringVar(&f.congestion, "congestion", "", "`NAME` of the congestion control of TCP streams (default: this machine's)")
	fs.StringVar(&f.generator, "generator", workload.Builtin, "what makes the traffic: builtin or iperf3 (TCP and UDP bulk)")
	fs.StringVar(&f.vxlane, "vxlane", "", "`PATH` of the vxlane to measure (default: beside this program, then in PATH)")
}

func (f *runFlags) plan(fs *pflag.FlagSet) (bench.Plan, error) {
	s := standard
	if f.quick {
		s = quick
	}
	if !fs.Changed("repeat") {
		f.repeats = s.repeats
	}
	if f.generator == workload.Iperf3 {
		f.pause = 0 // its receiver sleeps so
	}
	p := bench.Plan{Version: cli.Version(), Commit: cli.Commit(), Command: commandLine(fs), Repeats: f.repeats, Options: workload.Options{Warmup: f.warmup, Duration: f.duration, Generator: f.generator, Congestion: f.congestion, Rate: f.rate, Pause: f.pause}}
	if err := f.check(); err != nil {
		return p, err
	}
	tools, err := system.FindTools(f.vxlane)
	if err != nil {
		return p, cli.Usagef("--vxlane: %w", err)
	}
	known := system.All(tools)
	find := func(name string) (system.System, error) { return system.Find(known, name) }
	if p.Systems, err = choose("system", f.systems, s.systems, systemNames(known), find); err != nil {
		return p, err
	}
	if err := distinct(p.Systems); err != nil {
		return p, err
	}
	if p.Workloads, err = choose("workload", f.workloads, s.workloads, workloadNames(), workload.Find); err != nil {
		return p, err
	}
	p.Profiles, err = choose("profile", f.profiles, s.profiles, profileNames(), network.FindProfile)
	return p, err
}

// commandLine returns the options that were given, as they can be given again; where results went is nobody else's matter.
func commandLine(fs *pflag.FlagSet) []string {
	line := []string{"vxlane-bench", "run"}
	fs.Visit(func(flag *pflag.Flag) {
		values := []string{flag.Value.String()}
		if several, ok := flag.Value.(pflag.SliceValue); ok {
			values = several.GetSlice()
		}
		for _, value := range values {
			switch {
			case flag.Name == "out", flag.Name == "vxlane":
			case flag.Value.Type() == "bool":
				line = append(line, "--"+flag.Name)
			default:
				line = append(line, "--"+flag.Name, value)
			}
		}
	})
	return line
}

func (f *runFlags) check() error {
	const shortest, longest, longestPause = 50 * time.Millisecond, time.Hour, 10 * time.Millisecond
	switch {
	case f.repeats < 1:
		return cli.Usagef("--repeat %d: want 1 or more", f.repeats)
	case f.duration < shortest || f.duration > longest:
		return cli.Usagef("--duration %s: want %s-%s", f.duration, shortest, longest)
	case f.warmup < 0 || f.warmup > longest:
		return cli.Usagef("--warmup %s: want 0-%s", f.warmup, longest)
	case f.rate < 0 || math.IsNaN(f.rate) || math.IsInf(f.rate, 0):
		return cli.Usagef("--udp-rate %v: want 0 or more", f.rate)
	case f.pause < 0 || f.pause > longestPause:
		return cli.Usagef("--udp-pause %s: want 0-%s", f.pause, longestPause)
	case f.congestion != "" && !slices.Contains(congestionControls(), f.congestion):
		return cli.Usagef("--congestion %q: want one of %s, or another after modprobe tcp_NAME", f.congestion, strings.Join(congestionControls(), ", "))
	case f.generator != workload.Builtin && f.generator != workload.Iperf3:
		return cli.Usagef("--generator %q: want %s or %s", f.generator, workload.Builtin, workload.Iperf3)
	case f.generator == workload.Iperf3:
		if _, err := exec.LookPath(f.generator); err != nil {
			return cli.Usagef("--generator %s: %w: install it, or leave this out", f.generator, err)
		}
	}
	return nil
}

// congestionControls returns those that TCP has here (tcp(7), tcp_available_congestion_control).
func congestionControls() []string {
	text, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	return strings.Fields(string(text))
}

func (f *runFlags) run(cmd *cobra.Command, plan bench.Plan) error {
	if f.out == "" {
		f.out = "vxlane-bench-" + time.Now().Format("20060102-150405")
	}
	progress := &progress{w: cmd.ErrOrStderr()}
	results, err := bench.Run(cmd.Context(), plan, f.out, progress)
	if results == nil {
		return err
	}
	if len(results.Samples) > 0 {
		err = errors.Join(err, writeReports(cmd.OutOrStdout(), results, f.out))
	}
	if err != nil {
		return err
	}
	return f.complaints(results)
}

// complaints returns what of that which was asked for could not be measured.
func (f *runFlags) complaints(r *result.Results) error {
	var errs []error
	for _, s := range r.Systems {
		if s.Missing != "" && slices.ContainsFunc(names(f.systems), func(n string) bool {
			return n == s.Name || strings.HasPrefix(n, system.ExecPrefix) && strings.HasPrefix(s.Name, system.ExecPrefix)
		}) {
			errs = append(errs, fmt.Errorf("system %s cannot run here: %s", s.Name, s.Missing))
		}
	}
	failed := 0
	for _, s := range r.Samples {
		if s.Error != "" {
			failed++
		}
	}
	if failed > 0 {
		errs = append(errs, fmt.Errorf("%d of %d samples failed; the report says why", failed, len(r.Samples)))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", errPartial, errors.Join(errs...))
}

// progress tells people how a run goes on.
type progress struct{ w io.Writer }

func (p *progress) Missing(name, reason string) {
	fmt.Fprintf(p.w, "%s cannot run here: %s\n", name, reason)
}

func (p *progress) Trouble(err error) { fmt.Fprintf(p.w, "vxlane-bench: %v; going on\n", err) }

func (p *progress) Sampled(s *result.Sample, done, all int, left time.Duration) {
	name := s.System
	if s.Control {
		name += " (A/A)"
	}
	fmt.Fprintf(p.w, "[%*d/%d] %-14s %-14s %-26s %-20s %s left\n", len(fmt.Sprint(all)), done, all, s.Profile, s.Workload, name, outcome(s), about(left))
}

// outcome says in a few words what came of a sample.
func outcome(s *result.Sample) string {
	if s.Error != "" {
		return "FAILED: " + s.Error + ";"
	}
	w, err := workload.Find(s.Workload)
	value, ok := s.Values[w.Primary]
	if err != nil || !ok {
		return "no value"
	}
	m := result.FindMetric(w.Primary)
	return fmt.Sprintf("%.4g %s", value/m.Scale, m.Unit)
}

func about(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
	return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
}
