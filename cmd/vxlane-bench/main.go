// Command vxlane-bench measures tunnels side by side on one machine and draws the result.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
