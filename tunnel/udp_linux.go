package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// DFPolicy is what the outer header's don't-fragment bit follows.
type DFPolicy int

// The policies, in the words of ip-link(8).
const (
	DFUnset DFPolicy = iota
	DFSet
	DFInherit
)

// UDPConfig describes the sockets of an underlay.
type UDPConfig struct {
	Local     netip.Addr
	Port      uint16
	Receivers int // one for each worker

	SourceLow, SourceHigh uint16   // range of ports that datagrams are sent from, both included
	Buckets               int      // how many ports of it to use
	Reserved              []uint16 // ports of it that this process will receive on, one for each tunnel

	TTL           uint8 // 0: the system's
	TOS           uint8 // for datagrams that set none
	DF            DFPolicy
	NoChecksum    bool // IPv4: send without UDP checksum
	NoChecksum6TX bool // IPv6: send without UDP checksum
	NoChecksum6RX bool // IPv6: accept datagrams without UDP checksum

	Group  netip.Addr     // when valid, a multicast group that is received from and sent to
	Device UnderlayDevice // with Group: that it is joined on

	Shared *SharedPort // when not nil, others receive on the port, too
	VNI    encap.VNI   // with Shared, or TunnelGSO
	NIC    string      // with TunnelGSO: the device that datagrams leave through; empty when that is not known

	Offloads  bool // send and receive trains, as far as the kernel knows them
	KernelGRO bool // with TunnelGSO: let the kernel merge what comes in, by a vxlan device of its own that has the port
	TunnelGSO bool // send TCP super-packets whole, through an outer TAP device, and receive through it, when the kernel takes them; for VXLAN
	Log       *slog.Logger
}

// UDP is an underlay of plain UDP sockets. Datagrams are received on one port, by as many sockets as there are workers:
// the kernel spreads outer flows over them where there are several (SO_REUSEPORT). They are sent from one socket for each bucket of source
// ports, so that routers and receivers can tell flows apart (RFC 7348 section 5).
type UDP struct {
	cfg       UDPConfig
	sources   []*udpReceiver // a socket each; that of the group is the last
	receivers []source       // one for each worker, from sources and outerSources
	sockets   []int          // of the senders: Buckets, then, with DFInherit, as many with the bit set
	senders   []*udpSender
	gso       feature
	gro       feature

	outer        *outerTAP
	outerSources []*outerReceiver
	noOuter      feature // off with the reason why there is none
}

const (
	receiveBuffer = 8 << 20
	sendBuffer    = 4 << 20
)

// OpenUDP opens the sockets.
func OpenUDP(cfg UDPConfig) (*UDP, error) {
	u := &UDP{cfg: cfg}
	if err := u.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open underlay %s port %d: %w", cfg.Local, cfg.Port, err), u.Close())
	}
	return u, nil
}

func (u *UDP) open() error {
	if err := u.claimPort(); err != nil {
		return err
	}
	u.negotiate()
	u.openOuter()
	if err := u.openReceivers(); err != nil {
		return err
	}
	if err := u.openGroup(); err != nil {
		return err
	}
	if err := u.openSenders(); err != nil {
		return err
	}
	if u.outer != nil {
		u.receiveOuter()
	}
	return nil
}

// openReceivers opens the sockets that receive, on the port, or behind the kernel's vxlan, which then has it.
func (u *UDP) openReceivers() error {
	if u.outer == nil {
		return u.listen(u.cfg.Port)
	}
	err := u.mayMerge()
	if err == nil {
		err = u.openBehindMerger()
	}
	if err == nil {
		return nil
	}
	u.outer.merges.disable("%v", err)
	return u.listen(u.cfg.Port)
}

