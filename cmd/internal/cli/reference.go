package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Reference writes the help of every command at and below cmd as Markdown.
func Reference(cmd *cobra.Command) string {
	var b strings.Builder
	describe(&b, cmd)
	return b.String()
}

func describe(b *strings.Builder, cmd *cobra.Command) {
	if !cmd.HasSubCommands() {
		text := cmd.Long
		if text == "" {
			text = strings.ToUpper(cmd.Short[:1]) + cmd.Short[1:] + "."
		}
		fmt.Fprintf(b, "\n## %s\n\n```\n%s\n\nUsage:\n  %s\n", cmd.CommandPath(), text, cmd.UseLine())
		if cmd.Example != "" {
			fmt.Fprintf(b, "\nExamples:\n%s\n", cmd.Example)
		}
		if flags := cmd.LocalFlags().FlagUsages(); flags != "" {
			fmt.Fprintf(b, "\nFlags:\n%s", flags)
		}
		b.WriteString("```\n")
	}
	for _, below := range cmd.Commands() {
		if below.IsAvailableCommand() {
			describe(b, below)
		}
	}
}
