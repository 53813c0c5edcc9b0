//go:build netns

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
)

// vxlane runs a command inside a host to its end and returns its output and exit code.
func (p *pair) vxlane(h *lab.Host, args ...string) (string, int) {
	p.t.Helper()
	var out strings.Builder
	cmd := exec.Command("vxlane", args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	proc, err := h.Start(cmd)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = proc.Wait()
	return out.String(), cmd.ProcessState.ExitCode()
}

// up runs vxlane up inside a host with the default control socket, and waits until status is content.
func (p *pair) up(h *lab.Host, args ...string) *lab.Command {
	p.t.Helper()
	var log strings.Builder
	cmd := exec.Command("vxlane", append([]string{"up"}, args...)...)
	cmd.Stderr = &log
	proc, err := h.Start(cmd)
	if err != nil {
		p.t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out, code := p.vxlane(h, "status")
		if code == cli.ExitOK {
			return proc
		}
		if time.Now().After(deadline) {
			_ = proc.Stop()
			p.t.Fatalf("status exits with %d:\n%s%s", code, out, log.String())
		}
	}
}

// Two hosts on one machine, each with a vxlane0: the control sockets do not collide, and each command finds its own. What
// a killed process leaves is no obstacle.
func TestDefaultSockets(t *testing.T) {
	p := newPair(t, wire{})
	args := func(local, remote, own, other string) []string {
		return []string{"--local", local, "--address", own + "/24", "--peer", "endpoint=" + remote + ",allowed_ips=" + other}
	}
	a := p.up(p.a, args("172.30.0.1", "172.30.0.2", "10.99.0.1", "10.99.0.2")...)
	b := p.up(p.b, args("172.30.0.2", "172.30.0.1", "10.99.0.2", "10.99.0.1")...)
	p.ping(p.a, overlayB[0], 56)
	for h, local := range map[*lab.Host]string{p.a: "172.30.0.1 port 8472", p.b: "172.30.0.2 port 8472"} {
		if out, _ := p.vxlane(h, "status"); !strings.Contains(out, local) || strings.Count(out, "underlay ") != 1 {
			t.Errorf("host %s: status\n%s", h.Name(), out)
		}
	}
	if out, code := p.vxlane(p.a, append([]string{"up", "--device", "vxlane0"}, args("172.30.0.1", "172.30.0.2", "10.99.0.1", "10.99.0.2")...)...); code != cli.ExitFailure || !strings.Contains(out, "a device of that name exists") {
		t.Errorf("the same device twice: exit code %d\n%s", code, out)
	}
	if err := a.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = a.Wait()
	if out, code := p.vxlane(p.a, "status"); code != cli.ExitFailure || !strings.Contains(out, "no vxlane is running here") {
		t.Errorf("after SIGKILL: exit code %d\n%s", code, out)
	}
	a = p.up(p.a, args("172.30.0.1", "172.30.0.2", "10.99.0.1", "10.99.0.2")...)
	p.ping(p.a, overlayB[0], 56)
	for _, proc := range []*lab.Command{a, b} {
		if err := proc.Stop(); err != nil {
			t.Error(err)
		}
	}
	var left []string
	for _, h := range []*lab.Host{p.a, p.b} {
		err := h.Run(func() error {
			path, err := control.SocketPath("vxlane0")
			if found, _ := filepath.Glob(path); len(found) > 0 {
				left = append(left, found...)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(left) > 0 {
		t.Errorf("sockets are left: %s", left)
	}
}

// Two tunnels of one process, to two devices of one kernel.
func TestTwoTunnelsOfOneProcess(t *testing.T) {
	p := newPair(t, wire{})
	proc := p.up(p.a, "--config", p.config(`
version: 1
metrics: {listen: "127.0.0.1:9472"}
tunnels:
  - device: {addresses: [10.99.0.1/24]}
    underlay: {local: 172.30.0.1}
    peers: [{name: b, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2]}]
  - device: {addresses: ["fd99::1/64"]}
    underlay: {local: 172.30.0.1, port: 4789, vni: 7}
    peers: [{name: b, endpoint: 172.30.0.2, allowed_ips: ["fd99::2"]}]
`))
	p.addKernelPeer(func(v *lab.VXLAN) { v.Addresses = v.Addresses[:1] })
	p.addKernelPeer(func(v *lab.VXLAN) {
		v.Device, v.ID, v.Port, v.Addresses = "vxlan1", 7, 4789, v.Addresses[1:]
	})
	p.pingAll(56)
	if out, code := p.vxlane(p.a, "stats"); code != cli.ExitUsage || !strings.Contains(out, "2 tunnels run here: say which with --device or --socket") {
		t.Errorf("stats of which: exit code %d\n%s", code, out)
	}
	if out, code := p.vxlane(p.a, "peer", "list", "--device", "vxlane1"); code != cli.ExitOK || !strings.Contains(out, "172.30.0.2:4789") {
		t.Errorf("peer list: exit code %d\n%s", code, out)
	}
	for _, args := range [][]string{{"status", "--json"}, {"reload", "--json"}} {
		if out, code := p.vxlane(p.a, args...); code != cli.ExitOK || !strings.Contains(out, `"schema": "vxlane/list/v1"`) {
			t.Errorf("%v: exit code %d\n%s", args, code, out)
		}
	}
	text := p.get("http://127.0.0.1:9472/metrics")
	for _, want := range []string{`vxlane_peer_up{device="vxlane0",peer="b"} 1`, `vxlane_peer_up{device="vxlane1",peer="b"} 1`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing", want)
		}
	}
	if err := proc.Stop(); err != nil {
		t.Error(err)
	}
}
