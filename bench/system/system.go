// Package system has the tunnels that are measured: how each is brought up between two hosts, and what it needs.
package system

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/network"
)

// System is one tunnel, or the absence of one.
type System struct {
	Name    string
	Summary string
	// Missing is why it cannot run with this program at all, when that is known without trying.
	Missing error
	// start brings it up; what it starts lives until the network is closed.
	start func(*network.Network) (*Instance, error)
}

// Instance is a system that is up.
type Instance struct {
	// Hosts are the addresses of host a and host b in the tunnel.
	Hosts [2]netip.Addr
	// MakesRoutes tells that the system itself makes the routes to the pods behind the other host.
	MakesRoutes bool

	commands []*command
	describe func() map[string]string
	hosts    []*lab.Host
	running  map[int]string // process ids once settled, with their hosts
}

// About returns what the system says of itself, such as its version and tier.
func (in *Instance) About() map[string]string {
	if in.describe == nil {
		return nil
	}
	return in.describe()
}

// Patience is how long a system may take until it carries packets.
const Patience = 10 * time.Second

// ConnectPods connects the pods behind the hosts through the system.
func (in *Instance) ConnectPods(ctx context.Context, n *network.Network) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, fmt.Errorf("no answer between pods after %s", Patience))
	defer cancel()
	ctx, stop := in.watch(ctx)
	defer stop()
	return n.ConnectPods(ctx, in.Hosts, in.MakesRoutes)
}

// Start brings the system up and waits until it carries packets.
func (s System) Start(ctx context.Context, n *network.Network) (*Instance, error) {
	if s.Missing != nil {
		return nil, s.Missing
	}
	in, err := s.start(n)
	if err != nil {
		return nil, err
	}
	in.hosts = []*lab.Host{n.A.Host, n.B.Host}
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, fmt.Errorf("no answer through the tunnel after %s", Patience))
	defer cancel()
	ctx, stop := in.watch(ctx)
	defer stop()
	if err := n.AwaitReady(ctx, in.Hosts[1]); err != nil {
		if failed := in.Check(); failed != nil {
			return nil, failed
		}
		return nil, errors.Join(err, in.output())
	}
	return in, nil
}

