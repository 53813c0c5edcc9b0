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
	skbData        = 76
	skbDataEnd     = 80

	loopbackIndex = 1 // LOOPBACK_IFINDEX, include/net/net_namespace.h

	packetHost = 0 // PACKET_HOST, include/uapi/linux/if_packet.h
	tcxNext    = -1
)

// newIngress attaches the program to device; to is where the datagrams go. Both are interface indexes. With marks, those of the tunnel's port
// that it leaves to the kernel have no source port any more (see merger).
func newIngress(device, to int, rule ingressRule, marks bool) (*ingress, error) {
	return attachIngress(device, "vxlane_ingress", ingressProgram(to, rule, marks))
}

// newMarker attaches a program to device that hands over nothing, and takes the source port of all that is for the tunnel's port.
func newMarker(device int, rule ingressRule) (*ingress, error) {
	const next = "next"
	p := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, markProgram(rule, asm.R6, next)...)
	return attachIngress(device, "vxlane_mark", append(p, asm.Mov.Imm(asm.R0, tcxNext).WithSymbol(next), asm.Return()))
}

func attachIngress(device int, name string, program asm.Instructions) (_ *ingress, err error) {
	g := new(ingress)
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	spec := &ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: program}
	if g.program, err = ebpf.NewProgram(spec); err != nil {
		return nil, explainBPF("load BPF program", err)
	}
	if g.link, err = link.AttachTCX(link.TCXOptions{Interface: device, Program: g.program, Attach: ebpf.AttachTCXIngress}); err != nil {
		return nil, explainBPF("attach BPF program (TCX)", err)
	}
	return g, nil
}

// ingressProgram compares what encap.ParseOuter and the VXLAN header must say. Fragments, IP options and extension headers, tagged frames and
// those to other hosts are left to the kernel, and so are datagrams of other tunnels on the port. It runs for every packet that comes in.
func ingressProgram(to int, rule ingressRule, marks bool) asm.Instructions {
	const next, judge, network = "next", "judge", encap.EthernetHeaderLen
	leave := next
	if marks {
		leave = "leave"
	}
	const skb, frame, end = asm.R6, asm.R7, asm.R8
	udp := network + encap.OuterHeaderLen(rule.local.Is6()) - 8
	headers := int32(udp + 8 + encap.VXLANHeaderLen)

	p := asm.Instructions{asm.Mov.Reg(skb, asm.R1)}
	add := func(more ...asm.Instruction) { p = append(p, more...) }
	linear := func() { // frame and end: what of the packet lies in one piece
		add(
			asm.LoadMem(frame, skb, skbData, asm.Word), asm.LoadMem(end, skb, skbDataEnd, asm.Word),
			asm.Mov.Reg(asm.R1, frame), asm.Add.Imm(asm.R1, headers),
		)
	}
	want := func(at int, mask, value []byte) { // masked bytes, 1, 2 or 4 of them, in the host's order on both sides
		size, word := asm.Byte, func(b []byte) int32 { return int32(b[0]) }
		switch len(value) {
		case 2:
			size, word = asm.Half, func(b []byte) int32 { return int32(binary.NativeEndian.Uint16(b)) }
		case 4:
			size, word = asm.Word, func(b []byte) int32 { return int32(binary.NativeEndian.Uint32(b)) }
		}
		add(asm.LoadMem(asm.R0, frame, int16(at), size))
		if mask != nil {
			add(asm.And.Imm32(asm.R0, word(mask)))
		}
		add(asm.JNE.Imm32(asm.R0, word(value), leave))
	}

	add(asm.LoadMem(asm.R0, skb, skbPacketType, asm.Word), asm.JNE.Imm32(asm.R0, packetHost, next))
	add(asm.LoadMem(asm.R0, skb, skbVLANPresent, asm.Word), asm.JNE.Imm32(asm.R0, 0, next)) // the kernel has taken the tag out of the frame already
	linear()
	add(asm.JLE.Reg(asm.R1, end, judge))
	add(asm.LoadMem(asm.R0, skb, skbLen, asm.Word), asm.JLT.Imm(asm.R0, headers, leave))
	add(asm.Mov.Reg(asm.R1, skb), asm.Mov.Imm(asm.R2, headers), asm.FnSkbPullData.Call())
	linear()
	add(asm.JGT.Reg(asm.R1, end, leave))

	judged := len(p)
	if rule.local.Is4() {
		want(12, nil, []byte{encap.EtherTypeIPv4 >> 8, encap.EtherTypeIPv4 & 0xff})
		want(network, nil, []byte{0x45})
		want(network+6, []byte{0x3f, 0xff}, []byte{0, 0}) // more fragments, and fragment offset
		want(network+9, nil, []byte{encap.ProtoUDP})
		want(network+16, nil, rule.local.AsSlice())
	} else {
		want(12, nil, []byte{encap.EtherTypeIPv6 >> 8, encap.EtherTypeIPv6 & 0xff})
		want(network+6, nil, []byte{encap.ProtoUDP})
		for local := rule.local.AsSlice(); len(local) > 0; local = local[4:] {
			want(network+24+16-len(local), nil, local[:4])
		}
	}
	want(udp+2, nil, []byte{byte(rule.port >> 8), byte(rule.port)})
	want(udp+8, []byte{8}, []byte{8}) // the I flag (RFC 7348 section 5)
	want(udp+12, []byte{0xff, 0xff, 0xff, 0}, []byte{byte(rule.vni >> 16), byte(rule.vni >> 8), byte(rule.vni), 0})
	p[judged] = p[judged].WithSymbol(judge)
	add(
		asm.Mov.Imm(asm.R1, int32(to)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(),
		asm.Return(),
	)
	if marks {
		mark := markProgram(rule, skb, next)
		mark[0] = mark[0].WithSymbol(leave)
		p = append(p, mark...)
	}
	return append(p,
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
