//go:build netns && kube

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/vxlane/vxlane/bench/lab"
)

// peersDir has the programs that `make kube` builds: kube-apiserver, flanneld, helm and kustomize.
var peersDir = flag.String("peers", "", "directory of kube-apiserver, flanneld, helm and kustomize")

// program returns the path of one of them; without it the test says what it needs.
func program(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(*peersDir, name)
	if _, err := os.Stat(path); *peersDir == "" || err != nil {
		t.Skipf("skipped: needs %s (make kube builds it and names its directory with -peers)", name)
	}
	return path
}

// kubeCluster is two nodes, and a real API server on the hub.
type kubeCluster struct {
	*cluster
	server *lab.Command
	serve  func() // runs the API server
	admin  *kubernetes.Clientset
	config *rest.Config
}

const apiURL = "https://" + etcdAddress + ":6443"

func newKubeCluster(t *testing.T) *kubeCluster {
	t.Helper()
	binary := program(t, "kube-apiserver")
	k := &kubeCluster{cluster: newNodes(t)}
	k.etcd = &etcdServer{c: k.cluster}
	k.etcd.start()
	dir := filepath.Join(k.dir, "api")
	k.must(os.MkdirAll(dir, 0o700))
	tokens := "admin-token,admin,1,system:masters\nflannel-token,system:serviceaccount:kube-flannel:flannel,2,system:serviceaccounts\n"
	k.must(os.WriteFile(filepath.Join(dir, "tokens"), []byte(tokens), 0o600))
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	k.must(err)
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	k.must(os.WriteFile(filepath.Join(dir, "key"), text, 0o600))
	k.must(os.WriteFile(filepath.Join(dir, "kubeconfig"), fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c",
"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],
"users":[{"name":"u","user":{"token":"flannel-token"}}]}`, apiURL), 0o600))
	k.serve = func() {
		t.Helper()
		cmd := exec.Command(binary, "--etcd-servers=http://"+etcdAddress+":2379", "--bind-address="+etcdAddress, "--secure-port=6443", "--cert-dir="+dir,
			"--token-auth-file="+filepath.Join(dir, "tokens"), "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount,PodSecurity",
			"--service-account-issuer=https://vxlane.test", "--service-account-key-file="+filepath.Join(dir, "key"),
			"--service-account-signing-key-file="+filepath.Join(dir, "key"), "--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true")
		log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		k.must(err)
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		k.server, err = k.hub.Start(cmd)
		k.must(err)
		k.retry(func(ctx context.Context) error {
			_, err := k.admin.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{})
			return err
		})
	}
	dial := func(_ context.Context, network, address string) (conn net.Conn, err error) {
		err = k.hub.Run(func() error { conn, err = net.DialTimeout(network, address, time.Second); return err })
		return conn, err
	}
	k.config = &rest.Config{Host: apiURL, BearerToken: "admin-token", TLSClientConfig: rest.TLSClientConfig{Insecure: true}, Dial: dial}
	k.admin, err = kubernetes.NewForConfig(k.config)
	k.must(err)
	k.serve()
	for _, n := range []*member{k.a, k.b} {
		n.leases = []string{"--kube-subnet-mgr", "--kubeconfig-file=" + filepath.Join(dir, "kubeconfig")}
	}
	return k
}

// retry tries something until it works.
func (k *kubeCluster) retry(f func(ctx context.Context) error) {
	k.t.Helper()
	var err error
	for deadline := time.Now().Add(3 * patience); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err = f(ctx)
		cancel()
		if err == nil {
			return
		}
	}
	text, _ := os.ReadFile(filepath.Join(k.dir, "api", "log"))
	k.t.Fatalf("%v\n%s\n%s", err, k.logs(), tail(text))
}

func (k *kubeCluster) addNode(name, cidr string, annotations map[string]string) {
	k.t.Helper()
	k.retry(func(ctx context.Context) error {
		_, err := k.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
			Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		}, metav1.CreateOptions{})
		return err
	})
}

func (k *kubeCluster) read(name string) (n *corev1.Node) {
	k.t.Helper()
	k.retry(func(ctx context.Context) (err error) {
		n, err = k.admin.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		return err
	})
	return n
}

// configure writes the nodes' net-conf.json.
func (k *kubeCluster) configure(backend string) {
	k.t.Helper()
	for _, n := range []*member{k.a, k.b} {
		file := filepath.Join(k.dir, n.host.Name()+"-net-conf.json")
		k.must(os.WriteFile(file, []byte(`{"Network": "10.10.0.0/16", "Backend": {`+backend+`}}`), 0o600))
		n.leases = append(n.leases[:2:2], "--net-config-path="+file)
	}
}

// paths of the API's collections, by kind.
var paths = map[string]string{
	"Namespace": "/api/v1/namespaces", "ServiceAccount": "/api/v1/namespaces/kube-flannel/serviceaccounts", "ConfigMap": "/api/v1/namespaces/kube-flannel/configmaps",
	"ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles", "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
	"DaemonSet": "/apis/apps/v1/namespaces/kube-flannel/daemonsets",
}

// apply creates the objects of a manifest; the API server is strict about their fields. With dry it only checks them.
func (k *kubeCluster) apply(manifest []byte, dry bool) {
	k.t.Helper()
	for _, doc := range strings.Split("\n"+string(manifest), "\n---\n") {
		var kind metav1.TypeMeta
		for line := range strings.Lines(doc) {
			if name, ok := strings.CutPrefix(line, "kind: "); ok {
				kind.Kind = strings.TrimSpace(name)
			}
		}
		if kind.Kind == "" || dry && kind.Kind == "Namespace" {
			continue
		}
		post := k.admin.CoreV1().RESTClient().Post().AbsPath(paths[kind.Kind]).SetHeader("Content-Type", "application/yaml").Param("fieldValidation", "Strict")
		if dry {
			post = post.Param("dryRun", "All")
		}
		if err := post.Body([]byte(doc)).Do(k.t.Context()).Error(); err != nil {
			k.t.Errorf("%s: %v\n%s", kind.Kind, err, doc)
		}
	}
}

// Manifests and chart are what the API server takes, field by field; the chart's defaults are the manifests.
func TestManifestsAgainstTheAPI(t *testing.T) {
	k := newKubeCluster(t)
	build := func(name string, args ...string) []byte {
		out, err := exec.Command(program(t, name), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return out
	}
	k.apply([]byte("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: kube-flannel\n"), false)
	for _, overlay := range []string{"base", "overlays/udp", "overlays/userspace", "overlays/privileged"} {
		k.apply(build("kustomize", "build", "deploy/"+overlay), true)
	}
	chart := build("helm", "template", "flannel", "deploy/chart", "--namespace", "kube-flannel")
	k.apply(chart, true)
	for name, want := range map[string]string{
		"flannel.vni=7,flannel.directRouting=true":                         `"VNI": 7`,
		"flannel.backend=wireguard,flannel.backendPort=51999":              `"ListenPort": 51999`,
		"flannel.backend=udp,flannel.backendPort=9285,flannel.mtu=1400":    `"Port": 9285`,
		"flannel.backend=vxlan,flannel.backendOptions.Dataplane=userspace": `"Dataplane": "userspace"`,
	} {
		out := build("helm", "template", "flannel", "deploy/chart", "--set", name)
		if !strings.Contains(string(out), strings.ReplaceAll(want, `"`, `\"`)) {
			t.Errorf("%s: no %s in\n%s", name, want, out)
		}
	}
	if out, err := exec.Command(program(t, "helm"), "template", "flannel", "deploy/chart", "--set", "netpol.enabled=true").CombinedOutput(); err == nil || !strings.Contains(string(out), "no network policies") {
		t.Errorf("netpol: %s", out)
	}
	k.apply(build("helm", "template", "flannel", "deploy/chart", "--namespace", "kube-flannel", "--set", "podCidrv6=fd10::/56,flannel.backend=udp,flannel.backendOptions.MTU=1400,flannel.privileged=true,flannel.metrics=127.0.0.1:9472,flannel.healthz.port=0,flannel.nodeSelector.disk=ssd,global.imagePullSecrets[0].name=x"), true)
	ours := manifests(t, append([]byte("\n"), chart...))
	theirs := manifests(t, flannelFile(t, "Documentation/kube-flannel.yml"))
	delete(theirs, "Namespace") // helm --create-namespace
	config := ours["ConfigMap"].(*corev1.ConfigMap)
	var a, b any
	k.must(json.Unmarshal([]byte(config.Data["net-conf.json"]), &a))
	stock := theirs["ConfigMap"].(*corev1.ConfigMap)
	k.must(json.Unmarshal([]byte(stock.Data["net-conf.json"]), &b))
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("net-conf.json %v, flannel's %v", a, b)
	}
	config.Data["net-conf.json"] = stock.Data["net-conf.json"]
	pod := &theirs["DaemonSet"].(*appsv1.DaemonSet).Spec.Template.Spec
	pod.Tolerations = append([]corev1.Toleration{{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}, pod.Tolerations...) // as flannel's chart has it
	wantFlannel(t, ours, theirs)
}

