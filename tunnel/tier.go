package tunnel

import (
	"fmt"
	"log/slog"
	"sync/atomic"
)

// Tier is the set of kernel offloads in use.
type Tier string

const (
	// capabilityTunnelGSO is the feature that TierTunnelGSO is named after.
	capabilityTunnelGSO = "tunnel-gso"
	// capabilityOuterReceive is its other half: datagrams come in through the outer TAP device, too.
	capabilityOuterReceive = "outer-receive"
	// capabilityKernelGRO is that the kernel merges what comes in so.
	capabilityKernelGRO = "kernel-gro"
)

const (
	// TierPortable needs nothing but a TUN device and UDP sockets: finished packets, one by one through the device.
	TierPortable Tier = "portable"
	// TierUDPGSO moves super-packets through the device and trains through the sockets.
	TierUDPGSO Tier = "udp-gso"
	// TierTunnelGSO sends TCP super-packets whole, through an outer TAP device, which it also receives from, and all else as TierUDPGSO does.
	TierTunnelGSO Tier = "tunnel-gso"
)

// TierOf returns the tier that a set of features makes.
func TierOf(features []Capability) Tier {
	tier := TierPortable
	for _, c := range features {
		switch {
		case c.Enabled && c.Name == capabilityTunnelGSO:
			return TierTunnelGSO
		case c.Enabled:
			tier = TierUDPGSO
		}
	}
	return tier
}

// Capability is one kernel feature: whether it is in use, and why not.
type Capability struct {
	Name    string `json:"name"`
	Enabled bool   `json:"enabled"`
	Reason  string `json:"reason,omitempty"` // why it is off
}

// feature is a Capability that can be withdrawn while packets move. The zero value is on.
type feature struct{ off atomic.Pointer[string] }

// on reports whether the feature is in use.
func (f *feature) on() bool { return f.off.Load() == nil }

// disable turns the feature off for a reason.
func (f *feature) disable(format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	f.off.CompareAndSwap(nil, &reason)
}

// withdraw turns off a feature that the kernel refused while packets moved, and logs it the first time.
func (f *feature) withdraw(log *slog.Logger, name string, err error) {
	f.retire(log, name, fmt.Sprintf("the kernel refused it with %v", err))
}

// retire turns off a feature that turned out not to work while packets moved, and logs it the first time.
func (f *feature) retire(log *slog.Logger, name, why string) {
	reason := "withdrawn: " + why
	if f.off.CompareAndSwap(nil, &reason) && log != nil {
		log.Warn("a kernel feature does not work and is not used any more", "feature", name, "reason", why)
	}
}

func (f *feature) capability(name string) Capability {
	if reason := f.off.Load(); reason != nil {
		return Capability{Name: name, Reason: *reason}
	}
	return Capability{Name: name, Enabled: true}
}

// SharedCapabilities returns the features that depend on the number of workers alone.
func SharedCapabilities(workers int) []Capability {
	var several feature
	if workers == 1 {
		several.disable("one worker needs no more than one queue (device.queues)")
	}
	return []Capability{several.capability("multiqueue"), several.capability("reuseport")}
}
