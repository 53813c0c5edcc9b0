package lab

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

const (
	snapshotLength = 1<<16 + 256
	captureBuffer  = 16 << 20
	captureQuiet   = 100 * time.Millisecond // what was sent just now is still on its way to the socket
)

// Capture writes every frame that a device of the host sends and receives to a pcap file, until the returned function
// is called; that returns once the file is complete, and how many frames came too fast and are missing there.
func (h *Host) Capture(device, file string) (stop func() (missed int, err error), err error) {
	socket, err := h.PacketSocket(device)
	if err != nil {
		return nil, err
	}
	in, err := newRing(socket)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	f, err := os.Create(file)
	if err != nil {
		return nil, errors.Join(err, in.close(), socket.Close())
	}
	out := bufio.NewWriterSize(f, ringBlock)
	w := pcapgo.NewWriter(out)
	if err := w.WriteFileHeader(snapshotLength, layers.LinkTypeEthernet); err != nil {
		return nil, errors.Join(err, in.close(), socket.Close(), f.Close())
	}
	done := make(chan error, 1)
	go func() { done <- copyFrames(in, w, 0) }()
	return func() (int, error) {
		err := errors.Join(socket.SetReadDeadline(time.Now()), <-done, copyFrames(in, w, captureQuiet))
		missed, unknown := in.missed()
		return missed, errors.Join(err, unknown, in.close(), socket.Close(), out.Flush(), f.Close())
	}, nil
}

// PacketSocket opens a socket that reads every frame that a device of the host sends and receives, and writes frames to
// it, one per call (packet(7)).
func (h *Host) PacketSocket(device string) (*os.File, error) {
	var socket *os.File
	err := h.Run(func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		const allProtocols = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		socket = os.NewFile(uintptr(fd), "packet socket on "+device)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: dev.Index}),
		)
	})
	if err != nil {
		if socket != nil {
			err = errors.Join(err, socket.Close())
		}
		return nil, fmt.Errorf("open packet socket on %s of host %s: %w", device, h.name, err)
	}
	return socket, nil
}

// copyFrames copies until the socket's read deadline; with quiet, until nothing came for so long.
func copyFrames(from *ring, to *pcapgo.Writer, quiet time.Duration) error {
	write := func(frame []byte, at time.Time) error {
		return to.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(frame), Length: len(frame)}, frame)
	}
	for {
		if quiet > 0 {
			if err := from.socket.SetReadDeadline(time.Now().Add(quiet)); err != nil {
				return err
			}
		}
		err := from.read(write)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("copy frames of %s: %w", from.socket.Name(), err)
		}
	}
}
