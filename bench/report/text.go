package report

import (
	"fmt"
	"math"
	"strconv"

	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/bench/stats"
)

// none stands where there is no value.
const none = "–"

// ratioText writes a ratio with its interval, from so many samples.
func ratioText(i stats.Interval, samples int) string {
	if !i.Known() {
		return none
	}
	return digits(i.Value) + bounds(i, 1, samples)
}

// valueText writes a value in its metric's unit, with its interval.
func valueText(i stats.Interval, m result.Metric, samples int) string {
	if !i.Known() {
		return none
	}
	return digits(i.Value/m.Scale) + bounds(i, m.Scale, samples)
}

// bounds writes an interval; of one sample there is none.
func bounds(i stats.Interval, scale float64, samples int) string {
	if samples < 2 {
		return ""
	}
	return fmt.Sprintf(" [%s–%s]", digits(i.Low/scale), digits(i.High/scale))
}

// digits writes x with three significant digits, without an exponent.
func digits(x float64) string {
	if x == 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return strconv.FormatFloat(x, 'g', -1, 64)
	}
	decimals := 2 - int(math.Floor(math.Log10(math.Abs(x))))
	if decimals < 0 {
		unit := math.Pow(10, float64(-decimals))
		x, decimals = math.Round(x/unit)*unit, 0
	}
	return strconv.FormatFloat(x, 'f', decimals, 64)
}
