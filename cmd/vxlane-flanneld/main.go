// Command vxlane-flanneld stands where flanneld stood: the same flags, files, leases and wire; the udp backend is vxlane's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/vxlane/vxlane/cmd/internal/cli"
)

func main() { os.Exit(run(os.Args, os.LookupEnv, os.Stderr)) }

// run is flanneld's life from flags to exit code: 0 after a signal or a lost lease, 1 when it cannot start or go on, 2 for
// flags that nobody knows. As flanneld, it writes everything to stderr.
func run(args []string, env func(string) (string, bool), stderr io.Writer) int {
	if len(args) > 1 && args[1] == "cleanup" {
		return exitCode(cleanup(), stderr)
	}
	o, err := parse(args, env, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2 // the flag package has said why
	case o.version:
		fmt.Fprintln(stderr, cli.Version())
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	return exitCode(serve(ctx, o, slog.New(slog.NewTextHandler(stderr, nil))), stderr)
}

func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "vxlane-flanneld: %v\n", err)
	return 1
}
