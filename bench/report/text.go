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

// ratioText writes a ratio with its interval.
func ratioText(i stats.Interval) string {
	if !i.Known() {
		return none
	}
	return fmt.Sprintf("%s [%s–%s]", digits(i.Value), digits(i.Low), digits(i.High))
}

// valueText writes a value in its metric's unit, with its interval.
func valueText(i stats.Interval, m result.Metric) string {
	if !i.Known() {
		return none
	}
	value := digits(i.Value / m.Scale)
	if i.Low == i.High {
		return value
	}
	return fmt.Sprintf("%s [%s–%s]", value, digits(i.Low/m.Scale), digits(i.High/m.Scale))
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
