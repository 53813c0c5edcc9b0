package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// outerTAP is a TAP device of our own through which finished outer frames enter the kernel, and leave for the underlay by a
// redirect. Unlike a socket it takes a super-packet whole: the kernel, or a NIC that can, segments it within its outer
// headers (since Linux 6.17, drivers/net/tun_vnet.h, tun_vnet_hdr_tnl_to_skb). What comes back is read from it, once an ingress leads there.
// No address is on it.
//
// Each worker reads one queue; all write to another one, which is detached, so that what is written steers nothing that is read (see TUN).
type outerTAP struct {
	name     string
	local    netip.Addr
	writer   int
	queues   []int // readers
	log      *slog.Logger
	redirect *redirect
	gso      feature
	trains   *feature // when not nil: while it is on, TCP goes as trains, which the underlay's device segments, as it does not what leaves whole
	closing  sync.Once
	unrouted atomic.Uint64 // packets without a route that were looked into
	evaded   atomic.Uint32 // times that a socket had one

	link      *Link
	ingress   *ingress
	underlay  UnderlayDevice // that ingress is on
	receives  feature
	merger    *merger // nil: the kernel merges nothing for us
	merges    feature
	ended     sync.Once // receiving
	stopWatch context.CancelFunc
	dropped   atomic.Uint64 // what overflows said last
}

// outerName is the pattern of the device's name.
const outerName = "vxgso%d"

// openOuter makes the device, asks it whether it takes super-packets within datagrams from local, and brings it up. It has a queue for each
// of so many workers.
func openOuter(local netip.Addr, workers int, log *slog.Logger) (*outerTAP, error) {
	o := &outerTAP{name: outerName, local: local, writer: -1, log: log}
	if err := o.open(local, workers); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *outerTAP) open(local netip.Addr, workers int) error {
	if err := o.attach(workers); err != nil {
		return err
	}
	for _, packet := range [][]byte{probeTCP4, probeTCP6} {
		if err := o.probe(local, packet); err != nil {
			return fmt.Errorf("write a super-packet to %s: %w: Linux 6.17 or later takes it", o.name, err)
		}
	}
	if err := transformed(local); err != nil {
		return err
	}
	return o.up(local)
}

// attach makes the device with its queues.
func (o *outerTAP) attach(workers int) error {
	for len(o.queues) < workers || o.writer < 0 {
		fd, name, err := openVNet(o.name, true)
		if err != nil {
			return explainOpen(o.name, err)
		}
		o.name = name
		if len(o.queues) < workers {
			o.queues = append(o.queues, fd)
		} else {
			o.writer = fd
		}
	}
	if err := unix.IoctlSetPointerInt(o.writer, unix.TUNSETVNETHDRSZ, virtioTunnelLen); err != nil {
		return fmt.Errorf("set the header size of %s to %d: %w: Linux 6.17 or later has it", o.name, virtioTunnelLen, err)
	}
	// The same push-back as that of a socket: a writer waits when so much is on its way.
	if err := unix.IoctlSetPointerInt(o.writer, unix.TUNSETSNDBUF, sendBuffer); err != nil {
		return fmt.Errorf("set the send buffer of %s: %w", o.name, err)
	}
	if err := detach(o.writer, o.name); err != nil {
		return fmt.Errorf("detach a queue of %s: %w", o.name, err)
	}
	return nil
}

// probe writes a super-packet. The device is down, which the kernel answers with EIO, after it has read all metadata.
func (o *outerTAP) probe(local netip.Addr, packet []byte) error {
	p := &Packet{Data: packet}
	if r := encap.ParseIP(packet, &p.Headers); r != encap.None {
		return fmt.Errorf("probe packet: %s", r)
	}
	head := p.Headers.HeaderLen(packet)
	p.Offload = encap.SuperOffload(&p.Headers, (len(packet)-head)/2)
	codec := encap.NewVXLANIP(0, encap.StrictBits)
	whole := append(make([]byte, codec.Headroom()), packet...)
	codec.Encap(whole[:codec.Headroom()], packet, &p.Headers, encap.Link{})
	s := newOuterSender(o, outerConfig{local: local, ttl: 1, checksum: true})
	err := s.write(&Datagram{Data: whole, Packet: p, Remote: netip.AddrPortFrom(local, 9)}, 9)
	if errors.Is(err, unix.EIO) {
		return nil
	}
	return err
}

