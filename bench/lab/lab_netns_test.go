//go:build netns

package lab_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
)

// killedLab is the environment variable that makes this test binary build a lab of that name and wait to be killed.
const killedLab = "VXLANE_TEST_KILLED_LAB"

func TestMain(m *testing.M) {
	if name := os.Getenv(killedLab); name != "" {
		buildAndWait(name)
	}
	os.Exit(m.Run())
}

func buildAndWait(name string) {
	l, err := lab.Build(lab.Topology{Name: name, Hosts: []string{"a"}})
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	c, err := l.Host("a").Start(exec.Command("sleep", "600"))
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	fmt.Println(c.PID())
	select {}
}

func needLab(t *testing.T) {
	t.Helper()
	if err := lab.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
}

func namespaces(t *testing.T, prefix string) []string {
	t.Helper()
	paths, err := filepath.Glob("/run/netns/" + prefix + ".*")
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestKilledRunIsSweptUp(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("vxlab-killed-%d", os.Getpid())
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedLab+"="+name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.HasPrefix(line, "failed") {
		t.Fatal(line, err)
	}
	lab.Sweep()
	if len(namespaces(t, name)) != 1 {
		t.Error("a lab in use was swept away")
	}
	_ = cmd.Process.Signal(unix.SIGKILL)
	_ = cmd.Wait()
	if len(namespaces(t, name)) != 1 {
		t.Fatal("a killed run left nothing: this test shows nothing")
	}
	lab.Sweep()
	if left := namespaces(t, name); len(left) != 0 {
		t.Errorf("left: %s", left)
	}
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(line) + "/stat")
	if !errors.Is(err, os.ErrNotExist) && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the command of the killed run is still there: %s, %v", stat, err)
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("vxlab-failed-%d", os.Getpid())
	_, err := lab.Build(lab.Topology{
		Name: name, Hosts: []string{"a", "b"},
		Links: []lab.Link{{A: lab.End{Host: "a", Device: "eth0"}, B: lab.End{Host: "b", Device: "a-name-that-is-too-long"}}},
	})
	if err == nil || !strings.Contains(err.Error(), "link a.eth0 - b.a-name-that-is-too-long") {
		t.Errorf("got %v", err)
	}
	if left := namespaces(t, name); len(left) != 0 {
		t.Errorf("left: %s", left)
	}
	l, err := lab.Build(lab.Topology{Name: name, Hosts: []string{"a"}})
	if err != nil {
		t.Fatalf("the name cannot be used again: %v", err)
	}
	if _, err := lab.Build(lab.Topology{Name: name, Hosts: []string{"a"}}); err == nil {
		t.Error("the same lab was built twice")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestKeptLabStays(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("vxlab-kept-%d", os.Getpid())
	l, err := lab.Build(lab.Topology{Name: name, Hosts: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Keep(); err != nil {
		t.Fatal(err)
	}
	lab.Sweep()
	if len(namespaces(t, name)) != 1 {
		t.Error("a kept lab was swept away")
	}
	if err := lab.Remove(name); err != nil {
		t.Error(err)
	}
	if left := namespaces(t, name); len(left) != 0 {
		t.Errorf("left: %s", left)
	}
	if err := lab.Remove(name); err == nil {
		t.Error("removed twice")
	}
}

// A function that ends its goroutine, as t.Fatal does, is an error and not a hang.
func TestRunOfAFunctionThatExits(t *testing.T) {
	needLab(t)
	l, err := lab.Build(lab.Topology{Hosts: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	done := make(chan error, 1)
	go func() {
		done <- l.Host("a").Run(func() error {
			runtime.Goexit()
			return nil
		})
	}()
	if err := <-done; err == nil {
		t.Error("no error")
	}
}

func TestOffloadsAndAddresses(t *testing.T) {
	needLab(t)
	l, err := lab.Build(lab.Topology{
		Hosts: []string{"a", "b"},
		Links: []lab.Link{{
			A:   lab.End{Host: "a", Device: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("172.30.0.1/24")}},
			B:   lab.End{Host: "b", Device: "eth0"},
			MTU: 9000, Offloads: map[string]bool{"tx-udp_tnl-segmentation": false},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, host := range []string{"a", "b"} {
		features, err := l.Host(host).Offloads("eth0")
		if err != nil || features["tx-udp_tnl-segmentation"] || !features["tx-tcp-segmentation"] {
			t.Errorf("host %s: %v, %v", host, features, err)
		}
	}
	if err := l.Host("a").SetOffloads("eth0", map[string]bool{"no-such-feature": true}); err == nil {
		t.Error("an unknown feature was set")
	}
}
