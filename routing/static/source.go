package static

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"syscall"
	"time"

	"github.com/vxlane/vxlane/routing"
)

const (
	// pollInterval is how often the file is looked at. stat follows symbolic links, so the swap of a ConfigMap's ..data
	// link shows as another inode; inotify would have to watch every directory on the way.
	pollInterval = 500 * time.Millisecond
	// settle is how long a changed file must rest before it is read, so that a half-written one is not.
	settle = 100 * time.Millisecond
)

// Source follows one tunnel of a configuration file: it delivers the tunnel's peers on Reload and whenever the file
// changed, and keeps what is in force when the file is bad.
type Source struct {
	path     string
	index    int
	running  Config // as loaded at start: what a reload is compared with
	log      *slog.Logger
	requests chan chan outcome
	state    func(Status)
	digest   [sha256.Size]byte // of the file's content that is in force
	failed   bool              // the last reload did
}

// Status is what became of the last reload.
type Status struct {
	At  time.Time
	Err error
}

// Report is what a reload did.
type Report struct {
	routing.Change
	// NeedsRestart lists the keys that changed in the file but take effect at the next start only.
	NeedsRestart []string `json:"needs_restart"`
}

type outcome struct {
	report Report
	err    error
}

// NewSource returns a source for tunnel index of the file at path, which was loaded as running. Every reload is told to
// state.
func NewSource(path string, index int, running *Config, log *slog.Logger, state func(Status)) *Source {
	return &Source{path: path, index: index, running: *running, log: log, requests: make(chan chan outcome), state: state, digest: running.digest}
}

var _ routing.Source = (*Source)(nil)

// Run implements routing.Source. The peers that the file had when it was loaded are not delivered again.
func (s *Source) Run(ctx context.Context, deliver func([]routing.Peer) (routing.Change, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	seen := s.running.read
	for {
		select {
		case <-ctx.Done():
			return nil
		case answer := <-s.requests:
			seen = stamp(s.path)
			report, err := s.reload(deliver)
			answer <- outcome{report, err}
		case <-ticker.C:
			now := stamp(s.path)
			if now == seen || !rested(ctx, s.path, now) {
				continue
			}
			seen = now
			if s.changed() {
				s.reload(deliver) // the outcome is logged and kept in the status
			}
		}
	}
}

// Reload reads the file now and waits for the outcome.
func (s *Source) Reload(ctx context.Context) (Report, error) {
	answer := make(chan outcome, 1)
	select {
	case s.requests <- answer:
	case <-ctx.Done():
		return Report{}, fmt.Errorf("reload %s: %w", s.path, ctx.Err())
	}
	o := <-answer
	return o.report, o.err
}

// changed reports whether the file has other content than what is in force: a mode or a time that changed is no reason
// to undo what a control plane applied meanwhile. What cannot be read has changed, and so has what could not be.
func (s *Source) changed() bool {
	data, err := os.ReadFile(s.path)
	return s.failed || err != nil || sha256.Sum256(data) != s.digest
}

func (s *Source) reload(deliver func([]routing.Peer) (routing.Change, error)) (Report, error) {
	report, err := s.apply(deliver)
	s.failed = err != nil
	s.state(Status{At: time.Now(), Err: err})
	if err != nil {
		s.log.Error("reload failed, the peers in force stay", "file", s.path, "err", err)
		return Report{}, err
	}
	s.log.Info("reloaded", "file", s.path, "result", report.String())
	for _, key := range report.NeedsRestart {
		s.log.Warn("changed key needs a restart", "file", s.path, "key", key)
	}
	return report, nil
}

func (s *Source) apply(deliver func([]routing.Peer) (routing.Change, error)) (Report, error) {
	r, err := load(s.path)
	if err != nil {
		return Report{}, err
	}
	peers, err := s.peersFor(r)
	if err != nil {
		return Report{}, err
	}
	change, err := deliver(peers)
	if err != nil {
		return Report{}, err
	}
	s.digest = r.config.digest
	return Report{Change: change, NeedsRestart: s.needsRestart(r.config)}, nil
}

// peersFor returns the peers that a new configuration has for the tunnel that runs. They are completed and checked
// against what is in force: a port or an address family that changed in the file takes effect at the next start only.
func (s *Source) peersFor(r *reading) ([]routing.Peer, error) {
	running := s.running.Tunnels[s.index]
	key := fmt.Sprintf("tunnels[%d]", s.index)
	d := &document{file: r.file, nodes: r.nodes}
	if len(r.config.Tunnels) <= s.index {
		d.fail("tunnels", "%s is gone: stop this process to remove a tunnel", key)
		return nil, d.err()
	}
	if is := r.config.Tunnels[s.index].Device.Name; is != running.Device.Name {
		d.fail(key+".device.name", "is %q, and %q runs: another tunnel stands here now; restart to change tunnels", is, running.Device.Name)
		return nil, d.err()
	}
	peers := r.peers[s.index]
	running.completePeers(peers)
	d.checkPeers(&running, peers, key+".peers")
	return toRouting(peers), d.err()
}

// needsRestart lists the keys that differ from those in force and are not peers.
func (s *Source) needsRestart(c *Config) []string {
	was, is := s.running.Tunnels[s.index], c.Tunnels[s.index]
	was.Peers, is.Peers = nil, nil
	keys := differences(reflect.ValueOf(was), reflect.ValueOf(is), fmt.Sprintf("tunnels[%d]", s.index))
	keys = append(keys, differences(reflect.ValueOf(s.running.Metrics), reflect.ValueOf(c.Metrics), "metrics")...)
	if len(c.Tunnels) != len(s.running.Tunnels) {
		keys = append(keys, "tunnels")
	}
	if keys == nil {
		keys = []string{} // a list in JSON, too
	}
	return keys
}

// differences returns the keys of two values of one type whose values differ.
func differences(a, b reflect.Value, key string) []string {
	if reflect.DeepEqual(a.Interface(), b.Interface()) {
		return nil
	}
	if a.Kind() != reflect.Struct {
		return []string{key}
	}
	var keys []string
	for i := range a.NumField() {
		name := a.Type().Field(i).Tag.Get("yaml")
		if name == "" {
			return []string{key}
		}
		keys = append(keys, differences(a.Field(i), b.Field(i), key+"."+name)...)
	}
	return keys
}

// fileStamp identifies one state of a file. The zero value stands for a file that is not there.
type fileStamp struct {
	dev, ino uint64
	size     int64
	modified time.Time
	changed  syscall.Timespec
}

func stamp(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	st := fileStamp{size: info.Size(), modified: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.dev, st.ino, st.changed = uint64(sys.Dev), sys.Ino, sys.Ctim
	}
	return st
}

// rested waits a moment and reports whether the file is still in state st. One that is gone may be about to come back.
func rested(ctx context.Context, path string, st fileStamp) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(settle):
	}
	return stamp(path) == st
}
