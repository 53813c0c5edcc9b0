package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/cli/clitest"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// The references in docs/ are made from the code; `make docs` writes them.
func TestGeneratedDocs(t *testing.T) {
	for name, text := range map[string]string{
		"configuration.md": configurationDoc(t), "metrics.md": metricsDoc(), "cli.md": cliDoc(),
	} {
		clitest.Generated(t, filepath.Join("..", "..", "docs", name), text, *update)
	}
}

// Every test that docs/conformance.md names is there.
func TestConformanceNamesTests(t *testing.T) {
	text, err := os.ReadFile("../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool)
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(source, -1) {
			have[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := testName.FindAllStringSubmatch(string(text), -1)
	if len(named) < 100 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, m := range named {
		if !have[m[1]] {
			t.Errorf("docs/conformance.md names %s, which is nowhere", m[1])
		}
	}
}

var (
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	testName = regexp.MustCompile("`((?:Test|Fuzz)\\w+)")
)

const generated = "<!-- Made from the code by `make docs`; do not edit. -->\n\n"

func configurationDoc(t *testing.T) string {
	example, err := os.ReadFile("../../routing/static/testdata/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(generated + "# Configuration\n\n" +
		"One YAML or JSON file, by default `" + static.DefaultPath + "`. It is read strictly: an unknown or repeated key, or a value that\n" +
		"cannot be, is an error that names the line, and nothing of the file is taken. `vxlane config check` tells all that is wrong;\n" +
		"`vxlane config show` fills in the defaults.\n\n" +
		"A running tunnel follows its file: on SIGHUP, on `vxlane reload`, and whenever the content changes (a Kubernetes ConfigMap's\n" +
		"swapped link included). `peers` take effect at once, all other keys at the next start; which ones those are is logged and told by\n" +
		"`vxlane reload`. A file that is bad changes nothing. `vxlane peer apply` replaces the set of peers without a file, until the file\n" +
		"changes the next time.\n\n## Example\n\n```yaml\n" + string(example) + "```\n\n## Keys\n\n| key | value | default | meaning |\n|---|---|---|---|\n")
	for _, f := range static.Reference() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Key, f.Type, f.Default, f.Doc)
	}
	return b.String()
}

func metricsDoc() string {
	var b strings.Builder
	b.WriteString(generated + "# Metrics\n\n" +
		"Served at `/metrics` of `metrics.listen` (`--metrics`), in Prometheus' text format or OpenMetrics; off by default. Beside these there are\n" +
		"the usual `go_` and `process_` metrics. With several tunnels in one process, each series has the label `device`, too.\n\n" +
		"`direction` is `encap` (from the device to the underlay) or `decap` (the way back). Packets are inner packets; one that stands for several\n" +
		"(a super-packet) counts as what it stands for. In each direction, once traffic rests:\n\n" +
		"    received = packets + consumed + dropped (+ held, in encap)\n\n" +
		"| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, m := range tunnel.Metrics() {
		labels := ""
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, labels, m.Help)
	}
	b.WriteString("\n## Drop reasons\n\nA closed set; the same word stands in metrics, in `vxlane stats` and in `vxlane trace`. Where the kernel has a word, it is the kernel's.\n\n| reason | meaning |\n|---|---|\n")
	for _, r := range encap.Reasons() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", r, r.Meaning())
	}
	return b.String()
}

func cliDoc() string {
	var b strings.Builder
	b.WriteString(generated + "# Command line\n\n" +
		"stdout is the answer, stderr is everything else. Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 degraded (it runs, but not as\n" +
		"it should), 4 no permission, 5 the kernel lacks something. With `--json` every answer has a `schema`; within a version of it, fields are only\n" +
		"ever added. Several tunnels answer as one `vxlane/list/v1`.\n")
	b.WriteString(cli.Reference(newRoot()))
	return b.String()
}

// Every key has a description, and every default that the reference states as a value is the one that is in force.
func TestReferenceIsComplete(t *testing.T) {
	keys := make(map[string]static.Field)
	for _, f := range static.Reference() {
		if f.Default == "" || f.Doc == "" || keys[f.Key].Key != "" {
			t.Errorf("%s: default %q, description %q", f.Key, f.Default, f.Doc)
		}
		keys[f.Key] = f
	}
	for _, want := range []string{"version", "tunnels[].device.name", "tunnels[].underlay.source_ports.range", "tunnels[].underlay.zero_checksum6.rx",
		"tunnels[].peers[].allowed_ips", "tunnels[].routes", "tunnels[].fdb.flood", "metrics.listen"} {
		if keys[want].Key == "" {
			t.Errorf("%s is not in the reference", want)
		}
	}
}
