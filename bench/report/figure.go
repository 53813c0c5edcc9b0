package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"

	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/stats"
)

// Figure is a plot.
type Figure struct {
	Name    string // of its file, without the suffix
	Title   string
	Caption string
	SVG     []byte
}

// want is what a series of a figure shows.
type want struct{ workload, metric, label string }

// family is a figure about absolute values: systems below each other, a mark for each of the wanted values.
type family struct {
	name, title, caption string
	wanted               []want
}

const intervalCaption = "Marks are medians, bars 95 % intervals; the axis is logarithmic. "

// families returns the figures that can be drawn for each profile, between hosts or between pods.
func families(suffix, where string) []family {
	same := func(metric string, workloads ...string) (all []want) {
		for _, w := range workloads {
			all = append(all, want{w + suffix, metric, w})
		}
		return all
	}
	latency := func(w string) []want {
		return []want{{w + suffix, result.P50, "p50"}, {w + suffix, result.P90, "p90"}, {w + suffix, result.P99, "p99"}, {w + suffix, result.P999, "p99.9"}}
	}
	udp := func(flows string) []string {
		return []string{"udp-64" + flows, "udp-512" + flows, "udp-1400" + flows, "udp-imix" + flows}
	}
	const received = "Packets that the receiving application took at the offered rate."
	return []family{
		{"tcp", "TCP bulk" + where, "Bytes that the receiving applications took.", same(result.Throughput, "tcp-1", "tcp-4", "tcp-8", "tcp-bidir")},
		{"udp", "UDP packets received, 1 flow" + where, received, same(result.Received, udp("")...)},
		{"udp-16f", "UDP packets received, 16 flows" + where, received, same(result.Received, udp("-16f")...)},
		{"udp-256f", "UDP packets received, 256 flows" + where, received, same(result.Received, udp("-256f")...)},
		{"udp-noloss", "UDP, highest rate with loss below 0.1 %" + where, "Searched by halving; 1 flow.", same(result.NoLoss, udp("")...)},
		{"rr", "UDP request and response" + where, "Round trip of 64 bytes, one at a time, nothing else. Left is better.", latency("rr")},
		{"rr-loaded", "UDP request and response beside TCP bulk" + where, "Round trip of 64 bytes while a TCP stream fills the tunnel. Left is better.", latency("rr-loaded")},
		{"ping-idle", "ICMP echo every 50 ms" + where, "Round trip when every thread has gone to sleep in between. Left is better.", latency("ping-idle")},
		{"connect", "TCP connections" + where, "Opened, one byte each way, closed; one after the other.", same(result.Connections, "connect")},
		{"cost", "CPU per gigabyte, TCP 1 stream" + where, "Of the whole machine, sender and receiver included, and of the tunnel's own processes (the kernel's vxlan has none). Left is better.",
			[]want{{"tcp-1" + suffix, result.MachinePerGB, "machine"}, {"tcp-1" + suffix, result.TunnelPerGB, "tunnel's processes"}}},
	}
}

// absoluteFigures draws the families of which there is something to show under a profile.
func absoluteFigures(r *result.Results, profile string) ([]Figure, error) {
	var figures []Figure
	for _, f := range slices.Concat(families("", ""), families("-fwd", ", between pods")) {
		d := dots{title: f.title, rows: measuredSystems(r)}
		for _, w := range f.wanted {
			d.addSeries(r, w, profile)
		}
		if len(d.series) == 0 {
			continue
		}
		svg, err := d.draw()
		if err != nil {
			return nil, fmt.Errorf("draw %s: %w", f.title, err)
		}
		name := strings.Join([]string{"absolute", profile, f.name}, "-")
		if strings.HasSuffix(f.wanted[0].workload, "-fwd") {
			name += "-fwd"
		}
		figures = append(figures, Figure{name, f.title, intervalCaption + f.caption, svg})
	}
	return figures, nil
}

