package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/cmd/internal/vtep"
	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// service is one process: its tunnels, their control sockets, and the metrics endpoint.
type service struct {
	config  *static.Config
	file    string // empty when the configuration came from flags
	log     *slog.Logger
	tunnels []*instance
	metrics net.Listener
}

// runUp brings everything up, keeps it up until ctx ends or something fails, and takes it down.
func runUp(ctx context.Context, config *static.Config, file, socket string, log *slog.Logger) error {
	s := &service{config: config, file: file, log: log}
	if socket != "" && len(config.Tunnels) > 1 {
		return cli.Usagef("--socket names one socket, and the configuration has %d tunnels: leave it out", len(config.Tunnels))
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // from the start: without a handler it would end the process
	defer signal.Stop(hangups)
	control.Sweep()
	if err := s.open(socket); err != nil {
		return errors.Join(err, s.discard())
	}
	return s.run(ctx, hangups)
}

// open makes devices and sockets; nothing moves yet.
func (s *service) open(socket string) error {
	ports := sharedPorts(s.config.Tunnels)
	var reserved []uint16
	for i := range s.config.Tunnels {
		reserved = append(reserved, s.config.Tunnels[i].Underlay.Port)
	}
	for i, c := range s.config.Tunnels {
		v, err := vtep.Open(c, fmt.Sprintf("tunnels[%d]", i), vtep.Options{Reserved: reserved, Port: ports[portOf(&c)]}, s.log)
		if err != nil {
			return err
		}
		in := newInstance(s, i, v)
		s.tunnels = append(s.tunnels, in)
		if err := in.listen(socket); err != nil {
			return err
		}
	}
	queues := 0
	for _, in := range s.tunnels {
		queues += in.vtep.Config.Device.Queues
	}
	vtep.ReserveThreads(queues)
	if s.config.Metrics.Listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", s.config.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("serve metrics: %w: choose another address with metrics.listen (--metrics)", err)
	}
	s.metrics = l
	return nil
}

// portOf returns where a tunnel receives.
func portOf(t *static.Tunnel) netip.AddrPort {
	return netip.AddrPortFrom(t.Underlay.Local, t.Underlay.Port)
}

// sharedPorts returns the ports that several tunnels receive on.
func sharedPorts(tunnels []static.Tunnel) map[netip.AddrPort]*tunnel.SharedPort {
	users, shared := make(map[netip.AddrPort]int), make(map[netip.AddrPort]*tunnel.SharedPort)
	for i := range tunnels {
		at := portOf(&tunnels[i])
		if users[at]++; users[at] == 2 {
			shared[at] = new(tunnel.SharedPort)
		}
	}
	return shared
}

// discard closes what open made, when nothing ran.
func (s *service) discard() error {
	var errs []error
	for _, in := range s.tunnels {
		if in.socket != nil {
			errs = append(errs, in.socket.Close())
		}
		errs = append(errs, in.vtep.Close())
	}
	if s.metrics != nil {
		errs = append(errs, s.metrics.Close())
	}
	return errors.Join(errs...)
}

func (s *service) run(ctx context.Context, hangups <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts, ready sync.WaitGroup
	failures := make(chan error, 1)
	started := make(chan struct{})
	spawn := func(part func() error) {
		parts.Go(func() {
			if err := part(); err != nil {
				select {
				case failures <- err:
				default:
				}
			}
			cancel()
		})
	}
	for _, in := range s.tunnels {
		ready.Add(1)
		spawn(func() error { return in.vtep.Run(ctx, ready.Done) })
		spawn(func() error { return control.Serve(ctx, in.socket, in, s.log) })
		if in.source != nil {
			spawn(func() error {
				select {
				case <-ctx.Done():
					return nil
				case <-started: // not before: there must be a device to put routes on
				}
				return in.source.Run(ctx, in.vtep.SetPeers)
			})
		}
	}
	if s.metrics != nil {
		spawn(func() error { return s.serveMetrics(ctx) })
	}
	go s.followHangups(ctx, hangups)
	go s.announce(ctx, &ready, started)
	context.AfterFunc(ctx, func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) })
	parts.Wait()
	select {
	case err := <-failures:
		return err
	default:
		s.log.Info("stopped")
		return nil
	}
}

// announce says that everything runs, once it does.
func (s *service) announce(ctx context.Context, ready *sync.WaitGroup, started chan struct{}) {
	go func() { ready.Wait(); close(started) }()
	select {
	case <-ctx.Done():
		return
	case <-started:
	}
	for _, in := range s.tunnels {
		in.setReady()
	}
	for _, in := range s.tunnels {
		in.vtep.LogCapabilities()
		c := &in.vtep.Config
		s.log.Info("ready", "device", c.Device.Name, "mtu", c.Device.MTU, "encap", c.Underlay.Encap, "vni", c.Underlay.VNI,
			"local", c.Underlay.Local, "port", c.Underlay.Port, "tier", in.vtep.Tier(), "queues", c.Device.Queues,
			"peers", len(c.Peers), "socket", in.socket.Addr())
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // not under systemd: nothing happens
}

// followHangups reads the configuration again for every SIGHUP, until ctx ends.
func (s *service) followHangups(ctx context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			s.hangup(ctx)
		}
	}
}

func (s *service) hangup(ctx context.Context) {
	if s.file == "" {
		s.log.Warn("SIGHUP ignored: the tunnel was described by flags, there is no file to read")
		return
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading+"\n"+fmt.Sprintf("MONOTONIC_USEC=%d", monotonicMicroseconds()))
	for _, in := range s.tunnels {
		_, _ = in.source.Reload(ctx) // it logs and keeps its outcome
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
}

func (s *service) serveMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry(), promhttp.HandlerOpts{EnableOpenMetrics: true}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(s.metrics); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// registry has every collector of the process. With several tunnels, a label tells them apart.
func (s *service) registry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&tunnel.ProcessCollector{Version: cli.Version(), GoVersion: runtime.Version(), Reload: s.lastReload},
	)
	for _, in := range s.tunnels {
		r := prometheus.Registerer(reg)
		if len(s.tunnels) > 1 {
			r = prometheus.WrapRegistererWith(prometheus.Labels{"device": in.vtep.Config.Device.Name}, reg)
		}
		r.MustRegister(&tunnel.Collector{
			Tunnel: in.vtep.Tunnel, MaxPeers: s.config.Metrics.MaxPeers, Counts: in.vtep.Counts, Features: in.vtep.Capabilities,
		})
	}
	return reg
}

// lastReload tells whether every tunnel's last read of the file succeeded, and when the last success was.
func (s *service) lastReload() (bool, time.Time) {
	ok, at := true, time.Time{}
	for _, in := range s.tunnels {
		st := in.reloadStatus()
		ok = ok && st.err == nil
		if st.success.After(at) {
			at = st.success
		}
	}
	return ok, at
}
