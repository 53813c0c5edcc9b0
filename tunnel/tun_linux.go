package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
)

// TUNConfig describes a device.
type TUNConfig struct {
	Name     string // empty: the first free of vxlane0, vxlane1, …
	Ethernet bool   // a TAP device, whose packets are Ethernet frames
	Queues   int
	Offloads bool // super-packets and unfinished checksums both ways, as far as the kernel knows them
	Keep     bool // leave the device behind at Close, with what was put on it, and take over one that was left
	Log      *slog.Logger
}

// TUN is a TUN or TAP device.
//
// Each worker reads one queue and writes to another, which is detached (TUNSETQUEUE): the driver steers a flow to the
// queue that last wrote for it, but not for detached ones (drivers/net/tun.c, tun_get_user). So a flow stays on the
// queue that its hash picks, and its packets in order, whatever is received.
type TUN struct {
	cfg    TUNConfig
	name   string
	queues []Queue
	fds    []int // reader and writer of each queue
	tso    feature
	uso    feature

	takenOver bool // from a process before this one; it may be up
}

// OpenTUN creates a device. It is down, and has no addresses.
func OpenTUN(cfg TUNConfig) (*TUN, error) {
	if cfg.Name == "" {
		cfg.Name = "vxlane%d"
	}
	if inUse(cfg.Name, cfg.Keep) {
		// Opening would join its queues: a multi-queue TUN device takes more of them from anyone.
		return nil, explainOpen(cfg.Name, unix.EBUSY)
	}
	t := &TUN{cfg: cfg, name: cfg.Name, takenOver: cfg.Keep && exists(cfg.Name)}
	if err := t.open(); err != nil {
		return nil, errors.Join(err, t.Discard())
	}
	return t, nil
}

// inUse reports whether there is a device called name that is not for us: any at all, or, when one that was left may be taken
// over, any but a TUN device without a queue.
func inUse(name string, takeOver bool) bool {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return false
	}
	// A device that is down shows no carrier, whoever has it.
	left := l.Type() == "tuntap" && l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0
	return !takeOver || !left
}

func exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

func (t *TUN) open() error {
	for i := range t.cfg.Queues {
		reader, err := t.attach()
		if err != nil {
			return err
		}
		writer, err := t.attach()
		if err != nil {
			return err
		}
		if err := detach(writer, t.name); err != nil {
			return fmt.Errorf("detach queue %d of %s: %w", i, t.name, err)
		}
		t.queues = append(t.queues, newTUNQueue(t, reader, writer))
	}
	if t.cfg.Keep {
		if err := unix.IoctlSetInt(t.fds[0], unix.TUNSETPERSIST, 1); err != nil {
			return fmt.Errorf("make %s persistent: %w", t.name, err)
		}
	}
	if !t.cfg.Offloads {
		const portable = "the portable tier moves finished packets one by one"
		t.tso.disable(portable)
		t.uso.disable(portable)
		return nil
	}
	t.negotiate()
	return nil
}

// attach opens one more queue.
func (t *TUN) attach() (int, error) {
	open := openWater
	if t.cfg.Offloads {
		open = openVNet
	}
	fd, name, err := open(t.name, t.cfg.Ethernet)
	if err != nil {
		return -1, explainOpen(t.name, err)
	}
	t.name = name
	t.fds = append(t.fds, fd)
	return fd, nil
}

// openWater opens a queue with songgao/water, which knows nothing of offloads, and takes its descriptor out of the reach
// of Go's poller.
func openWater(name string, ethernet bool) (int, string, error) {
	kind := water.DeviceType(water.TUN)
	if ethernet {
		kind = water.TAP
	}
	dev, err := water.New(water.Config{
		DeviceType:             kind,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, MultiQueue: true},
	})
	if err != nil {
		return -1, "", err
	}
	file, ok := dev.ReadWriteCloser.(*os.File)
	if !ok {
		return -1, "", errors.Join(fmt.Errorf("not a file: %T", dev.ReadWriteCloser), dev.Close())
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return -1, "", errors.Join(err, dev.Close())
	}
	fd, dupErr := -1, error(nil)
	err = conn.Control(func(original uintptr) {
		fd, dupErr = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, dev.Name(), errors.Join(err, dupErr, dev.Close())
}

// openVNet opens a queue whose packets have a virtio-net header in front.
func openVNet(name string, ethernet bool) (fd int, actual string, err error) {
	const flags = unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR
	if ethernet {
		return openTUNDevice(name, flags|unix.IFF_TAP)
	}
	return openTUNDevice(name, flags|unix.IFF_TUN)
}

func openTUNDevice(name string, flags uint16) (fd int, actual string, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return -1, "", errors.Join(err, unix.Close(fd))
	}
	actual = req.Name()
	// A queue takes the flags of the queues before it, whatever it asked for.
	if err = unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err == nil && req.Uint16()&flags != flags {
		err = fmt.Errorf("device has flags %#x, want %#x", req.Uint16(), flags)
	}
	if err != nil {
		return -1, "", errors.Join(err, unix.Close(fd))
	}
	return fd, actual, nil
}

func detach(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_DETACH_QUEUE)
	return unix.IoctlIfreq(fd, unix.TUNSETQUEUE, req)
}

