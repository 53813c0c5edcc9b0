package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

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
	// the baseline itself.
	Beside  stats.Interval
	Verdict stats.Verdict
}

// speed are the metrics that make a system faster or slower; the others are costs.
var speed = []string{
	result.Throughput, result.Received, result.NoLoss, result.Transactions, result.Connections, result.P50, result.P90, result.P99, result.P999,
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
	Lost        []string // what was measured in the old run only
	TooFew      int      // metrics with too few samples to say
	Differences []string // between the machines
}

// Slower reports whether something got slower, or broke.
func (d *Diff) Slower() bool {
	return len(d.Broken) > 0 || slices.ContainsFunc(d.Changes, Change.Slower)
}

// Compare says what changed beyond noise from one run to another. With many metrics some differ by chance, so the
// intervals are wider than in a report: all of them together are wrong in one case of twenty (Bonferroni). What the
// A/A controls of both runs show is noise, and so is a change that the baseline went through as well.
func Compare(before, after *result.Results) *Diff {
	d := &Diff{Differences: before.Host.Differences(after.Host)}
	var pairs []Change
	for _, c := range cells(before) {
		_, failedBefore, takenBefore := before.Errors(c)
		reasons, failed, taken := after.Errors(c)
		switch {
		case takenBefore == failedBefore:
			continue
		case taken == 0:
			d.Lost = append(d.Lost, c.String())
			continue
		case taken == failed:
			d.Broken = append(d.Broken, fmt.Sprintf("%s: %s", c, reasons[0]))
			continue
		}
		for _, m := range result.Metrics() {
			if m.Better == result.Neither || len(before.Values(c, m.Name, false)) == 0 || len(after.Values(c, m.Name, false)) == 0 {
				continue
			}
			pairs = append(pairs, Change{Cell: c, Metric: m})
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
		}
	}
	slices.SortStableFunc(d.Changes, func(a, b Change) int { return cmp.Compare(rank(a), rank(b)) })
	return d
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

func (c *Change) judge(before, after *result.Results, confidence float64) {
	was, is := before.Values(c.Cell, c.Metric.Name, false), after.Values(c.Cell, c.Metric.Name, false)
	c.Old, c.New = stats.MedianInterval(was), stats.MedianInterval(is)
	c.Ratio = stats.RatioInterval(is, was, confidence)
	controls := []stats.Interval{control(before, c.Cell, c.Metric.Name), control(after, c.Cell, c.Metric.Name)}
	samples := min(len(was), len(is))
	c.Verdict, c.Beside = stats.JudgeSamples(samples, c.Ratio, controls...), stats.Unknown
	if c.Cell.System == before.Baseline || c.Cell.System == after.Baseline || before.Baseline != after.Baseline {
		return
	}
	c.Beside = stats.RatioInterval(relative(after, c.Cell, c.Metric.Name), relative(before, c.Cell, c.Metric.Name), confidence)
	if c.Beside.Known() && stats.JudgeSamples(samples, c.Beside, controls...) != c.Verdict && c.Verdict != stats.TooFew {
		c.Verdict = stats.NoDifference
	}
}

// relative returns the values of a cell divided by the baseline's median.
func relative(r *result.Results, c result.Cell, metric string) []float64 {
	base := c
	base.System = r.Baseline
	by := stats.Median(r.Values(base, metric, false))
	values := r.Values(c, metric, false)
	for i := range values {
		values[i] /= by
	}
	return values
}

// control returns the A/A ratio that belongs to a cell.
func control(r *result.Results, c result.Cell, metric string) stats.Interval {
	c.System = r.Baseline
	return stats.RatioInterval(r.Values(c, metric, true), r.Values(c, metric, false), stats.Confidence)
}

// Print writes the comparison for people.
func (d *Diff) Print(w io.Writer) error {
	for _, difference := range d.Differences {
		fmt.Fprintf(w, "the machines differ: %s\n", difference)
	}
	for _, b := range d.Broken {
		fmt.Fprintf(w, "fails now: %s\n", b)
	}
	for _, l := range d.Lost {
		fmt.Fprintf(w, "not measured any more: %s\n", l)
	}
	if len(d.Changes) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "\tSYSTEM\tWORKLOAD\tPROFILE\tMETRIC\tOLD\tNEW\tUNIT\tNEW/OLD\tBESIDE THE BASELINE")
		for _, c := range d.Changes {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.heading(), c.Cell.System, c.Cell.Workload, c.Cell.Profile, c.Metric.Title,
				digits(c.Old.Value/c.Metric.Scale), digits(c.New.Value/c.Metric.Scale), c.Metric.Unit, ratioText(c.Ratio), ratioText(c.Beside))
		}
		if err := t.Flush(); err != nil {
			return err
		}
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
