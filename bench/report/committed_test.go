package report

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vxlane/vxlane/bench/result"
)

const docs = "../../docs"

var measuredRow = regexp.MustCompile(`(?m)^\|.*\[[0-9.]+–[0-9.]+\].*$`)

// Every report in the docs is what its raw samples say, and every row of figures in benchmarks.md is in one of them.
func TestCommittedReports(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(docs, "benchmarks", "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("results in the docs: %v, %v", dirs, err)
	}
	var all strings.Builder
	for _, dir := range dirs {
		r, err := result.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := Write(r, dir); err != nil {
				t.Fatal(err)
			}
		}
		rep, err := New(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, MarkdownName))
		if err != nil {
			t.Fatal(err)
		}
		if string(text) != string(rep.Markdown()) {
			t.Errorf("%s is not what its results say: vxlane-bench report %s, and mind the tables in benchmarks.md", dir, dir)
		}
		all.Write(text)
	}
	page, err := os.ReadFile(filepath.Join(docs, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := measuredRow.FindAllString(string(page), -1)
	for _, row := range rows {
		if !strings.Contains(all.String(), row+"\n") {
			t.Errorf("benchmarks.md: no results say %s", row)
		}
	}
	if len(rows) == 0 {
		t.Error("benchmarks.md shows no results")
	}
	for _, picture := range regexp.MustCompile(`\]\((benchmarks/[^)]+)\)`).FindAllStringSubmatch(string(page), -1) {
		if _, err := os.Stat(filepath.Join(docs, picture[1])); err != nil {
			t.Errorf("benchmarks.md: %v", err)
		}
	}
}
