//go:build netns && cluster

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlane/vxlane/bench/traffic"
)

// fill puts n leases of nodes that are not there into etcd, and returns how to change one.
func (e *etcdServer) fill(n int) (change func(i, version int) error) {
	e.c.t.Helper()
	var id clientv3.LeaseID
	e.do(func(ctx context.Context) error {
		l, err := e.client.Grant(ctx, 24*3600)
		if err == nil {
			id = l.ID
		}
		return err
	})
	put := func(i, version int) clientv3.Op {
		key := fmt.Sprintf("%s10.%d.%d.0-24", leaseKeys, 100+i/256, i%256)
		return clientv3.OpPut(key, leaseAt(fmt.Sprintf("172.%d.%d.%d", 20+version%8, i/250, 1+i%250)), clientv3.WithLease(id))
	}
	for i := 0; i < n; {
		var ops []clientv3.Op
		for ; i < n && len(ops) < 100; i++ {
			ops = append(ops, put(i, 0))
		}
		e.do(func(ctx context.Context) error { _, err := e.client.Txn(ctx).Then(ops...).Commit(); return err })
	}
	return func(i, version int) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := e.client.Do(ctx, put(i, version))
		return err
	}
}

// memory returns what a process has resident, in megabytes.
func memory(t *testing.T, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		var kB int
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kB); n == 1 {
			return float64(kB) / 1024
		}
	}
	t.Fatal("no VmRSS in /proc")
	return 0
}

// awaitPeers waits until a node's tunnel has so many peers, and returns how long that took.
func (n *member) awaitPeers(device string, count int) time.Duration {
	n.c.t.Helper()
	began := time.Now()
	var got int
	for time.Since(began) < 2*patience {
		if got = n.status(device).Peers.Total; got == count {
			return time.Since(began)
		}
		time.Sleep(10 * time.Millisecond)
	}
	n.c.t.Fatalf("%d peers, want %d\n%s", got, count, n.output())
	return 0
}

// Thousands of leases: what it takes to know them all, to hold them, and to follow one; then 200 changes in every second while
// packets flow, of which none is lost.
func TestScale(t *testing.T) {
	for _, leases := range []int{1000, 5000} {
		t.Run(fmt.Sprint(leases), func(t *testing.T) {
			c := newCluster(t, `{"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.10.0.0", "SubnetMax": "10.20.0.0", "Backend": {"Type": "udp"}}`)
			change := c.etcd.fill(leases)
			c.b.start("vxlane-flanneld")
			began := time.Now()
			c.a.start("vxlane-flanneld")
			c.a.awaitPeers("flannel0", leases+1)
			t.Logf("%d leases: known %s after the start of the daemon, %.0f MB resident", leases, time.Since(began).Round(time.Millisecond), memory(t, c.a.command.PID()))
			c.ping(c.a.pod, c.b.podAddr(), 56)

			began = time.Now()
			c.must(change(7, 1))
			c.a.awaitPeer("flannel0", "10.100.7.0/24", "172.21.0.8:8285")
			t.Logf("one change: in force after %s", time.Since(began).Round(time.Millisecond))

			changing, stop := context.WithCancel(context.Background())
			changed := make(chan int, 1)
			go func() {
				const rate = 250 // a put takes a part of its time, so that 200 come of it
				count := 0
				defer func() { changed <- count }()
				for tick := time.Tick(time.Second / rate); changing.Err() == nil; <-tick {
					if err := change(count%leases, 2+count/leases); err != nil {
						t.Error(err)
						return
					}
					count++
				}
			}()
			followed := make(chan bool, 1)
			go func() { // while packets flow, and not only once they have: the first lease's first change
				for changing.Err() == nil {
					if c.a.peers("flannel0")["10.100.0.0/24"] == "172.22.0.1:8285" {
						followed <- true
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
				followed <- false
			}()
			began = time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
			defer cancel()
			r, err := traffic.Echo(ctx, c.a.pod, c.b.pod, c.b.podAddr(), 4, 150_000, traffic.Briskly)
			took := time.Since(began)
			stop()
			count := <-changed
			if !<-followed {
				t.Error("no change was followed before the packets stopped")
			}
			if err != nil || r.Received != r.Sent || r.Reordered+r.Duplicated+r.Corrupted != 0 {
				t.Errorf("during changes: %+v, %v\n%s", r, err, c.logs())
			}
			t.Logf("%d changes in %s (%.0f in a second), while %d packets went and came back, %d lost; %.0f MB resident",
				count, took.Round(time.Millisecond), float64(count)/took.Seconds(), r.Received, r.Sent-r.Received, memory(t, c.a.command.PID()))
			last := count - 1
			c.a.awaitPeer("flannel0", fmt.Sprintf("10.%d.%d.0/24", 100+last%leases/256, last%leases%256), fmt.Sprintf("172.%d.%d.%d:8285", 20+(2+last/leases)%8, last%leases/250, 1+last%leases%250))
		})
	}
}
