package static

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vxlane/vxlane/routing"
)

func configWith(names ...string) string {
	text := minimal + "    peers:\n"
	for i, name := range names {
		text += fmt.Sprintf("      - {name: %s, endpoint: 172.30.0.%d, allowed_ips: [10.99.0.%d]}\n", name, i+2, i+2)
	}
	return text
}

// rig runs a Source on a file and keeps what it delivers.
type rig struct {
	t      *testing.T
	path   string
	source *Source
	table  *routing.Table

	mu     sync.Mutex
	status []Status
}

func newRig(t *testing.T, path string) *rig {
	t.Helper()
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, path: path, table: routing.NewTable(1)}
	r.source = NewSource(path, 0, c, slog.New(slog.DiscardHandler), func(s Status) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.status = append(r.status, s)
	})
	if _, err := r.deliver(c.Tunnels[0].RoutingPeers()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.source.Run(ctx, r.deliver) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) deliver(peers []routing.Peer) (routing.Change, error) {
	s, err := routing.NewSnapshot(peers)
	if err != nil {
		return routing.Change{}, err
	}
	return r.table.Apply(s), nil
}

func (r *rig) names() []string {
	var names []string
	for _, p := range r.table.Load().Peers() {
		names = append(names, p.Name)
	}
	return names
}

// await waits until the peers are those; it gives up after a time that no machine needs.
func (r *rig) await(names ...string) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !slices.Equal(r.names(), names); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("peers are %v, want %v", r.names(), names)
		}
	}
}

func (r *rig) lastError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.status) == 0 {
		return nil
	}
	return r.status[len(r.status)-1].Err
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vxlane.yaml")
	write(t, path, configWith("a"))
	r := newRig(t, path)

	write(t, path, configWith("a", "b"))
	report, err := r.source.Reload(t.Context())
	if err != nil || report.String() != "1 peer added, 1 unchanged" || len(report.NeedsRestart) != 0 {
		t.Errorf("reload: %+v, %v", report, err)
	}
	r.await("a", "b")

	write(t, path, strings.Replace(configWith("a"), "local: 172.30.0.1", "local: 172.30.0.1, port: 4789, ttl: 9", 1))
	report, err = r.source.Reload(t.Context())
	want := []string{"tunnels[0].underlay.port", "tunnels[0].underlay.ttl"}
	if err != nil || !slices.Equal(report.NeedsRestart, want) {
		t.Errorf("changed keys that need a restart: %v, %v; want %v", report.NeedsRestart, err, want)
	}
}

// The tunnel that runs decides what its peers may be: what changes in the file beside them waits for a restart.
func TestReloadIsForTheTunnelThatRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vxlane.yaml")
	write(t, path, configWith("a"))
	r := newRig(t, path)

	write(t, path, strings.Replace(configWith("a", "b"), "local: 172.30.0.1", "local: 172.30.0.1, port: 4789", 1))
	report, err := r.source.Reload(t.Context())
	if err != nil || !slices.Equal(report.NeedsRestart, []string{"tunnels[0].underlay.port"}) {
		t.Errorf("another port: %+v, %v", report, err)
	}
	if got := r.table.Load().LookupName("b").Endpoint.String(); got != "172.30.0.3:8472" {
		t.Errorf("another port: peers are sent to at %s", got)
	}

	v6 := strings.ReplaceAll(configWith("a"), "172.30.0.", "fd30::")
	write(t, path, strings.NewReplacer("{name", "{name", "endpoint: fd30::2", "endpoint: \"fd30::2\"").Replace(v6))
	if _, err := r.source.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), path+":5:") || !strings.Contains(err.Error(), "of another address family") {
		t.Errorf("another family: %v", err)
	}

	write(t, path, strings.Replace(configWith("c"), "- underlay", "- device: {name: other}\n    underlay", 1))
	if _, err := r.source.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "another tunnel stands here now") {
		t.Errorf("another tunnel: %v", err)
	}
	r.await("a", "b")
}

// Only new content is a reason to read the file again: what was applied meanwhile must not be undone by chmod or touch.
func TestTouchedFileIsNotReloaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vxlane.yaml")
	write(t, path, configWith("a"))
	r := newRig(t, path)
	if _, err := r.deliver(nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * pollInterval)
	r.await()
	if _, err := r.source.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await("a")
}

func TestBadFileChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vxlane.yaml")
	write(t, path, configWith("a", "b"))
	r := newRig(t, path)
	for _, bad := range []string{"", "version: [", configWith("a", "a"), minimal + "    peer: []\n"} {
		write(t, path, bad)
		if _, err := r.source.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: error %v does not name the file", bad, err)
		}
		if r.lastError() == nil {
			t.Errorf("%q: the status is good", bad)
		}
		r.await("a", "b")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.source.Reload(t.Context()); err == nil {
		t.Error("a missing file was read")
	}
	write(t, path, configWith("c"))
	if _, err := r.source.Reload(t.Context()); err != nil || r.lastError() != nil {
		t.Errorf("a good file after bad ones: %v", err)
	}
	r.await("c")
}

func TestFileIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vxlane.yaml")
	write(t, path, configWith("a"))
	r := newRig(t, path)

	write(t, path, configWith("written", "in-place"))
	r.await("written", "in-place")

	next := path + ".new"
	write(t, next, configWith("renamed"))
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	r.await("renamed")

	write(t, path, "version: [")
	for deadline := time.Now().Add(20 * time.Second); r.lastError() == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the bad file was not noticed")
		}
	}
	r.await("renamed")
	write(t, path, configWith("renamed")) // what is in force already
	for deadline := time.Now().Add(20 * time.Second); r.lastError() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the file is good again, the status is not")
		}
	}
	write(t, path, configWith("mended"))
	r.await("mended")
}

// Kubernetes mounts a ConfigMap as a link to a link to a directory, and swaps the middle one:
//
//	vxlane.yaml -> ..data/vxlane.yaml      ..data -> ..2026_11_21
func TestConfigMapSwap(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "vxlane.yaml"), text)
	}
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", configWith("one"))
	link("..1", "..data")
	link("..data/vxlane.yaml", "vxlane.yaml")
	r := newRig(t, filepath.Join(dir, "vxlane.yaml"))
	r.await("one")

	version("..2", configWith("two"))
	link("..2", "..data_tmp")
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
		t.Fatal(err)
	}
	r.await("two")
}
