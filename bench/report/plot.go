package report

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"regexp"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/vxlane/vxlane/bench/stats"
)

// dots is a plot of rows below each other, with marks of one or more series in each.
type dots struct {
	title, axis string
	rows        []string // from top to bottom
	series      []series
	bands       []noiseBand
	remarks     []remark
	reference   float64 // a vertical line; 0 for none
}

// series is a kind of mark: form and colour both tell it from others, so that either is enough.
type series struct {
	name   string
	points []point
}

type point struct {
	row int
	stats.Interval
}

// noiseBand is how far from 1 noise reaches behind the mark of a series, as a factor to both sides.
type noiseBand struct {
	row, series int
	factor      float64
}

// remark is a word where a mark of a series would be.
type remark struct {
	row, series int
	text        string
}

// style is a form with a colour; the colours are those of Okabe and Ito, which people with any colour vision can tell apart.
type style struct {
	glyph draw.GlyphDrawer
	color color.RGBA
}

var styles = []style{
	{draw.CircleGlyph{}, color.RGBA{0, 114, 178, 255}},
	{draw.SquareGlyph{}, color.RGBA{213, 94, 0, 255}},
	{draw.PyramidGlyph{}, color.RGBA{0, 158, 115, 255}},
	{draw.CrossGlyph{}, color.RGBA{0, 0, 0, 255}},
	{draw.BoxGlyph{}, color.RGBA{204, 121, 167, 255}},
	{draw.TriangleGlyph{}, color.RGBA{86, 180, 233, 255}},
	{draw.RingGlyph{}, color.RGBA{230, 159, 0, 255}},
	{draw.PlusGlyph{}, color.RGBA{100, 100, 100, 255}},
}

const (
	figureWidth  = 340 // in units of the letters' size below; as wide as a phone, so that they stay legible there
	leastRow     = 30
	markHeight   = 11 // of a row, for each series
	frameHeight  = 78
	legendHeight = 18
	spread       = 0.56 // of a row's height, taken up by its marks
)

var grey = color.Gray{214}

// draw renders the plot as SVG.
func (d *dots) draw() ([]byte, error) {
	p := plot.New()
	face := font.Font{Typeface: "Liberation", Variant: "Sans"}
	set := func(f *font.Font, size vg.Length) { *f = font.From(face, size) }
	p.Title.Text, p.X.Label.Text = d.title, d.axis
	set(&p.Title.TextStyle.Font, 13)
	set(&p.X.Label.TextStyle.Font, 11)
	set(&p.X.Tick.Label.Font, 11)
	set(&p.Y.Tick.Label.Font, 11)
	set(&p.Legend.TextStyle.Font, 11)
	p.Title.Padding, p.BackgroundColor = 8, color.White

	p.X.Tick.Marker, p.X.Scale = ticks{}, plot.LogScale{}
	d.setLimits(p)
	d.addFrame(p)
	for i, s := range d.series {
		if err := d.addSeriesTo(p, i, s); err != nil {
			return nil, err
		}
	}
	d.setLimits(p) // adding marks widens them
	height := vg.Length(len(d.rows)*d.rowHeight()+frameHeight) + vg.Length(d.legendLines()*legendHeight)
	return render(p, figureWidth, height)
}

// rowHeight leaves room for the marks of all series.
func (d *dots) rowHeight() int { return max(leastRow, markHeight*len(d.series)) }

// legendLines returns how many lines the legend takes.
func (d *dots) legendLines() int {
	if len(d.bands) > 0 {
		return len(d.series) + 1
	}
	return len(d.series)
}

func (d *dots) setLimits(p *plot.Plot) {
	legend := float64(d.legendLines()*legendHeight) / float64(d.rowHeight()) // it stands below the rows, inside the frame
	p.X.Min, p.X.Max = d.limits()
	p.Y.Min, p.Y.Max = -0.5-legend, float64(len(d.rows))-0.5
}

// addFrame adds all that is behind the marks.
func (d *dots) addFrame(p *plot.Plot) {
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{225}, color.Transparent
	p.Add(grid)
	for row := range len(d.rows) + 1 {
		between, err := plotter.NewLine(plotter.XYs{{X: p.X.Min, Y: d.y(row, 0.5)}, {X: p.X.Max, Y: d.y(row, 0.5)}})
		if err == nil {
			between.Color, between.Width = color.Gray{200}, 0.5
			p.Add(between)
		}
	}
	names := make([]plot.Tick, len(d.rows))
	for row, name := range d.rows {
		names[row] = plot.Tick{Value: d.y(row, 0), Label: name}
	}
	p.Y.Tick.Marker = plot.ConstantTicks(names)
	p.Y.Tick.Length = 0
	p.Y.LineStyle.Width = 0
	for i, b := range d.bands {
		band := band{y: d.y(b.row, d.offset(b.series)), half: spread / float64(2*len(d.series)), low: 1 / b.factor, high: b.factor}
		p.Add(band)
		if i == 0 {
			p.Legend.Add("noise (A/A)", band)
		}
	}
	if d.reference != 0 {
		line, err := plotter.NewLine(plotter.XYs{{X: d.reference, Y: -0.5}, {X: d.reference, Y: p.Y.Max}})
		if err == nil {
			line.Width = 1.2
			p.Add(line)
		}
	}
	for _, r := range d.remarks {
		p.Add(label{x: p.X.Min, y: d.y(r.row, d.offset(r.series)), text: r.text})
	}
	p.Legend.Top, p.Legend.Left, p.Legend.YOffs = false, true, vg.Points(4)
	p.Legend.ThumbnailWidth, p.Legend.Padding = 18, 3
}

