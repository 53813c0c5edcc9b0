//go:build netns

package main

import (
	"context"

	"github.com/vxlane/vxlane/cmd/internal/control"
)

// tunnel is the control socket of a node's tunnel, the one that `vxlane status` and the other commands find.
func (n *member) tunnel(device string) *control.Client {
	n.c.t.Helper()
	var path string
	n.c.must(n.host.Run(func() (err error) { path, err = control.SocketPath(device); return err }))
	return control.NewClient(path)
}

func (n *member) stats(device string) control.Stats {
	n.c.t.Helper()
	s, err := n.tunnel(device).Stats(context.Background())
	n.c.must(err)
	return s
}

func (n *member) status(device string) control.Status {
	n.c.t.Helper()
	s, err := n.tunnel(device).Status(context.Background())
	n.c.must(err)
	return s
}
