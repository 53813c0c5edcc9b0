//go:build netns

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

// A tunnel with 1,000 peers and nothing to do takes next to no CPU and little memory.
func TestIdleWithAThousandPeers(t *testing.T) {
	const (
		peers     = 1000
		settle    = 3 * time.Second  // start-up, and the first requests for MACs that nobody answers
		watched   = 10 * time.Second // a thousand clock ticks, of which five may be its own
		mostCPU   = 0.005            // of a core
		mostBytes = 64 << 20
	)
	for _, tier := range []string{"auto", "tunnel-gso"} {
		t.Run(tier, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, wire{})
			p.needTier(tier)
			var text strings.Builder
			fmt.Fprintf(&text, "version: 1\ntunnels:\n  - tier: %s\n    device: {addresses: [10.99.0.1/16]}\n    underlay: {local: 172.30.0.1}\n    peers:\n", tier)
			for i := range peers {
				fmt.Fprintf(&text, "      - {endpoint: 172.31.%d.%d, mac: 02:00:00:01:%02x:%02x, allowed_ips: [10.98.%d.%d]}\n", i/250, i%250+1, i/256, i%256, i/250, i%250+1)
			}
			d := p.start(p.a, "--config", p.config(text.String()))
			time.Sleep(settle)
			before := processTime(t, d)
			start := time.Now()
			time.Sleep(watched)
			cpu := (processTime(t, d).CPUTime() - before.CPUTime()) / time.Since(start).Seconds()
			memory := processTime(t, d).ResidentMemory()
			t.Logf("%.2f %% of a core, %d MB", 100*cpu, memory>>20)
			if cpu > mostCPU {
				t.Errorf("%.2f %% of a core while idle, want at most %.2f %%", 100*cpu, 100*mostCPU)
			}
			if memory > mostBytes {
				t.Errorf("%d bytes resident, want at most %d", memory, mostBytes)
			}
			d.stop()
		})
	}
}

func processTime(t *testing.T, d *running) procfs.ProcStat {
	t.Helper()
	proc, err := procfs.NewProc(d.status().PID)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := proc.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if stat.PID == os.Getpid() {
		t.Fatal("that is this test's own process")
	}
	return stat
}
