//go:build netns

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/traffic"
)

const udpNetwork16 = `{"Network": "10.10.0.0/16", "Backend": {"Type": "udp"}}`

// Two nodes find each other through etcd, and their pods talk; everything is as flanneld leaves it.
func TestTwoNodes(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.a.start("vxlane-flanneld", "-healthz-ip=127.0.0.1", "-healthz-port=10253")
	c.b.start("vxlane-flanneld")
	c.both()
	want := fmt.Sprintf("FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n", c.a.subnet)
	if got := c.a.subnetFile(); got != want {
		t.Errorf("subnet file\n%s\nwant\n%s", got, want)
	}
	link, addrs, routes := c.a.device()
	if link.Attrs().MTU != 1472 || link.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("device %+v", link.Attrs())
	}
	if own := c.a.subnet.Masked().Addr().String() + "/32"; len(addrs) != 1 || addrs[0].IPNet.String() != own {
		t.Errorf("addresses %v, want %s", addrs, own)
	}
	if len(routes) != 1 || routes[0].Dst.String() != "10.10.0.0/16" {
		t.Errorf("routes %v", routes)
	}
	for path, body := range map[string]string{"healthz": "flanneld is running", "readyz": "flanneld is ready"} {
		if got := c.a.get("http://127.0.0.1:10253/" + path); got != body {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// device returns flannel0, with its IPv4 addresses and routes.
func (n *member) device() (link netlink.Link, addrs []netlink.Addr, routes []netlink.Route) {
	n.c.t.Helper()
	err := n.host.Run(func() (err error) {
		if link, err = netlink.LinkByName("flannel0"); err != nil {
			return err
		}
		var err1, err2 error
		addrs, err1 = netlink.AddrList(link, netlink.FAMILY_V4)
		routes, err2 = netlink.RouteList(link, netlink.FAMILY_V4)
		return errors.Join(err1, err2)
	})
	if err != nil {
		n.c.t.Fatal(err)
	}
	return link, addrs, routes
}

// get fetches a page inside a node.
func (n *member) get(url string) string {
	n.c.t.Helper()
	dial := func(_ context.Context, network, address string) (conn net.Conn, err error) {
		err = n.host.Run(func() error {
			conn, err = net.DialTimeout(network, address, patience)
			return err
		})
		return conn, err
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: patience}
	answer, err := client.Get(url)
	if err != nil {
		n.c.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		n.c.t.Fatal(err)
	}
	return string(body)
}

// run runs a program on a node to its end, and returns what it wrote.
func (n *member) run(program string, args ...string) string {
	n.c.t.Helper()
	var out strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := n.host.Start(cmd)
	if err != nil {
		n.c.t.Fatal(err)
	}
	_ = p.Wait()
	return out.String()
}

// A restart, however the process ended, keeps lease, device and established connections.
func TestRestart(t *testing.T) {
	c := newCluster(t, udpNetwork16)
	c.a.start("vxlane-flanneld")
	c.b.start("vxlane-flanneld")
	c.a.ping(c.b, 56)
	subnet := c.a.subnet
	link, _, _ := c.a.device()
	for i, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		want := []string{"noqueue", "pfifo"}[i]
		if got := c.a.qdisc(link); got != want {
			t.Errorf("queueing discipline %s, want %s", got, want)
		}
		c.a.setQdisc(link, "pfifo") // by somebody else: it stays
		transferred := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_, err := traffic.TCP(ctx, c.b.host, c.a.host, c.a.subnet.Addr(), 4*time.Second)
			transferred <- err
		}()
		time.Sleep(time.Second)
		if err := c.a.command.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := c.a.command.Wait(); (err == nil) != (sig == unix.SIGTERM) {
			t.Errorf("%s: %v\n%s", sig, err, c.a.output())
		}
		c.a.start("vxlane-flanneld")
		if err := <-transferred; err != nil {
			t.Errorf("%s: %v\n%s", sig, err, c.a.output())
		}
		again, addrs, routes := c.a.device()
		if c.a.subnet != subnet || again.Attrs().Index != link.Attrs().Index || len(addrs) != 1 || len(routes) != 1 {
			t.Errorf("%s: subnet %s, was %s; device %d, was %d; %v %v", sig, c.a.subnet, subnet, again.Attrs().Index, link.Attrs().Index, addrs, routes)
		}
	}
	if err := c.a.command.Stop(); err != nil {
		t.Error(err)
	}
	if got := c.a.qdisc(link); got != "pfifo" {
		t.Errorf("queueing discipline %s, somebody set pfifo", got)
	}
	if out := c.a.run("vxlane-flanneld", "cleanup"); out != "" {
		t.Errorf("cleanup: %s", out)
	}
	if err := c.a.host.Run(func() error { _, err := netlink.LinkByName("flannel0"); return err }); err == nil {
		t.Error("the device is still there")
	}
}

// qdisc returns the kind of a device's queueing discipline.
func (m *member) qdisc(l netlink.Link) (kind string) {
	m.c.must(m.host.Run(func() error {
		qdiscs, err := netlink.QdiscList(l)
		for _, q := range qdiscs {
			if q.Attrs().Parent == netlink.HANDLE_ROOT {
				kind = q.Type()
			}
		}
		return err
	}))
	return kind
}

func (m *member) setQdisc(l netlink.Link, kind string) {
	m.c.must(m.host.Run(func() error {
		return netlink.QdiscReplace(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT}, QdiscType: kind})
	}))
}

// The MTU key is the underlay's, as for flannel's vxlan.
func TestMTUKey(t *testing.T) {
	c := newCluster(t, `{"network": "10.10.0.0/16", "backend": {"type": "UDP", "port": 9285, "mtu": 1400}}`)
	c.a.start("vxlane-flanneld")
	c.b.start("vxlane-flanneld")
	c.both()
	if !strings.Contains(c.a.subnetFile(), "FLANNEL_MTU=1372\n") {
		t.Error(c.a.subnetFile())
	}
}
