package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
)

var update = flag.Bool("update", false, "write golden files anew")

// made is a run that never was: fast is twice the baseline, same is the baseline, slow is a third of it, broken fails, and
// absent could not run.
func made(seed uint64, scale float64) *result.Results {
	rng := rand.New(rand.NewPCG(seed, 1))
	r := &result.Results{
		Schema: result.Schema, Command: []string{"/opt/vxlane-bench", "run", "--system", "exec:x y"}, Complete: true, Planned: 96,
		Started: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), Finished: time.Date(2026, 11, 21, 12, 5, 0, 0, time.UTC),
		Host:     result.Host{Kernel: "6.18.0", Architecture: "amd64", CPU: "A <fast> processor", Cores: 2, Go: "go1.26", Commit: "abc", Offloads: map[string][]string{"full": {"rx-gro"}}},
		Settings: result.Settings{Repeats: 4, Warmup: result.Duration(300 * time.Millisecond), Duration: result.Duration(time.Second), Generator: "builtin"},
		Profiles: network.Profiles()[:1], Baseline: "kernel-vxlan",
		Workloads: []result.Workload{{Name: "tcp-1", Summary: "TCP bulk", Primary: result.Throughput}, {Name: "rr", Summary: "round trips", Primary: result.P50}},
	}
	factors := map[string]float64{"kernel-vxlan": 1, "fast": 2 * scale, "same": 1, "slow": scale / 3, "exec:broken": 1}
	for _, name := range []string{"kernel-vxlan", "fast", "same", "slow", "exec:broken"} {
		r.Systems = append(r.Systems, result.System{Name: name, Summary: "a <tunnel>", About: map[string]string{"tier": "t"}})
		for i := range 8 {
			noise := 1 + 0.02*rng.NormFloat64()
			rate, tunnel := 10e9*factors[name]*noise, result.Cell{System: name, Workload: "tcp-1", Profile: "full"}
			add(r, result.Sample{Cell: tunnel, Repeat: i / 2, Values: map[string]float64{result.Throughput: rate, result.MachinePerGB: 3e9 / rate}})
			tunnel.Workload = "rr"
			p50 := 50e-6 / factors[name] * noise
			add(r, result.Sample{Cell: tunnel, Repeat: i / 2, Values: map[string]float64{result.P50: p50, result.P99: 3 * p50}, Notes: []string{"the path: was odd"}})
		}
	}
	for i := range 16 {
		s := r.Samples[i]
		s.Control, s.Notes = true, nil
		values := make(map[string]float64)
		for _, m := range result.Metrics() {
			if v, ok := s.Values[m.Name]; ok {
				values[m.Name] = v * (1 + 0.02*rng.NormFloat64())
			}
		}
		s.Values = values
		add(r, s)
	}
	r.Systems = append(r.Systems, result.System{Name: "absent", Summary: "not here", Missing: "the kernel has no <such> thing"})
	return r
}

func add(r *result.Results, s result.Sample) {
	if s.System == "exec:broken" && (s.Workload == "rr" || s.Repeat == 0) {
		s.Values, s.Notes, s.Error = nil, nil, `"x <y>" ended | exit status 9`
	}
	r.Samples = append(r.Samples, s)
}

