//go:build netns

package main

import (
	"context"
	"time"

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

// peers returns what `vxlane peer list` would say of a node's tunnel: names and endpoints.
func (n *member) peers(device string) map[string]string {
	n.c.t.Helper()
	list := make(map[string]string)
	answer, err := n.tunnel(device).Peers(context.Background())
	n.c.must(err)
	for _, p := range answer.Peers {
		list[p.Name] = p.Endpoint
	}
	return list
}

// awaitPeer waits until a node's tunnel has a peer at an endpoint, or none of that name when endpoint is empty.
func (n *member) awaitPeer(device, name, endpoint string) {
	n.c.t.Helper()
	var last map[string]string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if last = n.peers(device); last[name] == endpoint {
			return
		}
	}
	n.c.t.Fatalf("peer %s of %s is at %q, want %q\n%s", name, n.host.Name(), last[name], endpoint, n.output())
}
