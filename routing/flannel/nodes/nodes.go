// Package nodes reads flannel's leases out of Kubernetes' nodes: whole lists of them, which flannel's own manager does not give
// (it sends single events, and never those of what changed before it began to watch).
package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Watcher tells of the leases that the nodes of a cluster carry. It implements flannel.Watcher.
type Watcher struct {
	Client kubernetes.Interface
	Prefix string      // of the annotations, as flanneld's --kube-annotation-prefix
	Own    lease.Lease // this node's, a part of every list even when its node is gone
	Log    *slog.Logger

	bad map[string]string // nodes that are managed and have no lease, and why
}

// Connect returns a client as flanneld would make it of --kube-api-url and --kubeconfig-file; with neither, that of a pod.
func Connect(apiURL, kubeconfig string) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags(apiURL, kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the Kubernetes API: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	return client, nil
}

// Annotate marks a node as managed by flannel when it has no annotation at all.
func Annotate(ctx context.Context, client kubernetes.Interface, name, prefix string) error {
	n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil || len(n.Annotations) > 0 {
		return err
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"true"}}}`, annotationPrefix(prefix)+"kube-subnet-manager")
	if _, err := client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("annotate node: %w", err)
	}
	return nil
}

// apart is how long changes are collected before the leases are read again.
const apart = 50 * time.Millisecond

// WatchLeases sends everyone's leases, first once the nodes are known, then whenever one of them changed, until ctx ends; then
// it closes receiver.
func (w *Watcher) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	defer close(receiver)
	changed := make(chan struct{}, 1)
	note := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: w.listWatch(), ObjectType: &corev1.Node{}, Transform: w.trim,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { note() }, UpdateFunc: func(old, now any) { noteChange(old, now, note) }, DeleteFunc: func(any) { note() },
		},
	})
	running, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); informer.RunWithContext(running) }()
	defer func() { cancel(); <-ended }()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return errors.Join(errors.New("list nodes"), ctx.Err())
	}
	for {
		select {
		case receiver <- []lease.LeaseWatchResult{{Snapshot: w.leases(store.List())}}:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-time.After(apart):
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-changed:
		default:
		}
	}
}

func (w *Watcher) listWatch() cache.ListerWatcher {
	nodes := w.Client.CoreV1().Nodes()
	return &cache.ListWatch{
		ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return nodes.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return nodes.Watch(ctx, o) },
	}
}

// noteChange calls note when something changed that leases are made of: kubelets change their nodes all the time.
func noteChange(old, now any, note func()) {
	a, ok1 := old.(*corev1.Node)
	b, ok2 := now.(*corev1.Node)
	if !ok1 || !ok2 || !maps.Equal(a.Annotations, b.Annotations) || a.Spec.PodCIDR != b.Spec.PodCIDR || !slices.Equal(a.Spec.PodCIDRs, b.Spec.PodCIDRs) {
		note()
	}
}

// trim leaves of a node what leases are made of: thousands of whole ones are hundreds of megabytes.
func (w *Watcher) trim(object any) (any, error) {
	n, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	annotations := maps.Clone(n.Annotations)
	maps.DeleteFunc(annotations, func(key, _ string) bool { return !strings.HasPrefix(key, annotationPrefix(w.Prefix)) })
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, ResourceVersion: n.ResourceVersion, Annotations: annotations},
		Spec:       corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
	}, nil
}

// leases returns the leases of all nodes. A node that should have one and has not is named, once, and left out.
func (w *Watcher) leases(objects []any) []lease.Lease {
	all := []lease.Lease{w.Own}
	bad := make(map[string]string)
	for _, object := range objects {
		n, ok := object.(*corev1.Node)
		if !ok {
			continue
		}
		l, ok, err := leaseOf(n, annotationPrefix(w.Prefix))
		if err != nil {
			bad[n.Name] = err.Error()
			if w.bad[n.Name] != bad[n.Name] {
				w.Log.Warn("a node has no lease that could be read and is left out", "node", n.Name, "reason", err)
			}
			continue
		}
		if ok && !sameSubnet(&l, &w.Own) {
			all = append(all, l)
		}
	}
	w.bad = bad
	return all
}

func sameSubnet(a, b *lease.Lease) bool {
	return !a.Subnet.Empty() && a.Subnet.Equal(b.Subnet) || !a.IPv6Subnet.Empty() && !b.IPv6Subnet.Empty() && a.IPv6Subnet.Equal(b.IPv6Subnet)
}

// annotationPrefix completes a prefix as flannel does (pkg/subnet/kube/annotations.go).
func annotationPrefix(p string) string {
	if !strings.Contains(p, "/") {
		p += "/"
	}
	if !strings.HasSuffix(p, "/") && !strings.HasSuffix(p, "-") {
		p += "-"
	}
	return p
}

// leaseOf reads the lease of one node (nodeToLease of pkg/subnet/kube/kube.go). ok is false for nodes that flannel does not
// manage. A family that a node has no subnet or no address of is left empty; flannel would refuse the whole node.
func leaseOf(n *corev1.Node, prefix string) (l lease.Lease, ok bool, err error) {
	a := func(key string) string { return n.Annotations[prefix+key] }
	if a("kube-subnet-manager") != "true" {
		return l, false, nil
	}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	if len(cidrs) > 2 {
		return l, false, fmt.Errorf("podCIDRs %s: want one of each family at most", strings.Join(cidrs, ", "))
	}
	l.Attrs.BackendType = a("backend-type")
	for _, text := range cidrs {
		_, cidr, err := net.ParseCIDR(text)
		switch {
		case err != nil:
			return l, false, fmt.Errorf("podCIDR: %w", err)
		case cidr.IP.To4() != nil && a("public-ip") != "":
			if l.Attrs.PublicIP, err = ip.ParseIP4(a("public-ip")); err != nil {
				return l, false, fmt.Errorf("annotation %spublic-ip: %q: %w", prefix, a("public-ip"), err)
			}
			l.EnableIPv4, l.Subnet, l.Attrs.BackendData = true, ip.FromIPNet(cidr), json.RawMessage(a("backend-data"))
		case cidr.IP.To4() == nil && a("public-ipv6") != "":
			if l.Attrs.PublicIPv6, err = ip.ParseIP6(a("public-ipv6")); err != nil {
				return l, false, fmt.Errorf("annotation %spublic-ipv6: %q: %w", prefix, a("public-ipv6"), err)
			}
			l.EnableIPv6, l.IPv6Subnet, l.Attrs.BackendV6Data = true, ip.FromIP6Net(cidr), json.RawMessage(a("backend-v6-data"))
		}
	}
	if !l.EnableIPv4 && !l.EnableIPv6 {
		return l, false, errors.New("flannel manages it, but it has no podCIDR with a public address of the same family")
	}
	return l, true, nil
}
