//go:build netns

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/cmd/internal/cli"
)

// config writes a configuration file.
func (p *pair) config(text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, "vxlane.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// hostState is all that vxlane could leave behind in a network namespace.
func hostState(t *testing.T, h *lab.Host) []string {
	t.Helper()
	var state []string
	err := h.Run(func() error {
		links, err1 := netlink.LinkList()
		for _, l := range links {
			state = append(state, fmt.Sprintf("link %s mtu %d flags %s", l.Attrs().Name, l.Attrs().MTU, l.Attrs().Flags))
			for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				programs, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: hook})
				if err != nil && kernelHas(6, 6) {
					return fmt.Errorf("BPF programs of %s: %w", l.Attrs().Name, err)
				}
				if programs != nil && len(programs.Programs) > 0 {
					state = append(state, fmt.Sprintf("%d BPF programs at %s of %s", len(programs.Programs), hook, l.Attrs().Name))
				}
			}
		}
		addrs, err2 := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range addrs {
			state = append(state, "address "+a.IPNet.String()+" "+a.Label)
		}
		routes, err3 := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			state = append(state, "route "+r.String())
		}
		rules, err4 := netlink.RuleList(netlink.FAMILY_ALL)
		for _, r := range rules {
			state = append(state, "rule "+r.String())
		}
		neighbours, err5 := netlink.NeighList(0, netlink.FAMILY_ALL)
		for _, n := range neighbours {
			if n.State&(unix.NUD_PERMANENT) != 0 {
				state = append(state, "neighbour "+n.String())
			}
		}
		udp, err6 := os.ReadFile("/proc/thread-self/net/udp")
		state = append(state, fmt.Sprintf("%d udp sockets", strings.Count(string(udp), "\n")))
		return errors.Join(err1, err2, err3, err4, err5, err6)
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(state)
	return state
}

const threePeers = `
version: 1
tunnels:
  - device: {addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: 172.30.0.1}
    peers:
      - {name: b, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2/32, 10.244.2.0/24, "fd99::2/128", "fd02::/64"]}
      - {name: c, endpoint: 172.30.0.3, allowed_ips: [10.99.0.3/32]}
      - {name: d, endpoint: 172.30.0.4, mac: 02:00:00:00:00:04, allowed_ips: [10.244.4.0/24]}
`

func TestNothingIsLeftBehind(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
		p := newPair(t, wire{})
		before := hostState(t, p.a)
		d := p.start(p.a, "--config", p.config(threePeers))
		if during := hostState(t, p.a); len(during) < len(before)+8 {
			t.Errorf("while it runs there is no more than before: %q", during)
		}
		if err := d.cmd.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := d.cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", sig, err, d.output())
		}
		if after := hostState(t, p.a); !slices.Equal(before, after) {
			t.Errorf("%s: before %q\nafter %q", sig, before, after)
		}
		if left, _ := filepath.Glob(filepath.Join(p.dir, "*.sock")); len(left) != 0 {
			t.Errorf("%s: sockets are left: %s", sig, left)
		}
	}
}

func TestStartAfterSIGKILL(t *testing.T) {
	p := newPair(t, wire{})
	before := hostState(t, p.a)
	p.addKernelPeer()
	for range 3 {
		d := p.start(p.a, upArgs()...)
		p.pingAll(56)
		if err := d.cmd.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if d.cmd.Wait() == nil {
			t.Error("a killed process ended well")
		}
		if left, _ := filepath.Glob(filepath.Join(p.dir, "a.sock")); len(left) != 1 {
			t.Error("a killed process took its socket along: this test shows nothing")
		}
	}
	p.start(p.a, upArgs()...).stop()
	if after := hostState(t, p.a); !slices.Equal(before, after) {
		t.Errorf("before %q\nafter %q", before, after)
	}
}

