//go:build netns

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/cmd/internal/cli"
)

// program returns a path under which the test binary is vxlane-bench, for every user of the machine.
func program(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vxlane-bench-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vxlane-bench")
	if err := errors.Join(os.WriteFile(path, binary, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// invoke runs a command line and returns its exit code and what it wrote.
func invoke(t *testing.T, path string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

var short = []string{"--workload", "tcp-1", "--profile", "full", "--duration", "500ms", "--warmup", "0s"}

func TestRunReportCompare(t *testing.T) {
	path, dir := program(t), filepath.Join(t.TempDir(), "a")
	code, stdout, stderr := invoke(t, path, append([]string{"run", "--system", "direct,kernel-vxlan", "--repeat", "2", "--out", dir}, short...)...)
	if code != cli.ExitOK || !strings.Contains(stderr, "[12/12] full ") || !strings.Contains(stderr, "kernel-vxlan (A/A)") || !strings.Contains(stderr, " left\n") {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	for _, name := range []string{"results.json", "report.md", "report.html"} {
		if !strings.Contains(stdout, filepath.Join(dir, name)+"\n") {
			t.Errorf("stdout does not name %s:\n%s", name, stdout)
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "report.html")); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := invoke(t, path, "report", dir); code != cli.ExitOK {
		t.Errorf("report: exit code %d: %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "report.html")); err != nil {
		t.Error(err)
	}
	if code, stdout, _ := invoke(t, path, "compare", dir, filepath.Join(dir, "results.json")); code != cli.ExitOK || !strings.HasPrefix(stdout, "0 of ") {
		t.Errorf("compared with itself: exit code %d: %s", code, stdout)
	}
	slower := slowDown(t, dir)
	if code, stdout, stderr := invoke(t, path, "compare", dir, slower); code != cli.ExitDegraded || !strings.Contains(stdout, "slower  direct  tcp-1") || !strings.Contains(stderr, "something got slower") {
		t.Errorf("compared with half of it: exit code %d: %s%s", code, stdout, stderr)
	}
	if code, _, _ := invoke(t, path, "compare", slower, dir); code != cli.ExitOK {
		t.Errorf("faster: exit code %d", code)
	}
}

// slowDown returns a copy of a run in which direct is a thousandth as fast.
func slowDown(t *testing.T, dir string) string {
	t.Helper()
	r, err := result.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Samples {
		if s.System == "direct" {
			s.Values[result.Throughput] /= 1000
		}
	}
	slower := t.TempDir()
	if err := r.Save(slower); err != nil {
		t.Fatal(err)
	}
	return slower
}

// A system that was named and cannot run is told by name; the others are measured all the same.
func TestNamedSystemIsMissing(t *testing.T) {
	path, dir := program(t), t.TempDir()
	args := append([]string{"run", "--system", "kernel-vxlan", "--system", "exec:echo broken >&2; exit 4;;sleep 1000", "--repeat", "1", "--out", dir}, short...)
	code, _, stderr := invoke(t, path, args...)
	if code != cli.ExitDegraded || strings.Count(stderr, `"echo broken >&2; exit 4" on host a ended: exit status 4: broken`) != 2 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	page, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil || !strings.Contains(string(page), "**exec:echo could not run here**") {
		t.Errorf("report: %v", err)
	}
	code, _, stderr = invoke(t, path, append([]string{"run", "--system", "exec:false", "--out", dir}, short...)...)
	if code != cli.ExitFailure || !strings.Contains(stderr, `none of the chosen systems can run here: "false" on host `) {
		t.Errorf("nothing to measure: exit code %d: %s", code, stderr)
	}
}

func TestNoRoot(t *testing.T) {
	cmd := exec.Command(program(t), "run", "--quick")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != cli.ExitPermission || !strings.Contains(string(out), "needs root: run as root (sudo)") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// Ctrl-C leaves no namespace and no process behind, and keeps the finished samples.
func TestCtrlC(t *testing.T) {
	path, dir := program(t), t.TempDir()
	cmd := exec.Command(path, "run", "--system", "kernel-vxlan", "--workload", "tcp-1", "--profile", "full", "--duration", "500ms", "--repeat", "50", "--out", dir)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	samples, rest := 0, new(bytes.Buffer)
	for lines := bufio.NewScanner(io.TeeReader(stderr, rest)); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "[") {
			if samples++; samples == 2 {
				if err := cmd.Process.Signal(os.Interrupt); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != cli.ExitFailure || !strings.Contains(rest.String(), "interrupted: 2 of 200 samples are kept") {
		t.Errorf("exit code %d: %s", code, rest)
	}
	var kept result.Results
	data, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil || json.Unmarshal(data, &kept) != nil || len(kept.Samples) != 2 || kept.Complete {
		t.Errorf("results: %v, %d samples", err, len(kept.Samples))
	}
	page, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil || !strings.Contains(string(page), "The run was interrupted: 2 of 200 samples were taken.") {
		t.Errorf("report: %v", err)
	}
	if left, err := filepath.Glob(fmt.Sprintf("/run/netns/vxlab-%d-*", cmd.Process.Pid)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
