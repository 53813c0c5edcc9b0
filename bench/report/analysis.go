// Package report turns the raw samples of a run into tables and plots, and two runs into what changed between them.
package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/stats"
)

// Comparison is what a system did in a cell, beside the baseline.
type Comparison struct {
	Cell    result.Cell
	Metric  result.Metric
	Value   stats.Interval // median, in base units
	Ratio   stats.Interval // to the baseline's median
	Control stats.Interval // the baseline's to its own, measured in the same turns (A/A)
	Verdict stats.Verdict
	Samples int
}

// compare says what the samples of a cell allow to be said about a metric.
func compare(r *result.Results, c result.Cell, metric string) Comparison {
	base := c
	base.System = r.Baseline
	values, baseline := r.Values(c, metric, false), r.Values(base, metric, false)
	control := stats.RatioInterval(r.Values(base, metric, true), baseline, stats.Confidence)
	ratio := stats.RatioInterval(values, baseline, stats.Confidence)
	return Comparison{
		Cell: c, Metric: result.FindMetric(metric), Value: stats.MedianInterval(values), Ratio: ratio, Control: control,
		Verdict: stats.JudgeSamples(min(len(values), len(baseline)), ratio, control), Samples: len(values),
	}
}

// word says what a verdict means to users.
func word(v stats.Verdict, better result.Better) string {
	switch {
	case v == stats.NoDifference, v == stats.TooFew, better == result.Neither:
		return string(v)
	case (v == stats.Higher) == (better == result.HigherIsBetter):
		return "better"
	}
	return "worse"
}

// Table is rows under columns, for people.
type Table struct {
	Title, Note string
	Columns     []string
	Rows        []Row
}

// Row is one line of a table. A failed one has a reason instead of cells.
type Row struct {
	Label  string
	Cells  []string
	Failed string
}

// Section is everything about one profile.
type Section struct {
	Profile network.Profile
	Summary Table
	Figures []Figure
	Details []Table
}

// measuredSystems returns the systems that could run.
func measuredSystems(r *result.Results) (names []string) {
	for _, s := range r.Systems {
		if s.Missing == "" {
			names = append(names, s.Name)
		}
	}
	return names
}

// others returns the measured systems but the baseline.
func others(r *result.Results) []string {
	return slices.DeleteFunc(measuredSystems(r), func(n string) bool { return n == r.Baseline })
}

// summarise returns the ratios of all systems to the baseline under one profile, one row for each workload.
func summarise(r *result.Results, profile string) Table {
	t := Table{
		Title: "Ratio to " + r.Baseline,
		Note: "Median ratio with its 95 % interval, of the metric that is named. “better” and “worse” are only said when the interval excludes 1 and the ratio lies " +
			"outside of what " + r.Baseline + " shows against itself in the same turns (A/A).",
		Columns: slices.Concat([]string{"workload", "metric", "A/A"}, others(r)),
	}
	for _, w := range r.Workloads {
		m := result.FindMetric(w.Primary)
		row := Row{Label: w.Name, Cells: []string{m.Title}}
		control := compare(r, result.Cell{System: r.Baseline, Workload: w.Name, Profile: profile}, w.Primary).Control
		row.Cells = append(row.Cells, ratioText(control))
		for _, s := range others(r) {
			row.Cells = append(row.Cells, summaryCell(r, result.Cell{System: s, Workload: w.Name, Profile: profile}, w.Primary))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func summaryCell(r *result.Results, c result.Cell, metric string) string {
	_, failed, taken := r.Errors(c)
	x := compare(r, c, metric)
	switch {
	case failed > 0 && failed == taken:
		return "FAILED"
	case !x.Ratio.Known():
		return none
	case failed > 0:
		return fmt.Sprintf("%s %s, %d of %d failed", ratioText(x.Ratio), word(x.Verdict, x.Metric.Better), failed, taken)
	}
	return ratioText(x.Ratio) + " " + word(x.Verdict, x.Metric.Better)
}

// detail returns all that was measured of one workload under one profile, one row for each system.
func detail(r *result.Results, w result.Workload, profile string) Table {
	metrics := presentMetrics(r, w, profile)
	t := Table{Title: w.Name, Note: w.Summary, Columns: []string{"system", "ratio to " + r.Baseline, "A/A", "samples"}}
	for _, m := range metrics {
		t.Columns = append(t.Columns, m.Title+", "+m.Unit)
	}
	for _, s := range measuredSystems(r) {
		c := result.Cell{System: s, Workload: w.Name, Profile: profile}
		reasons, failed, taken := r.Errors(c)
		if taken == 0 {
			continue
		}
		row := Row{Label: s}
		if failed > 0 {
			row.Failed = fmt.Sprintf("FAILED, %d of %d samples: %s", failed, taken, strings.Join(reasons, "; "))
		}
		if failed < taken {
			row.Cells = detailCells(r, c, w.Primary, metrics)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func detailCells(r *result.Results, c result.Cell, primary string, metrics []result.Metric) []string {
	x := compare(r, c, primary)
	ratio := "1"
	if c.System != r.Baseline {
		ratio = strings.TrimSpace(ratioText(x.Ratio) + " " + word(x.Verdict, x.Metric.Better))
	}
	cells := []string{ratio, ratioText(x.Control), fmt.Sprint(x.Samples)}
	for _, m := range metrics {
		cells = append(cells, valueText(stats.MedianInterval(r.Values(c, m.Name, false)), m))
	}
	return cells
}

// presentMetrics returns the metrics that some system has in a workload, the primary one first.
func presentMetrics(r *result.Results, w result.Workload, profile string) (present []result.Metric) {
	seen := make(map[string]bool)
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Workload == w.Name && s.Profile == profile {
			for name := range s.Values {
				seen[name] = true
			}
		}
	}
	for _, m := range result.Metrics() {
		switch {
		case m.Name == w.Primary && seen[m.Name]:
			present = slices.Insert(present, 0, m)
		case seen[m.Name]:
			present = append(present, m)
		}
	}
	return present
}

// noted is something that must be known to read the values of a cell, and in how many samples it was noted.
type noted struct {
	Cell  result.Cell
	Text  string
	Count int
}

// notes returns the notes of all samples, each kind once for each cell: numbers in them vary from sample to sample.
func notes(r *result.Results) []noted {
	var all []noted
	for i := range r.Samples {
		for _, text := range r.Samples[i].Notes {
			kind, _, _ := strings.Cut(text, ":")
			j := slices.IndexFunc(all, func(n noted) bool {
				return n.Cell == r.Samples[i].Cell && strings.HasPrefix(n.Text, kind)
			})
			if j < 0 {
				all = append(all, noted{r.Samples[i].Cell, text, 1})
				continue
			}
			all[j].Count++
		}
	}
	return all
}