// y returns where the marks of a row are: the first row is on top.
func (d *dots) y(row int, offset float64) float64 { return float64(len(d.rows)-1-row) + offset }

// offset returns where within a row the marks of a series are.
func (d *dots) offset(i int) float64 {
	n := len(d.series)
	if n < 2 || i >= n {
		return 0
	}
	return spread * (0.5 - float64(i)/float64(n-1))
}

func (d *dots) addSeriesTo(p *plot.Plot, i int, s series) error {
	st := styles[i%len(styles)]
	var marks errorPoints
	for _, pt := range s.points {
		low := max(pt.Low, p.X.Min) // an interval down to zero goes on beyond the axis
		marks.XYs = append(marks.XYs, plotter.XY{X: pt.Value, Y: d.y(pt.row, d.offset(i))})
		marks.XErrors = append(marks.XErrors, struct{ Low, High float64 }{pt.Value - low, pt.High - pt.Value})
	}
	if len(marks.XYs) == 0 {
		return nil // all of it failed
	}
	bars, err := plotter.NewXErrorBars(marks)
	if err != nil {
		return fmt.Errorf("series %s: %w", s.name, err)
	}
	bars.Color, bars.Width, bars.CapWidth = st.color, 1.1, 5
	dots, err := plotter.NewScatter(marks.XYs)
	if err != nil {
		return fmt.Errorf("series %s: %w", s.name, err)
	}
	dots.GlyphStyle = draw.GlyphStyle{Color: st.color, Radius: 3.2, Shape: st.glyph}
	p.Add(bars, dots)
	p.Legend.Add(s.name, dots)
	return nil
}

type errorPoints struct {
	plotter.XYs
	plotter.XErrors
}

// limits returns the range of the axis, somewhat wider than the values.
func (d *dots) limits() (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	include := func(x float64) {
		if x > 0 {
			low, high = min(low, x), max(high, x)
		}
	}
	for _, s := range d.series {
		for _, pt := range s.points {
			include(pt.Low)
			include(pt.Value)
			include(pt.High)
		}
	}
	include(d.reference)
	for _, b := range d.bands {
		include(1 / b.factor)
		include(b.factor)
	}
	if low > high {
		low, high = 1, 1 // nothing but remarks
	}
	const margin, narrowest = 1.25, 2
	if high/low < narrowest {
		low, high = low/math.Sqrt2, high*math.Sqrt2
	}
	return low / margin, high * margin
}

// ticks labels as many round numbers as there is room for.
type ticks struct{}

// factors are the sets of numbers to label in each power of ten, the densest first.
var factors = [][]float64{{1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9}, {1, 1.5, 2, 3, 4, 5, 7}, {1, 2, 5}, {1, 3}, {1}}

const mostTicks = 7

// Ticks implements plot.Ticker.
func (ticks) Ticks(low, high float64) (all []plot.Tick) {
	if low <= 0 || high < low {
		return nil
	}
	for _, set := range factors {
		all = all[:0]
		for exponent := math.Floor(math.Log10(low)); exponent <= math.Ceil(math.Log10(high)); exponent++ {
			for _, factor := range set {
				if x := factor * math.Pow(10, exponent); x >= low && x <= high {
					all = append(all, plot.Tick{Value: x, Label: tickLabel(x)})
				}
			}
		}
		if len(all) <= mostTicks {
			break
		}
	}
	return all
}

func tickLabel(x float64) string {
	if x >= 1000 && x < 1e6 {
		return strconv.FormatFloat(x/1000, 'g', 3, 64) + "k"
	}
	return strconv.FormatFloat(x, 'g', 3, 64)
}

// band is a grey bar behind a mark.
type band struct{ y, half, low, high float64 }

// Plot implements plot.Plotter.
func (b band) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	left, right, bottom, top := x(b.low), x(b.high), y(b.y-b.half), y(b.y+b.half)
	c.FillPolygon(grey, []vg.Point{{X: left, Y: bottom}, {X: right, Y: bottom}, {X: right, Y: top}, {X: left, Y: top}})
}

// Thumbnail implements plot.Thumbnailer.
func (b band) Thumbnail(c *draw.Canvas) {
	c.FillPolygon(grey, []vg.Point{c.Min, {X: c.Max.X, Y: c.Min.Y}, c.Max, {X: c.Min.X, Y: c.Max.Y}})
}

// label is a word at the left end of a row.
type label struct {
	x, y float64
	text string
}

// Plot implements plot.Plotter.
func (r label) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	st := p.X.Tick.Label
	st.Color = color.RGBA{178, 24, 43, 255}
	st.XAlign, st.YAlign = draw.XLeft, draw.YCenter
	c.FillText(st, vg.Point{X: x(r.x) + 3, Y: y(r.y)}, r.text)
}

var (
	fixedSize  = regexp.MustCompile(`<svg width="[^"]*" height="[^"]*"`)
	typeface   = regexp.MustCompile(`font-family:[^;"]*`)
	xmlHeading = regexp.MustCompile(`(?s)^.*?<svg`)
)

// render draws p as an SVG that takes the width it is given, with fonts that are everywhere and measure the same.
func render(p *plot.Plot, width, height vg.Length) ([]byte, error) {
	canvas := vgsvg.New(width, height)
	p.Draw(draw.New(canvas))
	var buf bytes.Buffer
	if _, err := canvas.WriteTo(&buf); err != nil {
		return nil, err
	}
	svg := xmlHeading.ReplaceAll(buf.Bytes(), []byte("<svg"))
	svg = fixedSize.ReplaceAll(svg, []byte("<svg"))
	return typeface.ReplaceAll(svg, []byte("font-family:'Liberation Sans',Arial,Helvetica,sans-serif")), nil
}
