package report

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
)

// The names of the files that Write makes beside the results.
const (
	MarkdownName = "report.md"
	HTMLName     = "report.html"
	figureDir    = "figures"
)

// Report is everything that is told of a run.
type Report struct {
	Results  *result.Results
	Ratios   []Figure // of each system to the baseline, over all profiles
	Sections []Section
	Notes    []noted
	Failures int
}

// New analyses a run.
func New(r *result.Results) (*Report, error) {
	rep := &Report{Results: r, Notes: notes(r)}
	for i := range r.Samples {
		if r.Samples[i].Error != "" {
			rep.Failures++
		}
	}
	for _, s := range others(r) {
		figures, err := ratioFigures(r, s)
		if err != nil {
			return nil, err
		}
		rep.Ratios = append(rep.Ratios, figures...)
	}
	distinct(rep.Ratios)
	for _, p := range r.Profiles {
		s, err := newSection(r, p)
		if err != nil {
			return nil, err
		}
		if len(s.Details) > 0 {
			rep.Sections = append(rep.Sections, s)
		}
	}
	return rep, nil
}

func newSection(r *result.Results, p network.Profile) (Section, error) {
	figures, err := absoluteFigures(r, p.Name)
	if err != nil {
		return Section{}, err
	}
	s := Section{Profile: p, Summary: summarise(r, p.Name, "Ratio to "+r.Baseline, primary), Further: summarise(r, p.Name, "Further ratios to "+r.Baseline, further), Figures: figures}
	for _, w := range r.Workloads {
		if t := detail(r, w, p.Name); len(t.Rows) > 0 {
			s.Details = append(s.Details, t)
		}
	}
	return s, nil
}

// Write writes report.md with its figures, and report.html, which needs no other file, to dir.
func Write(r *result.Results, dir string) error {
	rep, err := New(r)
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	html, err := rep.HTML()
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := rep.writeFigures(filepath.Join(dir, figureDir)); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	for name, text := range map[string][]byte{MarkdownName: rep.Markdown(), HTMLName: html} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	return nil
}

// writeFigures makes dir what the report needs: figures of an earlier report go.
func (rep *Report) writeFigures(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for _, f := range rep.figures() {
		if err := os.WriteFile(filepath.Join(dir, f.Name+".svg"), f.SVG, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (rep *Report) figures() []Figure {
	all := slices.Clone(rep.Ratios)
	for _, s := range rep.Sections {
		all = append(all, s.Figures...)
	}
	return all
}

// distinct gives figures of the same name different ones: systems may be called alike but for letters that files do not have.
func distinct(figures []Figure) {
	seen := make(map[string]int)
	for i := range figures {
		if n := seen[figures[i].Name]; n > 0 {
			figures[i].Name += fmt.Sprintf("-%d", n+1)
		}
		seen[figures[i].Name]++
	}
}

// Title returns the heading of the report.
func (rep *Report) Title() string {
	return "Tunnels side by side, " + rep.Results.Started.Format("2 January 2006")
}

// Lead returns the sentences that everyone should read first.
func (rep *Report) Lead() []string {
	r := rep.Results
	lead := []string{
		fmt.Sprintf("Measured on one machine: %s. Sender, both tunnel ends and receiver share its cores, so ratios carry over to other machines better than absolute values.", r.Host),
		fmt.Sprintf("%d samples of %s each, %s warm-up left out, %d repeats; systems take turns there and back (A B B A), each on hosts made anew.",
			len(r.Samples), time.Duration(r.Settings.Duration), time.Duration(r.Settings.Warmup), r.Settings.Repeats),
		VethCaveat,
	}
	if r.Baseline != "kernel-vxlan" {
		lead = append(lead, "kernel-vxlan was not measured: ratios are to "+r.Baseline+".")
	}
	if !r.Complete {
		lead = append(lead, fmt.Sprintf("The run was interrupted: %d of %d samples were taken.", len(r.Samples), r.Planned))
	}
	if rep.Failures > 0 {
		lead = append(lead, fmt.Sprintf("%d samples failed; the tables below say where and why.", rep.Failures))
	}
	return lead
}

// VethCaveat is printed with all numbers.
const VethCaveat = "The hosts are joined by a veth pair, and on veth nobody segments: with the profile full, super-packets of 64 KB cross the link whole, which no wire does. " +
	"The other profiles make the sender do what a NIC that lacks an offload makes it do; wire is the closest to a cable."

// Method tells how to read the report.
func Method(r *result.Results) []string {
	return []string{
		"Intervals are 95 % bootstrap intervals of the median or of the ratio of medians. The baseline, " + r.Baseline + ", is measured twice in every turn; the ratio of the two is the A/A control. " +
			"“better” and “worse” are said only when the interval of a ratio excludes 1, the ratio is farther from 1, to either side, than the A/A interval reaches, and there are at least four samples of each; otherwise it says “no difference” or “too few samples”. " +
			"With fewer than six samples an interval is at most the range from the least to the largest, which holds the true median in fewer than 95 of 100 cases (88 with four).",
		"TCP counts the bytes that receiving applications took" + congestion(r) + "; UDP the packets that the receiving application took, which slept " + pause(r) + ", while " + offered(r) + " (offered rate and loss are given), and the highest rate with loss below 0.1 %, searched by halving. " +
			"Latencies are percentiles of each sample, and medians of these over the samples; all round trips are in results.json as HdrHistograms.",
		"CPU of the machine is everything that ran, generators included; CPU, system calls, context switches and memory of the tunnel are those of its processes on both hosts; what the kernel does for them in interrupts is only in the machine's. The peak memory of flannel-udp is that of flannel's package within this harness's program, not of flanneld. " +
			"Packets of TCP are segments of full size. System calls are counted in a stretch of their own after the timed one, because counting slows them down.",
		"Workloads with -fwd run between pods: namespaces behind a bridge on each host, which forwards; that is where Kubernetes traffic comes from.",
		"Generator: " + r.Settings.Generator + ". Where it, or a socket of an application, may have been the bottleneck, a note says so.",
	}
}

// offered says what UDP senders do.
func offered(r *result.Results) string {
	if rate := r.Settings.UDPRate; rate > 0 {
		return fmt.Sprintf("%.0f a second are offered", rate)
	}
	return "senders offer as many as they can"
}

// pause says how UDP receivers sleep.
func pause(r *result.Results) string {
	if d := time.Duration(r.Settings.UDPPause); d > 0 {
		return "for " + d.String() + " when its queue was empty"
	}
	return "until there was one"
}

// congestion says what TCP's congestion control was, where that is known.
func congestion(r *result.Results) string {
	if name := r.Host.Congestion; name != "" {
		return ", under congestion control " + name
	}
	return ""
}

// missing returns the systems that could not run.
func (rep *Report) missing() (all []result.System) {
	for _, s := range rep.Results.Systems {
		if s.Missing != "" {
			all = append(all, s)
		}
	}
	return all
}

// about writes what a system says of itself.
func about(s result.System) string {
	var parts []string
	for key, value := range s.About {
		parts = append(parts, key+" "+value)
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=,@%+-]+$`)

// command returns the command line that made the results, ready to be copied into a shell.
func command(r *result.Results) string {
	var words []string
	for i, w := range r.Command {
		if i == 0 {
			w = filepath.Base(w)
		}
		if !plainWord.MatchString(w) {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}