// negotiate finds out which super-packets the kernel gives and takes.
func (t *TUN) negotiate() {
	if err := unix.IoctlSetInt(t.fds[0], unix.TUNSETOFFLOAD, offloadTCP|offloadUDP); err != nil {
		t.uso.disable("TUNSETOFFLOAD with USO: %v (Linux 6.2 and later have it)", err)
		if err := unix.IoctlSetInt(t.fds[0], unix.TUNSETOFFLOAD, offloadTCP); err != nil {
			t.tso.disable("TUNSETOFFLOAD with TSO: %v", err)
		}
	}
	fd := t.fds[1]
	if t.takenOver {
		spare, _, err := openVNet(probeName, t.cfg.Ethernet)
		if err != nil {
			t.tso.disable("open a device to probe: %v", err)
			t.uso.disable("open a device to probe: %v", err)
			return
		}
		defer unix.Close(spare)
		fd = spare
	}
	t.probe(func(pieces [][]byte) error {
		_, err := unix.Writev(fd, pieces)
		return err
	})
}

// probe asks for each kind of super-packet whether the device takes it.
func (t *TUN) probe(write func(pieces [][]byte) error) {
	for _, p := range []struct {
		f      *feature
		packet []byte
	}{{&t.tso, probeTCP4}, {&t.tso, probeTCP6}, {&t.uso, probeUDP4}, {&t.uso, probeUDP6}} {
		if err := probe(write, p.packet, t.cfg.Ethernet); err != nil {
			p.f.disable("the device refuses super-packets: %v", err)
		}
	}
}

// probeName is the pattern for a device of the same kind, which is asked in place of one that is up already.
const probeName = "vxprobe%d"

// probe writes a super-packet of two segments to a device, which is down: the kernel judges the metadata before it sees
// that, so EIO says that they are good, and nothing came of it.
func probe(write func(pieces [][]byte) error, packet []byte, ethernet bool) error {
	var h encap.Headers
	parse := encap.ParseIP
	if ethernet {
		frame := append(make([]byte, 12, 128), 0x08, 0x00) // from nobody to nobody
		if packet[0]>>4 == 6 {
			frame = append(frame[:12], 0x86, 0xdd)
		}
		packet, parse = append(frame, packet...), encap.ParseFrame
	}
	if r := parse(packet, &h); r != encap.None {
		return fmt.Errorf("probe packet: %s", r)
	}
	head := h.HeaderLen(packet)
	var header [virtioHeaderLen]byte
	putVirtio(header[:], encap.SuperOffload(&h, (len(packet)-head)/2), h.Kind, head)
	err := write([][]byte{header[:], packet})
	if errors.Is(err, unix.EIO) {
		return nil
	}
	return err
}

// explainOpen turns the kernel's answer into what it means and what to do.
func explainOpen(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open /dev/net/tun: %w: make the node (mkdir -p /dev/net && mknod /dev/net/tun c 10 200) or, in a container, pass the device in", err)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("open /dev/net/tun: %w: the kernel has no TUN driver: modprobe tun", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("open /dev/net/tun: %w: this user may not open the node; run as root, or: chmod 0666 /dev/net/tun, which still leaves making devices to CAP_NET_ADMIN", err)
	case errors.Is(err, unix.EPERM) && errors.As(err, new(*fs.PathError)):
		return fmt.Errorf("open /dev/net/tun: %w: the device cgroup of this container refuses it: allow the character device 10:200 (docker: --device /dev/net/tun; Kubernetes: a device plugin, or privileged)", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("make TUN device: %w: need CAP_NET_ADMIN; run as root, or: setcap cap_net_admin+ep %s", err, program())
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("open device %s: %w: a device of that name exists (ip link show %s); choose another with device.name (--device), or stop the vxlane that has it", name, err, name)
	}
	return fmt.Errorf("open device %s: %w", name, err)
}

// program returns the path of this program, for advice.
func program() string {
	path, err := os.Executable()
	if err != nil {
		return "vxlane"
	}
	return path
}

// Name returns the device's name.
func (t *TUN) Name() string { return t.name }

// Queues implements Device.
func (t *TUN) Queues() []Queue { return t.queues }

// Inject implements Device.
func (t *TUN) Inject(packet []byte) error {
	var header [virtioHeaderLen]byte
	pieces := [][]byte{header[:], packet}
	if !t.cfg.Offloads {
		pieces = pieces[1:]
	}
	_, err := unix.Writev(t.fds[1], pieces)
	return err
}

// Close implements Device; the device vanishes with its last queue, unless it is to be kept.
func (t *TUN) Close() error {
	var errs []error
	for _, fd := range t.fds {
		errs = append(errs, unix.Close(fd))
	}
	t.fds = nil
	return errors.Join(errs...)
}

// Discard is Close that keeps nothing, unless the device was there before.
func (t *TUN) Discard() error {
	if t.cfg.Keep && !t.takenOver && len(t.fds) > 0 {
		if err := unix.IoctlSetInt(t.fds[0], unix.TUNSETPERSIST, 0); err != nil {
			return errors.Join(fmt.Errorf("let %s go: %w", t.name, err), t.Close())
		}
	}
	return t.Close()
}

// Capabilities returns the device's features.
func (t *TUN) Capabilities() []Capability {
	return []Capability{t.tso.capability("tso"), t.uso.capability("uso")}
}

// AddTo adds the device's counts to c.
func (t *TUN) AddTo(c *Counts) {
	for _, q := range t.queues {
		q := q.(*tunQueue)
		c.Syscalls["read"] += q.reads.Load()
		c.Syscalls["writev"] += q.writes.Load()
		q.errnos.addTo(c.DeviceErrors)
	}
}

func (t *TUN) gone(err error) error {
	return fmt.Errorf("%s: %w: the device was removed; start again to make a new one", t.name, err)
}
