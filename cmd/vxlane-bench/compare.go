package main

import (
	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/bench/report"
	"github.com/vxlane/vxlane/bench/result"
)

const compareLong = `Say what changed beyond noise from one run to another; OLD and NEW are directories of runs, or their results.json.

A change counts when it lies outside of its interval (wider than in a report, since many are compared), outside of what either run
shows for the same system against itself (A/A), and, where both runs have the baseline, when it is there beside the baseline as
well: what changed for both is the machine. The exit code is 3 when something got slower or fails now.`

func newCompare() *cobra.Command {
	return &cobra.Command{
		Use: "compare OLD NEW", Short: "say what changed between two runs", Long: compareLong, Args: exactly(2, "OLD NEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			before, err := result.Load(args[0])
			if err != nil {
				return err
			}
			after, err := result.Load(args[1])
			if err != nil {
				return err
			}
			d := report.Compare(before, after)
			if err := d.Print(cmd.OutOrStdout()); err != nil {
				return err
			}
			if d.Slower() {
				return errSlower
			}
			return nil
		},
	}
}
