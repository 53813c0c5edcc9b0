package report

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/vxlane/vxlane/bench/result"
)

// The same again is not a change, however often.
func TestCompareWithItself(t *testing.T) {
	before, claims := made(1, 1), 0
	for seed := range uint64(20) {
		if d := Compare(before, made(seed+2, 1)); d.Slower() || len(d.Changes) > 0 {
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
		d := Compare(made(1, 1), made(2, c.scale))
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
	d := Compare(before, after)
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
	d := Compare(before, after)
	var b bytes.Buffer
	if err := d.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"fails now: same tcp-1 full: broken now", "not measured any more: slow rr full", "the machines differ: kernel: 6.18.0, then 7.0"} {
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
	if d := Compare(before, after); d.Slower() || d.TooFew == 0 {
		t.Errorf("from two samples: %+v", d)
	}
}
