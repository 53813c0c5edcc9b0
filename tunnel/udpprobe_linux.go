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

// probe sends trains of two datagrams from a socket of the underlay's address to itself. The kernel carries them whole, as the
// loopback device segments nothing. It segments one for the socket, as it would for a device, and there are kernels that damage
// what they make of a train of equal sizes (7.0 to 7.1.4; b10b446, fixed by 78effd8); with UDP_GRO it gives the next one whole.
func (u *UDP) probe() (sent, received error) {
	fd, err := u.socket()
	if err != nil {
		return err, err
	}
	defer unix.Close(fd)
	if err := u.bind(fd, 0); err != nil {
		return err, err
	}
	sent = sendProbe(fd)
	for _, segment := range []string{probeTrain[:probeSegment], probeTrain[probeSegment:]} {
		if sent == nil {
			sent = awaitProbe(fd, segment, 0)
		}
	}
	received = setOption(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1, "UDP_GRO")
	if sent != nil || received != nil {
		return sent, received
	}
	if err := sendProbe(fd); err != nil {
		return err, nil
	}
	return nil, awaitProbe(fd, probeTrain, probeSegment)
}

// probeTrain is two datagrams of probeSegment bytes.
const (
	probeTrain   = "probe 1\nprobe 2\n"
	probeSegment = len(probeTrain) / 2
)

// sendProbe sends a train from a socket to itself.
func sendProbe(fd int) error {
	self, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	control := make([]byte, unix.CmsgSpace(2))
	putSegmentSize(control, probeSegment)
	_, err = unix.SendmsgN(fd, []byte(probeTrain), control, self, 0)
	return err
}

// awaitProbe receives a message of what sendProbe sent, which is on its way over loopback, and wants it whole and undamaged.
func awaitProbe(fd int, want string, segment int) error {
	if err := waitFor(fd, unix.POLLIN, 1000); err != nil {
		return fmt.Errorf("wait for what was sent over loopback: %w", err)
	}
	data, control := make([]byte, 2*len(probeTrain)), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(fd, data, control, 0)
	if err != nil {
		return err
	}
	var d Datagram
	new(udpReceiver).readControl(&d, control[:oobn:oobn])
	if n != len(want) || d.SegmentSize != segment {
		return fmt.Errorf("a train over loopback arrived as %d bytes with segment size %d, want %d with %d", n, d.SegmentSize, len(want), segment)
	}
	if string(data[:n]) != want {
		return fmt.Errorf("a train over loopback arrived damaged: %q", data[:n])
	}
	return nil
}
