package tunnel

import (
	"net/netip"
	"strings"
	"testing"
)

func TestMayMerge(t *testing.T) {
	good := UDPConfig{Local: netip.MustParseAddr("172.30.0.1"), Port: 8472, KernelGRO: true, NIC: "lo", Reserved: []uint16{8472, 4789}}
	for want, edit := range map[string]func(*UDPConfig){
		"underlay.kernel_gro":      func(c *UDPConfig) { c.KernelGRO = false },
		"another tunnel":           func(c *UDPConfig) { c.Reserved = []uint16{8472, 4789, 8472} },
		"another tunnel of":        func(c *UDPConfig) { c.Shared = new(SharedPort) },
		"multicast group":          func(c *UDPConfig) { c.Group = netip.MustParseAddr("239.1.1.1") },
		"on the loopback device":   func(c *UDPConfig) { c.NIC = "" },
		"no-such-device rx-gro on": func(c *UDPConfig) { c.NIC = "no-such-device" },
	} {
		u := &UDP{cfg: good}
		edit(&u.cfg)
		if err := u.mayMerge(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := (&UDP{cfg: good}).mayMerge(); err != nil && !strings.Contains(err.Error(), "GRO") {
		t.Error(err)
	}
}
