package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// redirect is a BPF program at the ingress of a device. It hands IP packets that come in there to the device and the
// neighbour that the host's routes name, at once: no netfilter, no forwarding of anything else. It goes with its descriptors.
type redirect struct {
	drops   *ebpf.Map    // packets without a way, by the answer of bpf_fib_lookup
	counts  *ebpf.Memory // of drops
	last    *ebpf.Map    // where the last one of each answer was to go
	program *ebpf.Program
	link    link.Link
}

// The answers of bpf_fib_lookup (BPF_FIB_LKUP_RET_*, include/uapi/linux/bpf.h).
var fibAnswers = [...]string{
	"success", "blackhole", "unreachable", "prohibit", "not_forwarded", "forwarding_disabled", "unsupported_tunnel",
	"no_neighbour", "frag_needed", "no_source_address", fibOther: "other",
}

const (
	fibSuccess, fibNotForwarded, fibForwardingDisabled, fibUnsupported = 0, 4, 5, 6
	fibNoNeighbour, fibFragNeeded, fibOther                            = 7, 8, 15

	fibSkipNeighbour = 1 << 2 // BPF_FIB_LOOKUP_SKIP_NEIGH
	tcShot           = 2      // TC_ACT_SHOT, include/uapi/linux/pkt_cls.h

	// wireLenAt is where in a frame the program looks for the length of the IP packets that it will become, 16 bits in the
	// host's order: within the Ethernet destination, which means nothing on the way to the redirect.
	wireLenAt = 4
)

// newRedirect attaches the program to a device whose frames hold IPv4 or IPv6 without options.
func newRedirect(ifindex int, v4 bool) (r *redirect, err error) {
	r = new(redirect)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
			r = nil
		}
	}()
	if r.drops, err = ebpf.NewMap(&ebpf.MapSpec{Name: "vxlane_drops", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: uint32(len(fibAnswers)), Flags: unix.BPF_F_MMAPABLE}); err != nil {
		return r, explainBPF("make BPF map", err)
	}
	if r.counts, err = r.drops.Memory(); err != nil {
		return r, explainBPF("map BPF map", err)
	}
	if r.last, err = ebpf.NewMap(&ebpf.MapSpec{Name: "vxlane_last", Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: uint32(len(fibAnswers))}); err != nil {
		return r, explainBPF("make BPF map", err)
	}
	spec := &ebpf.ProgramSpec{Name: "vxlane_outer", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: redirectProgram(ifindex, v4, r.drops.FD(), r.last.FD())}
	if r.program, err = ebpf.NewProgram(spec); err != nil {
		return r, explainBPF("load BPF program", err)
	}
	if r.link, err = link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: r.program, Attach: ebpf.AttachTCXIngress}); err != nil {
		return r, explainBPF("attach BPF program (TCX)", err)
	}
	return r, nil
}

