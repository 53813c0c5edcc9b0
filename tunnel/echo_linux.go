package tunnel

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// ICMPEcho is an Echo over an ICMP socket: a raw one (CAP_NET_RAW), or where that is not allowed a ping socket (icmp(7),
// net.ipv4.ping_group_range).
type ICMPEcho struct {
	conn    net.PacketConn
	raw     bool
	four    bool
	id      uint16
	cookie  [8]byte // answers without it are not to us
	started time.Time
	answers chan EchoAnswer
}

const (
	echoCookieLen = 8 + 8 // the cookie, and when it was sent
	echoHeaderLen = 8
	echoRoom      = 4096 // of a receive buffer, for an answer
	// icmpFilter is ICMP_FILTER (include/uapi/linux/icmp.h): which types a raw socket does not want, a bit each.
	icmpFilter = 1
)

// OpenEcho opens a socket at an underlay address.
func OpenEcho(local netip.Addr) (*ICMPEcho, error) {
	e, err := openEcho(local, unix.SOCK_RAW)
	if errors.Is(err, unix.EPERM) {
		e, err = openEcho(local, unix.SOCK_DGRAM)
	}
	if errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w: need CAP_NET_RAW, or a net.ipv4.ping_group_range that has this process's group", err)
	}
	return e, err
}

func openEcho(local netip.Addr, kind int) (*ICMPEcho, error) {
	e := &ICMPEcho{raw: kind == unix.SOCK_RAW, four: local.Is4(), started: time.Now(), answers: make(chan EchoAnswer, 2*probesPerSecond)}
	var id [2]byte
	_, _ = rand.Read(id[:]) // crypto/rand: it never fails
	_, _ = rand.Read(e.cookie[:])
	e.id = binary.BigEndian.Uint16(id[:])
	fd, err := e.socket(kind)
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "ICMP socket")
	defer file.Close()
	if err := e.prepare(fd, local); err != nil {
		return nil, fmt.Errorf("prepare ICMP socket: %w", err)
	}
	if e.conn, err = net.FilePacketConn(file); err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	go e.listen()
	return e, nil
}

func (e *ICMPEcho) socket(kind int) (int, error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if !e.four {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	return unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
}

// prepare has requests leave whole, whatever the kernel knows of the path (ip(7), IP_PMTUDISC_PROBE), and other messages stay away.
func (e *ICMPEcho) prepare(fd int, local netip.Addr) error {
	if err := unix.Bind(fd, sockaddr(local, 0)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, probesPerSecond*echoRoom); err != nil {
		return err
	}
	if e.four {
		if err := options4.discover.set(fd, unix.IP_PMTUDISC_PROBE); err != nil || !e.raw {
			return err
		}
		return setOption(fd, unix.SOL_RAW, icmpFilter, int(int32(^(1 << uint(ipv4.ICMPTypeEchoReply)))), "ICMP_FILTER")
	}
	if err := options6.discover.set(fd, unix.IPV6_PMTUDISC_PROBE); err != nil {
		return err
	}
	if err := setOption(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1, "IPV6_DONTFRAG"); err != nil || !e.raw {
		return err
	}
	const reply = uint(ipv6.ICMPTypeEchoReply)
	var block unix.ICMPv6Filter // a bit for each type
	for i := range block.Data {
		block.Data[i] = ^uint32(0)
	}
	block.Data[reply/32] &^= 1 << (reply % 32)
	if err := unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &block); err != nil {
		return fmt.Errorf("set socket option ICMPV6_FILTER: %w", err)
	}
	return nil
}

// headerLen is that of IP and ICMP together, in bytes.
func (e *ICMPEcho) headerLen() int {
	if e.four {
		return ipv4.HeaderLen + echoHeaderLen
	}
	return ipv6.HeaderLen + echoHeaderLen
}

// Send implements Echo.
func (e *ICMPEcho) Send(to netip.Addr, bytes int) error {
	data := make([]byte, max(bytes-e.headerLen(), echoCookieLen))
	copy(data, e.cookie[:])
	binary.BigEndian.PutUint64(data[len(e.cookie):], uint64(time.Since(e.started)))
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(e.id), Data: data}}
	if !e.four {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	packet, err := m.Marshal(nil) // the kernel fills in ICMPv6's checksum
	if err != nil {
		return fmt.Errorf("make echo request: %w", err)
	}
	if _, err = e.conn.WriteTo(packet, e.address(to)); err != nil {
		return fmt.Errorf("send echo request of %d bytes to %s: %w", bytes, to, err)
	}
	return nil
}

func (e *ICMPEcho) address(a netip.Addr) net.Addr {
	if e.raw {
		return &net.IPAddr{IP: a.AsSlice()}
	}
	return &net.UDPAddr{IP: a.AsSlice()}
}

// Answers implements Echo.
func (e *ICMPEcho) Answers() <-chan EchoAnswer { return e.answers }

// listen reads answers until the socket is closed.
func (e *ICMPEcho) listen() {
	for buf := make([]byte, maxPacket); ; {
		n, from, err := e.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(retryPause) // an ICMP error that a request met
			continue
		}
		if a, ok := e.parse(buf[:n], from); ok {
			select {
			case e.answers <- a:
			default: // nobody listens any more
			}
		}
	}
}

// parse reads an ICMP message, which is an answer when it has the cookie.
func (e *ICMPEcho) parse(b []byte, from net.Addr) (a EchoAnswer, ok bool) {
	reply := byte(ipv4.ICMPTypeEchoReply)
	if !e.four {
		reply = byte(ipv6.ICMPTypeEchoReply)
	}
	if len(b) < echoHeaderLen+echoCookieLen || b[0] != reply || [8]byte(b[echoHeaderLen:]) != e.cookie {
		return a, false
	}
	switch from := from.(type) {
	case *net.IPAddr:
		a.From, _ = netip.AddrFromSlice(from.IP)
	case *net.UDPAddr:
		a.From = from.AddrPort().Addr()
	}
	a.From = a.From.Unmap().WithZone("")
	a.Bytes = len(b) - echoHeaderLen + e.headerLen()
	sent := time.Duration(binary.BigEndian.Uint64(b[echoHeaderLen+len(e.cookie):]))
	a.RoundTrip = max(time.Since(e.started)-sent, time.Microsecond)
	return a, true
}

// Close gives the socket back.
func (e *ICMPEcho) Close() error { return e.conn.Close() }
