// Package cli has what the commands of this project have in common: exit codes, errors of usage, and how answers are
// printed.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// The exit codes; docs/cli.md tells users.
const (
	ExitOK         = 0
	ExitFailure    = 1
	ExitUsage      = 2 // wrong arguments or configuration
	ExitDegraded   = 3 // it runs, but not as it should
	ExitPermission = 4
	ExitKernel     = 5 // the kernel lacks something
)

// UsageError is a command line that cannot be right.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError as fmt.Errorf makes errors.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// IsUsage reports whether err comes from a wrong command line.
func IsUsage(err error) bool {
	var usage *UsageError
	return errors.As(err, &usage)
}

// NoArgs refuses arguments with an error that counts as usage.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return Usagef("unknown command %q for %q; see %s --help", args[0], cmd.CommandPath(), cmd.CommandPath())
	}
	return Usagef("unexpected argument %q; see %s --help", args[0], cmd.CommandPath())
}

// ExactArgs refuses any other number of arguments with an error that counts as usage; what names them.
func ExactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return Usagef("want %s; see %s --help", what, cmd.CommandPath())
		}
		return nil
	}
}

// PrintLine writes v in one line.
func PrintLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Prepare makes root, and what is below it, tell wrong flags as errors of usage, and leave the printing of errors to
// its caller.
func Prepare(root *cobra.Command) {
	root.SilenceUsage, root.SilenceErrors, root.Args = true, true, NoArgs
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Usagef("%w; see %s --help", err, cmd.CommandPath())
	})
	root.CompletionOptions.DisableDefaultCmd = true
}

// PrintJSON writes v as an indented document.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
