package report

import (
	"bytes"
	"fmt"
	"strings"
)

// Markdown writes the report as Markdown; its figures are files in figures/.
func (rep *Report) Markdown() []byte {
	var b bytes.Buffer
	r := rep.Results
	fmt.Fprintf(&b, "# %s\n\n", rep.Title())
	for _, line := range rep.Lead() {
		fmt.Fprintf(&b, "%s\n\n", escape(line))
	}
	rep.markdownMissing(&b)
	for _, s := range rep.Sections {
		fmt.Fprintf(&b, "## Profile %s: ratios\n\n**%[1]s**: %s; MTU %d. Stands for %s\n\n", s.Profile.Name, s.Profile.Summary, s.Profile.MTU, s.Profile.StandsFor)
		markdownTable(&b, s.Summary)
		if len(s.Further.Rows) > 0 {
			fmt.Fprintf(&b, "%s:\n\n", s.Further.Title)
			s.Further.Note = ""
			markdownTable(&b, s.Further)
		}
	}
	markdownFigures(&b, rep.Ratios)
	for _, s := range rep.Sections {
		fmt.Fprintf(&b, "## Profile %s: absolute values\n\n%s\n\n", s.Profile.Name, VethCaveat)
		markdownFigures(&b, s.Figures)
		for _, t := range s.Details {
			fmt.Fprintf(&b, "### %s, %s\n\n", t.Title, s.Profile.Name)
			markdownTable(&b, t)
		}
	}
	if len(rep.Notes) > 0 {
		b.WriteString("## Notes\n\n")
		for _, n := range rep.Notes {
			fmt.Fprintf(&b, "- %s: %s (%d samples)\n", escape(n.Cell.String()), escape(n.Text), n.Count)
		}
		b.WriteString("\n")
	}
	b.WriteString("## How to read this\n\n")
	for _, m := range Method(r) {
		fmt.Fprintf(&b, "- %s\n", m)
	}
	fmt.Fprintf(&b, "\n## Where it comes from\n\n    %s\n\n", strings.ReplaceAll(command(r), "\n", "\n    "))
	fmt.Fprintf(&b, "Commit %s, %s; raw samples in `results.json`. Systems:\n\n", r.Host.Commit, r.Host.Go)
	for _, s := range r.Systems {
		fmt.Fprintf(&b, "- %s\n", escape(strings.TrimSuffix(fmt.Sprintf("%s: %s; %s", s.Name, s.Summary, about(s)), "; ")))
	}
	return b.Bytes()
}

func (rep *Report) markdownMissing(b *bytes.Buffer) {
	for _, s := range rep.missing() {
		fmt.Fprintf(b, "- **%s could not run here**: %s\n", escape(s.Name), escape(s.Missing))
	}
	if len(rep.missing()) > 0 {
		b.WriteString("\n")
	}
}

func markdownFigures(b *bytes.Buffer, figures []Figure) {
	for _, f := range figures {
		fmt.Fprintf(b, "![%s](%s/%s.svg)\n\n*%s*\n\n", f.Title, figureDir, f.Name, f.Caption)
	}
}

func markdownTable(b *bytes.Buffer, t Table) {
	if t.Note != "" {
		fmt.Fprintf(b, "%s\n\n", t.Note)
	}
	row := func(cells []string) {
		for _, c := range cells {
			fmt.Fprintf(b, "| %s ", c)
		}
		b.WriteString("|\n")
	}
	row(escapeAll(t.Columns))
	b.WriteString(strings.Repeat("|---", len(t.Columns)) + "|\n")
	for _, r := range t.Rows {
		if len(r.Cells) > 0 {
			row(escapeAll(append([]string{r.Label}, r.Cells...)))
		}
		if r.Failed != "" {
			row([]string{escape(r.Label), "**" + escape(r.Failed) + "**"})
		}
	}
	b.WriteString("\n")
}

var markdownEscapes = strings.NewReplacer(
	`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "<", "&lt;", ">", "&gt;", "&", "&amp;", "|", `\|`, "\r", " ", "\n", " ",
)

// escape makes text that comes from elsewhere mean itself in Markdown, on one line.
func escape(text string) string { return markdownEscapes.Replace(text) }

func escapeAll(texts []string) []string {
	escaped := make([]string, len(texts))
	for i, t := range texts {
		escaped[i] = escape(t)
	}
	return escaped
}
