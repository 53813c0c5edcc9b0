//go:build netns

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/system"
	"github.com/vxlane/vxlane/bench/workload"
)

// recorder is a Listener for tests.
type recorder struct {
	missing []string
	sampled int
	after   func(n int)
}

func (r *recorder) Missing(name, reason string) { r.missing = append(r.missing, name+": "+reason) }

func (r *recorder) Trouble(err error) { r.missing = append(r.missing, err.Error()) }

func (r *recorder) Sampled(*result.Sample, int, int, time.Duration) {
	r.sampled++
	if r.after != nil {
		r.after(r.sampled)
	}
}

func quickPlan(t *testing.T, specs ...string) Plan {
	t.Helper()
	p := Plan{Profiles: network.Profiles()[:1], Repeats: 2, Options: workload.Options{Duration: 500 * time.Millisecond, Generator: workload.Builtin}}
	for _, name := range []string{"tcp-1", "rr"} {
		w, err := workload.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		p.Workloads = append(p.Workloads, w)
	}
	for _, spec := range specs {
		s, err := system.Find(system.All(system.Tools{}), spec)
		if err != nil {
			t.Fatal(err)
		}
		p.Systems = append(p.Systems, s)
	}
	return p
}

// sabotaged is the kernel's vxlan, but that it gives up once traffic comes: it lives for pings only.
const sabotaged = `exec:sabotaged:ip link add v0 type vxlan id 9 local $BENCH_UNDERLAY remote $BENCH_UNDERLAY_PEER dstport 4789 dev eth0 &&
 ip address add $BENCH_ADDRESS dev v0 && ip link set v0 up &&
 until [ "$(sed -n 's/^ *v0: *\([0-9]*\).*/\1/p' /proc/net/dev)" -gt 20000 ]; do sleep 0.01; done; exit 9`

// A run keeps every sample with its reason: systems that cannot run, systems that fail half-way, and the others.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	l := new(recorder)
	p := quickPlan(t, "direct", system.Baseline, "vxlane", sabotaged)
	r, err := Run(t.Context(), p, dir, l)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.missing) != 1 || !strings.Contains(l.missing[0], "vxlane: there is no vxlane") {
		t.Errorf("missing: %v", l.missing)
	}
	loaded, err := result.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !loaded.Complete || len(loaded.Samples) != len(r.Samples) || l.sampled != len(r.Samples) || loaded.Baseline != system.Baseline ||
		loaded.Systems[2].Missing == "" || len(loaded.Host.Offloads["full"]) == 0 {
		t.Errorf("loaded %+v", loaded)
	}
	for _, w := range p.Workloads {
		for _, name := range []string{"direct", system.Baseline} {
			if n := len(loaded.Values(result.Cell{System: name, Workload: w.Name, Profile: "full"}, w.Primary, false)); n != 4 {
				t.Errorf("%s %s: %d samples, want 4", name, w.Name, n)
			}
		}
		if n := len(loaded.Values(result.Cell{System: system.Baseline, Workload: w.Name, Profile: "full"}, w.Primary, true)); n != 4 {
			t.Errorf("A/A %s: %d samples, want 4", w.Name, n)
		}
		reasons, failed, taken := loaded.Errors(result.Cell{System: "exec:sabotaged", Workload: w.Name, Profile: "full"}, false)
		if failed != attempts || taken != attempts || !strings.Contains(reasons[0], "ended: exit status 9") {
			t.Errorf("sabotaged %s: %d of %d failed: %v", w.Name, failed, taken, reasons)
		}
	}
}

// What was sampled before an interruption is kept, and no host is left.
func TestInterruption(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir, l := t.TempDir(), &recorder{after: func(n int) {
		if n == 3 {
			cancel()
		}
	}}
	r, err := Run(ctx, quickPlan(t, "direct", system.Baseline), dir, l)
	if err == nil || !strings.Contains(err.Error(), "interrupted: 3 of") {
		t.Fatalf("got %v", err)
	}
	loaded, err := result.Load(dir)
	if err != nil || len(loaded.Samples) != 3 || len(r.Samples) != 3 || loaded.Complete || loaded.Planned <= 3 {
		t.Errorf("%+v, %v", loaded, err)
	}
	left, err := filepath.Glob(fmt.Sprintf("/run/netns/vxlab-%d-*", os.Getpid()))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestNothingCanRun(t *testing.T) {
	_, err := Run(t.Context(), quickPlan(t, "vxlane", "exec:false"), t.TempDir(), new(recorder))
	if !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), `"false" on host `) {
		t.Errorf("got %v", err)
	}
}
