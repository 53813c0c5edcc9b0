//go:build netns && cluster

package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/vxlane/vxlane/bench/lab"
)

// step is a command of a document, and what it is said to print.
type step struct {
	command string
	lines   []string
}

// steps reads the console blocks of a document.
func steps(t *testing.T, file string) (all []step) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch command, isCommand := strings.CutPrefix(line, "$ "); {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case inside && isCommand:
			all = append(all, step{command: command})
		case inside:
			last := &all[len(all)-1]
			last.lines = append(last.lines, line)
		}
	}
	return all
}

// shown reports whether an output has a line of a document: … is anything, blanks are as many as may be.
func shown(output, line string) bool {
	pattern := regexp.QuoteMeta(strings.TrimSpace(line))
	pattern = regexp.MustCompile(`\s+`).ReplaceAllString(pattern, `\s+`)
	pattern = strings.ReplaceAll(pattern, "…", ".*")
	pattern = strings.ReplaceAll(pattern, `\s+.*`, `.*`)
	pattern = strings.ReplaceAll(pattern, `.*\s+`, `.*`)
	return regexp.MustCompile(pattern).MatchString(output)
}

// docs/pod-to-pod.md is followed as written: each command works, and prints what it is said to.
func TestPodToPod(t *testing.T) {
	if err := lab.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	for _, p := range []string{"ping", "tcpdump", "bridge"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skipped: needs the program %s", p)
		}
	}
	t.Cleanup(func() { _ = lab.Remove("vxlane-demo") })
	all := steps(t, "../../docs/pod-to-pod.md")
	if len(all) < 20 {
		t.Fatalf("%d commands", len(all))
	}
	for _, s := range all {
		out, err := exec.Command("bash", "-c", s.command).CombinedOutput()
		if err != nil {
			t.Errorf("$ %s\n%s%v", s.command, out, err)
		}
		for _, line := range s.lines {
			if !shown(strings.Join(strings.Split(string(out), "\n"), " \n"), line) {
				t.Errorf("$ %s\n%s\ndoes not print\n%s", s.command, out, line)
			}
		}
	}
}