func explainBPF(what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w: need CAP_BPF besides CAP_NET_ADMIN", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// redirectProgram looks up the way to the outer destination (struct bpf_fib_lookup) and redirects to the next hop that was
// found (struct bpf_redir_neigh). Both live on the stack.
func redirectProgram(ifindex int, v4 bool, drops, last int) asm.Instructions {
	const (
		fib, fibSize                = -64, 64
		fibFamily, fibProto         = fib, fib + 1
		fibPorts, fibLen, fibDevice = fib + 2, fib + 6, fib + 8
		fibSrc, fibDst              = fib + 16, fib + 32
		hop, hopSize, hopAddr, wide = -88, 20, -84, 16
		answer                      = -92
	)
	p := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R1, 0)}
	for at := fib; at < fib+fibSize; at += 8 {
		p = append(p, asm.StoreMem(asm.RFP, int16(at), asm.R1, asm.DWord))
	}
	const network = encap.EthernetHeaderLen
	family, transport := int64(unix.AF_INET), network+encap.OuterHeaderLen(false)-8
	addresses := append(loadBytes(network+12, fibSrc, 4), loadBytes(network+16, fibDst, 4)...)
	if !v4 {
		family, transport = unix.AF_INET6, network+encap.OuterHeaderLen(true)-8
		addresses = loadBytes(network+8, fibSrc, 2*wide)
	}
	p = append(p,
		asm.StoreImm(asm.RFP, fibFamily, family, asm.Byte),
		asm.StoreImm(asm.RFP, fibProto, unix.IPPROTO_UDP, asm.Byte),
		asm.StoreImm(asm.RFP, fibDevice, int64(ifindex), asm.Word),
	)
	p = append(p, addresses...)
	p = append(p, loadBytes(transport, fibPorts, 4)...)
	p = append(p, loadBytes(wireLenAt, fibLen, 2)...)
	p = append(p,
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, fib),
		asm.Mov.Imm(asm.R3, fibSize), asm.Mov.Imm(asm.R4, fibSkipNeighbour), asm.FnFibLookup.Call(),
		asm.JEq.Imm(asm.R0, fibSuccess, "hop"),
		asm.JEq.Imm(asm.R0, fibNoNeighbour, "hop"),

		asm.JLE.Imm(asm.R0, fibOther, "count"),
		asm.Mov.Imm(asm.R0, fibOther),
		asm.StoreMem(asm.RFP, answer, asm.R0, asm.Word).WithSymbol("count"),
		asm.LoadMapPtr(asm.R1, drops), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, answer), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.Mov.Imm(asm.R1, 1), asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.LoadMapPtr(asm.R1, last), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, answer),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, fibDst), asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call(),
		asm.Mov.Imm(asm.R0, tcShot).WithSymbol("drop"), asm.Return(),

		asm.LoadMem(asm.R1, asm.RFP, fibFamily, asm.Byte).WithSymbol("hop"), // the gateway's: may be another than the packet's
		asm.StoreMem(asm.RFP, hop, asm.R1, asm.Word),
	)
	for at := int16(0); at < wide; at += 4 {
		p = append(p, asm.LoadMem(asm.R1, asm.RFP, fibDst+at, asm.Word), asm.StoreMem(asm.RFP, hopAddr+at, asm.R1, asm.Word))
	}
	return append(p,
		asm.LoadMem(asm.R1, asm.RFP, fibDevice, asm.Word), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, hop),
		asm.Mov.Imm(asm.R3, hopSize), asm.Mov.Imm(asm.R4, 0), asm.FnRedirectNeigh.Call(),
		asm.Return(),
	)
}

// loadBytes copies n bytes of the packet to the stack. Every frame is long enough: it was written by us.
func loadBytes(from int, to int32, n int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, int32(from)),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, to),
		asm.Mov.Imm(asm.R4, n), asm.FnSkbLoadBytes.Call(),
	}
}

// addTo adds the packets that had no way to sums, by what the routes said.
func (r *redirect) addTo(sums map[string]uint64) {
	for i, name := range fibAnswers {
		if n := r.dropped(i); name != "" && n > 0 {
			sums[name] += n
		}
	}
}

// dropped returns how many packets had no way by one of fibAnswers.
func (r *redirect) dropped(answer int) uint64 {
	var b [8]byte
	if _, err := r.counts.ReadAt(b[:], int64(answer*len(b))); err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}

// lastTo returns where the last packet that had no way by one of fibAnswers was to go: an address of like's family.
func (r *redirect) lastTo(answer int, like netip.Addr) netip.Addr {
	var b [16]byte
	if err := r.last.Lookup(uint32(answer), &b); err != nil {
		return netip.Addr{}
	}
	if like.Is4() {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

func (r *redirect) close() error {
	var errs []error
	if r.link != nil {
		errs = append(errs, r.link.Close())
	}
	return errors.Join(append(errs, r.program.Close(), r.drops.Close(), r.last.Close())...)
}
