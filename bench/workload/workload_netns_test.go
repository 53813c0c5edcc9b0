//go:build netns

package workload

import (
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
)

// Every workload measures something on a bare link, between hosts and between pods, and all of it is a number.
func TestWorkloads(t *testing.T) {
	p, err := network.FindProfile("full")
	if err != nil {
		t.Fatal(err)
	}
	n, err := network.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	hosts := [2]netip.Addr{n.A.Underlay, n.B.Underlay}
	if err := n.ConnectPods(t.Context(), hosts, false); err != nil {
		t.Fatal(err)
	}
	for _, w := range All() {
		t.Run(w.Name, func(t *testing.T) {
			duration := 150 * time.Millisecond
			if strings.HasPrefix(w.Name, "ping-idle") {
				duration = time.Second // one in 50 ms
			}
			o, err := w.Run(t.Context(), n, hosts, Options{Warmup: 20 * time.Millisecond, Duration: duration, Generator: Builtin})
			if err != nil {
				t.Fatal(err)
			}
			if o.Values[w.Primary] <= 0 {
				t.Errorf("%s is %v", w.Primary, o.Values[w.Primary])
			}
			for name, v := range o.Values {
				if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 || result.FindMetric(name).Unit == "" {
					t.Errorf("%s is %v", name, v)
				}
			}
			latency := result.FindMetric(w.Primary).Unit == "µs"
			if latency && o.Histogram == "" {
				t.Error("there is no histogram")
			}
			if _, ok := o.Values[result.PeakMemory]; ok {
				t.Error("a link without a tunnel has a tunnel's costs")
			}
		})
	}
}