// addSeries adds what is wanted, if some system has it. A system of which every sample failed is marked as such.
func (d *dots) addSeries(r *result.Results, w want, profile string) {
	s, m, remarks := series{name: w.label}, result.FindMetric(w.metric), len(d.remarks)
	for row, system := range d.rows {
		c := result.Cell{System: system, Workload: w.workload, Profile: profile}
		i := stats.MedianInterval(r.Values(c, w.metric, false))
		switch _, failed, taken := r.Errors(c, false); {
		case failed > 0 && failed == taken:
			d.remarks = append(d.remarks, remark{row, len(d.series), w.label + " FAILED"})
		case i.Known() && i.Value > 0:
			s.points = append(s.points, point{row, scaled(i, m)})
		case i.Known(): // a logarithmic axis has no zero
			d.remarks = append(d.remarks, remark{row, len(d.series), w.label + " 0"})
		}
	}
	if len(s.points) > 0 || len(d.remarks) > remarks {
		d.series = append(d.series, s)
		d.axis = m.Unit
	}
}

func scaled(i stats.Interval, m result.Metric) stats.Interval {
	return stats.Interval{Value: i.Value / m.Scale, Low: i.Low / m.Scale, High: i.High / m.Scale}
}

// ratioFigures draws, for one system, its ratios to the baseline: rates and latencies apart, since better is on opposite
// sides, and a mark for each profile.
func ratioFigures(r *result.Results, system string) ([]Figure, error) {
	var figures []Figure
	for _, kind := range []struct {
		name, title, side string
		better            result.Better
		metrics           func(result.Workload) []string
	}{
		{"rates", "rates", "right of 1 is better", result.HigherIsBetter, func(w result.Workload) []string { return []string{w.Primary} }},
		{"latencies", "latencies", "left of 1 is better", result.LowerIsBetter, func(result.Workload) []string { return []string{result.P50, result.P99} }},
	} {
		d := dots{title: system + ": " + kind.title, axis: "× " + r.Baseline + " (" + kind.side + ")", reference: 1}
		for _, w := range r.Workloads {
			for _, metric := range kind.metrics(w) {
				m := result.FindMetric(metric)
				if m.Better != kind.better || m.Better == result.LowerIsBetter && result.FindMetric(w.Primary).Better != m.Better {
					continue
				}
				d.addRatioRow(r, system, w, m)
			}
		}
		if len(d.rows) == 0 {
			continue
		}
		svg, err := d.draw()
		if err != nil {
			return nil, fmt.Errorf("draw %s: %w", d.title, err)
		}
		figures = append(figures, Figure{
			Name: strings.Join([]string{"ratio", fileName(system), kind.name}, "-"), Title: d.title, SVG: svg,
			Caption: intervalCaption + "Grey is the noise: how far " + r.Baseline + " strays from itself (A/A), to both sides. A mark within its grey, or whose bar touches 1, is no difference.",
		})
	}
	return figures, nil
}

// addRatioRow adds a row for a workload, with a mark in the series of each profile.
func (d *dots) addRatioRow(r *result.Results, system string, w result.Workload, m result.Metric) {
	row, found := len(d.rows), false
	for _, p := range r.Profiles {
		cell := result.Cell{System: system, Workload: w.Name, Profile: p.Name}
		series := d.seriesOf(p.Name)
		if _, failed, taken := r.Errors(cell, false); failed > 0 && failed == taken {
			found = true
			d.remarks = append(d.remarks, remark{row: row, series: series, text: "FAILED"})
			continue
		}
		c := compare(r, cell, m.Name)
		if !c.Ratio.Known() || c.Ratio.Value <= 0 {
			continue
		}
		found = true
		d.series[series].points = append(d.series[series].points, point{row, c.Ratio})
		if noise := math.Exp(stats.Noise(c.Control)); !math.IsInf(noise, 0) {
			d.bands = append(d.bands, noiseBand{row, series, noise})
		}
	}
	if !found {
		return
	}
	label := w.Name
	if m.Better == result.LowerIsBetter {
		label += " " + strings.TrimPrefix(m.Title, "latency ")
	}
	d.rows = append(d.rows, label)
}

// seriesOf returns the index of the series called name.
func (d *dots) seriesOf(name string) int {
	i := slices.IndexFunc(d.series, func(s series) bool { return s.name == name })
	if i < 0 {
		d.series = append(d.series, series{name: name})
		i = len(d.series) - 1
	}
	return i
}

// fileName makes a part of a file name of a system's name.
func fileName(system string) string {
	return strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_.", r)) {
			return r
		}
		return '_'
	}, system)
}
