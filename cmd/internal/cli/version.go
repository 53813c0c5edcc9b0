package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Set by the linker (make build); empty otherwise.
var buildVersion, buildCommit string

// Commit returns what this build was made from, with -dirty when files were changed since.
func Commit() string {
	if buildCommit != "" {
		return buildCommit
	}
	commit, dirty := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "-dirty"
			}
		}
	}
	return commit + dirty
}

// Version returns what this build calls itself.
func Version() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// NewVersion makes the command that shows which build of program this is.
func NewVersion(program string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "show which build this is", Args: NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return PrintJSON(cmd.OutOrStdout(), map[string]string{
					"schema": program + "/version/v1", "version": Version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s, %s/%s)\n", program, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	AddJSON(cmd, &asJSON)
	return cmd
}

// AddJSON adds the flag --json.
func AddJSON(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON")
}

const completionLong = `Print a script that completes the commands and flags of %[1]s.

  source <(%[1]s completion bash)
  %[1]s completion zsh > "${fpath[1]}/_%[1]s"
  %[1]s completion fish | source`

// NewCompletion makes the command that prints completion scripts for program.
func NewCompletion(program string) *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish|powershell", Short: "print a completion script for a shell", Long: fmt.Sprintf(completionLong, program),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return Usagef("which shell? say %s completion bash, zsh, fish or powershell", program)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, w := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(w, true)
			case "zsh":
				return root.GenZshCompletion(w)
			case "fish":
				return root.GenFishCompletion(w, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(w)
			}
			return Usagef("shell %q: want bash, zsh, fish or powershell", args[0])
		},
	}
}
