// Package control is how commands reach a running tunnel: HTTP with JSON over a unix socket that only its owner may open.
package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Dir is where sockets are.
const Dir = "/run/vxlane"

// SocketPath returns the path of the socket for a device in this process's network namespace.
func SocketPath(device string) (string, error) {
	inode, err := namespaceInode()
	if err != nil {
		return "", err
	}
	return filepath.Join(Dir, fmt.Sprintf("%s@%d.sock", device, inode)), nil
}

// namespaceInode identifies the network namespace: devices in two of them may share a name.
func namespaceInode() (uint64, error) {
	const self = "/proc/thread-self/ns/net"
	info, err := os.Stat(self)
	if err != nil {
		return 0, fmt.Errorf("find network namespace: %w", err)
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("find network namespace: %s has no inode", self)
	}
	return sys.Ino, nil
}

// ErrNotRunning says that nothing answers where a tunnel should.
var ErrNotRunning = errors.New("no vxlane is running here")

// Find returns the sockets of tunnels in this network namespace; device narrows them down when it is not empty.
func Find(device string) ([]string, error) {
	inode, err := namespaceInode()
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(Dir, fmt.Sprintf("*@%d.sock", inode)))
	if err != nil {
		return nil, fmt.Errorf("look for sockets: %w", err)
	}
	paths = slices.DeleteFunc(paths, func(path string) bool {
		return device != "" && filepath.Base(path) != fmt.Sprintf("%s@%d.sock", device, inode) || isStale(path)
	})
	if len(paths) == 0 {
		return nil, fmt.Errorf("look for a socket in %s: %w: start a tunnel with vxlane up, or name its socket with --socket", Dir, ErrNotRunning)
	}
	return paths, nil
}

// Listen opens the socket at path, mode 0600. It makes Dir where that is missing, and no other directory. A socket that a killed process left is replaced;
// one that answers is not.
func Listen(path string) (net.Listener, error) {
	if filepath.Dir(path) == Dir {
		if err := os.MkdirAll(Dir, 0o755); err != nil {
			return nil, fmt.Errorf("make directory of control socket: %w: choose a place that can be written with --socket", err)
		}
		unlock, err := lock()
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w: choose a path in a directory that is there and can be written with --socket", err)
	}
	return l, nil
}

// lock keeps other processes from taking a socket in Dir that is bound, and does not listen yet, for one that was left.
func lock() (unlock func(), err error) {
	d, err := os.Open(Dir)
	if err != nil {
		return nil, fmt.Errorf("lock directory of control sockets: %w", err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock directory of control sockets %s: %w", Dir, err), d.Close())
	}
	return func() { _ = d.Close() }, nil
}

// Sweep removes the sockets in Dir that killed processes left.
func Sweep() {
	unlock, err := lock()
	if err != nil {
		return
	}
	defer unlock()
	paths, err := filepath.Glob(filepath.Join(Dir, "*@*.sock"))
	if err != nil {
		return
	}
	for _, p := range paths {
		_ = removeStale(p) // one in use stays
	}
}

// isStale reports whether nobody listens on a socket: a killed process left it.
func isStale(path string) bool {
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// removeStale removes a socket that nobody listens on. It is an error that somebody does.
func removeStale(path string) error {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err == nil && info.Mode().Type() != os.ModeSocket:
		return &UsageError{fmt.Errorf("open control socket %s: a file that is no socket is there; choose another path with --socket", path)}
	}
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("open control socket %s: %w: a tunnel answers there already; stop it first, or choose another device name", path, syscall.EADDRINUSE)
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove stale control socket: %w", err)
		}
	}
	return nil
}
