package tunnel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// SharedPort is an underlay address and port that several tunnels of one process receive on, told apart by their VNI. Each has
// sockets of its own in one group, and a program says whose a datagram is (socket(7), SO_ATTACH_REUSEPORT_CBPF), so that each
// tunnel's workers get what is theirs from the kernel. What is for no VNI goes to the first tunnel, which drops and counts it.
// The zero value is ready for use.
type SharedPort struct {
	tunnels atomic.Pointer[map[encap.VNI]*Tunnel] // that run

	mu      sync.Mutex
	members []portMember // in the order in which the sockets joined the group, which is that of the kernel's indexes
	groups  []netip.Addr // multicast groups that one of them receives from
}

// portMember is one tunnel on a port.
type portMember struct {
	vni     encap.VNI
	sockets []int
}

// maxPortMembers is what a program has room for: BPF_MAXINSNS is 4096 (include/uapi/linux/bpf_common.h).
const maxPortMembers = 256

// join makes room for a tunnel, and says whether it is the first. Its sockets, n of them, are to be bound next: the program knows
// of them before they are there, so that they never get what is another's.
func (s *SharedPort) join(vni encap.VNI, n int) (first bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.members) == maxPortMembers {
		return false, fmt.Errorf("share a port: %d tunnels have it already", maxPortMembers)
	}
	s.members = append(s.members, portMember{vni: vni, sockets: make([]int, 0, n)})
	if len(s.members) == 1 {
		return true, nil
	}
	return false, s.steer(n)
}

// add notes a socket of the last tunnel that joined.
func (s *SharedPort) add(fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &s.members[len(s.members)-1]
	m.sockets = append(m.sockets, fd)
}

// steer puts the program in force; the last member will have n sockets.
func (s *SharedPort) steer(n int) error {
	raw, err := bpf.Assemble(s.program(n))
	if err != nil {
		return fmt.Errorf("share a port: %w", err)
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	if err := unix.SetsockoptSockFprog(s.members[0].sockets[0], unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &program); err != nil {
		return fmt.Errorf("share a port: set socket option SO_ATTACH_REUSEPORT_CBPF: %w", err)
	}
	return nil
}

// program returns an index into the group for a datagram, which it sees from the VXLAN header on (net/core/sock_reuseport.c,
// run_bpf_filter). The sockets of one tunnel are told apart by the source port, as the flows of one sender are.
func (s *SharedPort) program(last int) []bpf.Instruction {
	const network = 0xfff00000 // SKF_NET_OFF: from here, offsets count from the IP header
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: network, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipFalse: 2},
		bpf.LoadAbsolute{Off: network + 40, Size: 2},
		bpf.Jump{Skip: 1},
		bpf.LoadAbsolute{Off: network + 20, Size: 2},
		bpf.TAX{},
		bpf.LoadAbsolute{Off: 4, Size: 4}, // when there is none, index 0 is returned
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 8},
	}
	base := 0
	for i, m := range s.members {
		n := len(m.sockets)
		if i == len(s.members)-1 {
			n = last
		}
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(m.vni), SkipFalse: 4},
			bpf.TXA{},
			bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(n)},
			bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: uint32(base)},
			bpf.RetA{})
		base += n
	}
	return append(program, bpf.RetConstant{Val: 0})
}

// claimGroup reports whether the caller is the first to ask for a multicast group, and so the one to receive from it.
func (s *SharedPort) claimGroup(group netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.groups, group) {
		return false
	}
	s.groups = append(s.groups, group)
	return true
}

// enter lets a tunnel take what others received for it, until leave.
func (s *SharedPort) enter(t *Tunnel) {
	s.change(func(tunnels map[encap.VNI]*Tunnel) { tunnels[t.cfg.VNI] = t })
}

// leave ends that; when it returns, nothing is on its way to the tunnel's device any more.
func (s *SharedPort) leave(t *Tunnel) {
	s.change(func(tunnels map[encap.VNI]*Tunnel) { delete(tunnels, t.cfg.VNI) })
	t.strays.close()
}

func (s *SharedPort) change(edit func(map[encap.VNI]*Tunnel)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[encap.VNI]*Tunnel)
	if now := s.tunnels.Load(); now != nil {
		maps.Copy(next, *now)
	}
	edit(next)
	s.tunnels.Store(&next)
}

// deliver gives a datagram to the tunnel whose VNI it has, unless that is own, and reports whether there is one. The kernel joins
// datagrams of one outer flow to a train without a look at their VNIs, and a train goes to one socket; what comes to a multicast group
// does, too.
func (s *SharedPort) deliver(own encap.VNI, d Datagram) bool {
	vni, r := encap.DecodeVXLAN(d.Data, encap.IgnoreBits) // which bits may be set is the other's to say
	tunnels := s.tunnels.Load()
	if r != encap.None || vni == own || tunnels == nil || (*tunnels)[vni] == nil {
		return false
	}
	return (*tunnels)[vni].strays.take(d)
}
