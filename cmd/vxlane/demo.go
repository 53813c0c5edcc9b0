package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
)

const (
	demoName     = "vxlane-demo"
	demoTransfer = 2 * time.Second
	demoPatience = 5 * time.Second
)

const demoLong = `Show the main job on this machine alone: two hosts in network namespaces, one with vxlane, the other with the kernel's
own vxlan device. They ping each other and move data over TCP both ways; then the counters are shown, and everything is
removed. It needs root, and no other program.

With --keep the hosts stay, for looking around with other tools; --remove takes them away.`

func newDemo() *cobra.Command {
	var keep, remove bool
	var topology string
	cmd := &cobra.Command{
		Use: "demo", Short: "show a tunnel between two hosts on this machine", Long: demoLong, Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := map[string]func(context.Context, io.Writer, bool) error{"hosts": runDemo, "kubernetes": runKubernetesDemo}[topology]
			if show == nil {
				return cli.Usagef("--topology %s: want hosts or kubernetes", topology)
			}
			if keep && remove {
				return cli.Usagef("--keep and --remove exclude each other")
			}
			if err := lab.Available(); err != nil {
				return fmt.Errorf("demo: %w: %w", err, os.ErrPermission)
			}
			if remove {
				return lab.Remove(demoName)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return show(ctx, cmd.OutOrStdout(), keep)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the hosts standing and say how to enter them")
	cmd.Flags().StringVar(&topology, "topology", "hosts", "what to build: hosts, or kubernetes (two nodes with a pod each; docs/pod-to-pod.md)")
	cmd.Flags().BoolVar(&remove, "remove", false, "remove the hosts that --keep left")
	return cmd
}

// demo is two hosts: a runs vxlane, b the kernel's vxlan device.
type demo struct {
	w    io.Writer
	lab  *lab.Lab
	a, b *lab.Host
	up   *lab.Command
}

var (
	demoUnderlayA = netip.MustParsePrefix("172.30.0.1/24")
	demoUnderlayB = netip.MustParsePrefix("172.30.0.2/24")
	demoOverlayA  = []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24"), netip.MustParsePrefix("fd99::1/64")}
	demoOverlayB  = []netip.Prefix{netip.MustParsePrefix("10.99.0.2/24"), netip.MustParsePrefix("fd99::2/64")}
)

func runDemo(ctx context.Context, w io.Writer, keep bool) (err error) {
	l, err := lab.Build(lab.Topology{
		Name:  demoName,
		Hosts: []string{"a", "b"},
		Links: []lab.Link{{
			A: lab.End{Host: "a", Device: "eth0", Addresses: []netip.Prefix{demoUnderlayA}},
			B: lab.End{Host: "b", Device: "eth0", Addresses: []netip.Prefix{demoUnderlayB}},
		}},
	})
	if err != nil {
		return fmt.Errorf("demo: %w; a demo that was kept is removed with vxlane demo --remove", err)
	}
	d := &demo{w: w, lab: l, a: l.Host("a"), b: l.Host("b")}
	if err := d.show(ctx); err != nil {
		return errors.Join(fmt.Errorf("demo: %w", err), d.logs(), l.Close())
	}
	if keep {
		return d.keep()
	}
	if err := d.stop(); err != nil {
		return errors.Join(fmt.Errorf("demo: stop vxlane: %w", err), d.logs(), l.Close())
	}
	if err := l.Close(); err != nil {
		return fmt.Errorf("demo: clean up: %w", err)
	}
	d.say("\nall of it is removed again")
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.w, format+"\n", args...) }

// show runs the steps of the demo.
func (d *demo) show(ctx context.Context) error {
	for _, step := range []func(context.Context) error{d.start, d.pings, d.transfers, d.counters} {
		if err := step(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("interrupted: %w", err)
		}
	}
	return nil
}

// start brings both tunnel ends up.
func (d *demo) start(ctx context.Context) error {
	args := []string{"up", "--local", demoUnderlayA.Addr().String()}
	peer := "name=b,endpoint=" + demoUnderlayB.Addr().String()
	for i := range demoOverlayA {
		args = append(args, "--address", demoOverlayA[i].String())
		peer += ",allowed_ips=" + demoOverlayB[i].Addr().String()
	}
	args = append(args, "--peer", peer)
	d.say("two hosts, a cable between them:\n")
	d.say("  a  %s  vxlane %s", demoUnderlayA.Addr(), strings.Join(args, " "))
	d.say("  b  %s  ip link add vxlan0 type vxlan id 1 remote %s dstport 8472", demoUnderlayB.Addr(), demoUnderlayA.Addr())
	d.say("                 ip address add %s dev vxlan0; ip address add %s dev vxlan0; ip link set vxlan0 up\n", demoOverlayB[0], demoOverlayB[1])

	if err := d.startVXLANE(args); err != nil {
		return err
	}
	if err := d.b.AddVXLAN(lab.VXLAN{Device: "vxlan0", ID: 1, Remote: demoUnderlayA.Addr(), Port: 8472, Addresses: demoOverlayB}); err != nil {
		return err
	}
	return d.awaitReady(ctx)
}

func (d *demo) startVXLANE(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(d.a.LogPath())
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, args...)
	cmd.Args[0] = "vxlane"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // so that it outlives this terminal with --keep
	d.up, err = d.a.Start(cmd)
	return err
}

