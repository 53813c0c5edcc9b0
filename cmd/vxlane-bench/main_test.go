package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/cli/clitest"
)

var update = flag.Bool("update", false, "write generated files and golden files anew")

// The test binary is vxlane-bench, too: scripts and namespace tests run it under that name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"vxlane-bench": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update,
		Cmds: clitest.Commands,
	})
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{[]string{"a,b", "c"}, []string{"a", "b", "c"}},
		{[]string{" a , ,b,a"}, []string{"a", "b"}},
		{[]string{"a,exec:x, y;;z,1", "b"}, []string{"a", "exec:x, y;;z,1", "b"}},
		{[]string{",", ""}, nil},
	} {
		if got := names(c.in); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

// Every set is made of names that exist.
func TestSets(t *testing.T) {
	for name, s := range map[string]set{"standard": standard, "quick": quick} {
		for _, w := range s.workloads {
			if !slices.Contains(workloadNames(), w) {
				t.Errorf("%s: workload %s", name, w)
			}
		}
		for _, p := range s.profiles {
			if !slices.Contains(profileNames(), p) {
				t.Errorf("%s: profile %s", name, p)
			}
		}
	}
}

// docs/bench-cli.md is made from the commands.
func TestGeneratedDocs(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "bench-cli.md")
	text := "<!-- Made from the code by `make docs`; do not edit. -->\n\n# Command line of the harness\n\n" +
		"How to read what it measures is in [benchmarks.md](benchmarks.md). Exit codes: 0 ok, 1 failure, 2 usage, 3 something failed or got slower\n" +
		"(run: a measurement failed, or a system that was named cannot run; compare: something got slower), 4 no permission, 5 the kernel lacks something.\n" +
		cli.Reference(newRoot())
	clitest.Generated(t, path, text, *update)
}
