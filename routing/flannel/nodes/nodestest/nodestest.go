// Package nodestest is a stand-in for Kubernetes' API server, as far as flannel and vxlane-flanneld speak to it. Its answers are compared
// with those of a real one (cmd/vxlane-flanneld, TestDoubleAnswersLikeTheRealOne and TestRecordAnswers).
package nodestest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Server answers the calls that flannel's Kubernetes manager makes, and no others: the nodes, a watch of them, and patches
// of a node's annotations.
type Server struct {
	mu      sync.Mutex
	version int
	nodes   map[string]*corev1.Node
	changed chan struct{} // closed and made anew with each change
	log     []metav1.WatchEvent
}

// NewServer returns a server with nodes that have a pod network, by name.
func NewServer(podCIDRs map[string]string) *Server {
	s := &Server{nodes: make(map[string]*corev1.Node), changed: make(chan struct{})}
	for name, cidr := range podCIDRs {
		s.put("ADDED", &corev1.Node{
			TypeMeta:   metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"node.alpha.kubernetes.io/ttl": "0"}},
			Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		})
	}
	return s
}

// put books a change; the caller holds the lock, or nobody else has s yet.
func (s *Server) put(kind string, n *corev1.Node) {
	s.version++
	n.ResourceVersion = strconv.Itoa(s.version)
	raw, _ := json.Marshal(n)
	s.log = append(s.log, metav1.WatchEvent{Type: kind})
	s.log[len(s.log)-1].Object.Raw = raw
	s.nodes[n.Name] = n
	if kind == "DELETED" {
		delete(s.nodes, n.Name)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// Put adds a node, or replaces it.
func (s *Server) Put(n *corev1.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := "MODIFIED"
	if s.nodes[n.Name] == nil {
		kind = "ADDED"
	}
	n.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
	s.put(kind, n)
}

// Remove deletes a node.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put("DELETED", s.nodes[name])
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/api/v1/nodes/"), "/status")
	switch {
	case r.URL.Path == "/api/v1/nodes" && r.URL.Query().Get("watch") != "":
		s.watch(w, r)
	case r.URL.Path == "/api/v1/nodes":
		s.list(w)
	case r.Method == http.MethodGet:
		s.get(w, name)
	case r.Method == http.MethodPatch:
		s.patch(w, r, name)
	default:
		http.NotFound(w, r)
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) list(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	for _, n := range s.nodes {
		item := *n
		item.TypeMeta = metav1.TypeMeta{} // the list says it for all
		l.Items = append(l.Items, item)
	}
	answer(w, l)
}

func (s *Server) get(w http.ResponseWriter, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[name]; n != nil {
		answer(w, n)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	answer(w, metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Message: fmt.Sprintf("nodes %q not found", name),
		Reason: metav1.StatusReasonNotFound, Details: &metav1.StatusDetails{Name: name, Kind: "nodes"}, Code: http.StatusNotFound,
	})
}

func (s *Server) patch(w http.ResponseWriter, r *http.Request, name string) {
	body, err := io.ReadAll(r.Body)
	var change corev1.Node
	if err == nil {
		err = json.Unmarshal(body, &change)
	}
	s.mu.Lock()
	n := s.nodes[name]
	if err != nil || n == nil {
		s.mu.Unlock()
		s.get(w, name) // not found
		return
	}
	changed := n.DeepCopy()
	if changed.Annotations == nil {
		changed.Annotations = make(map[string]string)
	}
	maps.Copy(changed.Annotations, change.Annotations)
	changed.Status.Conditions = append(changed.Status.Conditions, change.Status.Conditions...)
	s.put("MODIFIED", changed)
	s.mu.Unlock()
	s.get(w, name)
}

// watch sends what has changed since a version, and then what changes.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	w.Header().Set("Content-Type", "application/json")
	for at := since; ; {
		s.mu.Lock()
		events, changed := s.log[min(at, len(s.log)):], s.changed
		at = len(s.log)
		s.mu.Unlock()
		for i := range events {
			_ = json.NewEncoder(w).Encode(&events[i])
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// Annotations returns those of a node.
func (s *Server) Annotations(name string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.nodes[name].Annotations)
}
