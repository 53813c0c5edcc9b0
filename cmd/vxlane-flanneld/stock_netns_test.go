//go:build netns && flannel && cgo && amd64

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"

	"github.com/flannel-io/flannel/pkg/backend/udp"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
)

// stockCommand is flannel's own udp backend, with its C proxy and its etcd manager, for as much of flanneld as a peer sees.
const stockCommand = "stock-flannel-udp"

func init() {
	stockProgram = stockCommand
	extra[stockCommand] = func() {
		if err := runStock(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func runStock() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	o, err := parse(os.Args, os.LookupEnv, os.Stderr)
	if err != nil {
		return err
	}
	before := readSubnetFile(o.subnetFile)
	sm, err := etcd.NewLocalManager(ctx, &etcd.EtcdConfig{Endpoints: []string{o.etcdEndpoints}, Prefix: o.etcdPrefix}, before.subnet, before.subnet6, o.subnetLeaseRenewMargin)
	if err != nil {
		return err
	}
	config, err := sm.GetNetworkConfig(ctx)
	for err != nil {
		config, err = sm.GetNetworkConfig(ctx)
	}
	external, err := externalInterface(o, config)
	if err != nil {
		return err
	}
	be, err := udp.New(sm, external)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	nw, err := be.RegisterNetwork(ctx, &wg, config)
	if err != nil {
		return err
	}
	if err := sm.HandleSubnetFile(o.subnetFile, config, false, nw.Lease().Subnet, nw.Lease().IPv6Subnet, nw.MTU()); err != nil {
		return err
	}
	nw.Run(ctx)
	return nil
}

// A node of ours and one of flannel's own, in both orders of their coming, talk in both directions; each may restart.
func TestMixedCluster(t *testing.T) {
	for _, oursFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("ours first %v", oursFirst), func(t *testing.T) {
			c := newCluster(t, udpNetwork16)
			if oursFirst {
				c.a.start("vxlane-flanneld")
				c.b.start(stockCommand)
			} else {
				c.b.start(stockCommand)
				c.a.start("vxlane-flanneld")
			}
			c.both()
			if err := c.b.command.Stop(); err != nil {
				t.Error(err)
			}
			c.b.start(stockCommand)
			c.both()
			if err := c.a.command.Stop(); err != nil {
				t.Error(err)
			}
			c.a.start("vxlane-flanneld")
			c.both()
			// Node by node: flannel's own makes room for ours.
			if err := c.b.command.Stop(); err != nil {
				t.Error(err)
			}
			c.b.start("vxlane-flanneld")
			c.both()
			// And back.
			if err := c.b.command.Stop(); err != nil {
				t.Error(err)
			}
			if out := c.b.run("vxlane-flanneld", "cleanup"); out != "" {
				t.Errorf("cleanup: %s", out)
			}
			c.b.start(stockCommand)
			c.both()
		})
	}
}
