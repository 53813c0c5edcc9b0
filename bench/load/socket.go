package load

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/bench/lab"
)

// queueBytes is asked for as socket buffer of UDP receivers, so that a short pause of the application loses nothing.
const queueBytes = 8 << 20

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// openSocket makes a socket of the given type inside a host, bound to local when that is valid.
func openSocket(h *lab.Host, kind, protocol int, local netip.Addr) (fd int, err error) {
	err = h.Run(func() error {
		fd, err = newSocket(kind, protocol, local)
		return err
	})
	return fd, err
}

// newSocket is openSocket for a thread that is inside the host already.
func newSocket(kind, protocol int, local netip.Addr) (int, error) {
	fd, err := unix.Socket(family(local), kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(local, 0))); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind to %s: %w", local, err)
	}
	return fd, nil
}

// localPort returns the port that the kernel chose for a socket.
func localPort(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("ask for the port of a socket: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, fmt.Errorf("ask for the port of a socket: %T", sa)
}

// setTimeout makes blocking calls on fd return after d, with EAGAIN.
func setTimeout(fd int, d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv); err != nil {
			return fmt.Errorf("set timeout of socket: %w", err)
		}
	}
	return nil
}

// setCongestion chooses the congestion control of a TCP socket; none leaves the host's. Unlike the host's setting, that is not limited to what the
// machine allows everybody (tcp(7), tcp_allowed_congestion_control).
func setCongestion(fd int, name string) error {
	if name == "" {
		return nil
	}
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name); err != nil {
		known, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
		return fmt.Errorf("set TCP congestion control %s: %w; this kernel has %s", name, err, bytes.TrimSpace(known))
	}
	return nil
}

// dropped returns how many packets the full receive queue of a socket refused.
func dropped(fd int) uint64 {
	const drops = 8 // SK_MEMINFO_DROPS, linux/sock_diag.h
	var info [drops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[drops])
}

// connectTo connects a socket whose timeout is set. A signal, which the Go runtime sends to its threads now and then, does
// not end a connection attempt but only the call (connect(2), EINTR); the rest of it is waited for.
func connectTo(fd int, dst netip.AddrPort, timeout time.Duration) error {
	err := unix.Connect(fd, sockaddr(dst))
	switch {
	case errors.Is(err, unix.EINPROGRESS): // what SO_SNDTIMEO makes of a timeout, socket(7)
		return unix.ETIMEDOUT
	case !errors.Is(err, unix.EINTR):
		return err
	}
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return unix.ETIMEDOUT
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		if n == 1 {
			break
		}
	}
	result, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && result != 0 {
		err = syscall.Errno(result)
	}
	return err
}

// pair is a UDP sender's sockets and the receiver's one.
type pair struct {
	from []int // one for each flow, connected
	to   int
}

// openPair opens a receiver, and a connected sender for each flow.
func openPair(p Path, flows int) (_ *pair, err error) {
	s := &pair{to: -1}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.to, err = openSocket(p.To, unix.SOCK_DGRAM, 0, p.Dst); err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(s.to, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueBytes); err != nil {
		return nil, fmt.Errorf("set receive buffer: %w", err)
	}
	port, err := localPort(s.to)
	if err != nil {
		return nil, err
	}
	err = p.From.Run(func() error {
		for range flows {
			fd, err := newSocket(unix.SOCK_DGRAM, 0, p.Src)
			if err != nil {
				return err
			}
			s.from = append(s.from, fd)
			if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(p.Dst, port))); err != nil {
				return fmt.Errorf("connect to %s: %w", p.Dst, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, fd := range append([]int{s.to}, s.from...) {
		if err := setTimeout(fd, stall); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *pair) close() {
	for _, fd := range append([]int{s.to}, s.from...) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
