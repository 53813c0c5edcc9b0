package tunnel

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// defaultGroupTTL is the TTL of datagrams to a group when none is set, as the kernel's vxlan has it (drivers/net/vxlan/vxlan_core.c,
// vxlan_xmit_one).
const defaultGroupTTL = 1

// sendToGroup makes a socket send what is for the group out of the underlay's device, and not back to this host, as the kernel's
// vxlan does (net/ipv4/udp_tunnel_core.c, setup_udp_tunnel_sock).
func (u *UDP) sendToGroup(fd int) error {
	o, ttl := optionsOf(u.cfg.Group), int(u.cfg.TTL)
	if ttl == 0 {
		ttl = defaultGroupTTL
	}
	if err := o.groupLoop.set(fd, 0); err != nil {
		return err
	}
	if err := o.groupTTL.set(fd, ttl); err != nil {
		return err
	}
	if u.cfg.Group.Is6() {
		return setOption(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, u.cfg.Device.Index, "IPV6_MULTICAST_IF")
	}
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(u.cfg.Device.Index)}); err != nil {
		return fmt.Errorf("set socket option IP_MULTICAST_IF to %s: %w", u.cfg.Device.Name, err)
	}
	return nil
}

// joinGroup makes a socket that is bound to the group a member of it, on the underlay's device alone.
func (u *UDP) joinGroup(fd int) error {
	g := u.cfg.Group
	if err := optionsOf(g).groupAll.set(fd, 0); err != nil {
		return err
	}
	var err error
	if g.Is4() {
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: g.As4(), Ifindex: int32(u.cfg.Device.Index)})
	} else {
		err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: g.As16(), Interface: uint32(u.cfg.Device.Index)})
	}
	if err != nil {
		return &GroupError{g, u.cfg.Device.Name, err}
	}
	return nil
}

// GroupError says that a multicast group could not be received from.
type GroupError struct {
	Group  netip.Addr
	Device string
	Err    error
}

func (e *GroupError) Error() string {
	return fmt.Sprintf("join multicast group %s on %s: %v", e.Group, e.Device, e.Err)
}

// Unwrap returns the socket's error.
func (e *GroupError) Unwrap() error { return e.Err }

// openGroup makes the first receiver take what comes to the group, too. Of the tunnels on a shared port the first with the group
// does, and hands the others theirs (SharedPort.deliver).
func (u *UDP) openGroup() error {
	if !u.cfg.Group.IsValid() || u.cfg.Shared != nil && !u.cfg.Shared.claimGroup(u.cfg.Group) {
		return nil
	}
	fd, err := u.receiveSocket(u.cfg.Group, u.cfg.Port, true) // with tunnels of other addresses of this host
	if err != nil {
		return &GroupError{u.cfg.Group, u.cfg.Device.Name, err}
	}
	r := newUDPReceiver(fd)
	u.sources = append(u.sources, r)
	if err := u.joinGroup(fd); err != nil {
		return err
	}
	u.receivers[0] = inTurn(u.receivers[0], r)
	return nil
}
