package load

import (
	"context"
	"math"
)

// LossLimit is the share of packets that may be lost at a rate that counts as free of loss (after RFC 2544, section 26.1,
// which allows none; on machines that share their cores with others, a single hiccup would hide what they can do).
const LossLimit = 0.001

const (
	searchSteps = 7
	// SearchRange is the ratio of the highest to the lowest rate that is looked at. The first step tries the highest; the
	// others leave the result within SearchRange^(1/2^(searchSteps-1)), 8 %, of the true one.
	SearchRange = 100
)

// Trial is what came of sending at a rate.
type Trial struct {
	Rate float64 // received, per second
	Good bool    // it was carried, with a loss of at most LossLimit
}

// HighestRate searches the highest rate with a loss of at most LossLimit, up to most: it halves the range of possible
// rates, on a logarithmic scale, with each step. A rate is given up only when it fails twice. The result is the rate that
// was received in the best trial, 0 when none was good.
func HighestRate(ctx context.Context, most float64, try func(rate float64) (Trial, error)) (float64, error) {
	low, high, best := math.Log(most/SearchRange), math.Log(most), 0.0
	for step := range searchSteps {
		middle := (low + high) / 2
		if step == 0 {
			middle = high
		}
		good, rate, err := tryTwice(math.Exp(middle), try)
		switch {
		case err != nil:
			return 0, err
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case !good:
			high = middle
			continue
		}
		low, best = middle, max(best, rate)
		if step == 0 {
			break
		}
	}
	if best > 0 {
		return best, nil
	}
	_, best, err := tryTwice(math.Exp(low), try)
	return best, err
}

func tryTwice(rate float64, try func(float64) (Trial, error)) (good bool, received float64, err error) {
	for range 2 {
		t, err := try(rate)
		if err != nil {
			return false, 0, err
		}
		if t.Good {
			return true, t.Rate, nil
		}
	}
	return false, 0, nil
}