// openBehindMerger opens the sockets on a port that nobody knows, and the merger that leads to them. When that fails, there is neither.
func (u *UDP) openBehindMerger() error {
	fd, err := u.receiveSocket(u.cfg.Local, u.cfg.Port, false) // when somebody has the port, or may not be had, it is said as ever
	if err != nil {
		return err
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	if err := u.listen(0); err != nil {
		return errors.Join(err, u.deafen())
	}
	if u.outer.merger, err = openMerger(u.ingressRule(), u.outer.link.index, u.outer.name, u.sources[0].socket.fd); err != nil {
		return errors.Join(err, u.deafen())
	}
	return nil
}

// listen opens a socket for each worker; all have one port, which the kernel chooses when it is 0.
func (u *UDP) listen(port uint16) error {
	for range u.cfg.Receivers {
		fd, err := u.receiveSocket(u.cfg.Local, port, u.sharesPort())
		if err != nil {
			return err
		}
		r := newUDPReceiver(fd)
		u.sources, u.receivers = append(u.sources, r), append(u.receivers, r)
		if u.cfg.Shared != nil {
			u.cfg.Shared.add(fd)
		}
		if port == 0 {
			if port, err = boundPort(fd); err != nil {
				return err
			}
		}
	}
	return nil
}

// deafen closes what listen opened.
func (u *UDP) deafen() error {
	var errs []error
	for _, r := range u.sources {
		errs = append(errs, unix.Close(r.socket.fd))
	}
	u.sources, u.receivers = nil, nil
	return errors.Join(errs...)
}

// PathMTU returns the largest IP packet that the kernel believes to reach remote, in bytes: its path MTU, or the MTU of the route.
func (u *UDP) PathMTU(remote netip.Addr) (int, error) {
	fd, err := u.socket()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	level, option, discover := unix.IPPROTO_IP, unix.IP_MTU, unix.IP_MTU_DISCOVER
	if remote.Is6() {
		level, option, discover = unix.IPPROTO_IPV6, unix.IPV6_MTU, unix.IPV6_MTU_DISCOVER
	}
	if remote.IsMulticast() {
		err = u.sendToGroup(fd)
	}
	// IP_PMTUDISC_DO and IPV6_PMTUDISC_DO are one number; connecting sends nothing.
	err = errors.Join(err, u.bind(fd, 0), unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_DO), unix.Connect(fd, sockaddr(remote, u.cfg.Port)))
	if err != nil {
		return 0, fmt.Errorf("ask for the path to %s: %w", remote, err)
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	if err != nil {
		return 0, fmt.Errorf("ask for the path MTU to %s: %w", remote, err)
	}
	return mtu, nil
}

// sharesPort reports whether more than one socket of this process is to receive on the port. One alone has it for itself, and the kernel chooses none
// for each datagram: a twentieth of TCP's throughput where GRO looks the socket up (docs/decisions/0008-udp-gso.md).
func (u *UDP) sharesPort() bool { return u.cfg.Receivers > 1 || u.cfg.Shared != nil }

// claimPort finds out whether someone has the port: receivers that share it among themselves with SO_REUSEPORT
// would share it with any other process that does.
func (u *UDP) claimPort() error {
	if !u.sharesPort() {
		return nil
	}
	if u.cfg.Shared != nil {
		if first, err := u.cfg.Shared.join(u.cfg.VNI, u.cfg.Receivers); err != nil || !first {
			return err
		}
	}
	fd, err := u.socket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.bind(fd, u.cfg.Port)
}

// receiveSocket opens a socket for what comes to an address of this host, or to a group. It shares the port with others that do, or has it alone.
func (u *UDP) receiveSocket(to netip.Addr, port uint16, shared bool) (int, error) {
	fd, err := u.socket()
	if err != nil {
		return -1, err
	}
	if shared {
		err = setOption(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT")
	}
	err = errors.Join(err,
		setOption(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1, "SO_RXQ_OVFL"),
		setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer),
	)
	if u.cfg.Local.Is4() {
		err = errors.Join(err, setOption(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS"))
	} else {
		err = errors.Join(err, setOption(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"))
		if u.cfg.NoChecksum6RX {
			err = errors.Join(err, setOption(fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1, "UDP_NO_CHECK6_RX"))
		}
	}
	if u.gro.on() {
		err = errors.Join(err, setOption(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1, "UDP_GRO"))
	}
	if err == nil {
		err = u.bindTo(fd, to, port)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// openSenders binds a socket in each of Buckets stretches of the source port range, at a port that is free.
func (u *UDP) openSenders() error {
	width := int(u.cfg.SourceHigh) - int(u.cfg.SourceLow) + 1
	df := []bool{u.cfg.DF == DFSet}
	if u.cfg.DF == DFInherit {
		df = []bool{false, true}
	}
	buckets := max(1, min(u.cfg.Buckets, width/len(df)))
	stretches := buckets * len(df)
	for i, set := range df {
		for b := range buckets {
			at := b*len(df) + i
			low, high := width*at/stretches, width*(at+1)/stretches
			fd, err := u.sendSocket(int(u.cfg.SourceLow)+low, int(u.cfg.SourceLow)+high, set)
			if err != nil {
				return err
			}
			u.sockets = append(u.sockets, fd)
		}
	}
	return nil
}

// sendSocket opens a socket at a free port in [low, high), one that nobody can guess (RFC 8085 section 5.1).
func (u *UDP) sendSocket(low, high int, df bool) (int, error) {
	fd, err := u.socket()
	if err != nil {
		return -1, err
	}
	if err = u.prepareSender(fd, df); err == nil {
		err = unix.EADDRINUSE
		for _, offset := range rand.Perm(max(high-low, 0)) {
			port := uint16(low + offset)
			if slices.Contains(u.cfg.Reserved, port) {
				continue
			}
			if err = u.bind(fd, port); !errors.Is(err, unix.EADDRINUSE) {
				break
			}
		}
	}
	if err != nil {
		return -1, errors.Join(&SourcePortError{low, high - 1, err}, unix.Close(fd))
	}
	return fd, nil
}

// SourcePortError says that there is no port to send from in a stretch of the configured range.
type SourcePortError struct {
	Low, High int
	Err       error
}

func (e *SourcePortError) Error() string {
	return fmt.Sprintf("source ports %d-%d: %v", e.Low, e.High, e.Err)
}

// Unwrap returns the socket's error.
func (e *SourcePortError) Unwrap() error { return e.Err }

func (u *UDP) prepareSender(fd int, df bool) error {
	// Nothing is ever read from this socket: let the kernel drop what is sent to it, before it can pile up.
	none := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	program := unix.SockFprog{Len: 1, Filter: &none}
	err := errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program),
		setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer),
	)
	o, noChecksum := options4, option{unix.SOL_SOCKET, unix.SO_NO_CHECK, "SO_NO_CHECK"}
	withoutChecksum := u.cfg.NoChecksum
	if u.cfg.Local.Is6() {
		o, noChecksum = options6, option{unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, "UDP_NO_CHECK6_TX"}
		withoutChecksum = u.cfg.NoChecksum6TX
	}
	discover := unix.IP_PMTUDISC_DONT // the IPv6 values are the same
	if df {
		discover = unix.IP_PMTUDISC_DO
	}
	err = errors.Join(err, o.discover.set(fd, discover), o.tos.set(fd, int(u.cfg.TOS)))
	if u.cfg.TTL != 0 {
		err = errors.Join(err, o.ttl.set(fd, int(u.cfg.TTL)))
	}
	if withoutChecksum {
		err = errors.Join(err, noChecksum.set(fd, 1))
	}
	if u.cfg.Group.IsValid() {
		err = errors.Join(err, u.sendToGroup(fd))
	}
	return err
}

// option is a socket option with an int.
type option struct {
	level, number int
	name          string
}

func (o option) set(fd, value int) error { return setOption(fd, o.level, o.number, value, o.name) }

// familyOptions are the options of ip(7) and ipv6(7) that mean the same.
type familyOptions struct{ discover, tos, ttl, groupTTL, groupLoop, groupAll option }

var (
	options4 = familyOptions{
		option{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, "IP_MTU_DISCOVER"},
		option{unix.IPPROTO_IP, unix.IP_TOS, "IP_TOS"},
		option{unix.IPPROTO_IP, unix.IP_TTL, "IP_TTL"},
		option{unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, "IP_MULTICAST_TTL"},
		option{unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, "IP_MULTICAST_LOOP"},
		option{unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, "IP_MULTICAST_ALL"},
	}
	options6 = familyOptions{
		option{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER"},
		option{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, "IPV6_TCLASS"},
		option{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS"},
		option{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, "IPV6_MULTICAST_HOPS"},
		option{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, "IPV6_MULTICAST_LOOP"},
		option{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, "IPV6_MULTICAST_ALL"},
	}
)

func optionsOf(a netip.Addr) familyOptions {
	if a.Is4() {
		return options4
	}
	return options6
}

func (u *UDP) socket() (int, error) {
	family := unix.AF_INET
	if u.cfg.Local.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	return fd, nil
}

func (u *UDP) bind(fd int, port uint16) error { return u.bindTo(fd, u.cfg.Local, port) }

func (u *UDP) bindTo(fd int, a netip.Addr, port uint16) error {
	to := sockaddr(a, port)
	if six, ok := to.(*unix.SockaddrInet6); ok && a.IsMulticast() {
		six.ZoneId = uint32(u.cfg.Device.Index) // those of link-local scope need it
	}
	if err := unix.Bind(fd, to); err != nil {
		return fmt.Errorf("bind to %s: %w", a, err)
	}
	return nil
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

func setOption(fd, level, option, value int, name string) error {
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		return fmt.Errorf("set socket option %s to %d: %w", name, value, err)
	}
	return nil
}

// setBuffer sets a buffer size past the system's limit where it may, up to the limit where it may not.
func setBuffer(fd, force, plain, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size); err != nil {
		return fmt.Errorf("set socket buffer to %d bytes: %w", size, err)
	}
	return nil
}

// NewSender implements Underlay.
func (u *UDP) NewSender() Sender {
	buckets := len(u.sockets)
	if u.cfg.DF == DFInherit {
		buckets /= 2
	}
	s := newUDPSender(u.sockets, buckets, u.cfg.TOS, u.cfg.Local.Is4(), &u.gso, u.cfg.Log)
	if u.outer != nil {
		s.outer, s.ports = newOuterSender(u.outer, u.outerConfig()), u.SourcePorts()
	}
	u.senders = append(u.senders, s)
	return s
}

// outerConfig makes outer headers those that the sockets write.
func (u *UDP) outerConfig() outerConfig {
	c := outerConfig{local: u.cfg.Local, ttl: u.cfg.TTL, df: u.cfg.DF, checksum: !u.cfg.NoChecksum}
	o := options4
	if u.cfg.Local.Is6() {
		c.checksum, o = !u.cfg.NoChecksum6TX, options6
	}
	if ttl, err := unix.GetsockoptInt(u.sockets[0], o.ttl.level, o.ttl.number); c.ttl == 0 && err == nil {
		c.ttl = uint8(ttl)
	}
	return c
}

// Receivers implements Underlay.
func (u *UDP) Receivers() []Receiver {
	all := make([]Receiver, 0, len(u.receivers))
	for _, r := range u.receivers {
		all = append(all, r)
	}
	return all
}

// Capabilities returns the sockets' features.
func (u *UDP) Capabilities() []Capability {
	outer := &u.noOuter
	if u.outer != nil {
		outer = &u.outer.gso
	}
	all := []Capability{u.gso.capability("gso"), u.gro.capability("gro"), outer.capability(capabilityTunnelGSO)}
	if u.outer != nil {
		u.outer.receiving() // finds out
		all = append(all, u.outer.receives.capability(capabilityOuterReceive), u.outer.merges.capability(capabilityKernelGRO))
	}
	return all
}

// HostChanges says what was made on this host beyond the sockets.
func (u *UDP) HostChanges() []string {
	if u.outer == nil {
		return nil
	}
	return u.outer.describe()
}

// SourcePorts returns the ports that datagrams are sent from.
func (u *UDP) SourcePorts() []uint16 {
	ports := make([]uint16, 0, len(u.sockets))
	for _, fd := range u.sockets {
		if port, err := boundPort(fd); err == nil {
			ports = append(ports, port)
		}
	}
	return ports
}

// boundPort returns the port that a socket is bound to.
func boundPort(fd int) (uint16, error) {
	switch sa, err := unix.Getsockname(fd); sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	default:
		return 0, fmt.Errorf("ask for a socket's port: %w", err)
	}
}

// Close implements Underlay.
func (u *UDP) Close() error {
	var errs []error
	if u.outer != nil {
		errs = append(errs, u.outer.close())
	}
	for _, r := range u.outerSources {
		errs = append(errs, unix.Close(r.quiet))
	}
	for _, r := range u.sources {
		errs = append(errs, unix.Close(r.socket.fd))
	}
	for _, fd := range u.sockets {
		errs = append(errs, unix.Close(fd))
	}
	u.sources, u.outerSources, u.receivers, u.sockets = nil, nil, nil, nil
	return errors.Join(errs...)
}

// Counts is what the sockets and the device tell of their system calls.
type Counts struct {
	Syscalls       map[string]uint64 // by call
	QueueOverflows uint64            // datagrams that found the receive buffer (SO_RXQ_OVFL), or the outer TAP device's queues, full
	DeviceErrors   map[string]uint64 // writes that the device refused, by errno
	ReceiveErrors  map[string]uint64 // calls that failed and were made again, by errno
	OuterDrops     map[string]uint64 // packets written to the outer TAP device that had no way from there, by what the routes said
}

// AddTo adds the underlay's counts to c.
func (u *UDP) AddTo(c *Counts) {
	for _, s := range u.senders {
		c.Syscalls["sendmmsg"] += s.calls.Load()
		if s.outer != nil {
			c.Syscalls["writev"] += s.outer.calls.Load()
		}
	}
	if u.outer != nil {
		u.outer.redirect.addTo(c.OuterDrops)
		c.QueueOverflows += u.outer.overflows()
	}
	for _, r := range u.outerSources {
		c.Syscalls["read"] += r.calls.Load()
		r.errnos.addTo(c.ReceiveErrors)
	}
	for _, r := range u.sources {
		c.Syscalls["recvmmsg"] += r.calls.Load()
		c.QueueOverflows += r.overflows()
		r.errnos.addTo(c.ReceiveErrors)
	}
}
