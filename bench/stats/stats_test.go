package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		in := slices.Clone(c.in)
		if got := Median(in); got != c.want || !slices.Equal(in, c.in) {
			t.Errorf("%v: %v, want %v; the slice is now %v", c.in, got, c.want, in)
		}
	}
}

func TestNothingIsKnownOfNothing(t *testing.T) {
	some := []float64{1, 2, 3}
	for name, i := range map[string]Interval{
		"median of nothing": MedianInterval(nil), "ratio to nothing": RatioInterval(some, nil, Confidence),
		"ratio of nothing": RatioInterval(nil, some, Confidence), "ratio to zero": RatioInterval(some, []float64{0, 0}, Confidence),
		"ratio to zeros among others": RatioInterval(some, []float64{0, 0, 3, 4}, Confidence),
	} {
		if i.Known() || Judge(i) != NoDifference {
			t.Errorf("%s: %+v, %s", name, i, Judge(i))
		}
	}
}

func TestSameSamplesSameInterval(t *testing.T) {
	s := normal(rand.New(rand.NewPCG(1, 1)), 9, 5, 1)
	if a, b := MedianInterval(s), MedianInterval(s); a != b {
		t.Errorf("%+v, then %+v", a, b)
	}
}

func normal(rng *rand.Rand, n int, mean, sd float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = mean + sd*rng.NormFloat64()
	}
	return out
}

// The interval holds the true median about as often as it says.
func TestCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const rounds = 200
	medians, ratios := 0, 0
	for range rounds {
		a, b := normal(rng, 15, 20, 2), normal(rng, 15, 10, 1)
		if MedianInterval(a).Contains(20) {
			medians++
		}
		if RatioInterval(a, b, Confidence).Contains(2) {
			ratios++
		}
	}
	for name, n := range map[string]int{"median": medians, "ratio": ratios} {
		if share := float64(n) / rounds; share < 0.9 {
			t.Errorf("the interval of the %s holds the truth in %.0f %% of cases", name, 100*share)
		}
	}
}

// A system compared with itself is told to differ in at most one case in twenty, however few the samples.
func TestNoFalseClaims(t *testing.T) {
	for _, n := range []int{Enough, 6, 10, 20} {
		rng := rand.New(rand.NewPCG(5, uint64(n)))
		const rounds = 200
		claims := 0
		for range rounds {
			a, b, c := normal(rng, n, 100, 8), normal(rng, n, 100, 8), normal(rng, n, 100, 8)
			if JudgeSamples(n, RatioInterval(a, b, Confidence), RatioInterval(b, c, Confidence)) != NoDifference {
				claims++
			}
		}
		if claims > rounds/20 {
			t.Errorf("with %d samples, %d of %d comparisons of the same with the same claim a difference", n, claims, rounds)
		}
	}
}

// And a difference that is there is found.
func TestClaims(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	const rounds = 200
	found := 0
	for range rounds {
		a, b, c := normal(rng, 10, 120, 4), normal(rng, 10, 100, 4), normal(rng, 10, 100, 4)
		if Judge(RatioInterval(a, b, Confidence), RatioInterval(b, c, Confidence)) == Higher {
			found++
		}
	}
	if found < rounds*9/10 {
		t.Errorf("20 %% more was found in %d of %d cases", found, rounds)
	}
}

func TestJudge(t *testing.T) {
	quiet := Interval{1, 0.98, 1.02}
	for _, c := range []struct {
		ratio, control Interval
		want           Verdict
	}{
		{Interval{1.5, 1.4, 1.6}, quiet, Higher},
		{Interval{0.5, 0.4, 0.6}, quiet, Lower},
		{Interval{1.1, 0.9, 1.3}, quiet, NoDifference},
		{Interval{1.1, 1.05, 1.15}, Interval{1.05, 0.9, 1.2}, NoDifference},
		{Interval{1.5, 1.4, 1.6}, Unknown, NoDifference},
		{Interval{1.5, 1.4, math.Inf(1)}, quiet, NoDifference},
		{Interval{0, 0, 0}, quiet, Lower},
		{Unknown, quiet, NoDifference},
	} {
		if got := Judge(c.ratio, c.control); got != c.want {
			t.Errorf("%+v beside %+v: %s, want %s", c.ratio, c.control, got, c.want)
		}
	}
	if got := JudgeSamples(Enough-1, Interval{1.5, 1.4, 1.6}, quiet); got != TooFew {
		t.Errorf("with %d samples: %s", Enough-1, got)
	}
	if math.Abs(Noise(quiet)-math.Log(1/0.98)) > 1e-12 || !math.IsInf(Noise(quiet, Unknown), 1) {
		t.Errorf("noise of %+v: %v, with an unknown one: %v", quiet, Noise(quiet), Noise(quiet, Unknown))
	}
}
