package cost

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process that computes is charged for it, and one that has ended is not an error.
func TestMeter(t *testing.T) {
	busy := exec.Command("sh", "-c", "while :; do :; done")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = busy.Process.Kill()
		_ = busy.Wait()
	}()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	m, err := NewMeter([][]int{{busy.Process.Pid}, {gone.Process.Pid}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Begin(); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := m.End()
		if err != nil {
			t.Fatal(err)
		}
		if c.Tunnel < 200*time.Millisecond {
			continue // until it has computed that long, however busy this machine is
		}
		if c.Machine < c.Tunnel/2 || c.PeakMemory == 0 {
			t.Errorf("got %+v: want at least the process's time on the machine, and some memory", c)
		}
		return
	}
}

// A process that sleeps again and again is woken as often; one that only computes is never, however often others take its place.
func TestWakeups(t *testing.T) {
	for _, c := range []struct {
		name, script string
		sleeps       bool
	}{
		{"sleeps", "while :; do read -t 0.002 line <> $PIPE; done", true},
		{"computes", "while :; do :; done", false},
	} {
		pipe := filepath.Join(t.TempDir(), "nobody-writes")
		if err := unix.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("bash", "-c", c.script)
		cmd.Env = append(os.Environ(), "PIPE="+pipe)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		m, err := NewMeter([][]int{{cmd.Process.Pid}})
		if err != nil {
			t.Fatal(err)
		}
		var cost Cost
		for enough := false; !enough; {
			if err := m.Begin(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
			if cost, err = m.End(); err != nil {
				t.Fatal(err)
			}
			enough = cost.Tunnel > 0 && (!c.sleeps || cost.Wakeups > 0) // once it has started
		}
		if cost.Switches < cost.Wakeups || c.sleeps != (cost.Wakeups >= 3) {
			t.Errorf("%s: %+v", c.name, cost)
		}
	}
}

func TestCountSyscalls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for perf_event_open")
	}
	if _, err := tracepoint(); err != nil {
		t.Skipf("needs the tracepoint raw_syscalls:sys_enter: %v", err)
	}
	c, err := CountSyscalls([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	before, err := c.Count()
	if err != nil {
		t.Fatal(err)
	}
	const calls = 20_000
	for range calls {
		unix.Getppid()
	}
	after, err := c.Count()
	if err != nil {
		t.Fatal(err)
	}
	if n := after - before; n < calls || n > 2*calls {
		t.Errorf("%d system calls were counted, want %d and a few", n, calls)
	}
}

func TestCountSyscallsOfNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for perf_event_open")
	}
	if _, err := tracepoint(); err != nil {
		t.Skipf("needs the tracepoint raw_syscalls:sys_enter: %v", err)
	}
	c, err := CountSyscalls([]int{1 << 22})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.Count(); n != 0 || err != nil {
		t.Errorf("a process that is not there: %d, %v", n, err)
	}
}
