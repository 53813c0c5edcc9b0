package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// extra are the programs that the test binary is besides vxlane-flanneld: what namespace tests start.
var extra = make(map[string]func())

func TestMain(m *testing.M) {
	commands := map[string]func(){
		"vxlane-flanneld": func() { os.Exit(run(os.Args, os.LookupEnv, os.Stderr)) },
	}
	for name, f := range extra {
		commands[name] = f
	}
	testscript.Main(m, commands)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}