// Ours on one node and flannel's own flanneld on the other, with the rights of our manifest and no others, through a real API
// server; the first node has no annotation, which flannel's own does not survive.
func TestKubeAPIServer(t *testing.T) {
	stock := program(t, "flanneld")
	for name, backend := range map[string][2]string{"udp": {`"Type": "udp"`, ""}, "vxlan": {`"Type": "vxlan"`, "userspace"}} {
		t.Run(name, func(t *testing.T) {
			k := newKubeCluster(t)
			text, err := os.ReadFile("deploy/base/kube-flannel.yml")
			k.must(err)
			k.apply(text, false)
			k.addNode("a", "10.10.1.0/24", nil)
			k.addNode("b", "10.10.2.0/24", map[string]string{"node.alpha.kubernetes.io/ttl": "0"})
			k.configure(backend[0])
			k.a.env = []string{"NODE_NAME=a", dataplaneVariable + "=" + backend[1]}
			k.b.env = []string{"NODE_NAME=b"}
			k.a.start("vxlane-flanneld")
			k.b.start(stock)
			k.both()
			a, b := k.read("a"), k.read("b")
			if got, want := flannelKeys(a), flannelKeys(b); !maps.Equal(got, want) {
				t.Errorf("annotations %v, flannel's own writes %v", a.Annotations, b.Annotations)
			}
			for _, n := range []*corev1.Node{a, b} {
				if c := condition(n); c == nil || c.Status != corev1.ConditionFalse || c.Reason != "FlannelIsUp" || c.Message != "Flannel is running on this node" {
					t.Errorf("node %s: condition %+v", n.Name, c)
				}
			}
			k.restartsAndChanges(name)
		})
	}
}

