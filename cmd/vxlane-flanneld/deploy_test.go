package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// manifests reads the documents of a manifest by kind, with the API's own types: what they do not know is an error.
func manifests(t *testing.T, text []byte) map[string]any {
	t.Helper()
	all := make(map[string]any)
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			t.Fatal(err)
		}
		if kind.Kind == "" {
			continue
		}
		object := map[string]any{
			"Namespace": new(corev1.Namespace), "ServiceAccount": new(corev1.ServiceAccount), "ConfigMap": new(corev1.ConfigMap),
			"ClusterRole": new(rbacv1.ClusterRole), "ClusterRoleBinding": new(rbacv1.ClusterRoleBinding), "DaemonSet": new(appsv1.DaemonSet),
		}[kind.Kind]
		if object == nil || all[kind.Kind] != nil {
			t.Fatalf("a %s, or a second one", kind.Kind)
		}
		if err := yaml.UnmarshalStrict(doc, object); err != nil {
			t.Errorf("%s: %v", kind.Kind, err)
		}
		all[kind.Kind] = object
	}
	return all
}

// flannelFile reads a file of flannel's module.
func flannelFile(t *testing.T, path string) []byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/flannel-io/flannel").Output()
	if err != nil {
		t.Fatalf("find flannel's module: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), path))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The manifest is kube-flannel.yml but for the image and /dev/net/tun, which nothing privileged is needed for.
func TestManifestDiffersWhereItMust(t *testing.T) {
	text, err := os.ReadFile("deploy/base/kube-flannel.yml")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := manifests(t, text), manifests(t, flannelFile(t, "Documentation/kube-flannel.yml"))
	wantFlannel(t, ours, theirs)
}

// wantFlannel compares manifests with flannel's, after taking away what may differ.
func wantFlannel(t *testing.T, ours, theirs map[string]any) {
	t.Helper()
	pod := &ours["DaemonSet"].(*appsv1.DaemonSet).Spec.Template.Spec
	container := &pod.Containers[0]
	if *container.SecurityContext.Privileged || !slices.Equal(container.SecurityContext.Capabilities.Add, []corev1.Capability{"NET_ADMIN", "NET_RAW"}) {
		t.Errorf("security context %+v", container.SecurityContext)
	}
	last := len(pod.Volumes) - 1
	if v := pod.Volumes[last]; v.HostPath == nil || v.HostPath.Path != "/dev/net/tun" || *v.HostPath.Type != corev1.HostPathCharDev || container.VolumeMounts[last-2].Name != v.Name {
		t.Errorf("the last volume is %+v, its mount %+v", v, container.VolumeMounts)
	}
	pod.Volumes, container.VolumeMounts = pod.Volumes[:last], container.VolumeMounts[:last-2]
	stock := theirs["DaemonSet"].(*appsv1.DaemonSet).Spec.Template.Spec
	container.Image, pod.InitContainers[1].Image = stock.Containers[0].Image, stock.InitContainers[1].Image
	for kind := range theirs {
		if !reflect.DeepEqual(ours[kind], theirs[kind]) {
			a, _ := yaml.Marshal(ours[kind])
			b, _ := yaml.Marshal(theirs[kind])
			t.Errorf("%s\n%s\nflannel's\n%s", kind, a, b)
		}
	}
	if len(ours) != len(theirs) {
		t.Errorf("%d objects, flannel has %d", len(ours), len(theirs))
	}
}

// What the images hold can be built as their files say, for another architecture too, and is where flannel's manifests look.
func TestDockerfiles(t *testing.T) {
	for _, file := range []string{"Dockerfile", "../vxlane/Dockerfile"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		builds := 0
		for line := range strings.Lines(string(text)) {
			if command, ok := strings.CutPrefix(line, "RUN go build"); ok {
				// The flags must parse and the packages exist; whole builds are cross-all's.
				cmd := exec.Command("sh", "-c", "go build -n "+strings.ReplaceAll(command, "/out/", t.TempDir()+"/"))
				cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64", "VERSION=test")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s: %s: %v\n%s", file, line, err, tail(out))
				}
				builds++
			}
		}
		if builds == 0 {
			t.Errorf("%s builds nothing", file)
		}
	}
	text, _ := os.ReadFile("Dockerfile")
	for _, want := range []string{"/out/flanneld /out/install-conf /out/mk-docker-opts.sh /opt/bin/", "iptables nftables", `ENTRYPOINT ["/opt/bin/flanneld"]`} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("Dockerfile lacks %q", want)
		}
	}
	if text, _ = os.ReadFile("../vxlane/Dockerfile"); !bytes.Contains(text, []byte("\nFROM scratch\n")) {
		t.Error("vxlane's image is not from scratch")
	}
}

func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Sprint(strings.Join(lines[max(0, len(lines)-5):], "\n"))
}
