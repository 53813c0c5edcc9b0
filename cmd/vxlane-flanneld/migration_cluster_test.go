//go:build netns && cluster

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

func init() {
	extra["etcdctl"] = func() { // put KEY VALUE, as etcdctl has it
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + etcdAddress + ":2379"}, DialTimeout: patience})
		if err == nil {
			_, err = client.Put(context.Background(), os.Args[2], os.Args[3])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// systemctl is enough of it for the guide: start, stop and restart of units of Type=notify (a subnet file is what such a unit is
// ready with), whose files are where they should be.
const systemctl = `#!/bin/bash
set -e
unit=$2 pid=$STATE/$2.pid file=$(sed -n 's/.*--subnet-file=\([^ "]*\).*/\1/p' /etc/default/flanneld)
stop() { test -e $pid && kill $(cat $pid) && while grep -q '^State:[^Z]*$' /proc/$(cat $pid)/status 2>/dev/null; do sleep 0.01; done; rm -f $pid; }
start() {
	before=$(stat -c %i $file 2>/dev/null || true)
	set -a; . /etc/default/flanneld; set +a
	eval "setsid $(sed -n 's/^ExecStart=//p' /etc/systemd/system/$unit.service) >>$STATE/$unit.log 2>&1 &"
	echo $! >$pid
	until [ -e $file ] && [ "$(stat -c %i $file)" != "$before" ]; do kill -0 $(cat $pid); sleep 0.01; done
}
case $1 in
restart) stop; start ;;
*) $1 ;;
esac
`

// blocks returns the commands of a document that are for each node, and those that are for once, in their order.
func blocks(t *testing.T, file string) (all [][2]string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(string(text), "\n```") {
		if i%2 == 0 {
			continue // prose
		}
		kind, commands, ok := strings.Cut(part, "\n")
		if !ok || kind != "sh node" && kind != "sh once" {
			t.Fatalf("a block of kind %q", kind)
		}
		all = append(all, [2]string{strings.TrimPrefix(kind, "sh "), commands})
	}
	return all
}

// migrant is a node whose /etc/default, units and programs are those of a directory.
type migrant struct {
	*member
	dir string
}

func newMigrant(n *member) *migrant {
	c := n.c
	m := &migrant{n, filepath.Join(c.dir, "host-"+n.host.Name())}
	for _, d := range []string{"default", "systemd", "local", "shim", "state"} {
		c.must(os.MkdirAll(filepath.Join(m.dir, d), 0o755))
	}
	write := func(name, text string, mode os.FileMode) {
		c.must(os.WriteFile(filepath.Join(m.dir, name), []byte(text), mode))
	}
	c.t.Cleanup(func() { // what systemctl started is nobody's child
		if err := n.host.KillProcesses(); err != nil {
			c.t.Error(err)
		}
	})
	write("shim/systemctl", systemctl, 0o755)
	write("default/flanneld", fmt.Sprintf("FLANNELD_OPTIONS=\"%s --iface=eth0 --subnet-file=%s --iptables-forward-rules=false\"\n", strings.Join(n.leases, " "), n.file), 0o644)
	write("systemd/flanneld.service", "[Service]\nExecStart="+stockProgram+" $FLANNELD_OPTIONS\n", 0o644)
	return m
}

// do runs commands of the guide on the node.
func (m *migrant) do(commands string) {
	c := m.c
	c.t.Helper()
	mounts := fmt.Sprintf("mount --bind %[1]s/default /etc/default && mkdir -p /etc/systemd/system && mount --bind %[1]s/systemd /etc/systemd/system && mount --bind %[1]s/local /usr/local/bin\n", m.dir)
	cmd := exec.Command("unshare", "-m", "bash", "-ec", mounts+commands)
	cmd.Env = append(os.Environ(), "PATH="+m.dir+"/shim:"+os.Getenv("PATH"), "STATE="+m.dir+"/state")
	out, err := os.Create(filepath.Join(m.dir, "out"))
	c.must(err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	p, err := m.host.Start(cmd)
	c.must(err)
	if err := p.Wait(); err != nil {
		text, _ := os.ReadFile(out.Name())
		c.t.Fatalf("%s: %v\n%s\n%s\n%s", m.host.Name(), err, commands, text, m.daemonLogs())
	}
}

func (m *migrant) daemonLogs() string {
	var all strings.Builder
	files, _ := filepath.Glob(filepath.Join(m.dir, "state", "*.log"))
	for _, f := range files {
		text, _ := os.ReadFile(f)
		fmt.Fprintf(&all, "%s %s\n%s", m.host.Name(), filepath.Base(f), text)
	}
	return all.String()
}

// heartbeat sends a datagram from one pod to another every 20 ms, and keeps the longest time without an answer.
type heartbeat struct {
	longest atomic.Int64
	stop    func()
}

func (c *cluster) heartbeat(from, to *lab.Host, address netip.Addr) *heartbeat {
	c.t.Helper()
	var client, server *net.UDPConn
	c.must(to.Run(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{IP: address.AsSlice()})
		return err
	}))
	c.must(from.Run(func() (err error) {
		client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
		return err
	}))
	h := &heartbeat{stop: func() { _ = client.Close(); _ = server.Close() }}
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	go func() {
		for i := uint64(0); ; i++ {
			_, err := client.Write(binary.BigEndian.AppendUint64(nil, i))
			if err != nil && strings.Contains(err.Error(), "closed") {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	go func() {
		last := time.Now()
		for buf := make([]byte, 100); ; {
			_, err := client.Read(buf)
			switch {
			case err == nil:
				h.longest.Store(max(h.longest.Load(), int64(time.Since(last))))
				last = time.Now()
			case strings.Contains(err.Error(), "closed"):
				return
			default:
				time.Sleep(time.Millisecond) // an ICMP error, while there is no way
			}
		}
	}()
	return h
}

// docs/migration.md is followed as written, with real flannel nodes at the beginning, while two pods talk: the longest silence is
// less than a second, addresses stay, and a TCP connection lives through all of it.
func TestMigration(t *testing.T) {
	if stockProgram == "" {
		t.Skip("skipped: needs flannel's own udp backend (build tag flannel, cgo, amd64)")
	}
	c := newCluster(t, udpNetwork16)
	nodes := []*migrant{newMigrant(c.a), newMigrant(c.b)}
	for _, m := range nodes {
		m.do("systemctl start flanneld")
		m.readSubnets()
		m.plugIn()
	}
	c.ping(c.a.pod, c.b.podAddr(), 56)
	subnets := [2]netip.Prefix{c.a.subnet, c.b.subnet}
	streaming, stop := context.WithCancel(context.Background())
	defer stop()
	streamed := make(chan error, 1)
	go func() {
		_, err := traffic.TCP(streaming, c.a.pod, c.b.pod, c.b.podAddr(), time.Hour)
		streamed <- err
	}()
	for _, b := range blocks(t, "../../docs/migration.md") {
		if b[0] == "once" {
			(&migrant{&member{c: c, host: c.hub}, nodes[0].dir}).do(b[1])
			continue
		}
		for _, m := range nodes {
			beats := []*heartbeat{c.heartbeat(c.a.pod, c.b.pod, c.b.podAddr()), c.heartbeat(c.b.pod, c.a.pod, c.a.podAddr())}
			time.Sleep(100 * time.Millisecond)
			m.do(b[1])
			time.Sleep(500 * time.Millisecond)
			for i, h := range beats {
				c.ping(c.a.pod, c.b.podAddr(), 56) // however long that takes: then the silence is known
				time.Sleep(50 * time.Millisecond)
				h.stop()
				longest := time.Duration(h.longest.Load())
				t.Logf("%s, %q: longest silence %s", []string{"a to b", "b to a"}[i], strings.Split(b[1], "\n")[0], longest.Round(time.Millisecond))
				if longest > time.Second {
					t.Errorf("%s was silent for %s at\n%s\n%s", []string{"a to b", "b to a"}[i], longest, b[1], m.daemonLogs())
				}
			}
			m.readSubnets()
		}
	}
	if subnets != [2]netip.Prefix{c.a.subnet, c.b.subnet} {
		t.Errorf("subnets %s and %s, were %v", c.a.subnet, c.b.subnet, subnets)
	}
	for _, n := range []*member{c.a, c.b} {
		if kind := n.deviceType(); kind != "vxlan" {
			t.Errorf("at the end, flannel.1 of %s is a %s", n.host.Name(), kind)
		}
		if out := n.run("ip", "link", "show", "flannel0"); !strings.Contains(out, "does not exist") {
			t.Errorf("flannel0 is left behind: %s", out)
		}
	}
	select {
	case err := <-streamed:
		t.Fatalf("TCP ended before the last step: %v", err)
	default:
	}
	stop()
	if err := <-streamed; err != nil {
		t.Errorf("TCP: %v", err)
	}
	c.back(nodes)
}

// back goes the way that the guide describes at the end of its second step: from vxlan in user space to udp, node by node, in which
// devices of the other backend do not swallow what is for the other node.
func (c *cluster) back(nodes []*migrant) {
	c.t.Helper()
	const restart = "sed -i /VXLANE_VXLAN_DATAPLANE/d /etc/default/flanneld\nsystemctl restart vxlane-flanneld\n"
	for _, network := range []string{
		`{"Network": "10.10.0.0/16", "Backend": {"Type": "vxlan", "Dataplane": "userspace", "UDPPort": 8285}}`, udpNetwork16,
	} {
		c.etcd.put(configKey, network, 0)
		for _, m := range nodes {
			m.do(restart)
			c.ping(c.a.pod, c.b.podAddr(), 56)
			c.ping(c.b.pod, c.a.podAddr(), 56)
		}
	}
	for _, m := range nodes {
		if out := m.run("ip", "link", "show", "flannel.1"); !strings.Contains(out, "does not exist") {
			c.t.Errorf("flannel.1 is left behind: %s", out)
		}
	}
}
