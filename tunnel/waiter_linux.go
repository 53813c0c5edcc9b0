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
type descriptor interface{ inputs() []*input }

// input is a descriptor that packets are read from. One that was read to its end is not asked again before a waiter has seen more there: with one
// stream, most reads would be in vain (docs/decisions/0009). It belongs to the thread that reads, which is also the one that waits.
type input struct {
	fd      int
	watched bool // by a waiter: else only reading tells
	drained bool
}

// exhausted notes that a read found no more.
func (in *input) exhausted() { in.drained = in.watched }

// pollWaiter sleeps in ppoll(2): who sends to a descriptor that is in an epoll set pays for that with every packet, asleep or not.
type pollWaiter struct {
	fds    []unix.PollFd // of inputs, and wake
	inputs []*input
	wake   int // eventfd
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
		for _, in := range d.inputs() {
			in.watched = true
			w.inputs = append(w.inputs, in)
			w.add(in.fd)
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
		if _, err := unix.Ppoll(w.fds, nil, nil); err != nil {
			return pollError(err)
		}
		w.rouse()
		return nil
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

// Drained implements Waiter.
func (w *pollWaiter) Drained() bool {
	for _, in := range w.inputs {
		if !in.drained {
			return false
		}
	}
	return true
}

// Look implements Waiter.
func (w *pollWaiter) Look() {
	for _, in := range w.inputs {
		in.drained = false
	}
}

// rouse tells the inputs what a Wait found, and takes back a Wake that ended it.
func (w *pollWaiter) rouse() {
	for i, in := range w.inputs {
		in.drained = w.fds[i].Revents == 0
	}
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