// client returns a client for the vxlane in host a.
func (d *demo) client() (c *control.Client, err error) {
	err = d.a.Run(func() error {
		path, err := control.SocketPath("vxlane0")
		c = control.NewClient(path)
		return err
	})
	return c, err
}

func (d *demo) awaitReady(ctx context.Context) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	return awaitReady(ctx, c, d.up)
}

func (d *demo) pings(context.Context) error {
	for i := range demoOverlayA {
		for _, way := range d.ways(i) {
			rtt, err := traffic.Ping(way.from, way.dst, 56, demoPatience)
			if err != nil {
				return err
			}
			d.say("ping  %s -> %s  %-10s  %.2f ms", way.from.Name(), way.to.Name(), way.dst, float64(rtt.Microseconds())/1000)
		}
	}
	return nil
}

func (d *demo) transfers(ctx context.Context) error {
	for _, way := range d.ways(0) {
		r, err := traffic.TCP(ctx, way.from, way.to, way.dst, demoTransfer)
		if err != nil {
			return err
		}
		d.say("tcp   %s -> %s  %-10s  %.2f Gbit/s: %d MB in %.1f s, every byte checked", way.from.Name(), way.to.Name(), way.dst,
			r.BitsPerSecond()/1e9, r.Bytes/1e6, r.Elapsed.Seconds())
	}
	return nil
}

// way is one of the two directions, over one address family.
type way struct {
	from, to *lab.Host
	dst      netip.Addr
}

func (d *demo) ways(family int) []way {
	return []way{
		{d.a, d.b, demoOverlayB[family].Addr()},
		{d.b, d.a, demoOverlayA[family].Addr()},
	}
}

func (d *demo) counters(ctx context.Context) error {
	c, err := d.client()
	if err != nil {
		return err
	}
	stats, err := c.Stats(ctx)
	if err != nil {
		return err
	}
	d.say("\nwhat vxlane counted in host a:\n")
	return printStats(d.w, stats)
}

// stop ends vxlane as systemd would, and expects it to end well.
func (d *demo) stop() error { return d.up.Stop() }

// logs returns what vxlane wrote, as an error.
func (d *demo) logs() error {
	data, err := os.ReadFile(d.a.LogPath())
	if err != nil || len(data) == 0 {
		return err
	}
	return fmt.Errorf("vxlane wrote:\n%s", data)
}

func (d *demo) keep() error {
	if err := d.lab.Keep(); err != nil {
		return errors.Join(fmt.Errorf("demo: keep the hosts: %w", err), d.lab.Close())
	}
	self := ownPath()
	d.say("\nthe hosts stay. Step into one with:")
	for _, h := range []*lab.Host{d.a, d.b} {
		d.say("  %s  sudo nsenter --net=%s bash    # or: sudo ip netns exec %s bash", h.Name(), h.Path(), h.Namespace())
	}
	d.say("In a, vxlane runs with pid %d and writes to %s; try %s status, peer list, stats, trace.", d.up.PID(), d.a.LogPath(), self)
	d.say("Remove all of it with:\n  sudo %s demo --remove", self)
	return nil
}

// ownPath is how to call this program.
func ownPath() string {
	self, err := os.Executable()
	if err != nil {
		return "vxlane"
	}
	return self
}
