package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// TUN is a TUN device without offloads, opened by songgao/water: the device of the portable tier. It gives and takes one
// finished packet per call; super-packets are split here.
//
// Each worker reads one queue and writes to another, which is detached (TUNSETQUEUE): the driver steers a flow to the
// queue that last wrote for it, but not for detached ones (drivers/net/tun.c, tun_get_user). So a flow stays on the
// queue that its hash picks, and its packets in order, whatever is received.
type TUN struct {
	name   string
	queues []Queue
	files  []*os.File
	closed atomic.Bool
}

// OpenTUN creates a device with n queues. An empty name takes the first free of vxlane0, vxlane1, ….
func OpenTUN(name string, n int) (*TUN, error) {
	if name == "" {
		name = "vxlane%d"
	}
	if _, err := net.InterfaceByName(name); err == nil {
		// Opening would join its queues: a multi-queue TUN device takes more of them from anyone.
		return nil, explainOpen(name, unix.EBUSY)
	}
	t := new(TUN)
	for i := range n {
		reader, err := t.open(name, false)
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		name = t.name
		writer, err := t.open(name, true)
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		q, err := newTUNQueue(reader, writer, &t.closed)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open queue %d of %s: %w", i, name, err), t.Close())
		}
		t.queues = append(t.queues, q)
	}
	return t, nil
}

func (t *TUN) open(name string, detached bool) (*os.File, error) {
	dev, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, MultiQueue: true},
	})
	if err != nil {
		return nil, explainOpen(name, err)
	}
	t.name = dev.Name()
	file, ok := dev.ReadWriteCloser.(*os.File)
	if !ok {
		return nil, errors.Join(fmt.Errorf("open device %s: not a file: %T", t.name, dev.ReadWriteCloser), dev.Close())
	}
	t.files = append(t.files, file)
	if detached {
		if err := detach(file, t.name); err != nil {
			return nil, fmt.Errorf("detach queue of %s: %w", t.name, err)
		}
	}
	return file, nil
}

func detach(file *os.File, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_DETACH_QUEUE)
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	if err := conn.Control(func(fd uintptr) { ioctlErr = unix.IoctlIfreq(int(fd), unix.TUNSETQUEUE, req) }); err != nil {
		return err
	}
	return ioctlErr
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
	_, err := t.files[1].Write(packet)
	return err
}

// Close implements Device; the device vanishes with its last queue.
func (t *TUN) Close() error {
	t.closed.Store(true)
	errs := make([]error, len(t.files))
	for i, f := range t.files {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			errs[i] = err
		}
	}
	return errors.Join(errs...)
}

// tunQueue is one queue. The fields for reading belong to the goroutine that reads, the rest to the one that writes.
type tunQueue struct {
	reader, writer syscall.RawConn
	closed         *atomic.Bool

	batch    []Packet
	filled   int
	readErr  error
	readFunc func(fd uintptr) bool

	head, payload []byte
	writeErr      error
	writeFunc     func(fd uintptr) bool
	scratch       [256]byte // the headers of a segment
	splitter      encap.Splitter

	// What AddTo tells.
	reads, writes routing.Counter
	errnos        errnoCounters
}

func newTUNQueue(reader, writer *os.File, closed *atomic.Bool) (*tunQueue, error) {
	q := &tunQueue{closed: closed}
	var err error
	if q.reader, err = reader.SyscallConn(); err != nil {
		return nil, err
	}
	if q.writer, err = writer.SyscallConn(); err != nil {
		return nil, err
	}
	q.readFunc, q.writeFunc = q.readSome, q.writeOne // bound once: a method value allocates
	return q, nil
}

// Read implements Queue: it waits for one packet and takes what else is there.
func (q *tunQueue) Read(batch []Packet) (int, error) {
	q.batch, q.filled, q.readErr = batch, 0, nil
	if err := q.reader.Read(q.readFunc); err != nil {
		return 0, closedOr(q.closed, err)
	}
	if q.filled == 0 {
		return 0, closedOr(q.closed, q.readErr)
	}
	return q.filled, nil
}

// readSome reads until the batch is full or nothing is left; false means wait.
func (q *tunQueue) readSome(fd uintptr) bool {
	for q.filled < len(q.batch) {
		p := &q.batch[q.filled]
		n, err := unix.Read(int(fd), p.Space())
		q.reads.Add(1)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return q.filled > 0
		case err != nil:
			q.readErr = err
			return true
		default:
			p.Data = p.Space()[:n]
			p.Offload, p.Count = encap.Offload{}, 1
			q.filled++
		}
	}
	return true
}

// Write implements Queue.
func (q *tunQueue) Write(batch []Packet) error {
	for i := range batch {
		p := &batch[i]
		var err error
		if p.Offload.IsSuper() {
			err = q.writeSegments(p)
		} else {
			p.Sent, err = q.write(p.Data, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSegments splits a super-packet. The headers are copied, the payload is not.
func (q *tunQueue) writeSegments(p *Packet) error {
	p.Sent = 0
	if !q.splitter.Reset(p.Data, &p.Headers, p.Offload) || q.splitter.HeaderLen() > len(q.scratch) {
		return nil
	}
	for q.splitter.Next(q.scratch[:]) {
		n, err := q.write(q.splitter.Header(), q.splitter.Payload())
		if err != nil {
			return err
		}
		p.Sent += n
	}
	return nil
}

// write hands one packet, in up to two pieces, to the device; it returns 1 when the device took it, 0 when it refused.
func (q *tunQueue) write(head, payload []byte) (int, error) {
	q.head, q.payload, q.writeErr = head, payload, nil
	if err := q.writer.Write(q.writeFunc); err != nil {
		return 0, closedOr(q.closed, err)
	}
	if q.writeErr == nil {
		return 1, nil
	}
	if q.writeErr == unix.EBADFD {
		return 0, deviceGone(q.writeErr)
	}
	q.errnos.count(q.writeErr)
	return 0, nil
}

func (q *tunQueue) writeOne(fd uintptr) bool {
	for {
		q.writes.Add(1)
		q.writeErr = writev2(int(fd), q.head, q.payload)
		switch q.writeErr {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			return true
		}
	}
}

// closedOr tells an end that was closed from one that failed. The error alone does not say: what a raw connection
// returns after Close is internal to package os.
func closedOr(closed *atomic.Bool, err error) error {
	switch {
	case closed.Load():
		return ErrClosed
	case errors.Is(err, unix.EBADFD):
		return deviceGone(err)
	}
	return err
}

func deviceGone(err error) error {
	return fmt.Errorf("%w: the device was removed; start again to make a new one", err)
}
