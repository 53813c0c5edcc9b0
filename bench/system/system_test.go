package system

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseExec(t *testing.T) {
	for spec, want := range map[string]struct{ name, summary string }{
		"exec:./wg.sh":                            {"exec:wg.sh", "./wg.sh ;; ./wg.sh"},
		"exec:./wg.sh a ;; ./wg.sh b":             {"exec:wg.sh", "./wg.sh a ;; ./wg.sh b"},
		"exec:wireguard-go:./wg.sh":               {"exec:wireguard-go", "./wg.sh ;; ./wg.sh"},
		"exec:a.b_c:cmd --to 10.0.0.1:80;;cmd -l": {"exec:a.b_c", "cmd --to 10.0.0.1:80 ;; cmd -l"},
		"exec:cmd --to 10.0.0.1:80":               {"exec:cmd", "cmd --to 10.0.0.1:80 ;; cmd --to 10.0.0.1:80"},
		"exec:/opt/x:y":                           {"exec:x:y", "/opt/x:y ;; /opt/x:y"},
	} {
		s, err := Find(nil, spec)
		if err != nil || s.Name != want.name || s.Summary != want.summary {
			t.Errorf("%s: %q, %q, %v; want %+v", spec, s.Name, s.Summary, err, want)
		}
	}
	for _, spec := range []string{"exec:", "exec: ", "exec:name:", "exec:;;b", "exec:a;;", "exec:a;;b;;c"} {
		if _, err := Find(nil, spec); err == nil || !strings.Contains(err.Error(), `"`+spec+`"`) {
			t.Errorf("%s: %v; want an error that names it", spec, err)
		}
	}
}

func TestFind(t *testing.T) {
	all := All(Tools{})
	for _, s := range all {
		if found, err := Find(all, s.Name); err != nil || found.Name != s.Name || s.Summary == "" {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	_, err := Find(all, "openvpn")
	if err == nil || !strings.Contains(err.Error(), `unknown system "openvpn"; known: direct, kernel-vxlan,`) {
		t.Errorf("got %v", err)
	}
}

func TestFindTools(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "vxlane")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if tools, err := FindTools(path); err != nil || tools.VXLANE != path {
		t.Errorf("by name: %+v, %v", tools, err)
	}
	if _, err := FindTools(path + "-not-there"); err == nil {
		t.Error("a program that is not there was found")
	}
	t.Setenv("PATH", dir)
	if tools, err := FindTools(""); err != nil || tools.VXLANE != path {
		t.Errorf("in PATH: %+v, %v", tools, err)
	}
	t.Setenv("PATH", "")
	if tools, err := FindTools(""); err != nil || tools.VXLANE != "" {
		t.Errorf("nowhere: %+v, %v", tools, err)
	}
}
