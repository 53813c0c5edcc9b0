package lab

import (
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
// is called; that returns once the file is complete.
func (h *Host) Capture(device, file string) (stop func() error, err error) {
	socket, err := h.PacketSocket(device)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(file)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(snapshotLength, layers.LinkTypeEthernet); err != nil {
		return nil, errors.Join(err, socket.Close(), f.Close())
	}
	done := make(chan error, 1)
	go func() { done <- copyFrames(socket, w, 0) }()
	return func() error {
		err := errors.Join(socket.SetReadDeadline(time.Now()), <-done)
		return errors.Join(err, copyFrames(socket, w, captureQuiet), socket.Close(), f.Close())
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
func copyFrames(from *os.File, to *pcapgo.Writer, quiet time.Duration) error {
	buf := make([]byte, snapshotLength)
	for {
		if quiet > 0 {
			if err := from.SetReadDeadline(time.Now().Add(quiet)); err != nil {
				return err
			}
		}
		n, err := from.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, unix.ENETDOWN):
			continue // told once, when the device goes down
		case err != nil:
			return fmt.Errorf("read frame: %w", err)
		}
		info := gopacket.CaptureInfo{Timestamp: time.Now(), CaptureLength: n, Length: n}
		if err := to.WritePacket(info, buf[:n]); err != nil {
			return fmt.Errorf("write frame: %w", err)
		}
	}
}