func routesOf(t *testing.T, h *lab.Host, device string) (out []string) {
	t.Helper()
	err := h.Run(func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		routes, err := netlink.RouteList(l, netlink.FAMILY_ALL)
		for _, r := range routes {
			if r.Protocol == unix.RTPROT_STATIC {
				out = append(out, r.Dst.String())
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// awaitRoutes waits until the device in a host has exactly these routes.
func (d *running) awaitRoutes(h *lab.Host, what string, want ...string) {
	d.t.Helper()
	if !soon(func() bool { return slices.Equal(routesOf(d.t, h, "vxlane0"), want) }) {
		d.t.Fatalf("%s: routes %v, want %v\n%s", what, routesOf(d.t, h, "vxlane0"), want, d.output())
	}
}

func TestRoutesFollowThePeers(t *testing.T) {
	p := newPair(t, wire{})
	path := p.config(threePeers)
	d := p.start(p.a, "--config", path)
	want := []string{"10.244.2.0/24", "10.244.4.0/24", "10.99.0.2/32", "10.99.0.3/32", "fd02::/64", "fd99::2/128"}
	if got := routesOf(t, p.a, "vxlane0"); !slices.Equal(got, want) {
		t.Errorf("routes %v, want %v", got, want)
	}
	one := strings.Split(threePeers, "      - {name: c")[0]
	p.config(one)
	d.awaitRoutes(p.a, "the file changed", "10.244.2.0/24", "10.99.0.2/32", "fd02::/64", "fd99::2/128")

	p.config(strings.Replace(one, "10.244.2.0/24", "10.244.9.0/24", 1))
	if err := d.cmd.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	d.awaitRoutes(p.a, "SIGHUP", "10.244.9.0/24", "10.99.0.2/32", "fd02::/64", "fd99::2/128")

	p.config("version: [")
	if _, err := d.client.Reload(context.Background()); err == nil || !strings.Contains(err.Error(), path+":1:") {
		t.Errorf("a bad file: %v", err)
	}
	d.awaitRoutes(p.a, "a bad file", "10.244.9.0/24", "10.99.0.2/32", "fd02::/64", "fd99::2/128")
	if s, err := d.client.Status(context.Background()); err != nil || len(s.Degraded) != 1 || s.Config.OK {
		t.Errorf("status after a bad file: %+v, %v", s, err)
	}

	change, err := d.client.Apply(context.Background(), "test", []byte(`[{"name": "b", "endpoint": "172.30.0.2", "allowed_ips": ["10.99.0.2"]}]`))
	if err != nil || change.Result != "1 peer changed" {
		t.Errorf("apply: %+v, %v", change, err)
	}
	d.awaitRoutes(p.a, "peer apply", "10.99.0.2/32")
	if _, err := d.client.Apply(context.Background(), "test", []byte("[]")); err != nil {
		t.Error(err)
	}
	d.awaitRoutes(p.a, "an empty set")
	d.stop()
}

// What vxlane up says when it cannot run, and with which exit code.
func TestUpFailures(t *testing.T) {
	p := newPair(t, wire{})
	p.addKernelPeer()
	if err := p.a.AddVXLAN(lab.VXLAN{Device: "vxlan9", ID: 9, Port: 4789}); err != nil {
		t.Fatal(err)
	}
	nobody := func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	for _, c := range []struct {
		name string
		args []string
		edit func(cmd *exec.Cmd)
		code int
		want []string
	}{
		{"port taken by the kernel", upArgs("--port", "4789"), nil, cli.ExitFailure, []string{"port 4789", "address already in use", "--port"}},
		{"MTU too large", upArgs("--mtu", "1451"), nil, cli.ExitUsage, []string{"device.mtu: 1451 does not fit", "eth0 has MTU 1500", "use 1450 or less"}},
		{"address of another host", []string{"--local", "192.0.2.1", "--address", "10.99.0.1/24"}, nil, cli.ExitUsage, []string{"underlay.local 192.0.2.1", "see ip address"}},
		{"underlay inside the tunnel", append(upArgs(), "--peer", "endpoint=172.30.0.3,mac=02:00:00:00:00:03,allowed_ips=172.30.0.0/25"), nil, cli.ExitFailure, []string{"the route to peer b at 172.30.0.2 leads into the tunnel itself", "routes: false"}},
		{"no directory for the socket", upArgs("--socket", filepath.Join(p.dir, "none", "x.sock")), nil, cli.ExitFailure, []string{"--socket"}},
		{"device name taken", upArgs("--device", "eth0"), nil, cli.ExitFailure, []string{"open device eth0", "--device"}},
		{"route taken", append(upArgs(), "--peer", "endpoint=172.30.0.3,mac=02:00:00:00:00:03,allowed_ips=172.30.0.0/24"), nil, cli.ExitFailure, []string{"add route 172.30.0.0/24", "routes: false"}},
		{"metrics address taken", upArgs("--metrics", "203.0.113.1:9472"), nil, cli.ExitFailure, []string{"serve metrics", "--metrics"}},
		// "permission denied" or "not permitted": on some hosts everyone may open /dev/net/tun.
		{"not root", upArgs(), nobody, cli.ExitPermission, []string{"permi", "CAP_NET_ADMIN"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := hostState(t, p.a)
			path, err := exec.LookPath("vxlane")
			if err != nil {
				t.Fatal(err)
			}
			if c.edit != nil {
				path = worldReadable(t, path)
			}
			var out strings.Builder
			cmd := exec.Command(path, append([]string{"up", "--socket", filepath.Join(p.dir, "x.sock")}, c.args...)...)
			cmd.Args[0], cmd.Stderr = "vxlane", &out
			if c.edit != nil {
				c.edit(cmd)
			}
			proc, err := p.a.Start(cmd)
			if err != nil {
				t.Fatal(err)
			}
			_ = proc.Wait()
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in:\n%s", want, out.String())
				}
			}
			if after := hostState(t, p.a); !slices.Equal(before, after) {
				t.Errorf("before %q\nafter %q", before, after)
			}
		})
	}
}

// worldReadable copies a program to where every user can run it.
func worldReadable(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "vxlane-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	copied := filepath.Join(dir, "vxlane")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(copied, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	return copied
}

// A host without /dev/net/tun, which is how containers often come: a mount namespace of its own hides the node.
func TestNoTUNDevice(t *testing.T) {
	p := newPair(t, wire{})
	for _, program := range []string{"unshare", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("skipped: needs %s (util-linux)", program)
		}
	}
	var out strings.Builder
	script := `mount -t tmpfs none /dev/net && exec vxlane up --local 172.30.0.1 --address 10.99.0.1/24`
	cmd := exec.Command("unshare", "-m", "sh", "-c", script)
	cmd.Stderr = &out
	proc, err := p.a.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	_ = proc.Wait()
	if code := cmd.ProcessState.ExitCode(); code != cli.ExitKernel || !strings.Contains(out.String(), "mknod /dev/net/tun c 10 200") {
		t.Errorf("exit code %d, want %d:\n%s", code, cli.ExitKernel, out.String())
	}
}

func TestDeviceRemovedWhileRunning(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	if err := p.a.Delete("vxlane0"); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); err == nil || !strings.Contains(d.output(), "the device was removed") {
		t.Errorf("%v\n%s", err, d.output())
	}
}

