// Package result has what a run of the harness leaves behind: every raw sample, and what is needed to judge it.
package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vxlane/vxlane/bench/network"
)

// Schema names the layout of a results file. Within a version, fields are only ever added.
const Schema = "vxlane-bench/results/v1"

// FileName is the name of a results file in its directory.
const FileName = "results.json"

// Results is one run.
type Results struct {
	Schema    string            `json:"schema"`
	Command   []string          `json:"command"`
	Started   time.Time         `json:"started"`
	Finished  time.Time         `json:"finished"`
	Complete  bool              `json:"complete"` // false: interrupted, or still running
	Planned   int               `json:"planned_samples"`
	Host      Host              `json:"host"`
	Settings  Settings          `json:"settings"`
	Systems   []System          `json:"systems"` // in the order of reports; those too that could not run
	Workloads []Workload        `json:"workloads"`
	Profiles  []network.Profile `json:"profiles"`
	Baseline  string            `json:"baseline"` // the system that all are compared with, itself too (A/A)
	Samples   []Sample          `json:"samples"`
}

// Settings are the options of a run.
type Settings struct {
	Repeats   int      `json:"repeats"` // each gives two samples a system, one on the way there and one on the way back
	Warmup    Duration `json:"warmup"`
	Duration  Duration `json:"duration"` // of a sample
	Generator string   `json:"generator"`
	UDPRate   float64  `json:"udp_rate,omitempty"` // packets a second that UDP workloads offered; 0: as many as the sender could
	UDPPause  Duration `json:"udp_pause"`          // of a UDP receiver whose queue is empty; 0: until there is a packet
}

// firstPause is UDPPause of the results from before it was written down.
const firstPause = Duration(50 * time.Microsecond)

// Duration is written as in "1.5s".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// System is a tunnel of the run.
type System struct {
	Name    string            `json:"name"`
	Summary string            `json:"summary"`
	About   map[string]string `json:"about,omitempty"`   // what it says of itself
	Missing string            `json:"missing,omitempty"` // why it cannot run here
}

// Workload is a kind of traffic of the run.
type Workload struct {
	Name    string `json:"name"`
	Summary string `json:"summary"`
	Primary string `json:"primary"` // the metric that comparisons are made with first
}

// Sample is one measurement of one system.
type Sample struct {
	Cell
	// Control marks the second measurement of the baseline, for the A/A comparison.
	Control bool      `json:"control,omitempty"`
	Repeat  int       `json:"repeat"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"` // with setting up and taking down
	// Values are in base units, by the name of their metric.
	Values map[string]float64 `json:"values,omitempty"`
	// Histogram has all times of round trips in nanoseconds, HdrHistogram's V2 compressed encoding in base64.
	Histogram string   `json:"histogram,omitempty"`
	Notes     []string `json:"notes,omitempty"` // what must be known to read the values
	Error     string   `json:"error,omitempty"` // why there are no values
}

// Cell is what is measured: one system under one workload and profile.
type Cell struct {
	System   string `json:"system"`
	Workload string `json:"workload"`
	Profile  string `json:"profile"`
}

func (c Cell) String() string { return c.System + " " + c.Workload + " " + c.Profile }

// Save writes the results to dir, all or nothing.
func (r *Results) Save(dir string) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("save results: %w", err)
	}
	next := filepath.Join(dir, "."+FileName+".next")
	if err := os.WriteFile(next, buf.Bytes(), 0o644); err != nil {
		return fmt.Errorf("save results: %w", err)
	}
	if err := os.Rename(next, filepath.Join(dir, FileName)); err != nil {
		return fmt.Errorf("save results: %w", err)
	}
	return nil
}

// Load reads results from a file, or from a directory that has one.
func Load(path string) (*Results, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, FileName)
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load results: %w; want a directory that vxlane-bench run --out made, or its %s", err, FileName)
	}
	if err != nil {
		return nil, fmt.Errorf("load results: %w", err)
	}
	r := Results{Settings: Settings{UDPPause: firstPause}}
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("load results: %s: %w", path, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("load results: %s: schema %q: this program reads %s", path, r.Schema, Schema)
	}
	return &r, nil
}

// Missing returns why a system could not run; empty when it could, or was not chosen.
func (r *Results) Missing(system string) string {
	for _, s := range r.Systems {
		if s.Name == system {
			return s.Missing
		}
	}
	return ""
}

// Values returns what the samples of a cell say of a metric, in the order in which they were taken.
func (r *Results) Values(c Cell, metric string, control bool) []float64 {
	var values []float64
	for i := range r.Samples {
		s := &r.Samples[i]
		if v, ok := s.Values[metric]; ok && s.Cell == c && s.Control == control {
			values = append(values, v)
		}
	}
	return values
}

// Errors returns why samples of a cell failed, each reason once, and how many did; with control, those of the second
// measurement of the baseline.
func (r *Results) Errors(c Cell, control bool) (reasons []string, failed, taken int) {
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Cell != c || s.Control != control {
			continue
		}
		taken++
		if s.Error == "" {
			continue
		}
		failed++
		if !slices.Contains(reasons, s.Error) {
			reasons = append(reasons, s.Error)
		}
	}
	return reasons, failed, taken
}
