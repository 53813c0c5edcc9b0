package traffic

import (
	"encoding/binary"
	"errors"
	"net"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// newMessages makes messages with room for one packet, or super-packet, each. ipv4's messages carry IPv6 as well.
func newMessages(n int) []ipv4.Message {
	messages := make([]ipv4.Message, n)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, largestUDP)}
		messages[i].OOB = make([]byte, unix.CmsgSpace(4))
	}
	return messages
}

// reflect sends back what arrives as it arrives, alone or as a super-packet, until the socket is closed. What is lost is the
// sender's to notice.
func reflect(conn *ipv4.PacketConn) {
	in, out := newMessages(messagesInCall), make([]ipv4.Message, messagesInCall)
	for {
		n, err := conn.ReadBatch(in, 0)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		n = max(n, 0)
		for i, m := range in[:n] {
			out[i] = ipv4.Message{Buffers: [][]byte{m.Buffers[0][:m.N]}, Addr: m.Addr}
			if size := sizeOfSegments(m.OOB[:m.NN]); size > 0 {
				out[i].OOB = segmentsOf(size)
			}
		}
		for rest := out[:n]; len(rest) > 0; {
			sent, err := conn.WriteBatch(rest, 0)
			if err != nil {
				sent = 1 // the error is the first one's
			}
			rest = rest[sent:]
		}
	}
}

// takeSupers makes a socket take super-packets whole (UDP_GRO, udp(7)).
func takeSupers(c *net.UDPConn) error { return setOption(c, unix.IPPROTO_UDP, unix.UDP_GRO, 1) }

// makeRoom gives a socket a larger queue than net.core.rmem_max allows.
func makeRoom(c *net.UDPConn) error {
	return setOption(c, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
}

func setOption(c *net.UDPConn, level, option, value int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	unused := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(unused, err)
}

// segmentsOf is the control message that makes the kernel cut a message into datagrams of size bytes.
func segmentsOf(size int) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(size))
	return b
}

// sizeOfSegments returns the size in bytes of each datagram of a message but the last, which may be shorter; 0 if it is one datagram.
func sizeOfSegments(control []byte) int {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) == 0 || messages[0].Header.Type != unix.UDP_GRO {
		return 0
	}
	return int(binary.NativeEndian.Uint32(messages[0].Data))
}