// Down is degraded; up again, all that the kernel took away meanwhile is back.
func TestDeviceDownAndUp(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	p.addKernelPeer()
	p.pingAll(56)
	if err := p.a.SetDown("vxlane0"); err != nil {
		t.Fatal(err)
	}
	if s, err := d.client.Status(context.Background()); err != nil || len(s.Degraded) == 0 || s.Device.Up {
		t.Errorf("status %+v, %v", s, err)
	}
	if err := p.a.SetUp("vxlane0"); err != nil {
		t.Fatal(err)
	}
	if out := p.exec(p.a, "ip", "link", "show", "vxlane0"); !strings.Contains(out, " qdisc noqueue ") {
		t.Errorf("a queueing discipline costs every packet something, and nothing ever waits in it:\n%s", out)
	}
	for _, dst := range overlayB {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := traffic.PingUntil(ctx, p.a, dst); err != nil {
			t.Error(err)
		}
	}
	d.awaitRoutes(p.a, "up again", "10.99.0.2/32", "fd99::2/128")
	d.stop()
}

// Who sends to an address that no peer has is told so, and not left to wait.
func TestUnreachableIsAnswered(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	for _, dst := range []string{"10.99.0.77:9", "[fd99::77]:9"} {
		var answer error
		err := p.a.Run(func() error {
			dialer := net.Dialer{Control: reportSoftErrors}
			conn, err := dialer.Dial("udp", dst)
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("x")); err != nil {
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				return err
			}
			_, answer = conn.Read(make([]byte, 1))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(answer, unix.EHOSTUNREACH) {
			t.Errorf("%s: %v, want %v", dst, answer, unix.EHOSTUNREACH)
		}
	}
	d.stop()
}

// reportSoftErrors has the kernel report "host unreachable" to a UDP socket, which it otherwise keeps to itself (ip(7)).
func reportSoftErrors(network, _ string, c syscall.RawConn) error {
	var optErr error
	err := c.Control(func(fd uintptr) {
		if network == "udp4" {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		} else {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
	})
	return errors.Join(err, optErr)
}

// The kernel's device is made anew, with another MAC, while the tunnel is in use.
func TestPeerWithANewMAC(t *testing.T) {
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	p.addKernelPeer()
	p.pingAll(56)
	if err := p.b.Delete("vxlan0"); err != nil {
		t.Fatal(err)
	}
	p.addKernelPeer()
	p.ping(p.b, overlayA[0], 56) // it asks for us, and we hear who asks
	p.ping(p.a, overlayB[0], 56)
	d.stop()
}

// Addresses that someone else gives to the device are answered for, too.
func TestAddressAddedLater(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{})
	d := p.start(p.a, upArgs()...)
	p.addKernelPeer()
	p.pingAll(56)
	if err := p.a.AddAddresses("vxlane0", prefixes("10.99.0.50/24")...); err != nil {
		t.Fatal(err)
	}
	p.ping(p.b, netip.MustParseAddr("10.99.0.50"), 56)
	d.stop()
}
