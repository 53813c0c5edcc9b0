package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// merger makes the kernel merge the TCP that comes in within a tunnel's datagrams, where the underlay's device does GRO. Only the sockets of
// its own vxlan devices know what is in a datagram (drivers/net/vxlan/vxlan_core.c, vxlan_gro_receive), so one of those has the port, with a
// device that takes no part in any network; the tunnel's sockets have another. What the ingress does not hand to the outer TAP device comes
// to them all the same: a program chooses the socket (BPF_PROG_TYPE_SK_LOOKUP). It is asked when the kernel looks for whom to merge for, too,
// and there must not answer; the two are told apart by the device that a datagram came in on, and for what that device's ingress leaves, by
// the source port, which it sets to zero (RFC 768: none). So does one of the loopback device's, as routes have what this host sends itself come in on
// the device that has the address (net/ipv4/route.c, ip_route_output_key_hash_rcu).
//
// All of it goes with the process: the program with its descriptors, the device with the outer TAP, on which it rests (vxlan_handle_lowerdev_unregister).
type merger struct {
	rule    ingressRule
	device  string
	sockets *ebpf.Map // the program's choice
	merging *ebpf.Map // index of the device that is merged for; 0: none
	program *ebpf.Program
	link    link.Link
	own     *ingress // of the loopback device, which marks all for the tunnel
	shut    *ingress // of the vxlan device, which lets nothing in: that has the port of the host's other addresses, too
}

// openMerger makes the device, on the outer TAP device of an index, and leads what is for rule to a socket, or to one of its group.
func openMerger(rule ingressRule, outer int, outerName string, socket int) (*merger, error) {
	m := &merger{rule: rule, device: strings.Replace(outerName, "vxgso", "vxgro", 1)}
	if err := m.open(outer, socket); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func (m *merger) open(outer, socket int) (err error) {
	if m.sockets, err = ebpf.NewMap(&ebpf.MapSpec{Name: "vxlane_sockets", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return explainBPF("make BPF map", err)
	}
	if m.merging, err = ebpf.NewMap(&ebpf.MapSpec{Name: "vxlane_merging", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		return explainBPF("make BPF map", err)
	}
	if err := m.sockets.Update(uint32(0), uint64(socket), ebpf.UpdateAny); err != nil {
		return fmt.Errorf("put a socket into a BPF map: %w", err)
	}
	spec := &ebpf.ProgramSpec{Name: "vxlane_lookup", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Dual BSD/GPL",
		Instructions: lookupProgram(m.rule, m.sockets.FD(), m.merging.FD())}
	if m.program, err = ebpf.NewProgram(spec); err != nil {
		return explainBPF("load BPF program", err)
	}
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer namespace.Close()
	if m.link, err = link.AttachNetNs(int(namespace.Fd()), m.program); err != nil {
		return explainBPF("attach BPF program (sk_lookup)", err)
	}
	if m.own, err = newMarker(loopbackIndex, m.rule); err != nil {
		return err
	}
	return m.addDevice(outer)
}

// addDevice adds the kernel's vxlan device and brings it up. It has a VNI that nothing is sent with.
func (m *merger) addDevice(outer int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = m.device
	v := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(m.rule.vni) ^ 1, VtepDevIndex: outer, SrcAddr: m.rule.local.AsSlice(), Port: int(m.rule.port)}
	if err := netlink.LinkAdd(v); err != nil {
		return fmt.Errorf("make vxlan device %s: %w", m.device, err)
	}
	if err := m.raise(v); err != nil {
		return errors.Join(fmt.Errorf("bring %s up: %w", m.device, err), netlink.LinkDel(v))
	}
	return nil
}

func (m *merger) raise(l netlink.Link) error {
	const noAddress = 1 // IN6_ADDR_GEN_MODE_NONE
	if err := errors.Join(netlink.LinkSetARPOff(l), netlink.LinkSetMulticastOff(l)); err != nil {
		return err
	}
	_ = netlink.LinkSetIP6AddrGenMode(l, noAddress) // there is none to set where IPv6 is off
	drop := asm.Instructions{asm.Mov.Imm(asm.R0, tcShot), asm.Return()}
	var err error
	if m.shut, err = attachIngress(l.Attrs().Index, "vxlane_shut", drop); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// merge makes the kernel merge what comes in on a device, by its index, whose ingress leads to the outer TAP device and marks what it leaves. 0 ends it.
func (m *merger) merge(device int) error {
	if err := m.merging.Update(uint32(0), uint32(device), ebpf.UpdateAny); err != nil {
		return fmt.Errorf("update BPF map: %w", err)
	}
	return nil
}

func (m *merger) close() error {
	var errs []error
	if m.link != nil {
		errs = append(errs, m.link.Close())
	}
	for _, g := range []*ingress{m.own, m.shut} {
		if g != nil {
			errs = append(errs, g.close())
		}
	}
	return errors.Join(append(errs, m.program.Close(), m.merging.Close(), m.sockets.Close())...)
}

// Fields of struct bpf_sk_lookup (include/uapi/linux/bpf.h).
const (
	lookupProtocol   = 12
	lookupRemotePort = 36 // big-endian
	lookupLocalIP4   = 40
	lookupLocalIP6   = 44
	lookupLocalPort  = 60 // in the host's order
	lookupIngress    = 64

	skPass = 1 // SK_PASS: go on with what was chosen, or without a choice
)

// lookupProgram chooses the socket for what is for rule, but for what the kernel may merge.
func lookupProgram(rule ingressRule, sockets, merging int) asm.Instructions {
	const pass, choose, key, ctx = "pass", "choose", -4, asm.R6
	p := asm.Instructions{asm.Mov.Reg(ctx, asm.R1)}
	want := func(at int, value int32) {
		p = append(p, asm.LoadMem(asm.R0, ctx, int16(at), asm.Word), asm.JNE.Imm32(asm.R0, value, pass))
	}
	want(lookupProtocol, unix.IPPROTO_UDP)
	want(lookupLocalPort, int32(rule.port))
	at := lookupLocalIP4
	if rule.local.Is6() {
		at = lookupLocalIP6
	}
	for local := rule.local.AsSlice(); len(local) > 0; local, at = local[4:], at+4 {
		want(at, int32(binary.NativeEndian.Uint32(local)))
	}
	element := func(m int) asm.Instructions {
		return asm.Instructions{
			asm.StoreImm(asm.RFP, key, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, m), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key), asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, pass),
		}
	}
	p = append(p, element(merging)...)
	p = append(p,
		asm.LoadMem(asm.R0, asm.R0, 0, asm.Word), asm.LoadMem(asm.R1, ctx, lookupIngress, asm.Word),
		asm.JNE.Reg32(asm.R0, asm.R1, choose),
		asm.LoadMem(asm.R0, ctx, lookupRemotePort, asm.Half), asm.JNE.Imm(asm.R0, 0, pass),
	)
	chosen := element(sockets)
	chosen[0] = chosen[0].WithSymbol(choose)
	p = append(p, chosen...)
	return append(p,
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, ctx), asm.Mov.Reg(asm.R2, asm.R7), asm.Mov.Imm(asm.R3, 0), asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7), asm.FnSkRelease.Call(),
		asm.Mov.Imm(asm.R0, skPass).WithSymbol(pass),
		asm.Return(),
	)
}

