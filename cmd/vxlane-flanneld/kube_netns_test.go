//go:build netns

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vxlane/vxlane/routing/flannel/nodes/nodestest"
)

// conversation asks a server what flannel asks it, and returns the answers without what differs from one run to the next.
func conversation(t *testing.T, client *http.Client, url string) []byte {
	t.Helper()
	type exchange struct {
		Call   string `json:"call"`
		Code   int    `json:"code"`
		Answer any    `json:"answer"`
	}
	var all []exchange
	ask := func(method, path, kind, body string) map[string]any {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil { // of a watch, the first event
			t.Fatalf("%s %s: %v", method, path, err)
		}
		version := answer["metadata"]
		plain, _ := json.Marshal(answer)
		var copied any
		_ = json.Unmarshal(plain, &copied)
		all = append(all, exchange{method + " " + strings.Split(path, "?")[0], resp.StatusCode, settle(copied)})
		m, _ := version.(map[string]any)
		return m
	}
	const nodes, merge = "/api/v1/nodes", "application/strategic-merge-patch+json"
	listed := ask(http.MethodGet, nodes, "", "")
	ask(http.MethodGet, nodes+"/a", "", "")
	ask(http.MethodGet, nodes+"/nobody", "", "")
	ask(http.MethodPatch, nodes+"/a/status", merge, `{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-data":"null","flannel.alpha.coreos.com/public-ip":"172.30.0.1"}}}`)
	ask(http.MethodGet, fmt.Sprintf("%s?watch=true&resourceVersion=%v", nodes, listed["resourceVersion"]), "", "")
	ask(http.MethodPatch, nodes+"/a/status", merge, `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","reason":"FlannelIsUp","message":"Flannel is running on this node"}]}}`)
	ask(http.MethodPatch, nodes+"/nobody/status", merge, `{"metadata":{"annotations":{"x":"y"}}}`)
	text, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

// settle removes from an answer what is of one run, and taints, which an admission plugin of the real server adds.
func settle(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range []string{"uid", "creationTimestamp", "resourceVersion", "managedFields", "lastHeartbeatTime", "lastTransitionTime", "taints"} {
			delete(v, key)
		}
		for key := range v {
			v[key] = settle(v[key])
		}
	case []any:
		for i := range v {
			v[i] = settle(v[i])
		}
	}
	return v
}

// The double answers flannel's calls as a real API server was recorded to (TestRecordAnswers, in the kube ring).
func TestDoubleAnswersLikeTheRealOne(t *testing.T) {
	want, err := os.ReadFile("testdata/apiserver.json")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(nodestest.NewServer(map[string]string{"a": "10.10.1.0/24"}))
	defer server.Close()
	if got := conversation(t, server.Client(), server.URL); !bytes.Equal(got, want) {
		t.Errorf("the double answers\n%s\nthe real one\n%s", got, want)
	}
}

// Leases in Kubernetes' nodes: the annotations of a udp node are flannel's, and a node that goes is no peer any more.
func TestKubernetesNodes(t *testing.T) {
	for backend, dataplane := range map[string]string{"udp": "", "vxlan": "userspace"} {
		t.Run(backend, func(t *testing.T) {
			c := newNodes(t)
			api := nodestest.NewServer(map[string]string{"a": "10.10.1.0/24", "b": "10.10.2.0/24"})
			var l net.Listener
			err := c.lab.Host("hub").Run(func() (err error) {
				l, err = net.Listen("tcp", "172.30.0.254:8080")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: api}
			go func() { _ = server.Serve(l) }()
			t.Cleanup(func() { _ = server.Close() })
			config := filepath.Join(c.dir, "net-conf.json")
			if err := os.WriteFile(config, []byte(`{"Network": "10.10.0.0/16", "Backend": {"Type": "`+backend+`"}}`), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, n := range []*member{c.a, c.b} {
				n.leases = []string{"--kube-subnet-mgr", "--kube-api-url=http://172.30.0.254:8080", "--net-config-path=" + config}
				n.env = []string{"NODE_NAME=" + n.host.Name(), dataplaneVariable + "=" + dataplane}
				n.start("vxlane-flanneld")
			}
			c.both()
			const prefix = "flannel.alpha.coreos.com/"
			got := api.Annotations("a")
			want := map[string]string{prefix + "kube-subnet-manager": "true", prefix + "backend-type": "", prefix + "backend-data": "null", prefix + "public-ip": "172.30.0.1"}
			if backend == "vxlan" {
				want[prefix+"backend-type"] = "vxlan"
				delete(want, prefix+"backend-data")
				if data := got[prefix+"backend-data"]; !strings.HasPrefix(data, `{"VNI":1,"VtepMAC":"`) {
					t.Errorf("backend data %s", data)
				}
			}
			for key, value := range want {
				if got[key] != value {
					t.Errorf("annotation %s is %q, want %q", key, got[key], value)
				}
			}
			api.Remove("b")
			c.a.awaitLog("peers=0")
		})
	}
}

// awaitLog waits until a node's daemon has written a text.
func (n *member) awaitLog(text string) {
	n.c.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if strings.Contains(n.output(), text) {
			return
		}
	}
	n.c.t.Errorf("%s never wrote %q:\n%s", n.host.Name(), text, n.output())
}
