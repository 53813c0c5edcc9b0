package workload

import (
	"slices"
	"strings"
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/vxlane/vxlane/bench/load"
	"github.com/vxlane/vxlane/bench/result"
)

// The names that users select by, each with and without -fwd.
func TestNames(t *testing.T) {
	want := []string{"tcp-1", "tcp-4", "tcp-8", "tcp-bidir", "tcp-bidir-4", "tcp-bidir-8", "rr", "rr-loaded", "ping-idle", "connect"}
	for _, size := range []string{"64", "512", "1400", "imix"} {
		want = append(want, "udp-"+size, "udp-"+size+"-16f", "udp-"+size+"-256f")
	}
	for _, name := range slices.Clone(want) {
		want = append(want, name+"-fwd")
	}
	var got []string
	for _, w := range All() {
		got = append(got, w.Name)
		if found, err := Find(w.Name); err != nil || found.Name != w.Name {
			t.Errorf("%s: %v", w.Name, err)
		}
		if w.Forwarded != strings.HasSuffix(w.Name, "-fwd") || w.Summary == "" || result.FindMetric(w.Primary).Unit == "" {
			t.Errorf("%+v", w)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if _, err := Find("tcp-3"); err == nil || !strings.Contains(err.Error(), `unknown workload "tcp-3"; known: tcp-1,`) {
		t.Errorf("got %v", err)
	}
}

func TestIperf3Support(t *testing.T) {
	for name, want := range map[string]string{"rr": "iperf3 cannot make the traffic of rr", "udp-imix": "iperf3 cannot make", "udp-64-256f": "at most 128 streams"} {
		w, err := Find(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Supports(Iperf3); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want: %s", name, err, want)
		}
		if err := w.Supports(Builtin); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A percentile is only given when there are samples beyond it, and the histogram that is kept has all of them.
func TestLatency(t *testing.T) {
	for _, n := range []int{5, 50, 500, 5000} {
		h := load.NewHistogram()
		for i := range n {
			_ = h.RecordValue(int64(i+1) * 10_000) // 10 µs, 20 µs, …
		}
		s := &measurement{outcome: Outcome{Values: make(map[string]float64)}}
		if err := s.setLatency(h); err != nil {
			t.Fatal(err)
		}
		for metric, fewest := range map[string]int{result.P50: 2, result.P90: 10, result.P99: 100, result.P999: 1000} {
			if _, ok := s.outcome.Values[metric]; ok != (n >= fewest) {
				t.Errorf("%d samples: %s is there: %v", n, metric, ok)
			}
		}
		if p50, want := s.outcome.Values[result.P50], float64(n)*10e-6/2; p50 < 0.8*want || p50 > 1.25*want {
			t.Errorf("%d samples: p50 %v, want about %v", n, p50, want)
		}
		kept, err := hdrhistogram.Decode([]byte(s.outcome.Histogram))
		if err != nil || kept.TotalCount() != int64(n) || kept.Max() != h.Max() {
			t.Errorf("%d samples: kept %v, %v", n, kept, err)
		}
	}
}