// watch returns a context that ends when one of the system's commands fails.
func (in *Instance) watch(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	for _, c := range in.commands {
		go func() {
			select {
			case <-ctx.Done():
			case <-c.process.Done():
				if err := c.failure(); err != nil {
					cancel(err)
				}
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// Settle notes what runs in the hosts now that the system is up and has to run until Check: its commands, and what went
// into the background. What a command starts and waits for is its own matter.
func (in *Instance) Settle() error {
	in.running = make(map[int]string)
	for _, h := range in.hosts {
		pids, err := h.Processes()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			parent := lab.Parent(pid)
			if ended := parent == 0; !ended && !slices.Contains(pids, parent) {
				in.running[pid] = h.Name()
			}
		}
	}
	return in.Check()
}

// Check returns an error when a command of the system has failed, or a process that ran when the system had settled does
// not any more.
func (in *Instance) Check() error {
	var errs []error
	for _, c := range in.commands {
		select {
		case <-c.process.Done():
			err := c.failure()
			if _, ran := in.running[c.process.PID()]; err == nil && ran {
				err = fmt.Errorf("%s on host %s ended while it was measured%s", c.line, c.host, c.tail())
			}
			errs = append(errs, err)
			delete(in.running, c.process.PID())
		default:
		}
	}
	for _, h := range in.hosts {
		pids, err := h.Processes()
		errs = append(errs, err)
		for pid, host := range in.running {
			if host == h.Name() && !slices.Contains(pids, pid) {
				errs = append(errs, fmt.Errorf("process %d on host %s ended while it was measured%s", pid, host, in.tails(host)))
			}
		}
	}
	return errors.Join(errs...)
}

// tails returns the last lines that the commands of a host wrote.
func (in *Instance) tails(host string) (all string) {
	for _, c := range in.commands {
		if c.host == host {
			all += c.tail()
		}
	}
	return all
}

// output returns the last lines of every command, as an error.
func (in *Instance) output() error {
	var errs []error
	for _, c := range in.commands {
		if tail := c.tail(); tail != "" {
			errs = append(errs, fmt.Errorf("host %s%s", c.host, tail))
		}
	}
	return errors.Join(errs...)
}

// command is a process of a system inside a host.
type command struct {
	line    string
	host    string
	log     string
	process *lab.Command
}

// failure returns how the command failed; nil when it ended well: it may, once the tunnel is set up. It has ended.
func (c *command) failure() error {
	if err := c.process.Wait(); err != nil {
		return fmt.Errorf("%s on host %s ended: %w%s", c.line, c.host, err, c.tail())
	}
	return nil
}

// run starts a command inside a host, with its output in the host's log.
func (in *Instance) run(h *lab.Host, line string, cmd *exec.Cmd) error {
	log, err := os.Create(h.LogPath())
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is for the harness, which ends the command itself
	process, err := h.Start(cmd)
	if err != nil {
		return err
	}
	in.commands = append(in.commands, &command{line, h.Name(), h.LogPath(), process})
	return nil
}

// tail returns the last lines that the command wrote, for an error message.
func (c *command) tail() string {
	const lines = 3
	data, err := os.ReadFile(c.log)
	text := strings.TrimSpace(string(data))
	if err != nil || text == "" {
		return ""
	}
	all := strings.Split(text, "\n")
	return ": " + strings.Join(all[max(0, len(all)-lines):], " | ")
}

// Tools says where the programs are that systems need.
type Tools struct {
	// VXLANE is the vxlane binary; empty when there is none.
	VXLANE string
}

// FindTools looks for vxlane beside this program, then in PATH, unless it is given.
func FindTools(vxlane string) (Tools, error) {
	if vxlane != "" {
		path, err := exec.LookPath(vxlane)
		if err != nil {
			return Tools{}, fmt.Errorf("find vxlane: %w", err)
		}
		path, err = filepath.Abs(path)
		return Tools{path}, err
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "vxlane")
		if _, err := os.Stat(beside); err == nil {
			return Tools{beside}, nil
		}
	}
	path, err := exec.LookPath("vxlane")
	if err != nil {
		return Tools{}, nil // the systems that need it say so
	}
	path, err = filepath.Abs(path)
	return Tools{path}, err
}

// All returns the systems that are known by name, the baseline of comparisons second.
func All(t Tools) []System {
	all := []System{
		{Name: "direct", Summary: "no tunnel: the bare veth pair", start: startDirect},
		{Name: Baseline, Summary: "the kernel's vxlan device, as ip-link(8) makes it", start: startKernel(false)},
		{Name: "kernel-vxlan-nocsum", Summary: "the kernel's vxlan device without outer UDP checksums (noudpcsum)", start: startKernel(true)},
		{Name: "vxlane", Summary: "vxlane, with the tier that it chooses by itself", start: t.vxlane("--tier", "auto")},
		{Name: "vxlane-tunnel-gso", Summary: "vxlane, tunnel-gso tier", start: t.vxlane("--tier", "tunnel-gso")},
		{Name: "vxlane-udp-gso", Summary: "vxlane, udp-gso tier", start: t.vxlane("--tier", "udp-gso")},
		{Name: "vxlane-portable", Summary: "vxlane, portable tier", start: t.vxlane("--tier", "portable")},
		{Name: "vxlane-flannel-udp", Summary: "vxlane with flannel's UDP framing", start: t.vxlane("--encap", "flannel-udp")},
	}
	if t.VXLANE == "" {
		for i := range all {
			if strings.HasPrefix(all[i].Name, "vxlane") {
				all[i].Missing = errNoVXLANE
			}
		}
	}
	return append(all, System{
		Name: "flannel-udp", Summary: "flannel's own udp backend: its C proxy, driven by its Go package", Missing: flannelMissing, start: startFlannel,
	})
}

// Baseline is the system that all others are compared with.
const Baseline = "kernel-vxlan"
