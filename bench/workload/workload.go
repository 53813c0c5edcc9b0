// Package workload has the kinds of traffic that tunnels are measured with, by the names that users select them with.
package workload

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/vxlane/vxlane/bench/load"
	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
)

// Workload is a kind of traffic.
type Workload struct {
	Name      string
	Summary   string
	Primary   string // the metric that comparisons are made with first
	Forwarded bool   // between pods behind the hosts
	iperf3    *load.Iperf3
	run       func(context.Context, *measurement) error
}

// Generators are the names of what makes the traffic.
const (
	Builtin = "builtin"
	Iperf3  = "iperf3"
)

// Options say how long to measure, and with what.
type Options struct {
	Warmup, Duration time.Duration
	Generator        string
	Congestion       string        // of TCP streams; this machine's own when it is empty
	Rate             float64       // packets a second that UDP workloads offer; 0 is as many as the sender can
	Pause            time.Duration // of a UDP receiver whose queue is empty; 0 is until there is a packet
}

// Outcome is one measurement.
type Outcome struct {
	Values    map[string]float64 // by the names of metrics
	Histogram string
	Notes     []string
}

// forwardedSuffix ends the names of workloads between pods.
const forwardedSuffix = "-fwd"

// All returns all workloads.
func All() []Workload {
	base := slices.Concat(bulks(), datagrams(), latencies())
	all := slices.Clone(base)
	for _, w := range base {
		w.Name, w.Summary, w.Forwarded = w.Name+forwardedSuffix, w.Summary+", between pods behind the hosts", true
		all = append(all, w)
	}
	return all
}

// Find returns the workload called name.
func Find(name string) (Workload, error) {
	var names []string
	for _, w := range All() {
		if w.Name == name {
			return w, nil
		}
		if !w.Forwarded {
			names = append(names, w.Name)
		}
	}
	return Workload{}, fmt.Errorf("unknown workload %q; known: %s, each also with %s", name, strings.Join(names, ", "), forwardedSuffix)
}

// Supports returns why a generator cannot make this traffic; nil when it can.
func (w Workload) Supports(generator string) error {
	switch {
	case generator != Iperf3:
		return nil
	case w.iperf3 == nil:
		return fmt.Errorf("iperf3 cannot make the traffic of %s", w.Name)
	}
	return w.iperf3.Supports()
}

// Run measures a tunnel that is up, with a generator that the workload supports. hosts are the addresses of host a and host b in it.
func (w Workload) Run(ctx context.Context, n *network.Network, hosts Hosts, o Options) (outcome Outcome, err error) {
	s, err := newMeasurement(n, w.path(n, hosts, o.Congestion), o)
	if err != nil {
		return Outcome{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	run := w.run
	if o.Generator == Iperf3 {
		run = func(ctx context.Context, s *measurement) error { return s.iperf3(ctx, *w.iperf3) }
	}
	if err := run(ctx, s); err != nil {
		return Outcome{}, err
	}
	if v, ok := s.outcome.Values[w.Primary]; !ok || math.IsNaN(v) || math.IsInf(v, 0) {
		return Outcome{}, fmt.Errorf("%s was too short to have a value: want a longer --duration", w.Name)
	}
	return s.outcome, nil
}

func (w Workload) path(n *network.Network, hosts Hosts, congestion string) load.Path {
	if w.Forwarded {
		return load.Path{From: n.A.Pod, To: n.B.Pod, Src: n.A.PodAddress(), Dst: n.B.PodAddress(), Congestion: congestion}
	}
	return load.Path{From: n.A.Host, To: n.B.Host, Src: hosts[0], Dst: hosts[1], Congestion: congestion}
}

func bulks() []Workload {
	streams := func(n int) Workload {
		w := Workload{
			Name: fmt.Sprintf("tcp-%d", n), Summary: fmt.Sprintf("TCP bulk, %d streams", n), Primary: result.Throughput,
			iperf3: &load.Iperf3{Streams: n}, run: func(ctx context.Context, s *measurement) error { return s.bulk(ctx, n, 0) },
		}
		if n == 1 {
			w.Summary = "TCP bulk, 1 stream"
		}
		return w
	}
	bothWays := func(name string, n int) Workload {
		w := streams(n)
		w.Name, w.Summary = name, w.Summary+" each way at the same time; both added up"
		w.iperf3 = &load.Iperf3{Streams: n, Bidirectional: true}
		w.run = func(ctx context.Context, s *measurement) error { return s.bulk(ctx, n, n) }
		return w
	}
	return []Workload{
		streams(1), streams(4), streams(8), bothWays("tcp-bidir", 1), bothWays("tcp-bidir-4", 4), bothWays("tcp-bidir-8", 8),
	}
}

func datagrams() []Workload {
	var all []Workload
	for _, size := range []struct {
		name, summary string
		sizes         []int
	}{
		{"64", "64-byte payloads", []int{64}}, {"512", "512-byte payloads", []int{512}}, {"1400", "1400-byte payloads", []int{1400}},
		{"imix", "payloads of 64, 570 and 1400 bytes, 7:4:1", load.IMIX},
	} {
		for _, flows := range []int{1, 16, 256} {
			w := Workload{
				Name: "udp-" + size.name, Summary: "UDP packets, " + size.summary + ", 1 flow", Primary: result.Received,
				run: func(ctx context.Context, s *measurement) error {
					return s.datagrams(ctx, load.Datagrams{Flows: flows, Sizes: size.sizes, Rate: s.options.Rate, Pause: s.options.Pause})
				},
			}
			if flows > 1 {
				w.Name, w.Summary = fmt.Sprintf("%s-%df", w.Name, flows), fmt.Sprintf("UDP packets, %s, %d flows", size.summary, flows)
			}
			if len(size.sizes) == 1 {
				w.iperf3 = &load.Iperf3{Streams: flows, UDP: true, Size: size.sizes[0]}
			}
			all = append(all, w)
		}
	}
	return all
}

func latencies() []Workload {
	return []Workload{
		{
			Name: "rr", Summary: "UDP request and response of 64 bytes, one at a time", Primary: result.P50,
			run: func(ctx context.Context, s *measurement) error { return s.pingPong(ctx, false) },
		},
		{
			Name: "rr-loaded", Summary: "rr while a TCP stream fills the tunnel the same way", Primary: result.P50,
			run: func(ctx context.Context, s *measurement) error { return s.pingPong(ctx, true) },
		},
		{
			Name: "ping-idle", Summary: "ICMP echo every 50 ms, nothing else: every thread sleeps in between", Primary: result.P50,
			run: func(ctx context.Context, s *measurement) error { return s.ping(ctx) },
		},
		{
			Name: "connect", Summary: "TCP connections with one byte each way, one after the other", Primary: result.Connections,
			run: func(ctx context.Context, s *measurement) error { return s.connect(ctx) },
		},
	}
}
