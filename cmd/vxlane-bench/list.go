package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/system"
	"github.com/vxlane/vxlane/bench/workload"
	"github.com/vxlane/vxlane/cmd/internal/cli"
)

// entry is a name that can be chosen.
type entry struct {
	Name    string `json:"name"`
	Summary string `json:"summary"`
	Missing string `json:"missing,omitempty"` // why it cannot run with this program
}

func newList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "list systems, workloads and profiles", Args: cli.NoArgs,
		Long: "List the names that run takes, with a line each. Whether a system can run here is found out by vxlane-bench run, which tries.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			systems, workloads, profiles := entries()
			if asJSON {
				return cli.PrintJSON(cmd.OutOrStdout(), map[string]any{
					"schema": "vxlane-bench/list/v1", "systems": systems, "workloads": workloads, "profiles": profiles,
				})
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, part := range []struct {
				title   string
				entries []entry
			}{{"systems (--system)", systems}, {"\nworkloads (--workload)", workloads}, {"\nprofiles of the underlay's NICs (--profile)", profiles}} {
				fmt.Fprintln(w, part.title)
				for _, e := range part.entries {
					if e.Missing != "" {
						e.Summary += "; cannot run: " + e.Missing
					}
					fmt.Fprintf(w, "  %s\t%s\n", e.Name, e.Summary)
				}
			}
			return w.Flush()
		},
	}
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

func entries() (systems, workloads, profiles []entry) {
	tools, _ := system.FindTools("") // without a name there is no error
	for _, s := range system.All(tools) {
		e := entry{Name: s.Name, Summary: s.Summary}
		if s.Missing != nil {
			e.Missing = s.Missing.Error()
		}
		systems = append(systems, e)
	}
	systems = append(systems, entry{Name: system.ExecPrefix + "…", Summary: "any other tunnel that two commands can start; see vxlane-bench run --help"})
	for _, w := range workload.All() {
		workloads = append(workloads, entry{Name: w.Name, Summary: w.Summary})
	}
	for _, p := range network.Profiles() {
		profiles = append(profiles, entry{Name: p.Name, Summary: fmt.Sprintf("%s; MTU %d", p.Summary, p.MTU)})
	}
	return systems, workloads, profiles
}
