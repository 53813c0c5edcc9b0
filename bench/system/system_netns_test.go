//go:build netns

package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/network"
)

// The test binary is flannel's peer, too.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != FlannelPeerCommand {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := RunFlannelPeer(ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func build(t *testing.T) *network.Network { return buildProfile(t, "full") }

func buildProfile(t *testing.T, profile string) *network.Network {
	t.Helper()
	p, err := network.FindProfile(profile)
	if err != nil {
		t.Fatal(err)
	}
	n, err := network.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// buildVXLANE returns the path of the program.
func buildVXLANE(t *testing.T) string {
	t.Helper()
	vxlane := filepath.Join(t.TempDir(), "vxlane")
	if out, err := exec.Command("go", "build", "-o", vxlane, "../../cmd/vxlane").CombinedOutput(); err != nil {
		t.Fatalf("build vxlane: %v\n%s", err, out)
	}
	return vxlane
}

// Every system carries packets between hosts and between pods, or says why it cannot run.
func TestSystems(t *testing.T) {
	vxlane := buildVXLANE(t)
	cannot := make(map[string]string)
	if !haveFlannel {
		cannot["flannel-udp"] = errNoFlannel.Error()
	}
	for _, s := range All(Tools{VXLANE: vxlane}) {
		t.Run(s.Name, func(t *testing.T) {
			n := build(t)
			in, err := s.Start(t.Context(), n)
			if reason := cannot[s.Name]; reason != "" {
				if err == nil || !strings.Contains(err.Error(), reason) {
					t.Errorf("%v, want: %s", err, reason)
				}
				return
			}
			if err != nil && s.Name == "vxlane-tunnel-gso" && strings.Contains(err.Error(), "tier tunnel-gso: ") {
				t.Skipf("needs Linux 6.17 or later, CAP_BPF and a writable /proc/sys: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := in.ConnectPods(t.Context(), n); err != nil {
				t.Error(err)
			}
			tier := "udp-gso"
			switch s.Name {
			case "vxlane-portable", "vxlane-tunnel-gso":
				tier = strings.TrimPrefix(s.Name, "vxlane-")
			}
			if strings.HasPrefix(s.Name, "vxlane") && in.About()["tier"] != tier {
				t.Errorf("about: %v, want tier %s", in.About(), tier)
			}
			if err := in.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoVXLANE(t *testing.T) {
	s, err := Find(All(Tools{}), "vxlane")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(t.Context(), build(t)); !errors.Is(err, errNoVXLANE) {
		t.Errorf("got %v", err)
	}
}

// A tunnel of two commands, from what their environment says.
const byHand = `exec:by-hand:ip link add v0 type vxlan id 9 local $BENCH_UNDERLAY remote ${BENCH_UNDERLAY_PEER} dstport 4789 dev $BENCH_DEVICE &&
 ip address add $BENCH_ADDRESS dev v0 && ip link set v0 up`

func TestExec(t *testing.T) {
	s, err := ParseExec(byHand)
	if err != nil {
		t.Fatal(err)
	}
	n := build(t)
	in, err := s.Start(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.ConnectPods(t.Context(), n); err != nil {
		t.Error(err)
	}
}

// The options that the example takes reach the lab's devices and processes, and nothing of the machine's.
func TestOptionsExample(t *testing.T) {
	t.Setenv("PATH", filepath.Dir(buildVXLANE(t))+":"+os.Getenv("PATH"))
	s, err := ParseExec("exec:TIER=portable QUEUES=1 CPU=0 NAPI=threaded FLUSH=20000 ../../docs/examples/vxlane-options.sh")
	if err != nil {
		t.Fatal(err)
	}
	before := napiSettings(t)
	n := buildProfile(t, "wire") // NAPI=threaded needs a device that does NAPI
	in, err := s.Start(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.ConnectPods(t.Context(), n); err != nil {
		t.Error(err)
	}
	for file, value := range napiSettings(t) {
		if was, ok := before[file]; ok && value != was {
			t.Errorf("%s of this machine was %q, is %q", file, was, value)
		}
	}
	for _, pair := range n.Sides() {
		checkOptions(t, pair[0].Host)
	}
}

// The kernel's vxlan as the example makes it, and vxlane, are two ends of a tunnel, either way around.
func TestKernelExample(t *testing.T) {
	t.Setenv("PATH", filepath.Dir(buildVXLANE(t))+":"+os.Getenv("PATH"))
	const kernel, ours = "../../docs/examples/kernel-vxlan.sh", "../../docs/examples/vxlane-options.sh"
	for _, ends := range []string{kernel + ";;" + ours, ours + ";;" + kernel} {
		s, err := ParseExec("exec:" + ends)
		if err != nil {
			t.Fatal(err)
		}
		n := build(t)
		in, err := s.Start(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if err := in.ConnectPods(t.Context(), n); err != nil {
			t.Errorf("%s: %v", ends, err)
		}
	}
}

// napiSettings reads what the example sets, of all devices that this machine itself has.
func napiSettings(t *testing.T) map[string]string {
	t.Helper()
	values := make(map[string]string)
	for _, name := range []string{"gro_flush_timeout", "napi_defer_hard_irqs", "threaded"} {
		files, err := filepath.Glob("/sys/class/net/*/" + name)
		if err != nil || len(files) == 0 {
			t.Fatalf("no device has %s: %v", name, err)
		}
		for _, file := range files {
			if value, err := os.ReadFile(file); err == nil { // a device may go meanwhile
				values[file] = string(value)
			}
		}
	}
	return values
}

// checkOptions looks at what the example set on one host.
func checkOptions(t *testing.T, h *lab.Host) {
	t.Helper()
	show := exec.Command("unshare", "--mount", "sh", "-c", "mount -t sysfs lab /sys && cd /sys/class/net/"+network.Device+" && cat gro_flush_timeout napi_defer_hard_irqs threaded")
	var out []byte
	err := h.Run(func() (err error) {
		out, err = show.CombinedOutput()
		return err
	})
	if err != nil || string(out) != "20000\n2\n1\n" {
		t.Errorf("settings of host %s: %q, %v", h.Name(), out, err)
	}
	pids, err := h.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(name) == "vxlane\n" {
			var cpus unix.CPUSet
			if err := unix.SchedGetaffinity(pid, &cpus); err != nil || cpus.Count() != 1 || !cpus.IsSet(0) {
				t.Errorf("vxlane on host %s: affinity %v, %v; want core 0", h.Name(), cpus, err)
			}
			return
		}
	}
	t.Errorf("no vxlane on host %s", h.Name())
}

// A process that ends while the system is measured is an error, whether it is the command or went into the background, and
// however well it ended.
func TestEndsMeanwhile(t *testing.T) {
	for _, end := range []string{"setsid sleep 1000 & exit 0", "exec sleep 1000"} {
		s, err := ParseExec(byHand + " && { " + end + "; }")
		if err != nil {
			t.Fatal(err)
		}
		n := build(t)
		in, err := s.Start(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		var pids []int
		for len(pids) != 1 { // the shell may not have come to its end yet
			if pids, err = n.B.Host.Processes(); err != nil {
				t.Fatal(err)
			}
		}
		if err := in.Settle(); err != nil {
			t.Errorf("%s: %v", end, err)
		}
		killed := pids[0]
		if err := unix.Kill(killed, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for slices.Contains(pids, killed) {
			if pids, err = n.B.Host.Processes(); err != nil {
				t.Fatal(err)
			}
		}
		if err := in.Check(); err == nil || !strings.Contains(err.Error(), "on host b ended") {
			t.Errorf("%s: %v", end, err)
		}
	}
}

// What a command starts and waits for may come and go.
func TestWatchLoop(t *testing.T) {
	s, err := ParseExec(byHand + " && while :; do sleep 0.01; done")
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Start(t.Context(), build(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := errors.Join(in.Settle(), in.Check()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A command that dies is named, with how it ended, where, and what it wrote; so is one that does nothing.
func TestExecFails(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	for spec, want := range map[string]string{
		"exec:echo no luck >&2; exit 7;;sleep 1000": `"echo no luck >&2; exit 7" on host a ended: exit status 7: no luck`,
		"exec:sleep 1000;;nosuchtool":               `"nosuchtool" on host b ended: exit status 127: /bin/sh`,
	} {
		s, err := ParseExec(spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Start(ctx, build(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want: %s", spec, err, want)
		}
	}
	s, err := ParseExec("exec:true")
	if err != nil {
		t.Fatal(err)
	}
	given := errors.New("patience has an end")
	cancel(given)
	if _, err := s.Start(ctx, build(t)); !errors.Is(err, given) {
		t.Errorf("a tunnel that carries nothing: %v", err)
	}
}
