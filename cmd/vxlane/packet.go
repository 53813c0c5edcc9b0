package main

import (
	"cmp"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/static"
)

// capturedFrame is bytes to trace, and what the capture says they are.
type capturedFrame struct {
	data   []byte
	linkIP bool // the capture has IP packets without a link header
	linkEN bool // the capture has Ethernet frames
}

// captureReference splits FILE:N.
func captureReference(args []string) (file string, number int, ok bool) {
	if len(args) != 1 {
		return "", 0, false
	}
	i := strings.LastIndexByte(args[0], ':')
	if i <= 0 {
		return "", 0, false
	}
	number, err := strconv.Atoi(args[0][i+1:])
	if err != nil {
		return "", 0, false
	}
	if _, err := os.Stat(args[0][:i]); err != nil && !strings.Contains(args[0], "pcap") {
		return "", 0, false
	}
	return args[0][:i], number, true
}

// capture reads packets one by one.
type capture struct {
	gopacket.PacketDataSource
	// linkType of a packet: in a pcapng file each interface has its own.
	linkType func(info gopacket.CaptureInfo) (layers.LinkType, error)
}

// readCaptured returns packet number, counted from 1, of a pcap or pcapng file.
func readCaptured(file string, number int) (capturedFrame, error) {
	f, err := os.Open(file)
	if err != nil {
		return capturedFrame{}, cli.Usagef("read capture: %w", err)
	}
	defer f.Close()
	r, err := openCapture(f)
	if err != nil {
		return capturedFrame{}, cli.Usagef("read capture %s: %w: want a pcap or pcapng file", file, err)
	}
	if number < 1 {
		return capturedFrame{}, cli.Usagef("read capture %s: packets are counted from 1, got %d", file, number)
	}
	for n := 1; ; n++ {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return capturedFrame{}, cli.Usagef("read capture %s: it has %d packets, there is no number %d", file, n-1, number)
		}
		if err != nil {
			return capturedFrame{}, cli.Usagef("read capture %s: packet %d: %w", file, n, err)
		}
		if n < number {
			continue
		}
		if info.Length > info.CaptureLength {
			return capturedFrame{}, cli.Usagef("read capture %s: packet %d was cut to %d of %d bytes; capture with a larger snapshot length", file, n, info.CaptureLength, info.Length)
		}
		link, err := r.linkType(info)
		if err != nil {
			return capturedFrame{}, cli.Usagef("read capture %s: packet %d: %w", file, n, err)
		}
		return captured(file, data, link)
	}
}

// captured takes off what a capture puts in front of a packet that is no Ethernet frame (tcpdump.org/linktypes.html).
func captured(file string, data []byte, link layers.LinkType) (capturedFrame, error) {
	const sll, sll2 = 113, 276 & 0xff // what tcpdump -i any writes; gopacket keeps 8 bits of the number
	const sllHeader, sll2Header = 16, 20
	switch {
	case isRawIP(link):
		return capturedFrame{data: data, linkIP: true}, nil
	case link == layers.LinkTypeEthernet:
		return capturedFrame{data: data, linkEN: true}, nil
	case link == sll && len(data) >= sllHeader:
		return capturedFrame{data: data[sllHeader:], linkIP: true}, nil
	case link == sll2 && len(data) >= sll2Header:
		return capturedFrame{data: data[sll2Header:], linkIP: true}, nil
	}
	return capturedFrame{}, cli.Usagef("read capture %s: link type %d is not read: want Ethernet, raw IP, or what tcpdump -i any writes", file, link)
}

