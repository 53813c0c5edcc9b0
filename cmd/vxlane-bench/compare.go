package main

import (
	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/bench/report"
	"github.com/vxlane/vxlane/bench/result"
	"github.com/vxlane/vxlane/cmd/internal/cli"
)

const compareLong = `Say what changed beyond noise from one run to another; OLD and NEW are directories of runs, or their results.json.

Systems are judged beside the baseline, kernel-vxlan, of their run: what changed for both is the machine. A change counts when 1 is
outside of its interval (wider than in a report, since many are compared) and it is larger than what either run shows for the
baseline against itself (A/A). Four samples against four are completely apart by chance now and then: for a gate, take --repeat 4 or
more. The exit code is 3 when something got slower, the baseline included, or fails now.`

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
			d, err := report.Compare(before, after)
			if err != nil {
				return &cli.UsageError{Err: err}
			}
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
