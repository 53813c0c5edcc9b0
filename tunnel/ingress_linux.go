package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// ingress is a BPF program at the ingress of the underlay's device that hands a tunnel's datagrams to another device, before IP, netfilter
// and sockets spend their time on each. All other packets it leaves alone. It goes with its descriptors.
type ingress struct {
	program *ebpf.Program
	mu      sync.Mutex // link is asked while it is closed
	link    link.Link  // nil: none, or no more
}

// ingressRule is which datagrams those are.
type ingressRule struct {
	local netip.Addr
	port  uint16
	vni   encap.VNI
}

// Fields of struct __sk_buff (include/uapi/linux/bpf.h), and the program's answer for packets of others (TCX_NEXT, the same file).
const (
	skbLen         = 0
	skbPacketType  = 4
	skbVLANPresent = 20

	packetHost = 0 // PACKET_HOST, include/uapi/linux/if_packet.h
	tcxNext    = -1
)

// newIngress attaches the program to device; to is where the datagrams go. Both are interface indexes.
func newIngress(device, to int, rule ingressRule) (_ *ingress, err error) {
	g := new(ingress)
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	spec := &ebpf.ProgramSpec{Name: "vxlane_ingress", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: ingressProgram(to, rule)}
	if g.program, err = ebpf.NewProgram(spec); err != nil {
		return nil, explainBPF("load BPF program", err)
	}
	if g.link, err = link.AttachTCX(link.TCXOptions{Interface: device, Program: g.program, Attach: ebpf.AttachTCXIngress}); err != nil {
		return nil, explainBPF("attach BPF program (TCX)", err)
	}
	return g, nil
}

// ingressProgram compares what encap.ParseOuter and the VXLAN header must say. Fragments, IP options and extension headers, tagged frames and
// those to other hosts are left to the kernel, and so are datagrams of other tunnels on the port.
func ingressProgram(to int, rule ingressRule) asm.Instructions {
	const next, network = "next", encap.EthernetHeaderLen
	p := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	load := func(at int32, size asm.Size) { p = append(p, asm.LoadAbs(at, size)) } // to R0, in the host's byte order
	want := func(value uint32) {
		p = append(p, asm.JNE.Imm32(asm.R0, int32(value), next))
	}
	p = append(p, asm.LoadMem(asm.R0, asm.R6, skbPacketType, asm.Word))
	want(packetHost)
	p = append(p, asm.LoadMem(asm.R0, asm.R6, skbVLANPresent, asm.Word)) // the kernel has taken the tag out of the frame already
	want(0)
	udp := network + encap.OuterHeaderLen(rule.local.Is6()) - 8
	// A load from beyond the end would end the program, and keep the packet from those of others behind it.
	p = append(p, asm.LoadMem(asm.R0, asm.R6, skbLen, asm.Word), asm.JLT.Imm(asm.R0, int32(udp+8+encap.VXLANHeaderLen), next))
	load(12, asm.Half)
	if rule.local.Is4() {
		want(encap.EtherTypeIPv4)
		load(network, asm.Byte)
		want(0x45)
		load(network+6, asm.Half)
		p = append(p, asm.And.Imm(asm.R0, 0x3fff)) // fragment offset, and more fragments
		want(0)
		load(network+9, asm.Byte)
		want(encap.ProtoUDP)
		load(network+16, asm.Word)
		local := rule.local.As4()
		want(binary.BigEndian.Uint32(local[:]))
	} else {
		want(encap.EtherTypeIPv6)
		load(network+6, asm.Byte)
		want(encap.ProtoUDP)
		local := rule.local.As16()
		for i := 0; i < len(local); i += 4 {
			load(int32(network+24+i), asm.Word)
			want(binary.BigEndian.Uint32(local[i:]))
		}
	}
	load(int32(udp+2), asm.Half)
	want(uint32(rule.port))
	load(int32(udp+8), asm.Byte)
	p = append(p, asm.And.Imm(asm.R0, 8)) // the I flag (RFC 7348 section 5)
	want(8)
	load(int32(udp+8+4), asm.Word)
	p = append(p, asm.RSh.Imm32(asm.R0, 8))
	want(uint32(rule.vni))
	return append(p,
		asm.Mov.Imm(asm.R1, int32(to)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol(next),
		asm.Return(),
	)
}

// attached reports whether the program is still where it was attached: it goes with the device.
func (g *ingress) attached() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link == nil {
		return false
	}
	info, err := g.link.Info()
	if err != nil {
		return false
	}
	tcx := info.TCX()
	return tcx != nil && tcx.Ifindex != 0
}

// close detaches the program. Datagrams go to the sockets from then on.
func (g *ingress) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	if g.link != nil {
		errs = append(errs, g.link.Close())
		g.link = nil
	}
	return errors.Join(append(errs, g.program.Close())...)
}

// ingressDevice returns the device that datagrams to local come in on, when their Ethernet header can be told.
func ingressDevice(local netip.Addr) (UnderlayDevice, error) {
	d, err := UnderlayLink(local)
	if err != nil {
		return d, err
	}
	if !d.Ethernet {
		return d, fmt.Errorf("%s is no Ethernet device: %w", d.Name, unix.EOPNOTSUPP)
	}
	return d, nil
}
