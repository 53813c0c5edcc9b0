package nodes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannel-io/flannel/pkg/lease"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/vxlane/vxlane/routing/flannel/nodes/nodestest"
)

const prefix = "flannel.alpha.coreos.com"

func node(name string, cidrs []string, annotations ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	if len(cidrs) > 0 {
		n.Spec.PodCIDR = cidrs[0]
	}
	for i := 0; i < len(annotations); i += 2 {
		n.Annotations[prefix+"/"+annotations[i]] = annotations[i+1]
	}
	return n
}

func managed(name, cidr, public string) *corev1.Node {
	return node(name, []string{cidr}, "kube-subnet-manager", "true", "public-ip", public, "backend-type", "", "backend-data", "null")
}

func text(l *lease.Lease) string {
	s := l.Attrs.BackendType
	if l.EnableIPv4 {
		s += fmt.Sprintf(" %s@%s %s", l.Subnet, l.Attrs.PublicIP, l.Attrs.BackendData)
	}
	if l.EnableIPv6 {
		s += fmt.Sprintf(" %s@%s %s", l.IPv6Subnet, l.Attrs.PublicIPv6, l.Attrs.BackendV6Data)
	}
	return s
}

func TestLeaseOf(t *testing.T) {
	v4, v6 := "10.10.2.0/24", "fd10:0:0:2::/64"
	for _, c := range []struct {
		name string
		n    *corev1.Node
		want string // empty: none
		fail string
	}{
		{"without annotations", &corev1.Node{}, "", ""},
		{"not managed", node("b", []string{v4}, "public-ip", "172.30.0.2"), "", ""},
		{"udp", managed("b", v4, "172.30.0.2"), " 10.10.2.0/24@172.30.0.2 null", ""},
		{"old podCIDR alone", &corev1.Node{ObjectMeta: managed("b", v4, "172.30.0.2").ObjectMeta, Spec: corev1.NodeSpec{PodCIDR: v4}}, " 10.10.2.0/24@172.30.0.2 null", ""},
		{"both families", node("b", []string{v6, v4}, "kube-subnet-manager", "true", "backend-type", "vxlan", "public-ip", "172.30.0.2", "backend-data", "4", "public-ipv6", "fd30::2", "backend-v6-data", "6"),
			"vxlan 10.10.2.0/24@172.30.0.2 4 fd10:0:0:2::/64@fd30::2 6", ""},
		{"a family without an address", node("b", []string{v4, v6}, "kube-subnet-manager", "true", "public-ip", "172.30.0.2"), " 10.10.2.0/24@172.30.0.2 ", ""},
		{"no subnet yet", node("b", nil, "kube-subnet-manager", "true", "public-ip", "172.30.0.2"), "", "no podCIDR"},
		{"no address yet", node("b", []string{v4}, "kube-subnet-manager", "true"), "", "no podCIDR with a public address"},
		{"bad address", managed("b", v4, "here"), "", `public-ip: "here"`},
		{"bad subnet", managed("b", "10.10.2.0", "172.30.0.2"), "", "podCIDR"},
		{"too many subnets", node("b", []string{v4, v4, v4}, "kube-subnet-manager", "true", "public-ip", "172.30.0.2"), "", "one of each family"},
	} {
		l, ok, err := leaseOf(c.n, annotationPrefix(prefix))
		if ok != (c.want != "") || ok && text(&l) != c.want || (err != nil) != (c.fail != "") || err != nil && !strings.Contains(err.Error(), c.fail) {
			t.Errorf("%s: %q, %v, %v; want %q, %q", c.name, text(&l), ok, err, c.want, c.fail)
		}
	}
	for p, want := range map[string]string{"a.b": "a.b/", "a.b/c": "a.b/c-", "a.b/c-": "a.b/c-", "a.b/": "a.b/"} {
		if got := annotationPrefix(p); got != want {
			t.Errorf("prefix %s: %s, want %s", p, got, want)
		}
	}
}

func TestAnnotate(t *testing.T) {
	client, api := connect(t)
	api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "bare"}})
	api.Put(node("other", nil, "node-public-ip", "172.30.0.2"))
	for name, want := range map[string]string{"bare": "true", "other": ""} {
		if err := Annotate(t.Context(), client, name, prefix); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n, err := client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || n.Annotations[prefix+"/kube-subnet-manager"] != want {
			t.Errorf("%s: %v, %v", name, n, err)
		}
	}
	if err := Annotate(t.Context(), client, "nobody", prefix); err == nil {
		t.Error("a node that is not there was annotated")
	}
}

// Every list is everyone: what moved, changed its subnet, or went is right in the next one, and this node is always there.
func TestWatch(t *testing.T) {
	own := managed("a", "10.10.1.0/24", "172.30.0.1")
	ownLease, _, err := leaseOf(own, annotationPrefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	client, api := connect(t)
	api.Put(own)
	api.Put(managed("b", "10.10.2.0/24", "172.30.0.2"))
	w := &Watcher{Client: client, Prefix: prefix, Own: ownLease, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	received, ended := make(chan []lease.LeaseWatchResult), make(chan error, 1)
	go func() { ended <- w.WatchLeases(ctx, received) }()
	await := func(what string, want ...string) {
		t.Helper()
		var got []string
		for {
			select {
			case r := <-received:
				got = got[:0]
				for _, l := range r[0].Snapshot {
					got = append(got, l.Subnet.String()+"@"+l.Attrs.PublicIP.String())
				}
				slices.Sort(got)
				if slices.Equal(got, want) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("%s: the last list was %q, want %q", what, got, want)
			}
		}
	}
	const a, b = "10.10.1.0/24@172.30.0.1", "10.10.2.0/24@172.30.0.2"
	await("the first list", a, b)
	api.Put(managed("b", "10.10.2.0/24", "172.30.0.22"))
	await("a node moved", a, "10.10.2.0/24@172.30.0.22")
	api.Put(managed("b", "10.10.7.0/24", "172.30.0.2"))
	await("a node's subnet changed", a, "10.10.7.0/24@172.30.0.2")
	api.Put(managed("c", "10.10.3.0/24", "172.30.0.3"))
	await("a node came", a, "10.10.3.0/24@172.30.0.3", "10.10.7.0/24@172.30.0.2")
	api.Remove("b")
	api.Remove("a")
	await("nodes went, this one too", a, "10.10.3.0/24@172.30.0.3")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

// connect returns a stand-in for the API server, and a client of it.
func connect(t *testing.T) (kubernetes.Interface, *nodestest.Server) {
	t.Helper()
	api := nodestest.NewServer(nil)
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	client, err := Connect(server.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	return client, api
}
