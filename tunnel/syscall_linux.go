package tunnel

import (
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/routing"
)

// golang.org/x/sys has neither sendmmsg nor recvmmsg, and its writev allocates: these are the bare calls.

// mmsghdr is struct mmsghdr of socket(7); Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// recvmmsg fills msgs without waiting and returns how many it filled.
func recvmmsg(fd int, msgs []mmsghdr) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// sendmmsg sends msgs without waiting and returns how many went. The error is that of the first that did not, and only
// given when none went.
func sendmmsg(fd int, msgs []mmsghdr) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// writev2 writes head and payload as one packet; payload may be empty.
func writev2(fd int, head, payload []byte) error {
	var iov [2]unix.Iovec
	n := 1
	iov[0].Base = unsafe.SliceData(head)
	iov[0].SetLen(len(head))
	if len(payload) > 0 {
		iov[1].Base = unsafe.SliceData(payload)
		iov[1].SetLen(len(payload))
		n = 2
	}
	_, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(n))
	runtime.KeepAlive(head)
	runtime.KeepAlive(payload)
	if errno != 0 {
		return errno
	}
	return nil
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
