package vtep

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/routing/static"
	"github.com/vxlane/vxlane/tunnel"
)

// explainUnderlay adds to a socket's error what it means and what to do.
func explainUnderlay(err error, u *static.Underlay) error {
	var source *tunnel.SourcePortError
	var group *tunnel.GroupError
	switch {
	case errors.As(err, &group) && errors.Is(err, unix.ENOBUFS):
		return fmt.Errorf("%w: this host is in as many groups as it may be: sysctl net.ipv4.igmp_max_memberships", err)
	case errors.As(err, &group) && errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another process receives from this group and port without sharing it (ss -lunp); stop it, or choose another fdb.group", err)
	case errors.As(err, &group):
		return fmt.Errorf("%w: choose another group with fdb.group, or an underlay.local on a device that does multicast (ip link show)", err)
	case errors.As(err, &source) && errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: every port there is in use on this host; widen underlay.source_ports.range, or lower buckets", err)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another process, or a vxlan device of the kernel, has UDP port %d (ss -lunp; ip -d link show type vxlan); stop it, put all tunnels of this port into one configuration when it is vxlane's, or choose another with underlay.port (--port) here and as the peers' endpoint port", err, u.Port)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return &ConfigError{fmt.Errorf("%w: underlay.local %s is no address of this host; see ip address", err, u.Local)}
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: ports below 1024 need CAP_NET_BIND_SERVICE; choose a port above with underlay.port (--port)", err)
	}
	return err
}

// ErrKernel marks errors that say that the kernel lacks something.
var ErrKernel = errors.New("the kernel lacks something that vxlane needs")

// explainDevice marks a missing TUN driver.
func explainDevice(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return &kernelError{err}
	}
	return err
}

// kernelError is err, and is ErrKernel too.
type kernelError struct{ err error }

func (e *kernelError) Error() string   { return e.err.Error() }
func (e *kernelError) Unwrap() []error { return []error{e.err, ErrKernel} }

// explainAddress marks a host without IPv6: what the kernel calls a permission is none that anyone could give.
func explainAddress(err error) error {
	if errors.Is(err, tunnel.ErrNoIPv6) {
		return &kernelError{err}
	}
	return err
}
