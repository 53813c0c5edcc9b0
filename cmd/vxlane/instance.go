package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/cmd/internal/vtep"
	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// instance is one running tunnel, as its control socket shows it.
type instance struct {
	service *service
	index   int
	vtep    *vtep.VTEP
	source  *static.Source // nil when the configuration came from flags
	socket  net.Listener

	mu     sync.Mutex
	ready  bool
	reload reloadStatus
}

// reloadStatus is what became of reading the configuration.
type reloadStatus struct {
	last, success time.Time
	err           error
}

func newInstance(s *service, index int, v *vtep.VTEP) *instance {
	now := time.Now()
	in := &instance{service: s, index: index, vtep: v, reload: reloadStatus{last: now, success: now}}
	if s.file != "" {
		in.source = static.NewSource(s.file, index, s.config, s.log.With("device", v.Config.Device.Name), in.noteReload)
	}
	return in
}

func (in *instance) listen(path string) (err error) {
	if path == "" {
		if path, err = control.SocketPath(in.vtep.Config.Device.Name); err != nil {
			return err
		}
	}
	in.socket, err = control.Listen(path)
	return err
}

func (in *instance) noteReload(st static.Status) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.reload.last, in.reload.err = st.At, st.Err
	if st.Err == nil {
		in.reload.success = st.At
	}
}

func (in *instance) reloadStatus() reloadStatus {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.reload
}

func (in *instance) setReady() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ready = true
}

var _ control.Handler = (*instance)(nil)

// Status implements control.Handler.
func (in *instance) Status() control.Status {
	in.mu.Lock()
	ready := in.ready
	in.mu.Unlock()
	s := in.vtep.Status(ready)
	in.addConfig(&s)
	return s
}

func (in *instance) addConfig(s *control.Status) {
	if in.source == nil {
		return
	}
	st := in.reloadStatus()
	s.Config = &control.ConfigStatus{File: in.service.file, LastReload: st.last, OK: st.err == nil}
	if st.err != nil {
		s.Config.Error = st.err.Error()
		s.Degraded = append(s.Degraded, "the configuration file is bad, what was read before is in force: "+st.err.Error())
	}
}

// Peers implements control.Handler.
func (in *instance) Peers() control.Peers { return in.vtep.Peers() }

// Stats implements control.Handler.
func (in *instance) Stats() control.Stats { return in.vtep.Stats() }

// FDB implements control.Handler.
func (in *instance) FDB() (control.FDB, error) { return in.vtep.FDB() }

// ChangeFDB implements control.Handler.
func (in *instance) ChangeFDB(req control.FDBRequest) (control.FDBChange, error) {
	return in.vtep.ChangeFDB(req)
}

// WatchFDB implements control.Handler.
func (in *instance) WatchFDB(ctx context.Context) (<-chan tunnel.FDBEvent, error) {
	return in.vtep.WatchFDB(ctx)
}

// Trace implements control.Handler.
func (in *instance) Trace(req control.TraceRequest) (control.Trace, error) { return in.vtep.Trace(req) }

// Apply implements control.Handler.
func (in *instance) Apply(origin string, data []byte) (control.Change, error) {
	peers, err := in.vtep.Config.ParsePeers(origin, data)
	if err != nil {
		return control.Change{}, usageOf(err)
	}
	change, err := in.vtep.SetPeers(peers)
	if err != nil {
		return control.Change{}, err
	}
	in.service.log.Info("peers applied", "device", in.vtep.Config.Device.Name, "origin", origin, "result", change.String())
	return in.withProblems(control.Change{Schema: control.SchemaApply, Result: change.String(), Report: static.Report{Change: change, NeedsRestart: []string{}}}), nil
}

// Reload implements control.Handler.
func (in *instance) Reload(ctx context.Context) (control.Change, error) {
	if in.source == nil {
		return control.Change{}, &control.UsageError{Err: errors.New("reload: this tunnel was described by flags, there is no file to read; use vxlane peer apply")}
	}
	report, err := in.source.Reload(ctx)
	if err != nil {
		return control.Change{}, usageOf(err)
	}
	return in.withProblems(control.Change{Schema: control.SchemaReload, Result: report.String(), Report: report}), nil
}

// withProblems adds what did not work although the peers are in force.
func (in *instance) withProblems(c control.Change) control.Change {
	c.Problems = []string{}
	if err := in.vtep.RouteErr(); err != nil {
		c.Problems = append(c.Problems, err.Error())
	}
	return c
}

// usageOf marks errors in what a user wrote.
func usageOf(err error) error {
	var e *static.Error
	if errors.As(err, &e) {
		return &control.UsageError{Err: err}
	}
	return err
}

// monotonicMicroseconds is the clock that sd_notify(3) wants beside RELOADING=1.
func monotonicMicroseconds() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1000
}
