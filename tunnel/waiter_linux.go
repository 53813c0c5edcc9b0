package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// descriptor is an end that the kernel can wait for.
type descriptor interface{ fds() []int }

// epollWaiter sleeps in epoll_wait.
type epollWaiter struct {
	epoll  int
	wake   int // eventfd
	events [4]unix.EpollEvent
}

// KernelScheduler is for workers whose ends are a TUN device and UDP sockets.
var KernelScheduler = Scheduler{NewWaiter: newEpollWaiter, Yield: yield, Patient: setBatch, Idle: idleTime}

func newEpollWaiter(q Queue, r Receiver) (Waiter, error) {
	w := &epollWaiter{epoll: -1, wake: -1}
	if err := w.open(q, r); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *epollWaiter) open(ends ...any) (err error) {
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	fds := []int{w.wake}
	for _, e := range ends {
		d, ok := e.(descriptor)
		if !ok {
			return fmt.Errorf("wait for %T: it has no file descriptor", e)
		}
		fds = append(fds, d.fds()...)
	}
	for _, fd := range fds {
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	return nil
}

// Wait implements Waiter. A brief sleep hides from the Go scheduler: one that it knows of costs its monitor thread's being
// woken, and with it 100 us, when packets come again after a pause (docs/decisions/0009). For that, it must end before
// the scheduler loses patience with a goroutine that seems to run (runtime/proc.go, forcePreemptNS).
func (w *epollWaiter) Wait(brief bool) error {
	const milliseconds = 8
	var errno syscall.Errno
	if brief {
		n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(w.epoll), uintptr(unsafe.Pointer(&w.events[0])), uintptr(len(w.events)), milliseconds, 0, 0)
		errno = e
		if n == 0 {
			runtime.Gosched()
		}
	} else {
		_, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(w.epoll), uintptr(unsafe.Pointer(&w.events[0])), uintptr(len(w.events)), ^uintptr(0), 0, 0)
	}
	if errno != 0 && errno != unix.EINTR {
		return os.NewSyscallError("epoll_wait", errno)
	}
	return nil
}

// Wake implements Waiter. The eventfd stays readable: who was woken is to stop.
func (w *epollWaiter) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.wake, one[:])
}

// Close implements Waiter.
func (w *epollWaiter) Close() error {
	var errs []error
	for _, fd := range []int{w.epoll, w.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	w.epoll, w.wake = -1, -1
	return errors.Join(errs...)
}

// yield offers the core to others (sched_yield(2)).
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// setBatch makes the calling thread one that does not preempt others (sched(7), SCHED_BATCH). Where that is forbidden,
// small packets are moved in smaller trains.
func setBatch(on bool) {
	policy := uint32(unix.SCHED_NORMAL)
	if on {
		policy = unix.SCHED_BATCH
	}
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Policy: policy}, 0)
}

// idleTime reads how long the machine's cores have been idle, added up (proc_uptime(5)); 0 when that cannot be read.
func idleTime() time.Duration {
	fd, err := unix.Open("/proc/uptime", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var b [64]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return 0
	}
	return parseUptime(b[:n])
}

// parseUptime reads the second number of "12.34 56.78\n": seconds.
func parseUptime(b []byte) (d time.Duration) {
	at := bytes.IndexByte(b, ' ') + 1
	unit := time.Second
	for _, c := range b[at:] {
		switch {
		case c == '.':
			unit = time.Second / 10
		case c < '0' || c > '9':
			return d
		case unit == time.Second:
			d = 10*d + time.Duration(c-'0')*time.Second
		default:
			d += time.Duration(c-'0') * unit
			unit /= 10
		}
	}
	return d
}
