//go:build netns

package tunnel

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
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
			program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "vxlane_ingress", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: ingressProgram(7, rule, false)})
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

// What the program leaves to the kernel loses its source port when the kernel merges for us, and nothing else, so that its checksum is
// right again: datagrams of the tunnel's port and address that are whole, or the first fragment of one.
func TestIngressMarks(t *testing.T) {
	for _, c := range []struct{ name, local, remote string }{
		{"IPv4", "172.30.0.2", "172.30.0.1:"},
		{"IPv6", "fd00::2", "[fd00::1]:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rule := ingressRule{local: netip.MustParseAddr(c.local), port: 8472, vni: 0xabcdef}
			program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "vxlane_ingress", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: ingressProgram(7, rule, true)})
			if err != nil {
				t.Fatalf("needs CAP_BPF, which root has where namespaces may be made: %v", err)
			}
			defer program.Close()
			ours, others := ingressCases(rule.local.Is6())
			marked, left := markCases(rule.local.Is6())
			for name, edit := range others {
				if marked[name] == nil {
					left[name] = edit
				}
			}
			frame := func(port string, vni encap.VNI, checksum bool, edit func([]byte) []byte) []byte {
				header := make([]byte, encap.VXLANHeaderLen)
				encap.PutVXLAN(header, vni)
				b := outerFrame(c.remote+port, 0, 0, 0, append(header, make([]byte, 60)...), checksum)[virtioTunnelLen:]
				b[12], b[13] = encap.EtherTypeIPv4>>8, encap.EtherTypeIPv4&0xff
				if rule.local.Is6() {
					b[12], b[13] = encap.EtherTypeIPv6>>8, encap.EtherTypeIPv6&0xff
				}
				return edit(b)
			}
			as := func(b []byte) []byte { return b }
			run := func(name string, in, want []byte, answer uint32) {
				t.Helper()
				out := make([]byte, len(in)+256)
				o := ebpf.RunOptions{Data: in, DataOut: out}
				if got, err := program.Run(&o); err != nil || got != answer || !bytes.Equal(o.DataOut, want) {
					t.Errorf("%s: answer %d, %v\n%x, want %d\n%x", name, int32(got), err, o.DataOut, int32(answer), want)
				}
			}
			const redirect, next = 7 /* TC_ACT_REDIRECT */, 1<<32 - 1
			for name, edit := range ours {
				run(name, frame("40000", rule.vni, true, edit), frame("40000", rule.vni, true, edit), redirect)
			}
			for name, edit := range left {
				run(name, frame("40000", rule.vni, true, edit), frame("40000", rule.vni, true, edit), next)
			}
			for name, edit := range marked {
				run(name, frame("40000", rule.vni, true, edit), frame("0", rule.vni, true, edit), next)
			}
			run("other VNI, no source port", frame("0", 5, true, as), frame("0", 5, true, as), next)
			run("other VNI, no checksum", frame("40000", 5, false, as), frame("0", 5, false, as), next)
		})
	}
}

// markCases are changes to a frame of the tunnel after which the program leaves it to the kernel: for the tunnel's sockets, and as it is.
// Checksums of what changed are not looked at.
func markCases(v6 bool) (marked, left map[string]func([]byte) []byte) {
	set := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	const ip = encap.EthernetHeaderLen
	udp := ip + encap.OuterHeaderLen(v6) - 8
	marked = map[string]func([]byte) []byte{
		"no I flag":             set(udp+8, 0),
		"cut in VXLAN's header": func(b []byte) []byte { return b[:udp+15] },
	}
	for at := range 3 {
		marked[fmt.Sprintf("other VNI, byte %d", at)] = func(b []byte) []byte { b[udp+12+at] ^= 0x10; return b }
	}
	left = map[string]func([]byte) []byte{"cut in UDP's header": func(b []byte) []byte { return b[:udp+3] }}
	if !v6 {
		options := func(n int) func([]byte) []byte {
			return func(b []byte) []byte {
				b[ip] = 0x45 + byte(n)
				return slices.Insert(b, udp, bytes.Repeat([]byte{1}, 4*n)...)
			}
		}
		marked["options"], marked["all options there can be"] = options(1), options(10)
		marked["first fragment"] = set(ip+6, 0x20)
		marked["first fragment with options"] = func(b []byte) []byte { return options(2)(set(ip+6, 0x20)(b)) }
		return marked, left
	}
	// extensions puts headers in front of UDP: types of them, and the bytes of each after the next header.
	extensions := func(headers ...[]byte) func([]byte) []byte {
		return func(b []byte) []byte {
			types, bodies := []byte{}, [][]byte{}
			for _, h := range headers {
				types, bodies = append(types, h[0]), append(bodies, h[1:])
			}
			b[ip+6] = types[0]
			var all []byte
			for i, next := range append(types[1:], encap.ProtoUDP) {
				all = append(append(all, next), bodies[i]...)
			}
			return slices.Insert(b, udp, all...)
		}
	}
	hop := append([]byte{0, 0}, make([]byte, 6)...)
	long := append([]byte{60, 2}, make([]byte, 22)...)
	route := append([]byte{43, 0}, make([]byte, 6)...)
	first := []byte{44, 0, 0, 1, 0, 0, 0, 9}
	later := []byte{44, 0, 0, 8, 0, 0, 0, 9}
	marked["hop by hop"] = extensions(hop)
	marked["destination options of 24 bytes"] = extensions(long)
	marked["first fragment"] = extensions(first)
	marked["as many as are looked at"] = extensions(hop, route, first, long)
	left["later fragment"] = extensions(later)
	left["later fragment after others"] = extensions(hop, long, later)
	left["one more than are looked at"] = extensions(hop, route, first, long, hop)
	left["authentication header"] = extensions(append([]byte{51, 4}, make([]byte, 22)...))
	left["ICMP after a header"] = func(b []byte) []byte { b = extensions(hop)(b); b[udp] = 58; return b }
	return marked, left
}
