package main

import (
	"context"
	"flag"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vxlane/vxlane/cmd/internal/cli/clitest"
)

var update = flag.Bool("update", false, "write generated files and golden files anew")

// The test binary is vxlane, too: scripts and namespace tests run it under that name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"vxlane": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update,
		Cmds: clitest.Commands,
	})
}
