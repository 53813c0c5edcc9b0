package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/stats"
)

// Change is what became of a metric of a cell between two runs.
type Change struct {
	Cell     result.Cell
	Metric   result.Metric
	Old, New stats.Interval
	Ratio    stats.Interval // new to old
	// Beside is the same ratio, of the ratios to the baseline of each run: it leaves out what changed for both. Unknown for
	// the baseline itself, and where a run has none.
	Beside   stats.Interval
	Controls [2]stats.Interval // the A/A of both runs
	Verdict  stats.Verdict
}

// speed are the metrics that make a system faster or slower; the others are costs.
var speed = []string{
	result.Throughput, result.ThroughputBack, result.Received, result.NoLoss, result.Transactions, result.Connections,
	result.P50, result.P90, result.P99, result.P999,
}

// Slower reports whether users of the system wait longer for the same.
func (c Change) Slower() bool {
	return slices.Contains(speed, c.Metric.Name) && word(c.Verdict, c.Metric.Better) == "worse"
}

// Diff is what changed between two runs.
type Diff struct {
	Changes     []Change // beyond noise
	Compared    int      // how many metrics of cells both runs have
	Broken      []string // what worked in the old run and fails in the new one
	Mended      []string // the other way round
	Lost        []string // what was measured in the old run only
	TooFew      int      // metrics with too few samples to say
	Differences []string // between the machines and the options
	Machine     bool     // the baseline itself changed
}

// Slower reports whether something got slower, or broke.
func (d *Diff) Slower() bool {
	return len(d.Broken) > 0 || slices.ContainsFunc(d.Changes, Change.Slower)
}

// Compare says what changed beyond noise from one run to another. With many metrics some differ by chance, so the
// intervals are wider than in a report (Bonferroni). What the A/A controls of both runs show is noise, and so is, for
// all systems but the baseline, what the baseline went through as well. It refuses runs that measured different things.
func Compare(before, after *result.Results) (*Diff, error) {
	if a, b := before.Settings, after.Settings; a.Generator != b.Generator || a.UDPRate != b.UDPRate || a.UDPPause != b.UDPPause {
		return nil, fmt.Errorf("the runs had different traffic and cannot be compared: generator %s with --udp-rate %v and --udp-pause %s, then %s with %v and %s",
			a.Generator, a.UDPRate, time.Duration(a.UDPPause), b.Generator, b.UDPRate, time.Duration(b.UDPPause))
	}
	d := &Diff{Differences: append(before.Host.Differences(after.Host), differences(before, after)...)}
	var pairs []Change
	for _, c := range cells(before) {
		if !d.worksInBoth(before, after, c) {
			continue
		}
		for _, m := range result.Metrics() {
			if m.Better == result.Neither || len(before.Values(c, m.Name, false)) == 0 || len(after.Values(c, m.Name, false)) == 0 {
				continue
			}
			pairs = append(pairs, Change{Cell: c, Metric: m})
		}
	}
	for _, c := range cells(after) {
		if _, failed, taken := after.Errors(c, false); before.Missing(c.System) != "" && taken > failed {
			d.Mended = append(d.Mended, c.String())
		}
	}
	d.Compared = len(pairs)
	for _, p := range pairs {
		p.judge(before, after, 1-(1-stats.Confidence)/float64(len(pairs)))
		switch p.Verdict {
		case stats.TooFew:
			d.TooFew++
		case stats.Higher, stats.Lower:
			d.Changes = append(d.Changes, p)
			d.Machine = d.Machine || p.Cell.System == before.Baseline
		}
	}
	slices.SortStableFunc(d.Changes, func(a, b Change) int { return cmp.Compare(rank(a), rank(b)) })
	return d, nil
}

// differences returns what of the options is not the same, and matters less.
func differences(before, after *result.Results) (all []string) {
	add := func(what string, a, b any) {
		if a != b {
			all = append(all, fmt.Sprintf("%s: %v, then %v", what, a, b))
		}
	}
	add("duration of a sample", time.Duration(before.Settings.Duration), time.Duration(after.Settings.Duration))
	add("warm-up", time.Duration(before.Settings.Warmup), time.Duration(after.Settings.Warmup))
	add("baseline", before.Baseline, after.Baseline)
	for _, p := range before.Profiles {
		add("offloads of "+p.Name, fmt.Sprint(before.Host.Offloads[p.Name]), fmt.Sprint(after.Host.Offloads[p.Name]))
	}
	return all
}