// Next headers that may be in front of UDP (RFC 8200 section 4).
const (
	ipv6HopByHop, ipv6Routing, ipv6Fragment, ipv6Destination = 0, 43, 44, 60
	maxExtensions                                            = 4
)

// markProgram sets the source port of datagrams for rule to zero, of whole ones and of first fragments, options or not; then, and for all
// else, it goes on at next. skb is in a register of that name.
func markProgram(rule ingressRule, skb asm.Register, next string) (p asm.Instructions) {
	const udp, buf, network = "mark", -8, 14
	const at = asm.R9 // of the header that is looked at
	load := func(offset, n int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, skb), asm.Mov.Reg(asm.R2, at), asm.Add.Imm(asm.R2, offset),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, buf), asm.Mov.Imm(asm.R4, n), asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, next),
		}
	}
	add := func(more ...asm.Instruction) { p = append(p, more...) }
	byteAt := func(i int16) asm.Instruction { return asm.LoadMem(asm.R0, asm.RFP, buf+i, asm.Byte) }
	half := func(b0, b1 byte) int32 { return int32(binary.NativeEndian.Uint16([]byte{b0, b1})) }
	address := func(offset int32) {
		for local := rule.local.AsSlice(); len(local) > 0; local, offset = local[4:], offset+4 {
			add(load(offset, 4)...)
			add(asm.LoadMem(asm.R0, asm.RFP, buf, asm.Word), asm.JNE.Imm32(asm.R0, int32(binary.NativeEndian.Uint32(local)), next))
		}
	}
	add(asm.Mov.Imm(at, 0))
	add(load(12, 2)...)
	if rule.local.Is4() {
		add(asm.LoadMem(asm.R0, asm.RFP, buf, asm.Half), asm.JNE.Imm32(asm.R0, half(0x08, 0x00), next))
		add(asm.Mov.Imm(at, network))
		add(load(6, 4)...) // fragment, TTL, protocol
		add(byteAt(3), asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, next))
		add(asm.LoadMem(asm.R0, asm.RFP, buf, asm.Half), asm.And.Imm32(asm.R0, half(0x1f, 0xff)), asm.JNE.Imm32(asm.R0, 0, next))
		address(16)
		add(load(0, 1)...)
		add(byteAt(0), asm.And.Imm(asm.R0, 0x0f), asm.LSh.Imm(asm.R0, 2), asm.Add.Reg(at, asm.R0), asm.Ja.Label(udp))
	} else {
		add(asm.LoadMem(asm.R0, asm.RFP, buf, asm.Half), asm.JNE.Imm32(asm.R0, half(0x86, 0xdd), next))
		add(asm.Mov.Imm(at, network))
		address(24)
		add(load(6, 1)...)
		add(byteAt(0), asm.Add.Imm(at, 40))
		for i := range maxExtensions {
			plain, counted, done := fmt.Sprintf("extension-%d", i), fmt.Sprintf("counted-%d", i), fmt.Sprintf("header-%d", i)
			add(asm.JEq.Imm(asm.R0, unix.IPPROTO_UDP, udp))
			add(asm.JEq.Imm(asm.R0, ipv6HopByHop, plain), asm.JEq.Imm(asm.R0, ipv6Routing, plain), asm.JEq.Imm(asm.R0, ipv6Destination, plain))
			add(asm.JNE.Imm(asm.R0, ipv6Fragment, next))
			add(load(0, 4)...)
			add(asm.LoadMem(asm.R0, asm.RFP, buf+2, asm.Half), asm.And.Imm32(asm.R0, half(0xff, 0xf8)), asm.JNE.Imm32(asm.R0, 0, next))
			add(asm.Mov.Imm(asm.R1, 8), asm.Ja.Label(counted))
			first := len(p)
			add(load(0, 2)...)
			p[first] = p[first].WithSymbol(plain)
			add(asm.LoadMem(asm.R1, asm.RFP, buf+1, asm.Byte), asm.Add.Imm(asm.R1, 1), asm.LSh.Imm(asm.R1, 3))
			add(asm.Add.Reg(at, asm.R1).WithSymbol(counted), byteAt(0).WithSymbol(done))
		}
		add(asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, next))
	}
	first := len(p)
	add(load(0, 4)...)
	p[first] = p[first].WithSymbol(udp)
	const checksum, mangledZero = 6, 1 << 5 // BPF_F_MARK_MANGLED_0
	add(
		asm.LoadMem(asm.R0, asm.RFP, buf+2, asm.Half), asm.JNE.Imm32(asm.R0, half(byte(rule.port>>8), byte(rule.port)), next),
		asm.LoadMem(asm.R3, asm.RFP, buf, asm.Half), asm.JEq.Imm(asm.R3, 0, next),
		asm.Mov.Reg(asm.R1, skb), asm.Mov.Reg(asm.R2, at), asm.Add.Imm(asm.R2, checksum), asm.Mov.Imm(asm.R4, 0),
		asm.Mov.Imm(asm.R5, mangledZero|2), asm.FnL4CsumReplace.Call(),
		asm.StoreImm(asm.RFP, buf, 0, asm.Half),
		asm.Mov.Reg(asm.R1, skb), asm.Mov.Reg(asm.R2, at), asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, buf), asm.Mov.Imm(asm.R4, 2),
		asm.Mov.Imm(asm.R5, 0), asm.FnSkbStoreBytes.Call(),
	)
	return p
}

func count(ports []uint16, port uint16) (n int) {
	for _, p := range ports {
		if p == port {
			n++
		}
	}
	return n
}

// mayMerge says why the kernel is not to merge for these sockets; nil when it is.
func (u *UDP) mayMerge() error {
	switch {
	case !u.cfg.KernelGRO:
		return errors.New("not asked for (underlay.kernel_gro)")
	case u.cfg.Shared != nil, count(u.cfg.Reserved, u.cfg.Port) > 1:
		return errors.New("another tunnel of this process has the port, too")
	case u.cfg.Group.IsValid():
		return errors.New("the port receives from a multicast group, too")
	case u.cfg.NIC == "":
		return errors.New("the underlay's address is on the loopback device: datagrams may come in anywhere")
	}
	if !doesGRO(u.cfg.NIC) {
		return fmt.Errorf("%s does no GRO; before the start, where it should: ethtool -K %s %s on", u.cfg.NIC, u.cfg.NIC, receiveOffload)
	}
	return nil
}
