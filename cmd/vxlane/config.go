package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/routing/static"
)

func newConfig() *cobra.Command {
	return group("config", "check or show a configuration file", newConfigCheck(), newConfigShow())
}

func newConfigCheck() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check [FILE]", Short: "say whether a configuration file is right, and what is wrong with it", Args: optionalFile(&file),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(file)
			if err != nil {
				return err
			}
			peers := 0
			for _, t := range c.Tunnels {
				peers += len(t.Peers)
			}
			if asJSON {
				return cli.PrintJSON(cmd.OutOrStdout(), struct {
					Schema  string `json:"schema"`
					File    string `json:"file"`
					OK      bool   `json:"ok"`
					Tunnels int    `json:"tunnels"`
					Peers   int    `json:"peers"`
				}{"vxlane/config-check/v1", file, true, len(c.Tunnels), peers})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok: %s, %s\n", file, count(len(c.Tunnels), "tunnel"), count(peers, "peer"))
			return err
		},
	}
	addConfigFlag(cmd, &file)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

func newConfigShow() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show [FILE]", Short: "show a configuration with all defaults filled in", Args: optionalFile(&file),
		Long: "Show a configuration with all defaults filled in. What depends on the running system is shown by vxlane status.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(file)
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(cmd.OutOrStdout(), struct {
					Schema string `json:"schema"`
					*static.Config
				}{"vxlane/config/v1", c})
			}
			enc := yaml.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent(2)
			if err := enc.Encode(c); err != nil {
				return err
			}
			return enc.Close()
		},
	}
	addConfigFlag(cmd, &file)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

func addConfigFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", static.DefaultPath, "configuration `FILE`")
}

// optionalFile takes the file as an argument, too.
func optionalFile(file *string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return nil
		case len(args) > 1:
			return cli.Usagef("unexpected argument %q; see %s --help", args[1], cmd.CommandPath())
		case cmd.Flags().Changed("config"):
			return cli.Usagef("the file is given twice: %s and %s", *file, args[0])
		}
		*file = args[0]
		return nil
	}
}
