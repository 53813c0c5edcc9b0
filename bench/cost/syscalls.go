package cost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

func isNoProcess(err error) bool { return errors.Is(err, unix.ESRCH) }

// SyscallCounter counts the system calls of processes, threads that they start meanwhile too. It slows down every
// system call of the machine a little while it is open, so it is only open beside the part that is timed.
type SyscallCounter struct{ events []int }

// CountSyscalls begins to count. It needs root and the tracepoint raw_syscalls:sys_enter.
func CountSyscalls(pids []int) (*SyscallCounter, error) {
	id, err := tracepoint()
	if err != nil {
		return nil, fmt.Errorf("count system calls: %w", err)
	}
	c := new(SyscallCounter)
	for _, pid := range pids {
		threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*"))
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		for _, thread := range threads {
			tid, err := strconv.Atoi(filepath.Base(thread))
			if err != nil {
				continue
			}
			if err := c.add(id, tid); err != nil && !isNoProcess(err) {
				return nil, errors.Join(fmt.Errorf("count system calls of thread %d: perf_event_open: %w", tid, err), c.Close())
			}
		}
	}
	return c, nil
}

func (c *SyscallCounter) add(id uint64, tid int) error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Bits: unix.PerfBitInherit}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return err
	}
	c.events = append(c.events, fd)
	return nil
}

// Count returns how many there were so far.
func (c *SyscallCounter) Count() (uint64, error) {
	var total uint64
	var buf [8]byte
	for _, fd := range c.events {
		if _, err := unix.Read(fd, buf[:]); err != nil {
			return 0, fmt.Errorf("count system calls: %w", err)
		}
		total += binary.NativeEndian.Uint64(buf[:])
	}
	return total, nil
}

// Close stops counting.
func (c *SyscallCounter) Close() error {
	var errs []error
	for _, fd := range c.events {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

const tracepointFile = "events/raw_syscalls/sys_enter/id"

var tracepoint = sync.OnceValues(findTracepoint)

// findTracepoint returns the id of raw_syscalls:sys_enter. Where nobody mounted tracefs, a mount that only this thread sees
// is made to look at it.
func findTracepoint() (uint64, error) {
	for _, root := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if id, err := readID(filepath.Join(root, tracepointFile)); err == nil {
			return id, nil
		}
	}
	type answer struct {
		id  uint64
		err error
	}
	done := make(chan answer)
	go func() {
		runtime.LockOSThread() // for good: the thread's mounts are not the process's any more
		id, err := privateTracepoint()
		done <- answer{id, err}
	}()
	a := <-done
	return a.id, a.err
}

func privateTracepoint() (uint64, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return 0, fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	const at = "/sys/kernel"
	if err := unix.Mount("tracefs", at, "tracefs", 0, ""); err != nil {
		return 0, fmt.Errorf("mount tracefs: %w (does the kernel have CONFIG_FTRACE_SYSCALLS?)", err)
	}
	return readID(filepath.Join(at, tracepointFile))
}

func readID(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}
