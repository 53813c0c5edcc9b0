package load

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"testing"
	"time"
)

// A path that carries so much and drops the rest: the search finds it, up to its resolution.
func TestHighestRate(t *testing.T) {
	resolution := math.Pow(SearchRange, 1/math.Pow(2, searchSteps-1)) // the first step tries the highest rate
	for _, c := range []struct{ capacity, most float64 }{{50e3, 200e3}, {199e3, 200e3}, {2.1e3, 200e3}, {1e6, 200e3}} {
		trials := 0
		got, err := HighestRate(t.Context(), c.most, func(rate float64) (Trial, error) {
			trials++
			received := min(rate, c.capacity)
			return Trial{Rate: received, Good: 1-received/rate <= LossLimit}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := min(c.capacity, c.most)
		if got > want*1.001 || got < want/resolution/1.001 {
			t.Errorf("capacity %.0f: found %.0f after %d trials, want within %.3f below %.0f", c.capacity, got, trials, resolution, want)
		}
	}
}

func TestHighestRateOfNothing(t *testing.T) {
	got, err := HighestRate(t.Context(), 1e5, func(float64) (Trial, error) { return Trial{}, nil })
	if got != 0 || err != nil {
		t.Errorf("a path that always loses: %v, %v", got, err)
	}
	broken := errors.New("broken")
	if _, err := HighestRate(t.Context(), 1e5, func(float64) (Trial, error) { return Trial{}, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want the error of the trial", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := HighestRate(ctx, 1e5, func(float64) (Trial, error) { return Trial{}, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

// One hiccup does not fail a rate, two do.
func TestHighestRateForgivesOnce(t *testing.T) {
	trials := 0
	got, _ := HighestRate(t.Context(), 1000, func(rate float64) (Trial, error) {
		trials++
		if trials == 1 {
			return Trial{}, nil
		}
		return Trial{Rate: rate, Good: true}, nil
	})
	if math.Abs(got-1000) > 1e-6 || trials != 2 {
		t.Errorf("found %v after %d trials, want 1000 after 2", got, trials)
	}
}

// In a second of turns, as many packets are due as the rate says, and a pause is not made up for by a burst.
func TestPacer(t *testing.T) {
	for _, rate := range []float64{100, 12_345, 500_000} {
		p := newPacer(rate)
		start, sent := p.next, 0
		for now := start; now.Before(start.Add(time.Second)); now = now.Add(50 * time.Microsecond) {
			for n := p.due(now, vector); n > 0; n = p.due(now, vector) {
				sent += n
				p.sent(n)
			}
		}
		if math.Abs(float64(sent)-rate) > 2+rate/1000 {
			t.Errorf("%v packets a second: %d in a second", rate, sent)
		}
	}
	p := newPacer(100_000)
	late, burst := p.next.Add(time.Second), 0
	for n := p.due(late, vector); n > 0; n = p.due(late, vector) {
		burst += n
		p.sent(n)
	}
	if most := int(longestBacklog.Seconds()*100_000) + 1; burst > most {
		t.Errorf("after a second's pause, %d packets at once; want at most %d", burst, most)
	}
	if n := newPacer(0).due(time.Now(), vector); n != vector {
		t.Errorf("without a pace, %d are due", n)
	}
}

func TestIMIXIsSevenFourOne(t *testing.T) {
	count := make(map[int]int)
	for _, size := range IMIX {
		count[size]++
	}
	if len(count) != 3 || count[64] != 7 || count[570] != 4 || count[1400] != 1 {
		t.Errorf("got %v", count)
	}
}

func TestNumberOfRequest(t *testing.T) {
	for _, size := range []int{1, 8, 64} {
		b := make([]byte, size)
		putNumber(b, 0x0102030405060708)
		want := uint64(0x0102030405060708)
		if size == 1 {
			want = 8
		}
		if got := getNumber(b); got != want {
			t.Errorf("in %d bytes: %#x, want %#x", size, got, want)
		}
	}
}

// What iperf3 3.12 wrote, without its intervals and streams.
func TestIperf3Report(t *testing.T) {
	for file, c := range map[string]struct {
		what Iperf3
		want Iperf3Result
	}{
		"testdata/iperf3-tcp.json": {Iperf3{Streams: 2, Bidirectional: true}, Iperf3Result{Bytes: 2249027900.90379 / 8, BytesBack: 17130112456.756046 / 8, Seconds: 1.001007}},
		"testdata/iperf3-udp.json": {Iperf3{Streams: 1, UDP: true, Size: 64}, Iperf3Result{
			Packets: (306270 - 2145) / 1.000095, Offered: 306270 / 1.000095, Bytes: (306270 - 2145) / 1.000095 * 64, Seconds: 1.000095,
		}},
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var r iperf3Report
		if err := json.Unmarshal(data, &r); err != nil {
			t.Fatal(err)
		}
		got := r.result(c.what)
		if math.Abs(got.Bytes-c.want.Bytes)+math.Abs(got.Packets-c.want.Packets) > 1 || got.BytesBack != c.want.BytesBack || got.Offered != c.want.Offered ||
			got.Retransmits != c.want.Retransmits || got.Seconds != c.want.Seconds {
			t.Errorf("%s: got %+v, want %+v", file, got, c.want)
		}
	}
	if err := (Iperf3{Streams: 256}).Supports(); err == nil {
		t.Error("256 streams are said to be supported")
	}
}
