//go:build netns

package tunnel

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vxlane/vxlane/encap"
)

// The kernel runs the program on frames: those of the tunnel go to the device, all others on their way.
func TestIngressProgram(t *testing.T) {
	for _, c := range []struct{ name, local, remote string }{
		{"IPv4", "172.30.0.2", "172.30.0.1:40000"},
		{"IPv6", "fd00::2", "[fd00::1]:40000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rule := ingressRule{local: netip.MustParseAddr(c.local), port: 8472, vni: 0xabcdef}
			program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "vxlane_ingress", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: ingressProgram(7, rule)})
			if err != nil {
				t.Fatalf("needs CAP_BPF, which root has where namespaces may be made: %v", err)
			}
			defer program.Close()
			header := make([]byte, encap.VXLANHeaderLen)
			encap.PutVXLAN(header, rule.vni)
			frame := outerFrame(c.remote, virtioNeedsChecksum, 0, 0, append(header, make([]byte, 60)...), true)[virtioTunnelLen:]
			frame[12], frame[13] = encap.EtherTypeIPv4>>8, encap.EtherTypeIPv4&0xff
			if rule.local.Is6() {
				frame[12], frame[13] = encap.EtherTypeIPv6>>8, encap.EtherTypeIPv6&0xff
			}
			ours, others := ingressCases(rule.local.Is6())
			const redirect, next = 7 /* TC_ACT_REDIRECT */, 1<<32 - 1
			for want, edits := range map[uint32]map[string]func([]byte) []byte{redirect: ours, next: others} {
				for name, edit := range edits {
					if got, err := program.Run(&ebpf.RunOptions{Data: edit(bytes.Clone(frame))}); err != nil || got != want {
						t.Errorf("%s: answer %d, %v, want %d", name, int32(got), err, int32(want))
					}
				}
			}
		})
	}
}

// ingressCases are changes to a frame of the tunnel: after which it still is, and after which it is not.
func ingressCases(v6 bool) (ours, others map[string]func([]byte) []byte) {
	set := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	const ip = encap.EthernetHeaderLen
	udp := ip + encap.OuterHeaderLen(v6) - 8
	ours = map[string]func([]byte) []byte{
		"as it should be":      func(b []byte) []byte { return b },
		"other flags beside I": set(udp+8, 0x88),
		"reserved byte":        set(udp+15, 1),
		"the least there is":   func(b []byte) []byte { return b[:udp+16] },
	}
	others = map[string]func([]byte) []byte{
		"no I flag":             set(udp+8, 0xf7),
		"frame to a group":      set(0, 1),
		"cut in VXLAN's header": func(b []byte) []byte { return b[:udp+15] },
		"tagged":                func(b []byte) []byte { return append(append(bytes.Clone(b[:12]), 0x81, 0, 0, 5), b[12:]...) },
	}
	flip := func(what string, from, n int) {
		for at := from; at < from+n; at++ {
			others[fmt.Sprintf("%s, byte %d", what, at-from)] = func(b []byte) []byte { b[at] ^= 0x10; return b }
		}
	}
	flip("other MAC", 0, 6)
	flip("other EtherType", 12, 2)
	flip("other port", udp+2, 2)
	flip("other VNI", udp+12, 3)
	if v6 {
		flip("other destination", ip+24, 16)
		others["extension header"] = set(ip+6, 44)
		others["IPv4's EtherType"] = func(b []byte) []byte { b[12], b[13] = 0x08, 0; return b }
		return ours, others
	}
	flip("other destination", ip+16, 4)
	ours["not to be fragmented"] = set(ip+6, 0x40)
	others["first fragment"] = set(ip+6, 0x20)
	others["later fragment"] = set(ip+7, 1)
	others["options"] = set(ip, 0x46)
	others["TCP"] = set(ip+9, encap.ProtoTCP)
	others["IPv6's EtherType"] = func(b []byte) []byte { b[12], b[13] = 0x86, 0xdd; return b }
	return ours, others
}
