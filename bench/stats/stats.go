// Package stats says what a set of measurements allows to be said, and no more: medians with intervals, ratios with
// intervals, and "no difference" where the noise is as large.
package stats

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// Interval is an estimate with the bounds of its confidence interval.
type Interval struct{ Value, Low, High float64 }

// Contains reports whether x lies within the bounds.
func (i Interval) Contains(x float64) bool { return i.Low <= x && x <= i.High }

// Known reports whether there is an estimate, and one with bounds.
func (i Interval) Known() bool { return finite(i.Value) && finite(i.Low) && finite(i.High) }

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// Unknown is the estimate from no samples.
var Unknown = Interval{math.NaN(), math.NaN(), math.NaN()}

const (
	resamples = 2000
	// Confidence is that of the intervals in reports.
	Confidence = 0.95
	// Enough is how many samples of each side a claim needs: with fewer, even a complete separation happens by chance in
	// more than one case in twenty.
	Enough = 4
)

// Median returns the median of samples, NaN when there are none. The slice is not changed.
func Median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if len(s) == 0 {
		return math.NaN()
	}
	return middle(len(s), func(i int) float64 { return s[i] })
}

// middle returns the median of n values, of which at returns those in the middle by their place in order.
func middle(n int, at func(int) float64) float64 {
	if n%2 == 0 {
		return (at(n/2-1) + at(n/2)) / 2
	}
	return at(n / 2)
}

// MedianInterval returns the median of samples with its 95 % interval, by the percentile bootstrap (Efron, 1979). It is
// the same for the same samples: the resampling has a fixed seed.
func MedianInterval(samples []float64) Interval {
	draw := newDrawer(samples)
	return bootstrap(Median(samples), Confidence, draw.median)
}

// RatioInterval returns the ratio of the median of a to that of b with its interval at the given confidence; a and b are
// drawn anew independently.
func RatioInterval(a, b []float64, confidence float64) Interval {
	x, y := newDrawer(a), newDrawer(b)
	return bootstrap(Median(a)/Median(b), confidence, func(rng *rand.Rand) float64 { return x.median(rng) / y.median(rng) })
}

// RatioOfRatios returns (a/b)/(c/d) of medians with its interval at the given confidence; all four are drawn anew.
func RatioOfRatios(a, b, c, d []float64, confidence float64) Interval {
	w, x, y, z := newDrawer(a), newDrawer(b), newDrawer(c), newDrawer(d)
	value := Median(a) / Median(b) / (Median(c) / Median(d))
	return bootstrap(value, confidence, func(rng *rand.Rand) float64 {
		return w.median(rng) / x.median(rng) / (y.median(rng) / z.median(rng))
	})
}

// drawer draws with replacement. It sorts once: what is drawn is counted by place in that order.
type drawer struct {
	sorted []float64
	places []int // in sorted, of each sample
	counts []int // by place
}

func newDrawer(from []float64) *drawer {
	order := make([]int, len(from))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(from[a], from[b]) })
	d := &drawer{make([]float64, len(from)), make([]int, len(from)), make([]int, len(from))}
	for place, i := range order {
		d.sorted[place], d.places[i] = from[i], place
	}
	return d
}

func (d *drawer) median(rng *rand.Rand) float64 {
	clear(d.counts)
	for range d.places {
		d.counts[d.places[rng.IntN(len(d.places))]]++
	}
	return middle(len(d.places), d.drawn)
}

// drawn returns the value at a place among those drawn, in order.
func (d *drawer) drawn(place int) float64 {
	for i, n := range d.counts {
		if place -= n; place < 0 {
			return d.sorted[i]
		}
	}
	return math.NaN() // nothing was drawn
}

func bootstrap(value, confidence float64, once func(*rand.Rand) float64) Interval {
	if !finite(value) {
		return Unknown
	}
	rng := rand.New(rand.NewPCG(1, 2))
	results := make([]float64, resamples)
	for i := range results {
		if results[i] = once(rng); !finite(results[i]) {
			return Unknown // zeros below the line: a ratio to nothing has no bounds
		}
	}
	slices.Sort(results)
	tail := (1 - confidence) / 2
	return Interval{Value: value, Low: quantile(results, tail), High: quantile(results, 1-tail)}
}

// quantile returns the value below which a share q of sorted lies, interpolated.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Verdict is what can be said of a ratio.
type Verdict string

// The verdicts.
const (
	Higher       Verdict = "higher"
	Lower        Verdict = "lower"
	NoDifference Verdict = "no difference"
	TooFew       Verdict = "too few samples"
)

// Judge says whether ratio differs from 1 by more than chance, and by more than each control, the ratio of a system to
// itself in the same run: what an A/A comparison shows is noise, whatever its cause. Where that is not known, nothing is
// claimed.
func Judge(ratio Interval, controls ...Interval) Verdict {
	if !ratio.Known() || ratio.Contains(1) || distance(ratio.Value) <= Noise(controls...) {
		return NoDifference
	}
	if ratio.Value > 1 {
		return Higher
	}
	return Lower
}

// JudgeSamples is Judge for so many samples on the smaller side.
func JudgeSamples(samples int, ratio Interval, controls ...Interval) Verdict {
	if samples < Enough {
		return TooFew
	}
	return Judge(ratio, controls...)
}

// Noise returns the largest distance from 1 that the controls' intervals reach, as |ln ratio|; infinity when one is
// unknown.
func Noise(controls ...Interval) float64 {
	noise := 0.0
	for _, c := range controls {
		if !c.Known() {
			return math.Inf(1)
		}
		noise = max(noise, distance(c.Low), distance(c.High))
	}
	return noise
}

func distance(ratio float64) float64 { return math.Abs(math.Log(ratio)) }
