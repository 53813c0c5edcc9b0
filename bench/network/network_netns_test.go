//go:build netns

package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Each profile has the offloads and the MTU that it names, at both ends, and only turns off what it says.
func TestProfiles(t *testing.T) {
	for _, p := range Profiles() {
		n, err := Build(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, pair := range n.Sides() {
			features, err := pair[0].Host.Offloads(Device)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range p.Offloads {
				if got, known := features[name]; got != want || !known {
					t.Errorf("%s: %s of host %s is %v, want %v", p.Name, name, pair[0].Host.Name(), got, want)
				}
			}
			if checksums := p.Name != "wire" && p.Name != "wire-9000"; features["tx-checksum-ip-generic"] != checksums {
				t.Errorf("%s: checksum offload is %v", p.Name, !checksums)
			}
			if _, mtu, err := pair[0].Host.RouteTo(pair[1].Underlay); err != nil || mtu != p.MTU {
				t.Errorf("%s: mtu %d, %v; want %d", p.Name, mtu, err, p.MTU)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Pods reach each other through their hosts, with the MTU of what is between these; nothing that ran there outlives Close.
func TestPods(t *testing.T) {
	p, err := FindProfile("wire")
	if err != nil {
		t.Fatal(err)
	}
	n, err := Build(p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := n.ConnectPods(ctx, [2]netip.Addr{n.A.Underlay, n.B.Underlay}, false); err != nil {
		t.Error(err)
	}
	if _, mtu, err := n.A.Pod.RouteTo(n.B.PodAddress()); err != nil || mtu != p.MTU {
		t.Errorf("pod: mtu %d, %v; want %d", mtu, err, p.MTU)
	}
	background := exec.Command("sh", "-c", "setsid sleep 1000 & sleep 1000 & echo")
	if err := n.A.Host.Run(background.Run); err != nil {
		t.Fatal(err)
	}
	pids, err := n.A.Host.Processes()
	if len(pids) != 2 || err != nil {
		t.Errorf("processes in the background: %v, %v; want 2", pids, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	for _, pid := range pids { // a dead one may wait to be reaped, without a program
		if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
			t.Errorf("process %d (%s) is still there", pid, program)
		}
	}
}
