// Command vxlane is a VXLAN and flannel-UDP tunnel in user space, and every command to look into one.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