// transformed refuses a host with IPsec policies for the family of local: what is redirected would evade them.
func transformed(local netip.Addr) error {
	policies, err := netlink.XfrmPolicyList(family(local))
	if err != nil {
		return nil // a kernel without IPsec
	}
	for _, p := range policies {
		if p.Dir != netlink.XFRM_DIR_FWD {
			return fmt.Errorf("this host has IPsec policies (ip xfrm policy), and what goes through an outer TAP device would evade them")
		}
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// up brings the device up as one that takes no part in any network, and attaches the redirect.
func (o *outerTAP) up(local netip.Addr) error {
	own, err := OpenLink(o.name, o.log)
	if err != nil {
		return err
	}
	l := own.handle()
	const noAddress = 1 // IN6_ADDR_GEN_MODE_NONE
	err = errors.Join(
		netlink.LinkSetARPOff(l),
		netlink.LinkSetMulticastOff(l),
		netlink.LinkSetTxQLen(l, txQueueLen), // 1024 were too few for what a kernel peer sends segment by segment
	)
	if err != nil {
		return fmt.Errorf("configure %s: %w", o.name, err)
	}
	own.leaveQueueing()
	_ = netlink.LinkSetIP6AddrGenMode(l, noAddress) // there is none to set where IPv6 is off
	if err := o.forward(local); err != nil {
		return err
	}
	if o.redirect, err = newRedirect(own.index, local.Is4()); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring %s up: %w", o.name, err)
	}
	o.link = own
	return nil
}

// receive makes datagrams that fit rule come in through the device. Where that does not work, they come to the sockets.
func (o *outerTAP) receive(rule ingressRule) {
	if err := o.openIngress(rule); err != nil {
		o.receives.disable("%v", err)
	}
}

func (o *outerTAP) openIngress(rule ingressRule) (err error) {
	if o.underlay, err = ingressDevice(rule.local); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(o.writer, unix.TUNSETOFFLOAD, offloadTCP|offloadUDP|offloadTunnel); err != nil {
		return fmt.Errorf("take super-packets from %s: %w", o.name, err)
	}
	if o.ingress, err = newIngress(o.underlay.Index, o.link.index, rule, o.merger != nil); err != nil {
		return err
	}
	if o.merger != nil {
		if err := o.merger.merge(o.underlay.Index); err != nil {
			o.endIngress("")
			return err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.stopWatch = cancel
	err = o.link.WatchDown(ctx, func() { o.endIngress(fmt.Sprintf("%s is down", o.name)) })
	if err != nil {
		o.endIngress("")
	}
	return err
}

// receiving reports whether datagrams come in through the device.
func (o *outerTAP) receiving() bool {
	if o.receives.on() && !o.ingress.attached() {
		o.endIngress(fmt.Sprintf("%s is gone, and with it what was attached to it; a restart attaches to a new one", o.underlay.Name))
	}
	return o.receives.on()
}

// endIngress leaves it to the sockets to receive. Any goroutine may call it. Without a reason, at the end of all, it is no news.
func (o *outerTAP) endIngress(why string) {
	o.ended.Do(func() {
		if o.ingress == nil {
			return
		}
		if o.merger != nil { // first: what it would still merge for nobody takes
			if err := o.merger.merge(0); err != nil {
				o.log.Warn("cannot end merging", "device", o.merger.device, "err", err)
			}
			o.merges.disable("nothing comes in through the outer device any more")
		}
		if err := o.ingress.close(); err != nil {
			o.log.Warn("cannot detach a BPF program", "device", o.underlay.Name, "err", err)
		}
		if why != "" {
			o.receives.retire(o.log, capabilityOuterReceive, why)
		}
	})
}

// forward marks the device as one whose packets may be routed: bpf_fib_lookup answers for no other (net/core/filter.c,
// bpf_ipv4_fib_lookup).
func (o *outerTAP) forward(local netip.Addr) error {
	path := o.forwardingPath(local)
	if b, err := os.ReadFile(path); err == nil && len(b) > 0 && b[0] == '1' {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return fmt.Errorf("turn forwarding on for %s: %w: /proc/sys must be writable, or conf.default.forwarding be 1 for the underlay's family", o.name, err)
	}
	return nil
}

func (o *outerTAP) forwardingPath(local netip.Addr) string {
	if local.Is6() {
		return "/proc/sys/net/ipv6/conf/" + o.name + "/forwarding"
	}
	return "/proc/sys/net/ipv4/conf/" + o.name + "/forwarding"
}

// hindrances are answers of the routes that a socket would not have got: it fragments, it is not asked whether it may forward, and
// takes routes with an encapsulation of their own. They do not pass by themselves.
var hindrances = []struct {
	answer int
	why    string
}{
	{fibFragNeeded, "the path to %s takes smaller packets than this tunnel makes, and what leaves whole is not fragmented; lower device.mtu and start again"},
	{fibForwardingDisabled, "forwarding was turned off for the outer device, and nothing leaves it for %s; turn it on for the underlay's family and start again"},
	{fibUnsupported, "the route to %s has an encapsulation of its own"},
}

// works reports whether the device is to be used. Once packets were dropped that a socket would have sent, the sockets take over.
func (o *outerTAP) works() bool {
	if o.redirect == nil {
		return o.gso.on()
	}
	for _, h := range hindrances {
		if o.redirect.dropped(h.answer) > 0 {
			o.gso.retire(o.log, capabilityTunnelGSO, fmt.Sprintf(h.why, o.redirect.lastTo(h.answer, o.local)))
		}
	}
	return o.gso.on()
}

// judgeUnrouted finds out at once why what was written had no route, if it had none. One that is away for now, sockets miss as well, and
// the device goes on when it is back; but they reach this host's own addresses, and their routes may be others than those of what a
// device brings (ip rule, iif).
func (o *outerTAP) judgeUnrouted() {
	if o.redirect == nil {
		return
	}
	n := o.redirect.dropped(fibNotForwarded)
	if n == o.unrouted.Load() {
		return
	}
	o.unrouted.Store(n)
	to := o.redirect.lastTo(fibNotForwarded, o.local)
	routes, err := netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: o.local.AsSlice()})
	if err != nil || len(routes) == 0 {
		return
	}
	if routes[0].Type == unix.RTN_LOCAL {
		o.gso.retire(o.log, capabilityTunnelGSO, fmt.Sprintf("%s is an address of this host, and what leaves whole reaches other hosts alone", to))
		return
	}
	if o.evaded.Add(1) > 1 { // the first time it may have come back since
		o.gso.retire(o.log, capabilityTunnelGSO, fmt.Sprintf("%s has a route for sockets and none for what leaves whole (ip rule with iif?)", to))
	}
}

// describe says what was made, for the host's owner.
func (o *outerTAP) describe() []string {
	changes := []string{fmt.Sprintf("device %s (outer TAP) with forwarding on for it alone and a BPF program at its ingress; gone at exit", o.name)}
	if o.receiving() {
		changes = append(changes, fmt.Sprintf("BPF program at the ingress of %s: this tunnel's datagrams that come in there go to %s, and neither netfilter's hooks nor tc's there see them; gone at exit", o.underlay.Name, o.name))
	}
	if o.merger != nil {
		changes = append(changes, fmt.Sprintf("device %s (the kernel's vxlan, for GRO) that has the port, and BPF programs that find this tunnel's sockets for it, in this network namespace and at the ingress of lo; gone at exit", o.merger.device))
	}
	return changes
}

// overflows returns how many frames found the queues full; of a device that is gone, how many had.
func (o *outerTAP) overflows() uint64 {
	if l, err := netlink.LinkByIndex(o.link.index); err == nil && l.Attrs().Statistics != nil {
		o.dropped.Store(l.Attrs().Statistics.TxDropped)
	}
	return o.dropped.Load()
}

// close gives the device back, and with it all that was done to it.
func (o *outerTAP) close() (err error) {
	o.closing.Do(func() {
		if o.stopWatch != nil {
			o.stopWatch()
		}
		o.endIngress("")
		if o.redirect != nil {
			err = o.redirect.close()
		}
		if o.merger != nil {
			err = errors.Join(err, o.merger.close())
		}
		for _, fd := range append(o.queues, o.writer) {
			if fd >= 0 {
				err = errors.Join(err, unix.Close(fd))
			}
		}
	})
	return err
}

// openOuter opens the outer TAP device, when it is asked for.
func (u *UDP) openOuter() {
	var err error
	switch {
	case !u.cfg.TunnelGSO:
		u.noOuter.disable("only when asked for (tier: tunnel-gso): it makes a device and needs CAP_BPF")
	case u.cfg.Local.IsLoopback():
		u.noOuter.disable("%s is a loopback address: there is no device to segment for", u.cfg.Local)
	default:
		if u.outer, err = openOuter(u.cfg.Local, u.cfg.Receivers, u.cfg.Log); err != nil {
			u.noOuter.disable("%v", err)
			return
		}
		if prefersTrains(u.cfg.NIC) {
			u.outer.trains = &u.gso
		}
	}
}

// ingressRule is what comes in through the outer TAP device.
func (u *UDP) ingressRule() ingressRule {
	return ingressRule{local: u.cfg.Local, port: u.cfg.Port, vni: u.cfg.VNI}
}

// receiveOuter makes each worker receive from its queue of the outer TAP device, besides its socket.
func (u *UDP) receiveOuter() {
	rule := u.ingressRule()
	for i, queue := range u.outer.queues {
		r, err := newOuterReceiver(u.outer, queue, rule, u.cfg.NoChecksum6RX)
		if err != nil {
			u.outer.receives.disable("%v", err)
			return
		}
		u.outerSources = append(u.outerSources, r)
		u.receivers[i] = inTurn(r, u.receivers[i])
	}
	u.outer.receive(rule)
}
