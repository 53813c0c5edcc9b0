// Package report turns the raw samples of a run into tables and plots, and two runs into what changed between them.
package report

import (
	"fmt"
	"maps"
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
	values, baseline, again := r.Values(c, metric, false), r.Values(base, metric, false), r.Values(base, metric, true)
	control := stats.RatioInterval(again, baseline, stats.Confidence)
	ratio := stats.RatioInterval(values, baseline, stats.Confidence)
	return Comparison{
		Cell: c, Metric: result.FindMetric(metric), Value: stats.MedianInterval(values), Ratio: ratio, Control: control,
		Verdict: stats.JudgeSamples(min(len(values), len(baseline), len(again)), ratio, control), Samples: len(values),
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

// Table is rows under columns, for people. Text in it is raw.
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
	Summary Table // the primary metric of each workload
	Further Table // others
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

// primary and further are the metrics of a workload whose ratios are summarised, the most important first.
func primary(w result.Workload) []string { return []string{w.Primary} }

func further(result.Workload) []string {
	return []string{result.NoLoss, result.P99, result.MachinePerGB, result.MachinePerMpkt, result.MachinePerKConn}
}

// summarise returns the ratios of all systems to the baseline under one profile, a row for each metric of each workload.
func summarise(r *result.Results, profile, title string, metrics func(result.Workload) []string) Table {
	t := Table{
		Title: title,
		Note: "Median ratio to " + r.Baseline + " with its interval. “better” and “worse” are only said when the interval excludes 1 and the ratio is farther " +
			"from 1, to either side, than what " + r.Baseline + " shows against itself in the same turns (A/A).",
		Columns: slices.Concat([]string{"workload", "metric", "A/A"}, others(r)),
	}
	for _, w := range r.Workloads {
		for _, metric := range metrics(w) {
			if row, ok := summaryRow(r, w, profile, metric); ok {
				t.Rows = append(t.Rows, row)
			}
		}
	}
	return t
}

// summaryRow reports false when a metric is not of a workload, unless it is its primary one.
func summaryRow(r *result.Results, w result.Workload, profile, metric string) (Row, bool) {
	m := result.FindMetric(metric)
	base := compare(r, result.Cell{System: r.Baseline, Workload: w.Name, Profile: profile}, metric)
	row, found := Row{Label: w.Name, Cells: []string{m.Title, ratioText(base.Control, len(r.Values(base.Cell, metric, true)))}}, metric == w.Primary
	for _, s := range others(r) {
		c := result.Cell{System: s, Workload: w.Name, Profile: profile}
		row.Cells = append(row.Cells, summaryCell(r, c, metric))
		found = found || len(r.Values(c, metric, false)) > 0
	}
	return row, found
}

func summaryCell(r *result.Results, c result.Cell, metric string) string {
	_, failed, taken := r.Errors(c, false)
	x := compare(r, c, metric)
	text := none
	switch {
	case failed > 0 && failed == taken:
		return "FAILED"
	case x.Ratio.Known():
		text = ratioText(x.Ratio, x.Samples) + " " + word(x.Verdict, x.Metric.Better)
	case x.Value.Known():
		text = valueText(x.Value, x.Metric, x.Samples) + " " + x.Metric.Unit + ", no ratio"
	}
	if failed > 0 {
		text += fmt.Sprintf(", %d of %d failed", failed, taken)
	}
	return text
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
		row := Row{Label: s, Failed: failure(r, c, false)}
		if len(r.Values(c, w.Primary, false)) > 0 {
			row.Cells = detailCells(r, c, w.Primary, metrics)
		}
		if row.Failed != "" || len(row.Cells) > 0 {
			t.Rows = append(t.Rows, row)
		}
	}
	if text := failure(r, result.Cell{System: r.Baseline, Workload: w.Name, Profile: profile}, true); text != "" {
		t.Rows = append(t.Rows, Row{Label: r.Baseline + " (A/A)", Failed: text})
	}
	return t
}

// failure says how many samples of a cell failed, and why; nothing when none did.
func failure(r *result.Results, c result.Cell, control bool) string {
	reasons, failed, taken := r.Errors(c, control)
	if failed == 0 {
		return ""
	}
	return fmt.Sprintf("FAILED, %d of %d samples: %s", failed, taken, strings.Join(reasons, "; "))
}

func detailCells(r *result.Results, c result.Cell, primary string, metrics []result.Metric) []string {
	x := compare(r, c, primary)
	ratio := "1"
	switch {
	case c.System == r.Baseline:
	case x.Ratio.Known():
		ratio = ratioText(x.Ratio, x.Samples) + " " + word(x.Verdict, x.Metric.Better)
	default:
		ratio = none
	}
	cells := []string{ratio, ratioText(x.Control, x.Samples), fmt.Sprint(x.Samples)}
	for _, m := range metrics {
		values := r.Values(c, m.Name, false)
		cells = append(cells, valueText(stats.MedianInterval(values), m, len(values)))
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
		delete(seen, m.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(seen)) { // of a newer version than this
		present = append(present, result.FindMetric(name))
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
