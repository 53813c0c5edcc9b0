package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Processes returns the ids of the processes inside the host, however they came there, without this one.
func (h *Host) Processes() ([]int, error) {
	home, err := h.handle.Stat()
	if err != nil {
		return nil, fmt.Errorf("list processes of host %s: %w", h.name, err)
	}
	return processesIn(home)
}

// processesIn returns the ids of the processes in a network namespace, without this one.
func processesIn(home os.FileInfo) (pids []int, err error) {
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, path := range paths {
		at, err := os.Stat(path)
		if err != nil || !os.SameFile(home, at) {
			continue // it ended meanwhile, or lives elsewhere
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		if err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// KillProcesses ends every process inside the host, those too that went into the background.
func (h *Host) KillProcesses() error {
	pids, err := h.Processes()
	for _, pid := range pids {
		identify(pid).stop(stopGrace)
	}
	return err
}

// RouteTo returns the device through which packets to dst leave the host, and its MTU in bytes.
func (h *Host) RouteTo(dst netip.Addr) (device string, mtu int, err error) {
	err = h.Run(func() error {
		routes, err := netlink.RouteGet(dst.AsSlice())
		if err != nil {
			return err
		}
		if len(routes) == 0 {
			return errors.New("there is none")
		}
		l, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return err
		}
		device, mtu = l.Attrs().Name, l.Attrs().MTU
		return nil
	})
	if err != nil {
		return "", 0, fmt.Errorf("route from host %s to %s: %w", h.name, dst, err)
	}
	return device, mtu, nil
}

// Parent returns the id of a process's parent, 0 when the process has ended.
func Parent(pid int) int {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			parent, _ := strconv.Atoi(strings.TrimSpace(value)) // the kernel writes a number
			return parent
		}
	}
	return 0
}
