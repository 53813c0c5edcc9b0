package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/alloc"
	_ "github.com/flannel-io/flannel/pkg/backend/extension"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/ipip"
	_ "github.com/flannel-io/flannel/pkg/backend/ipsec"
	_ "github.com/flannel-io/flannel/pkg/backend/wireguard"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/vxlane/vxlane/routing/flannel/nodes"
)

// node is the daemon on its way from flags to a network.
type node struct {
	o      *options
	log    *slog.Logger
	before previous
	health health

	manager subnet.Manager
	config  *subnet.Config
	network backend.Network

	parts    sync.WaitGroup
	theirs   sync.WaitGroup     // parts that flannel's backends start, which may never end (subnet.WatchLeases when its first read fails)
	cancel   context.CancelFunc // of everything
	failures chan error         // the first of a part
}

// serve runs until ctx ends or something fails, in flanneld's order (main.go of flannel v0.28.9).
func serve(ctx context.Context, o *options, log *slog.Logger) error {
	if o.subnetLeaseRenewMargin >= 24*60 || o.subnetLeaseRenewMargin <= 0 {
		return fmt.Errorf("--subnet-lease-renew-margin %d: want 1 to 1439 minutes", o.subnetLeaseRenewMargin)
	}
	n := &node{o: o, log: log, before: readSubnetFile(o.subnetFile), failures: make(chan error, 1)}
	running, cancel := context.WithCancel(ctx)
	n.cancel = cancel
	err := n.run(running)
	cancel()
	n.parts.Wait()
	ended := make(chan struct{})
	go func() { n.theirs.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(theirGrace):
	}
	select {
	case failure := <-n.failures:
		return failure
	default:
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // told to stop while it was starting
	}
	return err
}

// theirGrace is how long flannel's parts may take to end.
const theirGrace = time.Second

// spawn runs a part of the daemon; its failure ends all.
func (n *node) spawn(part func() error) {
	n.parts.Go(func() {
		if err := part(); err != nil {
			n.fail(err)
		}
	})
}

// fail ends the daemon with an error.
func (n *node) fail(err error) {
	select {
	case n.failures <- err:
	default:
	}
	n.cancel()
}

func (n *node) run(ctx context.Context) error {
	if err := n.openManager(ctx); err != nil {
		return err
	}
	l, err := n.health.listen(n.o.healthzIP, n.o.healthzPort)
	if err != nil {
		return err
	}
	if l != nil {
		n.spawn(func() error { return n.health.serve(ctx, l) })
	}
	if err := n.fetchConfig(ctx); err != nil {
		return err
	}
	if err := checkBridgeFilter(n.config); err != nil {
		return err
	}
	if err := n.openNetwork(ctx); err != nil {
		return err
	}
	if err := n.setRules(ctx); err != nil {
		return err
	}
	metrics, err := listenMetrics(n.o.metrics)
	if err != nil {
		return err
	}
	if metrics != nil {
		n.spawn(func() error { return n.serveMetrics(ctx, metrics) })
	}
	n.announce()
	n.spawn(func() error { n.network.Run(ctx); return nil })
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	return n.keepLease(ctx)
}

