package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/cmd/internal/vtep"
	"github.com/vxlane/vxlane/routing/static"
)

// errDegraded makes status exit with its own code; it was printed already.
var errDegraded = errors.New("degraded")

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	for _, line := range errorLines(err) {
		fmt.Fprintf(stderr, "vxlane: %s\n", line)
	}
	return exitCode(err)
}

// errorLines returns what is to be told of err, without what was printed already.
func errorLines(err error) []string {
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	return slices.DeleteFunc(lines, func(line string) bool { return line == errDegraded.Error() })
}

// exitCode sorts an error into one of the codes that users can rely on.
func exitCode(err error) int {
	var (
		remote      *control.UsageError
		config      *static.Error
		unsupported *vtep.ConfigError
	)
	switch {
	case err == nil:
		return cli.ExitOK
	case cli.IsUsage(err), errors.As(err, &remote), errors.As(err, &config), errors.As(err, &unsupported):
		return cli.ExitUsage
	case errors.Is(err, vtep.ErrKernel), errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EOPNOTSUPP):
		return cli.ExitKernel
	case errors.Is(err, fs.ErrPermission):
		return cli.ExitPermission
	}
	if onlyDegraded(err) {
		return cli.ExitDegraded
	}
	return cli.ExitFailure
}

// onlyDegraded reports whether nothing is wrong but that a tunnel is degraded.
func onlyDegraded(err error) bool { return len(errorLines(err)) == 0 }

const rootLong = `vxlane moves packets between hosts in user space, over VXLAN (UDP 8472) or flannel's UDP framing (UDP 8285).
It speaks to the kernel's vxlan device, and to itself.

Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 degraded, 4 no permission, 5 the kernel lacks something.`

func newRoot() *cobra.Command {
	root := &cobra.Command{Use: "vxlane", Short: "a VXLAN and flannel-UDP tunnel in user space", Long: rootLong}
	cli.Prepare(root)
	root.AddCommand(
		newUp(), newStatus(), newPeer(), newFDB(), newStats(), newTrace(), newReload(), newConfig(), newDemo(), cli.NewCompletion("vxlane"), cli.NewVersion("vxlane"),
	)
	return root
}

// group makes a command that only has others below it.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cli.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return cli.Usagef("%s needs a command; see %s --help", cmd.CommandPath(), cmd.CommandPath())
	}}
	cmd.AddCommand(below...)
	return cmd
}

// target is the part of a command line that says which running tunnel is meant.
type target struct {
	socket, device string
}

func (t *target) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.socket, "socket", "", "control socket of the tunnel (default: the one in "+control.Dir+" for this network namespace)")
	cmd.Flags().StringVar(&t.device, "device", "", "device of the tunnel, where several run")
}

// clients returns a client for each tunnel that is meant.
func (t *target) clients() ([]*control.Client, error) {
	if t.socket != "" {
		if t.device != "" {
			return nil, cli.Usagef("--socket and --device exclude each other")
		}
		return []*control.Client{control.NewClient(t.socket)}, nil
	}
	paths, err := control.Find(t.device)
	if err != nil {
		return nil, err
	}
	clients := make([]*control.Client, len(paths))
	for i, p := range paths {
		clients[i] = control.NewClient(p)
	}
	return clients, nil
}

// client returns the client for the one tunnel that is meant.
func (t *target) client() (*control.Client, error) {
	clients, err := t.clients()
	if err != nil {
		return nil, err
	}
	if len(clients) > 1 {
		return nil, cli.Usagef("%d tunnels run here: say which with --device or --socket", len(clients))
	}
	return clients[0], nil
}

// printAnswers prints one answer as it is, and several as one list.
func printAnswers[T any](w io.Writer, answers []T) error {
	if len(answers) == 1 {
		return cli.PrintJSON(w, answers[0])
	}
	return cli.PrintJSON(w, struct {
		Schema  string `json:"schema"`
		Answers []T    `json:"answers"`
	}{control.SchemaList, answers})
}