// worksInBoth reports whether a cell has values in both runs, and notes it when that has changed.
func (d *Diff) worksInBoth(before, after *result.Results, c result.Cell) bool {
	_, failedBefore, takenBefore := before.Errors(c, false)
	reasons, failed, taken := after.Errors(c, false)
	missing := after.Missing(c.System)
	switch {
	case takenBefore == failedBefore:
		if taken > failed {
			d.Mended = append(d.Mended, c.String())
		}
		return false
	case missing != "":
		d.Broken = append(d.Broken, fmt.Sprintf("%s: cannot run: %s", c, missing))
		return false
	case taken == 0:
		d.Lost = append(d.Lost, c.String())
		return false
	case failed > 0 && failedBefore == 0:
		d.Broken = append(d.Broken, fmt.Sprintf("%s: %d of %d samples: %s", c, failed, taken, reasons[0]))
	}
	return taken > failed
}

// rank puts what got slower first, then what got faster, then costs.
func rank(c Change) int {
	switch {
	case c.Slower():
		return 0
	case slices.Contains(speed, c.Metric.Name):
		return 1
	}
	return 2
}

func cells(r *result.Results) (all []result.Cell) {
	for i := range r.Samples {
		if c := r.Samples[i].Cell; !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	return all
}

// judge compares a cell with itself in the other run: beside the baseline where both have it, since what changed for both
// is the machine.
func (c *Change) judge(before, after *result.Results, confidence float64) {
	metric := c.Metric.Name
	was, is := before.Values(c.Cell, metric, false), after.Values(c.Cell, metric, false)
	c.Old, c.New = stats.MedianInterval(was), stats.MedianInterval(is)
	c.Ratio, c.Beside = stats.RatioInterval(is, was, confidence), stats.Unknown
	c.Controls = [2]stats.Interval{control(before, c.Cell, metric), control(after, c.Cell, metric)}
	samples, judged := min(len(was), len(is)), c.Ratio
	if base := before.Baseline; c.Cell.System != base && base == after.Baseline {
		b := c.Cell
		b.System = base
		c.Beside = stats.RatioOfRatios(is, after.Values(b, metric, false), was, before.Values(b, metric, false), confidence)
		if c.Beside.Known() {
			judged = c.Beside
		}
	}
	c.Verdict = stats.JudgeSamples(samples, judged, c.Controls[:]...)
}

// control returns the A/A ratio that belongs to a cell.
func control(r *result.Results, c result.Cell, metric string) stats.Interval {
	c.System = r.Baseline
	return stats.RatioInterval(r.Values(c, metric, true), r.Values(c, metric, false), stats.Confidence)
}

// Print writes the comparison for people.
func (d *Diff) Print(w io.Writer) error {
	for _, difference := range d.Differences {
		fmt.Fprintf(w, "the runs differ: %s\n", difference)
	}
	for _, b := range d.Broken {
		fmt.Fprintf(w, "fails now: %s\n", b)
	}
	for _, m := range d.Mended {
		fmt.Fprintf(w, "works now: %s\n", m)
	}
	for _, l := range d.Lost {
		fmt.Fprintf(w, "not measured any more: %s\n", l)
	}
	if len(d.Changes) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "\tSYSTEM\tWORKLOAD\tPROFILE\tMETRIC\tOLD\tNEW\tUNIT\tNEW/OLD\tBESIDE THE BASELINE\tA/A OLD\tA/A NEW")
		for _, c := range d.Changes {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.heading(), c.Cell.System, c.Cell.Workload, c.Cell.Profile, c.Metric.Title,
				digits(c.Old.Value/c.Metric.Scale), digits(c.New.Value/c.Metric.Scale), c.Metric.Unit, ratioText(c.Ratio, stats.Enough), ratioText(c.Beside, stats.Enough),
				ratioText(c.Controls[0], stats.Enough), ratioText(c.Controls[1], stats.Enough))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if d.Machine {
		fmt.Fprintln(w, "the baseline itself changed, which may be the machine; the other systems are judged beside it")
	}
	fmt.Fprintf(w, "%d of %d compared metrics changed beyond noise", len(d.Changes), d.Compared)
	if d.TooFew > 0 {
		fmt.Fprintf(w, "; %d have too few samples to say (want %d in each run: --repeat 2 or more)", d.TooFew, stats.Enough)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// heading says in a word what the change means.
func (c Change) heading() string {
	switch better := word(c.Verdict, c.Metric.Better) == "better"; {
	case c.Slower():
		return "slower"
	case slices.Contains(speed, c.Metric.Name):
		return "faster"
	case better:
		return "cheaper"
	}
	return "dearer"
}
