package tunnel

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// descriptor is an end that the kernel can wait for.
type descriptor interface{ fds() []int }

// pollWaiter sleeps in ppoll(2): who sends to a descriptor that is in an epoll set pays for that with every packet, asleep or not.
type pollWaiter struct {
	fds  []unix.PollFd
	wake int // eventfd
}

// KernelScheduler is for workers whose ends are a TUN device and UDP sockets.
var KernelScheduler = Scheduler{NewWaiter: newPollWaiter, Cores: runtime.NumCPU(), Yield: yield, Patient: setBatch, Idle: idleTime, Clock: threadClock, Keep: keepCore}

func newPollWaiter(q Queue, r Receiver) (Waiter, error) {
	w := &pollWaiter{}
	for _, end := range []any{q, r} {
		if end == nil {
			continue
		}
		d, ok := end.(descriptor)
		if !ok {
			return nil, fmt.Errorf("wait for %T: it has no file descriptor", end)
		}
		for _, fd := range d.fds() {
			w.add(fd)
		}
	}
	var err error
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	w.add(w.wake)
	return w, nil
}

func (w *pollWaiter) add(fd int) {
	w.fds = append(w.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
}

// Wait implements Waiter. A brief sleep hides from the Go scheduler: one that it knows of costs its monitor thread's being
// woken, and with it 100 us, when packets come again after a pause (docs/decisions/0009). For that, it must end before
// the scheduler loses patience with a goroutine that seems to run (runtime/proc.go, forcePreemptNS).
func (w *pollWaiter) Wait(brief bool) error {
	if !brief {
		_, err := unix.Ppoll(w.fds, nil, nil)
		w.rouse()
		return pollError(err)
	}
	most := unix.NsecToTimespec(int64(8 * time.Millisecond)) // the kernel writes to it
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&w.fds[0])), uintptr(len(w.fds)), uintptr(unsafe.Pointer(&most)), 0, 0, 0)
	if errno != 0 {
		return pollError(errno)
	}
	if n == 0 {
		runtime.Gosched()
	}
	w.rouse()
	return nil
}

// rouse takes back a Wake that ended a Wait.
func (w *pollWaiter) rouse() {
	if w.fds[len(w.fds)-1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(w.wake, count[:])
	}
}

func pollError(err error) error {
	if err == unix.EINTR {
		return nil
	}
	return os.NewSyscallError("ppoll", err)
}

// Wake implements Waiter.
func (w *pollWaiter) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.wake, one[:])
}

// Close implements Waiter.
func (w *pollWaiter) Close() error { return os.NewSyscallError("close", unix.Close(w.wake)) }
