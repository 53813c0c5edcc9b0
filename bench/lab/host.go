package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	namespaceDir = "/run/netns" // where ip-netns(8) looks
	stopGrace    = 5 * time.Second
)

// Host is a network namespace.
type Host struct {
	name      string
	namespace string
	lab       *Lab
	handle    *os.File // of the namespace

	mu       sync.Mutex
	commands []*Command
}

// addHost makes the namespace NAME.HOST with its loopback up.
func (l *Lab) addHost(name string) error {
	if !validName.MatchString(name) || l.hosts[name] != nil {
		return fmt.Errorf("%q: want a name of letters, digits, - and _, each once", name)
	}
	h := &Host{name: name, namespace: l.name + "." + name, lab: l}
	if err := l.state.addHost(h.namespace); err != nil {
		return err
	}
	if err := createNamespace(h.namespace); err != nil {
		return err
	}
	handle, err := os.Open(h.Path())
	if err != nil {
		return err
	}
	h.handle = handle
	l.hosts[name] = h
	return h.Run(func() error {
		// No duplicates are looked for in a lab: addresses can be used at once.
		for _, scope := range []string{"all", "default"} {
			err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/accept_dad", []byte("0"), 0o644)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

// createNamespace makes a network namespace that has a name, as ip-netns(8) does.
func createNamespace(name string) error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(namespaceDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("name network namespace: %w", err)
		}
		return nil
	})
}

func deleteNamespace(name string) error {
	path := filepath.Join(namespaceDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// onOwnThread runs f on an operating system thread of its own, which goes back to the namespace it came from, or dies.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the function ended its goroutine (t.Fatal?) instead of returning")
		defer func() { done <- err }()
		runtime.LockOSThread()
		home, openErr := os.Open("/proc/thread-self/ns/net")
		if openErr != nil {
			err = openErr
			return // still locked: the thread ends with the goroutine
		}
		defer home.Close()
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		err = f()
	}()
	return <-done
}

// Run calls f inside the host. Sockets and processes that f makes belong to the host for good; goroutines that it starts
// do not run there.
func (h *Host) Run(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(h.handle.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter host %s: %w", h.name, err)
		}
		return f()
	})
}

// Name returns the host's name in its topology.
func (h *Host) Name() string { return h.name }

// Namespace returns the name by which ip-netns(8) knows the host.
func (h *Host) Namespace() string { return h.namespace }

// Path returns the path of the host's namespace, for nsenter(1).
func (h *Host) Path() string { return filepath.Join(namespaceDir, h.namespace) }

// LogPath returns the path of a file for the output of the host's commands; it goes away with the lab.
func (h *Host) LogPath() string { return h.lab.state.logPath(h.namespace) }

// Sysctl sets a variable below /proc/sys, such as net.ipv4.ip_forward, inside the host.
func (h *Host) Sysctl(name, value string) error {
	return h.Run(func() error {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl %s in host %s: %w", name, h.name, err)
		}
		return nil
	})
}

// Command is a process inside a host.
type Command struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts cmd inside the host. The lab stops it when it is closed.
func (h *Host) Start(cmd *exec.Cmd) (*Command, error) {
	if err := h.Run(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s in host %s: %w", filepath.Base(cmd.Path), h.name, err)
	}
	c := &Command{cmd: cmd, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	h.mu.Lock()
	h.commands = append(h.commands, c)
	h.mu.Unlock()
	return c, h.lab.state.addProcess(cmd.Process.Pid)
}

// PID returns the process's id.
func (c *Command) PID() int { return c.cmd.Process.Pid }

// Signal sends sig to the process.
func (c *Command) Signal(sig os.Signal) error { return c.cmd.Process.Signal(sig) }

// Done is closed when the process has ended.
func (c *Command) Done() <-chan struct{} { return c.done }

// Wait waits for the process to end.
func (c *Command) Wait() error {
	<-c.done
	return c.err
}

// Stop ends the process with SIGTERM, or with SIGKILL when that is not enough, and returns how it ended.
func (c *Command) Stop() error {
	for _, sig := range []os.Signal{unix.SIGTERM, unix.SIGKILL} {
		_ = c.Signal(sig) // it may have ended
		select {
		case <-c.done:
			return c.err
		case <-time.After(stopGrace):
		}
	}
	return c.Wait()
}

func (h *Host) stopCommands() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.commands {
		_ = c.Stop() // how a command ends is its starter's concern
	}
	h.commands = nil
	return nil
}
