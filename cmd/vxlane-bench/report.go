package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/bench/report"
	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/cmd/internal/cli"
)

// writeReports writes the reports beside the results, and tells where they are.
func writeReports(w io.Writer, r *result.Results, dir string) error {
	if err := report.Write(r, dir); err != nil {
		return err
	}
	for _, name := range []string{result.FileName, report.MarkdownName, report.HTMLName} {
		fmt.Fprintln(w, filepath.Join(dir, name))
	}
	return nil
}

func newReport() *cobra.Command {
	return &cobra.Command{
		Use: "report DIR", Short: "draw the report of a run anew", Args: exactly(1, "DIR"),
		Long: "Draw report.md and report.html in DIR anew, from its results.json.",
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := os.Stat(args[0])
			if err == nil && !info.IsDir() {
				return cli.Usagef("%s is not a directory: want the one that run --out made", args[0])
			}
			r, err := result.Load(args[0])
			if err != nil {
				return err
			}
			return writeReports(cmd.OutOrStdout(), r, args[0])
		},
	}
}

// exactly asks for so many arguments, by their names.
func exactly(n int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return cli.Usagef("want %s %s, got %d arguments; see %s --help", cmd.CommandPath(), names, len(args), cmd.CommandPath())
		}
		return nil
	}
}
