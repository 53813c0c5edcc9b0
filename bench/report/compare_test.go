package report

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/result"
)

func mustCompare(t *testing.T, before, after *result.Results) *Diff {
	t.Helper()
	d, err := Compare(before, after)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// The same again is not a change, however often.
func TestCompareWithItself(t *testing.T) {
	before, claims := made(1, 1), 0
	for seed := range uint64(20) {
		if d := mustCompare(t, before, made(seed+2, 1)); d.Slower() || len(d.Changes) > 0 {
			claims++
		}
	}
	if claims > 1 {
		t.Errorf("%d of 20 runs of the same claim a change", claims)
	}
}

func TestCompareFindsChanges(t *testing.T) {
	for _, c := range []struct {
		scale  float64
		slower bool
		want   string
	}{{0.8, true, "slower  fast"}, {1.25, false, "faster"}} {
		d := mustCompare(t, made(1, 1), made(2, c.scale))
		var b bytes.Buffer
		if err := d.Print(&b); err != nil {
			t.Fatal(err)
		}
		if d.Slower() != c.slower || !strings.Contains(b.String(), c.want) || strings.Contains(b.String(), "same ") {
			t.Errorf("scale %v: slower is %v\n%s", c.scale, d.Slower(), b.String())
		}
		if first := d.Changes[0]; first.Slower() != c.slower {
			t.Errorf("scale %v: the first line is %+v", c.scale, first)
		}
	}
}

// When the machine as a whole is slower, only the baseline says so.
func TestCompareKnowsTheMachine(t *testing.T) {
	before, after := made(1, 1), made(2, 1)
	for _, s := range after.Samples {
		for name := range s.Values {
			s.Values[name] *= 0.7
		}
	}
	d := mustCompare(t, before, after)
	for _, c := range d.Changes {
		if c.Cell.System != before.Baseline {
			t.Errorf("%s is said to have changed: %+v", c.Cell, c.Ratio)
		}
	}
	if !d.Slower() {
		t.Error("the baseline's throughput fell by 30 %, and nothing is said to be slower")
	}
}

func TestCompareOfWhatIsGone(t *testing.T) {
	before, after := made(1, 1), made(2, 1)
	after.Host.Kernel = "7.0"
	for i := range after.Samples {
		if s := &after.Samples[i]; s.System == "same" {
			s.Values, s.Error = nil, "broken now"
		}
	}
	after.Samples = slices.DeleteFunc(after.Samples, func(s result.Sample) bool { return s.System == "slow" && s.Workload == "rr" })
	d := mustCompare(t, before, after)
	var b bytes.Buffer
	if err := d.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"fails now: same tcp-1 full: 8 of 8 samples: broken now", "not measured any more: slow rr full", "the runs differ: kernel: 6.18.0, then 7.0"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if !d.Slower() {
		t.Error("what fails now does not count")
	}
	if strings.Contains(b.String(), "exec:broken rr") {
		t.Error("what failed before is reported")
	}
}

func TestCompareWithTooFew(t *testing.T) {
	before, after := made(1, 1), made(2, 0.5)
	few := func(r *result.Results) {
		seen := make(map[string]int)
		r.Samples = slices.DeleteFunc(r.Samples, func(s result.Sample) bool { seen[s.Cell.String()]++; return seen[s.Cell.String()] > 2 })
	}
	few(before)
	few(after)
	if d := mustCompare(t, before, after); d.Slower() || d.TooFew == 0 {
		t.Errorf("from two samples: %+v", d)
	}
}

// A tunnel that does not start any more is worse than a slow one, and so is one that fails now and then.
func TestCompareOfWhatDoesNotStart(t *testing.T) {
	before, after := made(1, 1), made(2, 1)
	after.Samples = slices.DeleteFunc(after.Samples, func(s result.Sample) bool { return s.System == "fast" })
	after.Systems[1].Missing = "it is gone"
	after.Samples[0].Values, after.Samples[0].Error = nil, "once"
	d := mustCompare(t, before, after)
	if !d.Slower() || !slices.Contains(d.Broken, "fast tcp-1 full: cannot run: it is gone") || !slices.Contains(d.Broken, "kernel-vxlan tcp-1 full: 1 of 8 samples: once") {
		t.Errorf("got %+v", d.Broken)
	}
	if back := mustCompare(t, after, before); back.Slower() || !slices.Contains(back.Mended, "fast tcp-1 full") {
		t.Errorf("the other way round: %+v", back)
	}
}

func TestCompareRefusesOtherTraffic(t *testing.T) {
	for want, change := range map[string]func(*result.Settings){
		"--udp-pause 0s, then iperf3 with":                               func(s *result.Settings) { s.Generator = "iperf3" },
		"--udp-rate 0 and --udp-pause 0s, then builtin with 7 and 0s":    func(s *result.Settings) { s.UDPRate = 7 },
		"--udp-rate 0 and --udp-pause 0s, then builtin with 0 and 500µs": func(s *result.Settings) { s.UDPPause = result.Duration(500 * time.Microsecond) },
	} {
		after := made(2, 1)
		change(&after.Settings)
		if _, err := Compare(made(1, 1), after); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// Zeros are values, and nothing is claimed of ratios to them.
func TestCompareWithZeros(t *testing.T) {
	zeros := func(r *result.Results, values ...float64) *result.Results {
		n := 0
		for i := range r.Samples {
			if s := &r.Samples[i]; s.System == "same" && s.Workload == "tcp-1" {
				s.Values[result.NoLoss] = values[n%len(values)]
				n++
			}
		}
		return r
	}
	d := mustCompare(t, zeros(made(1, 1), 0, 0, 3e4, 4e4), zeros(made(2, 1), 3e4, 3e4, 3e4, 4e4))
	for _, c := range d.Changes {
		t.Errorf("%s %s: %+v", c.Cell, c.Metric.Name, c.Ratio)
	}
	if err := Write(zeros(made(1, 1), 0, 0, 0, 4e4), t.TempDir()); err != nil {
		t.Error(err)
	}
	if err := Write(zeros(made(1, 1), 0), t.TempDir()); err != nil {
		t.Error(err)
	}
}
