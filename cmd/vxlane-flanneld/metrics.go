package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/routing/flannel"
	"github.com/vxlane/vxlane/tunnel"
)

// maxPeers is how many peers have series of their own.
const maxPeers = 1000

// listenMetrics opens the endpoint; nil when address is empty.
func listenMetrics(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w: choose another address with --metrics", err)
	}
	return l, nil
}

// serveMetrics answers until ctx ends.
func (n *node) serveMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry(), promhttp.HandlerOpts{EnableOpenMetrics: true}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// registry has the collectors of the process, of the tunnels, when the dataplane is vxlane's, and of the leases.
func (n *node) registry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		tunnel.BuildCollector(cli.Version(), runtime.Version()),
	)
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "vxlane_flannel_info", Help: "Always 1; says which backend runs, and whose dataplane it uses.",
		ConstLabels: prometheus.Labels{"backend": n.config.BackendType, "dataplane": n.dataplane()},
	})
	info.Set(1)
	reg.MustRegister(info)
	nw, ok := n.network.(*tunnelNetwork)
	if !ok {
		return reg
	}
	reg.MustRegister(leaseCollector{&nw.leases})
	for _, e := range nw.ends {
		r := prometheus.Registerer(reg)
		if len(nw.ends) > 1 {
			r = prometheus.WrapRegistererWith(prometheus.Labels{"device": e.vtep.Config.Device.Name}, reg)
		}
		r.MustRegister(&tunnel.Collector{Tunnel: e.vtep.Tunnel, MaxPeers: maxPeers, Counts: e.vtep.Counts, Features: e.vtep.Capabilities})
	}
	return reg
}

func (n *node) dataplane() string {
	if _, ours := n.network.(*tunnelNetwork); ours {
		return "userspace"
	}
	return "flannel"
}

// leaseCollector exports how it goes with the leases.
type leaseCollector struct{ source *flannel.Source }

var _ prometheus.Collector = leaseCollector{}

// Lease metrics; docs/flanneld.md has them in a table.
var (
	metricLeases   = prometheus.NewDesc("vxlane_flannel_leases", "Leases that are known, this node's own included.", nil, nil)
	metricBad      = prometheus.NewDesc("vxlane_flannel_bad_leases", "Leases that make no peer though they should; the log names each.", nil, nil)
	metricApplied  = prometheus.NewDesc("vxlane_flannel_leases_applied_timestamp_seconds", "When the leases were last made peers; 0 when they never were.", nil, nil)
	metricFailures = prometheus.NewDesc("vxlane_flannel_watch_failures_total", "How often the leases could no longer be watched, or a watch failed and was begun again.", nil, nil)
	metricWatching = prometheus.NewDesc("vxlane_flannel_watching", "0 while the leases cannot be watched; the peers of before stay in force.", nil, nil)
	metricExpiry   = prometheus.NewDesc("vxlane_flannel_lease_expiry_timestamp_seconds", "When this node's own lease ends unless it is renewed; 0 when it does not (Kubernetes).", nil, nil)
)

// Describe implements prometheus.Collector.
func (c leaseCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c leaseCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.source.State()
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	seconds := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return float64(t.Unix())
	}
	gauge(metricLeases, float64(s.Leases))
	gauge(metricBad, float64(s.Bad))
	gauge(metricApplied, seconds(s.Applied))
	gauge(metricExpiry, seconds(s.Expires))
	watching := 1.0
	if s.Err != nil {
		watching = 0
	}
	gauge(metricWatching, watching)
	ch <- prometheus.MustNewConstMetric(metricFailures, prometheus.CounterValue, float64(s.Failures))
}
