//go:build !(flannel && cgo && amd64)

package system

import (
	"context"

	"github.com/vxlane/vxlane/bench/network"
)

var flannelMissing = errNoFlannel

func startFlannel(*network.Network) (*Instance, error) { return nil, flannelMissing }

// RunFlannelPeer runs one end of flannel's udp backend.
func RunFlannelPeer(context.Context, []string) error { return errNoFlannel }
