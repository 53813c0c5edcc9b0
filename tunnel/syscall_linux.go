package tunnel

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/routing"
)

// The system calls of the packet path. golang.org/x/sys has no sendmmsg and no recvmmsg, and its writev allocates. All are
// nonblocking, so they go past the Go scheduler: it would only learn of a thread that is busy in the kernel.

// mmsghdr is struct mmsghdr of socket(7); Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// recvmmsg fills msgs without waiting and returns how many it filled.
func recvmmsg(fd int, msgs []mmsghdr) (int, error) {
	return result(unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0))
}

// sendmmsg sends msgs without waiting and returns how many went. The error is that of the first that did not, and only
// given when none went.
func sendmmsg(fd int, msgs []mmsghdr) (int, error) {
	return result(unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0))
}

// read reads one packet.
func read(fd int, b []byte) (int, error) {
	return result(unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b))))
}

// writev writes one packet in pieces.
func writev(fd int, iov []unix.Iovec) error {
	_, err := result(unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov))))
	return err
}

func result(n, _ uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// errnoCounters counts errors by errno. Errors are rare: a lock will do.
type errnoCounters struct {
	mu     sync.Mutex
	counts map[syscall.Errno]*routing.Counter
}

func (c *errnoCounters) count(err error) {
	errno, ok := err.(syscall.Errno)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = make(map[syscall.Errno]*routing.Counter)
	}
	if c.counts[errno] == nil {
		c.counts[errno] = new(routing.Counter)
	}
	c.counts[errno].Add(1)
}

// addTo adds the counts to sums, by the name of the errno, such as EIO.
func (c *errnoCounters) addTo(sums map[string]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for errno, n := range c.counts {
		sums[unix.ErrnoName(errno)] += n.Load()
	}
}
