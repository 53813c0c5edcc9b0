package report

import (
	"bytes"
	_ "embed"
	"html/template"
	"strings"
)

//go:embed report.html.tmpl
var htmlText string

var htmlTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"svg":   func(f Figure) template.HTML { return template.HTML(f.SVG) },                                                                    // made by this package
	"class": cellClass, "about": about, "command": command, "method": Method, "span": func(columns []string) int { return len(columns) - 1 }, // beside the row's label
}).Parse(htmlText))

// cellClass says how a cell stands out, by its last word; the word itself is there for those who do not see colours.
func cellClass(cell string) string {
	for _, word := range []string{"better", "worse", "failed"} {
		if strings.HasSuffix(strings.ToLower(cell), word) {
			return word
		}
	}
	return ""
}

// HTML writes the report as one page that needs nothing else.
func (rep *Report) HTML() ([]byte, error) {
	var b bytes.Buffer
	err := htmlTemplate.Execute(&b, map[string]any{"Report": rep, "R": rep.Results, "Missing": rep.missing(), "Caveat": VethCaveat})
	return b.Bytes(), err
}