// flannelKeys are the annotations that flannel wrote, with what is the same on all nodes.
func flannelKeys(n *corev1.Node) map[string]string {
	keys := make(map[string]string)
	for key, value := range n.Annotations {
		name, ok := strings.CutPrefix(key, "flannel.alpha.coreos.com/")
		if !ok {
			continue
		}
		if name == "public-ip" || strings.Contains(value, "VtepMAC") {
			value = value[:min(len(value), len(`{"VNI":1,"VtepMAC":"`))]
			if name == "public-ip" {
				value = ""
			}
		}
		keys[name] = value
	}
	return keys
}

func condition(n *corev1.Node) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == corev1.NodeNetworkUnavailable {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// restartsAndChanges: the API server goes and comes, a node goes and comes while nobody looks, an address is overwritten.
func (k *kubeCluster) restartsAndChanges(backend string) {
	t := k.t
	t.Helper()
	device := map[string]string{"udp": "flannel0", "vxlan": "flannel.1"}[backend]
	k.must(k.server.Signal(syscall.SIGKILL))
	_ = k.server.Wait() // it was killed
	k.ping(k.a.pod, k.b.podAddr(), 56)
	k.serve()
	const data = `{"VNI":1,"VtepMAC":"0a:00:00:00:00:03"}`
	k.addNode("c", "10.10.3.0/24", map[string]string{
		"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/public-ip": "172.30.0.3",
		"flannel.alpha.coreos.com/backend-type": strings.TrimSuffix(backend, "udp"), "flannel.alpha.coreos.com/backend-data": data,
	})
	port := map[string]string{"udp": "8285", "vxlan": "8472"}[backend]
	k.a.awaitPeer(device, "10.10.3.0/24", "172.30.0.3:"+port)
	k.must(k.a.command.Stop())
	k.retry(func(ctx context.Context) error {
		return k.admin.CoreV1().Nodes().Delete(ctx, "c", metav1.DeleteOptions{})
	})
	patch := []byte(`{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip-overwrite":"172.30.0.1","flannel.alpha.coreos.com/public-ip":"192.0.2.1"}}}`)
	k.retry(func(ctx context.Context) error {
		_, err := k.admin.CoreV1().Nodes().Patch(ctx, "a", types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	k.a.start("vxlane-flanneld")
	k.a.awaitPeer(device, "10.10.2.0/24", "172.30.0.2:"+port)
	if at := k.a.peers(device)["10.10.3.0/24"]; at != "" {
		t.Errorf("the node that went is still at %s", at)
	}
	if out := k.a.run("ip", "route", "show", "10.10.3.0/24"); out != "" {
		t.Errorf("the route to the node that went is still there: %s", out)
	}
	if got := k.read("a").Annotations["flannel.alpha.coreos.com/public-ip"]; got != "172.30.0.1" {
		t.Errorf("public-ip %s, overwritten with 172.30.0.1", got)
	}
	k.both()
	k.retry(func(ctx context.Context) error {
		return k.admin.CoreV1().Nodes().Delete(ctx, "b", metav1.DeleteOptions{})
	})
	k.a.awaitPeer(device, "10.10.2.0/24", "")
}

// The answers that the quick ring's double is checked against (TestDoubleAnswersLikeTheRealOne) are those of this API server:
// with -update they are written anew.
func TestRecordAnswers(t *testing.T) {
	k := newKubeCluster(t)
	transport, err := rest.TransportFor(k.config)
	k.must(err)
	k.addNode("a", "10.10.1.0/24", map[string]string{"node.alpha.kubernetes.io/ttl": "0"})
	got := conversation(t, &http.Client{Transport: transport, Timeout: patience}, apiURL)
	file := filepath.Join("testdata", "apiserver.json")
	if *updateAnswers {
		k.must(os.WriteFile(file, got, 0o644))
	}
	want, err := os.ReadFile(file)
	k.must(err)
	if !bytes.Equal(got, want) {
		t.Errorf("the API server answers\n%s\nrecorded is\n%s\nwrite it anew with -update-answers", got, want)
	}
}

var updateAnswers = flag.Bool("update-answers", false, "write testdata/apiserver.json anew")
