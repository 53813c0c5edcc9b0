package load

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of generators that never rest, past the Go scheduler: it would watch each of them with a thread of its own
// (sysmon), which takes a tenth of a core from what is measured (docs/decisions/0007). The scheduler's signals to threads
// that seem to run for long end a call early, with EINTR; who waits for something with a deadline must not use these.

func rawRead(fd int, b []byte) (int, error) { return rawTransfer(unix.SYS_READ, fd, b) }

func rawWrite(fd int, b []byte) (int, error) { return rawTransfer(unix.SYS_WRITE, fd, b) }

func rawTransfer(call uintptr, fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func mmsg(call uintptr, fd int, messages []message, flags int) (int, error) {
	n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// rest makes the thread sleep for a moment.
func rest(d time.Duration) {
	t := unix.NsecToTimespec(d.Nanoseconds())
	_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0)
}

// waitReadable makes the thread sleep until there is something to read, or for the time.
func waitReadable(fd int, d time.Duration) {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	t := unix.NsecToTimespec(d.Nanoseconds())
	_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
}
