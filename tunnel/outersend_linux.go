package tunnel

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing"
)

// outerConfig is what outer headers say that datagrams do not.
type outerConfig struct {
	local    netip.Addr
	ttl      uint8 // for datagrams that set none
	df       DFPolicy
	checksum bool
}

// outerSender sends datagrams through an outer TAP device, with the headers that a socket would have written.
type outerSender struct {
	tap   *outerTAP
	cfg   outerConfig
	id    uint16
	frame [virtioTunnelLen + encap.EthernetHeaderLen + maxOuterHeader]byte
	iov   []unix.Iovec

	calls routing.Counter

	room room
	// The kernel, so that tests can stand in for it.
	writev func(fd int, iov []unix.Iovec) error
}

const (
	maxOuterHeader = 40 + 8
	// maxCarried is the longest packet that the outer headers can count, IPv4's of which counts itself.
	maxCarried = 65535 - maxOuterHeader - encap.VXLANHeaderLen - encap.EthernetHeaderLen
)

func newOuterSender(tap *outerTAP, cfg outerConfig) *outerSender {
	return &outerSender{tap: tap, cfg: cfg, id: uint16(rand.Uint32()), iov: make([]unix.Iovec, 0, 2), writev: writev, room: room{wait: waitWritable}}
}

// takes reports whether p goes through the device: TCP, all packets of a flow and not only those of super-packets, so that
// none overtakes another (but for those that are too long, which no TCP of this host makes). Of UDP, trains through sockets
// carry more.
func (s *outerSender) takes(p *Packet) bool {
	if s.tap.trains != nil && s.tap.trains.on() {
		return false
	}
	return s.tap.works() && p.Headers.Proto == encap.ProtoTCP && !p.Headers.Fragment && len(p.Data) <= maxCarried
}

// send sends d, which carries a packet, from a port. A device that refuses it is not used any more.
func (s *outerSender) send(d *Datagram, port uint16) {
	if !s.tap.gso.on() {
		d.Refused = true
		return
	}
	switch err := s.write(d, port); err {
	case nil:
		d.Sent = d.Count
		s.tap.judgeUnrouted()
	case unix.EINVAL, unix.EBADFD, unix.EIO: // not these headers; no such device any more; down
		s.tap.gso.withdraw(s.tap.log, capabilityTunnelGSO, err)
		d.Refused = true
	default:
		d.Reason = reasonOf(err)
	}
}

func (s *outerSender) write(d *Datagram, port uint16) error {
	n := s.putHeaders(d, port)
	s.iov = appendIovec(appendIovec(s.iov[:0], s.frame[:n]), d.Data)
	for {
		s.calls.Add(1)
		err := s.writev(s.tap.writer, s.iov)
		if err == unix.EINTR || err == unix.EAGAIN && s.room.await(s.tap.writer) {
			continue
		}
		return err
	}
}

// putHeaders writes all that comes in front of d and returns its length. The Ethernet header names nobody: the redirect
// writes another, and looks here for how long the packets will be.
func (s *outerSender) putHeaders(d *Datagram, port uint16) int {
	v6 := d.Remote.Addr().Is6()
	at := virtioTunnelLen + encap.EthernetHeaderLen
	frame := s.frame[virtioTunnelLen:at]
	clear(frame)
	frame[12], frame[13] = encap.EtherTypeIPv4>>8, encap.EtherTypeIPv4&0xff
	if v6 {
		frame[12], frame[13] = encap.EtherTypeIPv6>>8, encap.EtherTypeIPv6&0xff
	}
	o := encap.Outer{
		Src: netip.AddrPortFrom(s.cfg.local, port), Dst: d.Remote,
		TOS: d.TOS, TTL: s.cfg.ttl, DF: s.cfg.df == DFSet || s.cfg.df == DFInherit && d.DF, ID: s.id, Checksum: s.cfg.checksum, Flow: d.Flow,
	}
	if d.TTL != 0 {
		o.TTL = d.TTL
	}
	s.id += uint16(d.Count)
	encap.PutOuter(s.frame[at:], &o, len(d.Data))
	length := encap.OuterHeaderLen(v6)
	binary.NativeEndian.PutUint16(frame[wireLenAt:], uint16(length+len(d.Data)-len(d.Packet.Data)+d.Packet.longest()))
	putVirtioTunnel(s.frame[:virtioTunnelLen], d, encap.EthernetHeaderLen+length, v6, s.cfg.checksum)
	return at + length
}
