package tunnel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// negotiate finds out whether the kernel sends and receives trains, by sending one over loopback.
func (u *UDP) negotiate() {
	if !u.cfg.Offloads {
		const portable = "the portable tier moves finished packets one by one"
		u.gso.disable(portable)
		u.gro.disable(portable)
		return
	}
	if u.cfg.Local.Is4() && u.cfg.NoChecksum || u.cfg.Local.Is6() && u.cfg.NoChecksum6TX {
		u.gso.disable("the kernel makes no trains without UDP checksums (SO_NO_CHECK with UDP_SEGMENT is EINVAL); turn the outer checksum on")
	}
	sent, received := u.probe()
	if sent != nil {
		u.gso.disable("UDP_SEGMENT: %v", sent)
	}
	if received != nil {
		u.gro.disable("UDP_GRO: %v", received)
	}
}

// probe sends a train of two datagrams from a socket of the underlay's address to itself. The kernel carries it whole, as
// the loopback device segments nothing, and gives it whole to a socket with UDP_GRO.
func (u *UDP) probe() (sent, received error) {
	fd, err := u.socket()
	if err != nil {
		return err, err
	}
	defer unix.Close(fd)
	received = setOption(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1, "UDP_GRO")
	if err := u.bind(fd, 0); err != nil {
		return err, err
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return err, err
	}
	const segment = 8
	control := make([]byte, unix.CmsgSpace(2))
	putSegmentSize(control, segment)
	if _, err = unix.SendmsgN(fd, make([]byte, 2*segment), control, self, 0); err != nil {
		return err, received
	}
	if received == nil {
		received = awaitTrain(fd, segment)
	}
	return nil, received
}

// awaitTrain receives a train of two, which is on its way over loopback.
func awaitTrain(fd, segment int) error {
	if err := waitFor(fd, unix.POLLIN, 1000); err != nil {
		return fmt.Errorf("wait for what was sent over loopback: %w", err)
	}
	data, control := make([]byte, 4*segment), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(fd, data, control, 0)
	if err != nil {
		return err
	}
	var d Datagram
	new(udpReceiver).readControl(&d, control[:oobn:oobn])
	if n != 2*segment || d.SegmentSize != segment {
		return fmt.Errorf("a train over loopback arrived as %d bytes with segment size %d, want %d with %d", n, d.SegmentSize, 2*segment, segment)
	}
	return nil
}