// keepLease renews the lease until ctx ends, or until it is taken away, which ends the daemon with exit code 0, as flanneld. What
// flannel's manager gives up over is begun again: a lease that nobody renews costs this node its peers a day later. At the end it is left
// behind untold: told so while it starts, it panics (pkg/subnet/subnet.go, WatchLease sends on a channel that it has closed) or goes on (pkg/subnet/etcd/registry.go).
func (n *node) keepLease(ctx context.Context) error {
	untold := context.WithoutCancel(ctx)
	for {
		ended := make(chan error, 1)
		go func() { ended <- n.manager.CompleteLease(untold, n.network.Lease(), new(sync.WaitGroup)) }()
		var err error
		select {
		case <-ctx.Done():
			return nil
		case err = <-ended:
		}
		switch {
		case err == nil: // Kubernetes: nothing to renew
			<-ctx.Done()
			return nil
		case strings.EqualFold(err.Error(), "interrupted"): // what flannel's etcd manager calls a lease that is gone
			klog.Info("Lease has been revoked. Shutting down daemon.")
			return nil
		}
		klog.Errorf("keep the lease, trying again: %v", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// openManager connects to where the leases are.
func (n *node) openManager(ctx context.Context) (err error) {
	o := n.o
	if o.kubeSubnetMgr {
		if err := n.prepareNode(ctx); err != nil {
			return err
		}
		n.manager, err = kube.NewSubnetManager(ctx, o.kubeAPIURL, o.kubeConfigFile, o.kubeAnnotationPrefix, o.netConfPath, o.setNodeNetworkUnavailable)
		if err != nil && n.manager != nil && errors.Is(err, context.DeadlineExceeded) && os.Getenv("CONT_WHEN_CACHE_NOT_READY") == "true" {
			klog.Error("the list of nodes did not come in time; going on without it (CONT_WHEN_CACHE_NOT_READY)")
			return nil
		}
	} else {
		n.manager, err = etcd.NewLocalManager(ctx, o.etcdConfig(), n.before.subnet, n.before.subnet6, o.subnetLeaseRenewMargin)
	}
	if err != nil {
		return fmt.Errorf("create subnet manager: %w", err)
	}
	klog.Infof("Created subnet manager: %s", n.manager.Name())
	return nil
}

// prepareNode gives this node an annotation when it has none: flannel's manager would write into a map that is not there
// (flannel-io/flannel#818). What cannot be asked here is left to that manager to say.
func (n *node) prepareNode(ctx context.Context) error {
	name := os.Getenv("NODE_NAME")
	client, err := nodes.Connect(n.o.kubeAPIURL, n.o.kubeConfigFile)
	if err != nil {
		return err
	}
	if name == "" {
		pod, err := client.CoreV1().Pods(os.Getenv("POD_NAMESPACE")).Get(ctx, os.Getenv("POD_NAME"), metav1.GetOptions{})
		if err != nil {
			return nil
		}
		name = pod.Spec.NodeName
	}
	if err := nodes.Annotate(ctx, client, name, n.o.kubeAnnotationPrefix); err != nil {
		klog.Warningf("node %s: %v", name, err)
	}
	return nil
}

// fetchConfig asks for the network's configuration until there is one.
func (n *node) fetchConfig(ctx context.Context) error {
	for {
		config, err := n.manager.GetNetworkConfig(ctx)
		switch {
		case err != nil:
			klog.Errorf("Couldn't fetch network config: %s", err)
		case config == nil:
			klog.Warning("Couldn't find network config")
		default:
			klog.Infof("Found network config - Backend type: %s", config.BackendType)
			n.config = config
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Canceled
		case <-time.After(time.Second):
		}
	}
}

// checkBridgeFilter makes sure that bridged packets meet iptables' rules, without which kube-proxy does not work.
func checkBridgeFilter(config *subnet.Config) error {
	if config.EnableNFTables {
		return nil
	}
	for path, wanted := range map[string]bool{
		"/proc/sys/net/bridge/bridge-nf-call-iptables":  config.EnableIPv4,
		"/proc/sys/net/bridge/bridge-nf-call-ip6tables": config.EnableIPv6,
	} {
		if !wanted {
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("check br_netfilter: %w: modprobe br_netfilter", err)
		}
	}
	return nil
}

// openNetwork takes a lease and makes the backend's network.
func (n *node) openNetwork(ctx context.Context) error {
	v4, v6 := n.manager.GetStoredPublicIP(ctx)
	if v4 != "" {
		n.o.publicIP = v4
	}
	if v6 != "" {
		n.o.publicIPv6 = v6
	}
	external, err := externalInterface(n.o, n.config)
	if err != nil {
		return err
	}
	switch n.config.BackendType {
	case "alivpc", "tencentvpc":
		return fmt.Errorf("backend %s: vxlane-flanneld leaves the cloud providers' backends out: run flanneld itself, or choose another Backend.Type", n.config.BackendType)
	}
	backend.Register("udp", n.newUDPBackend)
	backend.Register(vxlanType, n.newVXLANBackend)
	be, err := backend.NewManager(ctx, n.manager, external).GetBackend(n.config.BackendType)
	if err != nil {
		return fmt.Errorf("choose backend: %w", err)
	}
	if n.network, err = be.RegisterNetwork(ctx, &n.theirs, n.config); err != nil {
		return fmt.Errorf("register network with backend %s: %w", n.config.BackendType, err)
	}
	return nil
}

// setRules makes masquerade and forward rules, after those of the other kind were removed.
func (n *node) setRules(ctx context.Context) error {
	if err := trafficManager(!n.config.EnableNFTables).CleanUp(ctx); err != nil {
		return fmt.Errorf("remove rules of the other kind: %w", err)
	}
	rules := trafficManager(n.config.EnableNFTables)
	if err := rules.Init(ctx); err != nil {
		return fmt.Errorf("prepare rules: %w", err)
	}
	if n.o.ipMasq {
		b := n.before
		err := rules.SetupAndEnsureMasqRules(ctx, n.config.Network, b.subnet, b.network, n.config.IPv6Network, b.subnet6, b.network6,
			n.network.Lease(), n.o.iptablesResyncSeconds, n.o.ipMasqRandomFullyDisable)
		if err != nil {
			return fmt.Errorf("set up masquerade rules: %w", err)
		}
	}
	if n.o.iptablesForwardRules {
		rules.SetupAndEnsureForwardRules(ctx, n.config.Network, n.config.IPv6Network, n.o.iptablesResyncSeconds)
	}
	if n.o.blackholeRoute {
		go n.keepBlackhole(ctx)
	}
	return nil
}

func trafficManager(nft bool) trafficmngr.TrafficManager {
	if nft {
		return &nftables.NFTablesManager{}
	}
	return &iptables.IPTablesManager{}
}

// keepBlackhole puts back the routes that drop what is for addresses of this node's subnets that nobody has.
func (n *node) keepBlackhole(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(n.o.iptablesResyncSeconds) * time.Second):
		}
		if n.config.EnableIPv4 {
			if err := ip.AddBlackholeV4Route(n.network.Lease().Subnet.ToIPNet()); err != nil {
				klog.Errorf("Failed to setup blackhole route, %v", err)
			}
		}
		if n.config.EnableIPv6 {
			if err := ip.AddBlackholeV6Route(n.network.Lease().IPv6Subnet.ToIPNet()); err != nil {
				klog.Errorf("Failed to setup blackhole route, %v", err)
			}
		}
	}
}

// announce writes the subnet file, which the CNI plugin reads; the daemon is ready once it is there.
func (n *node) announce() {
	l := n.network.Lease()
	if err := n.manager.HandleSubnetFile(n.o.subnetFile, n.config, n.o.ipMasq, l.Subnet, l.IPv6Subnet, n.network.MTU()); err != nil {
		klog.Warningf("Failed to write subnet file: %s", err)
		return
	}
	klog.Infof("Wrote subnet file to %s", n.o.subnetFile)
	n.health.ready.Store(true)
}
