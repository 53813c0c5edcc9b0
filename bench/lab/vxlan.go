package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VXLAN is a vxlan device of the kernel, in the words of ip-link(8).
type VXLAN struct {
	Device        string
	ID            int
	Local, Remote netip.Addr // Remote may be the zero address: forwarding entries say where to
	Port          int        // dstport
	Link          string     // dev; may be empty
	MAC           net.HardwareAddr
	MTU           int // in bytes; 0 leaves the kernel's choice
	NoChecksum    bool
	ZeroTX6       bool // udp6zerocsumtx
	ZeroRX6       bool // udp6zerocsumrx
	NoLearning    bool
	TOSInherit    bool
	Addresses     []netip.Prefix
}

// AddVXLAN makes a vxlan device of the kernel and brings it up.
func (h *Host) AddVXLAN(v VXLAN) error {
	err := h.Run(func() error {
		link := 0
		if v.Link != "" {
			l, err := netlink.LinkByName(v.Link)
			if err != nil {
				return err
			}
			link = l.Attrs().Index
		}
		_, err := v.request(link).Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("add vxlan device %s to host %s: %w", v.Device, h.name, err)
	}
	if v.MTU != 0 {
		if err := h.SetMTU(v.Device, v.MTU); err != nil {
			return err
		}
	}
	if err := h.AddAddresses(v.Device, v.Addresses...); err != nil {
		return err
	}
	if err := h.SetUp(v.Device); err != nil {
		return err
	}
	return h.AwaitRunning(v.Device)
}

// request is the RTM_NEWLINK message for v. netlink.Vxlan cannot say noudpcsum: it leaves the attribute out, and the
// kernel's default is on.
func (v *VXLAN) request(link int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Device)))
	if v.MAC != nil {
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, v.MAC))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(uint32(v.ID)))
	if link != 0 {
		data.AddRtAttr(nl.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(link)))
	}
	addAddr(data, v.Local, nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6)
	addAddr(data, v.Remote, nl.IFLA_VXLAN_GROUP, nl.IFLA_VXLAN_GROUP6)
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, uint16(v.Port)))
	for _, attr := range []struct {
		kind int
		on   bool
	}{
		{nl.IFLA_VXLAN_UDP_CSUM, !v.NoChecksum},
		{nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, v.ZeroTX6},
		{nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, v.ZeroRX6},
		{nl.IFLA_VXLAN_LEARNING, !v.NoLearning},
		{nl.IFLA_VXLAN_TOS, v.TOSInherit}, // 1 stands for inherit
	} {
		value := uint8(0)
		if attr.on {
			value = 1
		}
		data.AddRtAttr(attr.kind, nl.Uint8Attr(value))
	}
	req.AddData(info)
	return req
}

func addAddr(data *nl.RtAttr, a netip.Addr, kind4, kind6 int) {
	switch {
	case a.Is4():
		data.AddRtAttr(kind4, a.AsSlice())
	case a.Is6():
		data.AddRtAttr(kind6, a.AsSlice())
	}
}

// AddPeer tells a vxlan device where a peer is, as flannel does (pkg/backend/vxlan): its prefix, whose first address is that of
// its VTEP, the VTEP's MAC, and the underlay address that this is at.
func (h *Host) AddPeer(device string, prefix netip.Prefix, mac net.HardwareAddr, at netip.Addr) error {
	return h.withLink(device, "add peer to", func(l netlink.Link) error {
		index, vtep := l.Attrs().Index, prefix.Addr().AsSlice()
		err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST, IP: vtep, HardwareAddr: mac})
		if err != nil {
			return fmt.Errorf("neighbour: %w", err)
		}
		err = netlink.NeighSet(&netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: at.AsSlice(), HardwareAddr: mac,
		})
		if err != nil {
			return fmt.Errorf("forwarding entry: %w", err)
		}
		route := &netlink.Route{LinkIndex: index, Dst: ipNet(prefix), Gw: vtep, Flags: int(netlink.FLAG_ONLINK)}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route: %w", err)
		}
		return nil
	})
}

// FloodTo adds an underlay address to those that a vxlan device sends broadcast and what is for unknown stations to.
func (h *Host) FloodTo(device string, at netip.Addr) error {
	return h.withLink(device, "flood from", func(l netlink.Link) error {
		return netlink.NeighAppend(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: at.AsSlice(), HardwareAddr: make(net.HardwareAddr, 6),
		})
	})
}