func openCapture(f *os.File) (*capture, error) {
	if r, err := pcapgo.NewReader(f); err == nil {
		return &capture{r, func(gopacket.CaptureInfo) (layers.LinkType, error) { return r.LinkType(), nil }}, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	options := pcapgo.DefaultNgReaderOptions
	options.WantMixedLinkType = true // else packets of other interfaces than the first are passed over
	r, err := pcapgo.NewNgReader(f, options)
	if err != nil {
		return nil, err
	}
	return &capture{r, func(info gopacket.CaptureInfo) (layers.LinkType, error) {
		i, err := r.Interface(info.InterfaceIndex)
		return i.LinkType, err
	}}, nil
}

// isRawIP knows the numbers that stand for "an IP packet, no link header" (tcpdump.org/linktypes.html: 12, 14, 101, 228, 229).
func isRawIP(t layers.LinkType) bool {
	switch t {
	case 12, 14, layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6:
		return true
	}
	return false
}

// parseHex reads bytes as people copy them: digits with or without blanks, colons and 0x.
func parseHex(args []string) ([]byte, bool) {
	for _, word := range args {
		if a, ok := parseEnd(word); ok && !isOctets(word) && a.IsValid() {
			return nil, false // an IPv6 address is hex and colons, too
		}
	}
	s := strings.NewReplacer("0x", "", "0X", "", " ", "", ":", "", "\n", "", "\t", "").Replace(strings.Join(args, " "))
	if len(s) < 16 {
		return nil, false
	}
	data, err := hex.DecodeString(s)
	return data, err == nil
}

// isOctets reports whether a word is pairs of digits between colons, as in a hex dump; an address hardly is.
func isOctets(word string) bool {
	for _, octet := range strings.Split(word, ":") {
		if len(octet) != 2 {
			return false
		}
	}
	return true
}

// vantage is where a tunnel stands: what tells its own datagrams from others.
type vantage struct {
	status    control.Status
	endpoints map[netip.AddrPort]bool // of its peers
}

func newVantage(st control.Status, peers control.Peers) vantage {
	at := vantage{status: st, endpoints: make(map[netip.AddrPort]bool)}
	for _, p := range peers.Peers {
		if endpoint, err := netip.ParseAddrPort(p.Endpoint); err == nil {
			at.endpoints[endpoint] = true
		}
	}
	return at
}

// classify decides how bytes meet the tunnel. A datagram of the tunnel is taken apart: one that it sent is traced as the
// packet in it, one for it as a datagram. Anything else is a packet that this host sends or, with from, one that arrives
// from there: as a packet, a frame, or the payload of a datagram, whatever it looks like.
func (at vantage) classify(c capturedFrame, from string) control.TraceRequest {
	packet := ipPacket(c)
	if at.status.Device.Mode == static.ModeTAP {
		return at.classifyFrame(c, packet, from)
	}
	if payload, outer, tos, ours := at.tunnelPayload(packet); payload != nil {
		switch {
		case ours && from == "":
			return control.TraceRequest{Data: innerPacket(payload, at.status)}
		case from != "":
			outer = from
		}
		return control.TraceRequest{Decap: true, Data: payload, Outer: outer, TOS: tos}
	}
	if from == "" {
		return control.TraceRequest{Data: packet}
	}
	req := control.TraceRequest{Decap: true, Data: c.data, Outer: from}
	var h encap.Headers
	_, isVXLAN := encap.DecodeVXLAN(c.data, encap.IgnoreBits)
	switch {
	case c.linkIP || !c.linkEN && encap.ParseIP(c.data, &h) == encap.None:
		req.Bare = true
	case at.status.Underlay.Encap != encap.FramingVXLAN:
		req.Data = packet
		req.Bare = true
	case c.linkEN || isVXLAN != encap.None:
		req.Frame = true
	}
	return req
}

// classifyFrame is classify where the tunnel carries frames: what has no Ethernet header is a bare packet.
func (at vantage) classifyFrame(c capturedFrame, packet []byte, from string) control.TraceRequest {
	if payload, outer, tos, ours := at.tunnelPayload(packet); payload != nil {
		if ours && from == "" {
			return control.TraceRequest{Data: payload[min(encap.VXLANHeaderLen, len(payload)):]}
		}
		return control.TraceRequest{Decap: true, Data: payload, Outer: cmp.Or(from, outer), TOS: tos}
	}
	req := control.TraceRequest{Decap: from != "", Data: c.data, Outer: from}
	var h encap.Headers
	_, isVXLAN := encap.DecodeVXLAN(c.data, encap.IgnoreBits)
	switch {
	case c.linkIP || !c.linkEN && encap.ParseIP(c.data, &h) == encap.None:
		req.Bare = true
	case from != "" && (c.linkEN || isVXLAN != encap.None):
		req.Frame = true
	}
	return req
}

// ipPacket returns the IP packet in a frame, or the bytes as they are when there is none.
func ipPacket(c capturedFrame) []byte {
	var h encap.Headers
	if !c.linkEN && (c.linkIP || encap.ParseIP(c.data, &h) == encap.None) {
		return c.data
	}
	if encap.ParseFrame(c.data, &h) == encap.None && (h.Kind == encap.KindIPv4 || h.Kind == encap.KindIPv6) {
		return c.data[h.L3:h.Len]
	}
	return c.data
}

// tunnelPayload returns the payload of a datagram of the tunnel, and whether the tunnel itself sent it.
func (at vantage) tunnelPayload(packet []byte) (payload []byte, outer string, tos uint8, ours bool) {
	var h encap.Headers
	const udpHeader = 8
	if encap.ParseIP(packet, &h) != encap.None || h.Proto != encap.ProtoUDP || !h.HasPorts || h.Len < h.L4+udpHeader {
		return nil, "", 0, false
	}
	u := &at.status.Underlay
	known := at.endpoints[netip.AddrPortFrom(h.Dst, h.DstPort)]
	ours = h.Src == u.Local && known
	if !ours && (h.Dst != u.Local || h.DstPort != u.Port) && !(known && h.Dst.IsMulticast()) {
		return nil, "", 0, false
	}
	return packet[h.L4+udpHeader : h.Len], h.Src.String(), h.TOS, ours
}

// innerPacket takes off the header that the tunnel itself put on.
func innerPacket(payload []byte, st control.Status) []byte {
	if st.Underlay.Encap != encap.FramingVXLAN || len(payload) < encap.VXLANHeaderLen {
		return payload
	}
	var h encap.Headers
	frame := payload[encap.VXLANHeaderLen:]
	if encap.ParseFrame(frame, &h) != encap.None {
		return frame
	}
	return frame[h.L3:h.Len]
}

var protocols = map[string]layers.IPProtocol{
	"tcp": layers.IPProtocolTCP, "udp": layers.IPProtocolUDP, "sctp": layers.IPProtocolSCTP, "icmp": layers.IPProtocolICMPv4,
	"icmpv6": layers.IPProtocolICMPv6, "icmp6": layers.IPProtocolICMPv6,
}

// tuple is a 5-tuple while it is being read.
type tuple struct {
	proto  layers.IPProtocol
	known  bool // proto was given
	ends   []netip.AddrPort
	before []uint64 // bare numbers in front of the first address
	after  []uint64 // and behind the second
}

// packetFromTuple makes a packet of PROTOCOL SOURCE[:PORT] DESTINATION[:PORT]. The protocol's name may stand anywhere, its
// number first; a port may follow its address after a blank, or both ports the addresses. Commas and arrows are blanks.
func packetFromTuple(args []string) ([]byte, error) {
	text := strings.Join(args, " ")
	words := strings.Fields(strings.NewReplacer(",", " ", "->", " ", ">", " ").Replace(text))
	var t tuple
	for _, word := range words {
		if !t.take(strings.ToLower(word)) {
			return nil, cli.Usagef("trace %q: %q is no protocol, address or port here; want PROTOCOL SOURCE[:PORT] DESTINATION[:PORT], hex, or FILE:N", text, word)
		}
	}
	if err := t.finish(); err != nil {
		return nil, cli.Usagef("trace %q: %w", text, err)
	}
	return buildPacket(t.proto, t.ends[0], t.ends[1])
}

// take sorts one word in; false when it fits nowhere.
func (t *tuple) take(word string) bool {
	if p, ok := protocols[word]; ok {
		fresh := !t.known
		t.proto, t.known = p, true
		return fresh
	}
	if end, ok := parseEnd(word); ok {
		t.ends = append(t.ends, end)
		return len(t.ends) <= 2
	}
	n, err := strconv.ParseUint(word, 10, 16)
	switch {
	case err != nil:
		return false
	case len(t.ends) == 0:
		t.before = append(t.before, n)
	case len(t.ends) == 1: // between the addresses: the source's port
		if t.ends[0].Port() != 0 {
			return false
		}
		t.ends[0] = netip.AddrPortFrom(t.ends[0].Addr(), uint16(n))
	default:
		t.after = append(t.after, n)
	}
	return true
}

// finish finds out what the bare numbers are, and refuses what could be read in two ways.
func (t *tuple) finish() error {
	switch {
	case len(t.ends) != 2:
		return errors.New("want a source and a destination address")
	case t.ends[0].Addr().Is4() != t.ends[1].Addr().Is4():
		return errors.New("source and destination are of different address families")
	}
	if !t.known && len(t.before) == 1 && t.before[0] < 256 {
		t.proto, t.known, t.before = layers.IPProtocol(t.before[0]), true, nil
	}
	if !t.known || len(t.before) > 0 {
		return errors.New("which protocol? say tcp, udp, sctp, icmp, or a number in front")
	}
	if t.proto == layers.IPProtocolICMPv4 && t.ends[0].Addr().Is6() {
		t.proto = layers.IPProtocolICMPv6
	}
	var open []int // ends without a port
	for i, end := range t.ends {
		if end.Port() == 0 {
			open = append(open, i)
		}
	}
	switch {
	case len(t.after) == 1 && len(open) > 0:
		open = open[len(open)-1:] // one number behind both: the destination's port, if that has none
	case len(t.after) != 0 && len(t.after) != len(open):
		return errors.New("more ports than addresses without one")
	}
	for i, n := range t.after {
		t.ends[open[i]] = netip.AddrPortFrom(t.ends[open[i]].Addr(), uint16(n))
	}
	return nil
}

func parseEnd(word string) (netip.AddrPort, bool) {
	if ap, err := netip.ParseAddrPort(word); err == nil {
		return ap, true
	}
	if a, err := netip.ParseAddr(strings.Trim(word, "[]")); err == nil {
		return netip.AddrPortFrom(a, 0), true
	}
	return netip.AddrPort{}, false
}

// buildPacket makes a packet with right lengths and checksums and a short payload.
func buildPacket(proto layers.IPProtocol, src, dst netip.AddrPort) ([]byte, error) {
	return buildPacketWith(proto, src, dst, []byte("vxlane trace"))
}

func buildPacketWith(proto layers.IPProtocol, src, dst netip.AddrPort, payload []byte) ([]byte, error) {
	var network gopacket.NetworkLayer
	var stack []gopacket.SerializableLayer
	if src.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		network, stack = ip, append(stack, ip)
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		network, stack = ip, append(stack, ip)
	}
	switch proto {
	case layers.IPProtocolTCP:
		tcp := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), SYN: true, Window: 65535}
		_ = tcp.SetNetworkLayerForChecksum(network) // fails for unknown network layers only
		stack = append(stack, tcp)
	case layers.IPProtocolUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
		_ = udp.SetNetworkLayerForChecksum(network)
		stack = append(stack, udp)
	case layers.IPProtocolICMPv4:
		stack = append(stack, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)})
	case layers.IPProtocolICMPv6:
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
		_ = icmp.SetNetworkLayerForChecksum(network)
		stack = append(stack, icmp, &layers.ICMPv6Echo{})
	}
	stack = append(stack, gopacket.Payload(payload))
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...)
	return buf.Bytes(), err
}
