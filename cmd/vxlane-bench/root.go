package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/bench/system"
	"github.com/vxlane/vxlane/cmd/internal/cli"
)

const rootLong = `vxlane-bench answers: how does this tunnel compare with the kernel's vxlan, here, now?
It builds two hosts on this machine (network namespaces), runs each tunnel between them under the same traffic, in turn,
and writes raw samples, a report in Markdown and one in HTML with plots.

Exit codes: 0 ok, 1 failure, 2 usage, 3 something failed or got slower (run: a measurement failed or a system that was named
cannot run; compare: something got slower), 4 no permission, 5 the kernel lacks something.`

// errPartial makes run exit with cli.ExitDegraded; what is wrong was printed already.
var errPartial = errors.New("not everything could be measured")

// errSlower makes compare exit with cli.ExitDegraded.
var errSlower = errors.New("something got slower")

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(stderr, "vxlane-bench: %s\n", line)
		}
	}
	return exitCode(err)
}

func exitCode(err error) int {
	switch {
	case err == nil:
		return cli.ExitOK
	case cli.IsUsage(err):
		return cli.ExitUsage
	case errors.Is(err, errPartial), errors.Is(err, errSlower):
		return cli.ExitDegraded
	case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EOPNOTSUPP):
		return cli.ExitKernel
	case errors.Is(err, fs.ErrPermission):
		return cli.ExitPermission
	}
	return cli.ExitFailure
}

func newRoot() *cobra.Command {
	root := &cobra.Command{Use: "vxlane-bench", Short: "tunnels measured side by side", Long: rootLong}
	cli.Prepare(root)
	root.AddCommand(newRun(), newList(), newCompare(), newReport(), newFlannelPeer(), cli.NewCompletion("vxlane-bench"), cli.NewVersion("vxlane-bench"))
	return root
}

// newFlannelPeer is what the system flannel-udp starts on each host.
func newFlannelPeer() *cobra.Command {
	return &cobra.Command{
		Use: system.FlannelPeerCommand, Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error { return system.RunFlannelPeer(cmd.Context(), args) },
	}
}
