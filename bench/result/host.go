package result

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Host is the fingerprint of the machine: what has to be equal for two runs to be compared without doubt.
type Host struct {
	Kernel       string `json:"kernel"`
	Architecture string `json:"architecture"`
	CPU          string `json:"cpu"`
	Cores        int    `json:"cores"`
	Hypervisor   string `json:"hypervisor,omitempty"`
	Governor     string `json:"governor,omitempty"` // cpufreq
	MemoryBytes  uint64 `json:"memory_bytes"`
	Congestion   string `json:"tcp_congestion_control"` // of the hosts that are built
	Go           string `json:"go"`
	Version      string `json:"version"` // of this program
	Commit       string `json:"commit"`  // it was built from, "-dirty" when changed since
	// Mitigations are the processor's weaknesses that the kernel works around, by their names in sysfs.
	Mitigations map[string]string `json:"mitigations,omitempty"`
	// Offloads are the ethtool features that are on at the underlay devices, by profile.
	Offloads map[string][]string `json:"offloads,omitempty"`
}

// Fingerprint describes this machine, and this program by its version and commit.
func Fingerprint(version, commit string) Host {
	h := Host{
		Architecture: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: "unknown", Version: version, Commit: commit,
		Governor: readLine("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"), Hypervisor: readLine("/sys/hypervisor/type"),
		Congestion:  readLine("/proc/sys/net/ipv4/tcp_congestion_control"),
		Mitigations: mitigations(), Offloads: make(map[string][]string),
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		h.MemoryBytes = uint64(info.Totalram) * uint64(info.Unit)
	}
	h.readCPU()
	return h
}

func (h *Host) readCPU() {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return
	}
	cpus, err := proc.CPUInfo()
	if err != nil || len(cpus) == 0 {
		return
	}
	if cpus[0].ModelName != "" {
		h.CPU = cpus[0].ModelName
	}
	for _, flag := range cpus[0].Flags {
		if flag == "hypervisor" && h.Hypervisor == "" {
			h.Hypervisor = "virtual machine"
		}
	}
}

func mitigations() map[string]string {
	const dir = "/sys/devices/system/cpu/vulnerabilities/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	found := make(map[string]string)
	for _, e := range entries {
		if text := readLine(dir + e.Name()); text != "" && text != "Not affected" {
			found[e.Name()] = text
		}
	}
	return found
}

func readLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// String describes the machine in a line.
func (h Host) String() string {
	where := ""
	if h.Hypervisor != "" {
		where = ", " + h.Hypervisor
	}
	return fmt.Sprintf("%s, %d cores, %s%s, Linux %s", h.CPU, h.Cores, h.Architecture, where, h.Kernel)
}

// Differences returns what of the machine is not the same in o.
func (h Host) Differences(o Host) []string {
	var d []string
	for _, f := range []struct{ name, a, b string }{
		{"kernel", h.Kernel, o.Kernel}, {"architecture", h.Architecture, o.Architecture}, {"CPU", h.CPU, o.CPU},
		{"hypervisor", h.Hypervisor, o.Hypervisor}, {"memory", fmt.Sprint(h.MemoryBytes), fmt.Sprint(o.MemoryBytes)},
		{"mitigations", fmt.Sprint(h.Mitigations), fmt.Sprint(o.Mitigations)},
		{"cores", fmt.Sprint(h.Cores), fmt.Sprint(o.Cores)}, {"governor", h.Governor, o.Governor}, {"TCP congestion control", h.Congestion, o.Congestion}, {"Go", h.Go, o.Go},
	} {
		if f.a != f.b {
			d = append(d, fmt.Sprintf("%s: %s, then %s", f.name, f.a, f.b))
		}
	}
	return d
}