func TestMarkdown(t *testing.T) {
	rep, err := New(made(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/report.md"
	got := rep.Markdown()
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the report is not %s; look at the difference, then run with -update\n%s", golden, got)
	}
}

// What is claimed, cell by cell.
func TestClaims(t *testing.T) {
	r := made(1, 1)
	for _, c := range []struct{ system, workload, metric, want string }{
		{"fast", "tcp-1", result.Throughput, "better"}, {"fast", "rr", result.P50, "better"},
		{"slow", "tcp-1", result.Throughput, "worse"}, {"slow", "rr", result.P50, "worse"}, {"slow", "tcp-1", result.MachinePerGB, "worse"},
		{"same", "tcp-1", result.Throughput, "no difference"}, {"same", "rr", result.P99, "no difference"},
	} {
		x := compare(r, result.Cell{System: c.system, Workload: c.workload, Profile: "full"}, c.metric)
		if got := word(x.Verdict, x.Metric.Better); got != c.want {
			t.Errorf("%s %s %s: %s [%+v, A/A %+v], want %s", c.system, c.workload, c.metric, got, x.Ratio, x.Control, c.want)
		}
	}
	r.Samples = r.Samples[:20] // three samples of the next system
	x := compare(r, result.Cell{System: "fast", Workload: "tcp-1", Profile: "full"}, result.Throughput)
	if x.Samples >= 4 || x.Verdict != "too few samples" {
		t.Errorf("%d samples: %s", x.Samples, x.Verdict)
	}
}

var outside = regexp.MustCompile(`(?i)(src|href)="[^#"]|url\(|@import|<script|<link`)

// The page needs nothing but itself, escapes what it is given, and shows failures as rows with their reason.
func TestHTML(t *testing.T) {
	rep, err := New(made(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	html, err := rep.HTML()
	if err != nil {
		t.Fatal(err)
	}
	page := string(html)
	if found := outside.FindString(page); found != "" {
		t.Errorf("the page refers to something outside: %s", found)
	}
	for _, want := range []string{
		`<tr class="failed"><th scope="row">exec:broken</th><td colspan=`, `FAILED, 8 of 8 samples: &#34;x &lt;y&gt;&#34; ended | exit status 9`, "FAILED, 2 of 8 samples",
		"<strong>absent could not run here</strong>: the kernel has no &lt;such&gt; thing", "A &lt;fast&gt; processor", "vxlane-bench run --system &#39;exec:x y&#39;",
		`<td class="better">`, `<td class="worse">`, ">FAILED</td>", "no difference, 2 of 8 failed", `name="viewport"`, VethCaveat, "noise (A/A)", "× kernel-vxlan (right of 1 is better)", "Gbit/s",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if n := strings.Count(page, "<svg"); n != len(rep.figures()) || n == 0 {
		t.Errorf("%d pictures, want %d", n, len(rep.figures()))
	}
}

// Figures are well-formed, have an axis with its unit, and a mark for each system; a system that failed is marked as such.
func TestFigures(t *testing.T) {
	rep, err := New(made(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	failed := false
	for _, f := range rep.figures() {
		for d := xml.NewDecoder(bytes.NewReader(f.SVG)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
		}
		svg := string(f.SVG)
		if !strings.Contains(svg, "viewBox") || !strings.Contains(svg, "xmlns=") || f.Caption == "" {
			t.Errorf("%s: no viewBox, namespace or caption", f.Name)
		}
		failed = failed || strings.Contains(svg, "FAILED")
	}
	if !failed {
		t.Error("no figure says that a system failed")
	}
}

func TestWrite(t *testing.T) {
	dir, r := t.TempDir(), made(1, 1)
	if err := os.MkdirAll(filepath.Join(dir, figureDir), 0o755); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, figureDir, "stale.svg")
	if err := os.WriteFile(stale, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Write(r, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("a figure of an earlier report stays")
	}
	text, err := os.ReadFile(filepath.Join(dir, MarkdownName))
	if err != nil {
		t.Fatal(err)
	}
	pictures := regexp.MustCompile(`\]\((figures/[^)]+)\)`).FindAllStringSubmatch(string(text), -1)
	if len(pictures) == 0 {
		t.Error("the report has no pictures")
	}
	for _, m := range pictures {
		if _, err := os.Stat(filepath.Join(dir, m[1])); err != nil {
			t.Error(err)
		}
	}
}

func TestDigits(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 1: "1.00", 0.0123456: "0.0123", 9.999: "10.00", 123.4: "123", 123456: "123000", 1e9: "1000000000", -2.5: "-2.50"} {
		if got := digits(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
}
