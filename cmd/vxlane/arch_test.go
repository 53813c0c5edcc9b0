package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vxlane/vxlane/"

// rule says what a room may not import, by prefix of the import path, other than what is excepted.
type rule struct {
	room   string
	never  []string
	except []string
	why    string
}

var rules = []rule{
	{"encap", []string{""}, []string{"golang.org/x/sys/cpu"}, "bytes only: the standard library and x/sys/cpu"},
	{"routing", []string{module}, []string{module + "routing", module + "encap"}, "who is where: encap's types at most, never the dataplane"},
	{"tunnel", []string{module, "github.com/google/gopacket", "github.com/spf13/cobra"}, []string{module + "tunnel", module + "routing", module + "encap"},
		"the dataplane: gopacket is never on the packet path, commands are elsewhere"},
	{"bench/lab", []string{module}, []string{module + "bench/lab"}, "hosts for every room's tests: imports none of ours"},
	{"bench/traffic", []string{module}, []string{module + "bench/lab"}, "traffic for every room's tests: imports the lab alone"},
	{"bench", []string{module}, []string{module + "bench"}, "the harness measures the product from outside"},
	{"bench/stats", []string{""}, nil, "arithmetic: the standard library"},
	{"cmd/vxlane", []string{"go.etcd.io/", "k8s.io/", "github.com/flannel-io/"}, nil, "etcd and Kubernetes clients belong to vxlane-flanneld"},
	{"cmd/vxlane-flanneld", []string{module}, []string{module + "cmd/internal", module + "tunnel", module + "routing", module + "encap"}, "a daemon around the dataplane: never the harness"},
	{"encap", []string{"net/http", "os", "os/exec", "time"}, nil, "no I/O, no clock"},
	{"tunnel", []string{"os/exec"}, nil, "the dataplane starts no programs"},
	{"routing", []string{"os/exec"}, nil, "what a control plane says is never executed"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Standard   bool
}

// The rooms and arrows of the design, held by the import graph of all that is built; test files are free.
func TestArchitecture(t *testing.T) {
	packages := listPackages(t)
	checked := 0
	for _, p := range packages {
		room := strings.TrimPrefix(p.ImportPath, module)
		for _, r := range rules {
			if room != r.room && !strings.HasPrefix(room, r.room+"/") {
				continue
			}
			checked++
			for _, imported := range p.Imports {
				if r.forbids(imported, packages) {
					t.Errorf("%s imports %s: %s", room, imported, r.why)
				}
			}
		}
	}
	if checked < len(rules) {
		t.Errorf("only %d checks were made for %d rules: are the rooms still there?", checked, len(rules))
	}
}

// The vxlane binary must stay free of what only a cluster or a benchmark needs, however deep it hides.
func TestArchitectureOfTheBinary(t *testing.T) {
	p := listPackages(t)[module+"cmd/vxlane"]
	for _, dep := range p.Deps {
		for _, prefix := range []string{"go.etcd.io/", "k8s.io/", "github.com/flannel-io/", "google.golang.org/grpc", "gonum.org/", "github.com/HdrHistogram/"} {
			if strings.HasPrefix(dep, prefix) {
				t.Errorf("the vxlane binary holds %s", dep)
			}
		}
	}
}

func (r *rule) forbids(imported string, packages map[string]goPackage) bool {
	matches := func(prefix string) bool {
		if prefix == "" { // everything but the standard library
			return !packages[imported].Standard
		}
		return imported == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(imported, strings.TrimSuffix(prefix, "/")+"/")
	}
	return slices.ContainsFunc(r.never, matches) && !slices.ContainsFunc(r.except, matches)
}

func listPackages(t *testing.T) map[string]goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Deps,Standard", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := make(map[string]goPackage)
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
}
