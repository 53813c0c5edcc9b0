package main

import (
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

	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/encap"
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

// packetReader is what both readers of pcapgo have.
type packetReader interface {
	gopacket.PacketDataSource
	LinkType() layers.LinkType
}

// readCaptured returns packet number, counted from 1, of a pcap or pcapng file.
func readCaptured(file string, number int) (capturedFrame, error) {
	f, err := os.Open(file)
	if err != nil {
		return capturedFrame{}, usagef("read capture: %w", err)
	}
	defer f.Close()
	r, err := openCapture(f)
	if err != nil {
		return capturedFrame{}, usagef("read capture %s: %w: want a pcap or pcapng file", file, err)
	}
	if number < 1 {
		return capturedFrame{}, usagef("read capture %s: packets are counted from 1, got %d", file, number)
	}
	for n := 1; ; n++ {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return capturedFrame{}, usagef("read capture %s: it has %d packets, there is no number %d", file, n-1, number)
		}
		if err != nil {
			return capturedFrame{}, usagef("read capture %s: packet %d: %w", file, n, err)
		}
		if n < number {
			continue
		}
		if info.Length > info.CaptureLength {
			return capturedFrame{}, usagef("read capture %s: packet %d was cut to %d of %d bytes; capture with a larger snapshot length", file, n, info.CaptureLength, info.Length)
		}
		return captured(file, data, r.LinkType())
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
	return capturedFrame{}, usagef("read capture %s: link type %d is not read: want Ethernet, raw IP, or what tcpdump -i any writes", file, link)
}

func openCapture(f *os.File) (packetReader, error) {
	if r, err := pcapgo.NewReader(f); err == nil {
		return r, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
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
		if _, isAddress := parseEnd(word); isAddress {
			return nil, false // an IPv6 address is hex and colons, too
		}
	}
	s := strings.Join(args, "")
	s = strings.NewReplacer(" ", "", ":", "", "\n", "", "\t", "").Replace(s)
	s = strings.TrimPrefix(strings.TrimPrefix(s, "0x"), "0X")
	if len(s) < 16 {
		return nil, false
	}
	data, err := hex.DecodeString(s)
	return data, err == nil
}

// classify decides how captured bytes meet the tunnel. A datagram of the tunnel is taken apart: one that it sent is
// traced as the packet in it, one for it as a datagram. Anything else is a packet that this host sends or, with from,
// that arrives from there.
func classify(c capturedFrame, from string, st control.Status) control.TraceRequest {
	packet := ipPacket(c)
	if payload, outer, tos, ours := tunnelPayload(packet, st); payload != nil && from == "" {
		if ours {
			return control.TraceRequest{Data: innerPacket(payload, st)}
		}
		return control.TraceRequest{Decap: true, Data: payload, Outer: outer, TOS: tos}
	}
	if from == "" {
		return control.TraceRequest{Data: packet}
	}
	var h encap.Headers
	bare := encap.ParseIP(packet, &h) == encap.None
	return control.TraceRequest{Decap: true, Data: packet, Bare: bare, Outer: from}
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
func tunnelPayload(packet []byte, st control.Status) (payload []byte, outer string, tos uint8, ours bool) {
	var h encap.Headers
	const udpHeader = 8
	if encap.ParseIP(packet, &h) != encap.None || h.Proto != encap.ProtoUDP || !h.HasPorts || h.Len < h.L4+udpHeader {
		return nil, "", 0, false
	}
	ours = h.Src == st.Underlay.Local
	if h.DstPort != st.Underlay.Port || !ours && h.Dst != st.Underlay.Local {
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
	"tcp": layers.IPProtocolTCP, "udp": layers.IPProtocolUDP, "icmp": layers.IPProtocolICMPv4,
	"icmpv6": layers.IPProtocolICMPv6, "icmp6": layers.IPProtocolICMPv6,
}

// packetFromTuple makes a packet of PROTOCOL SOURCE[:PORT] DESTINATION[:PORT], in any order of the protocol, with blanks,
// commas or arrows between.
func packetFromTuple(args []string) ([]byte, error) {
	words := strings.FieldsFunc(strings.Join(args, " "), func(r rune) bool { return r == ' ' || r == ',' || r == '>' })
	var proto layers.IPProtocol
	var ends []netip.AddrPort
	known := false
	for _, word := range words {
		if p, ok := protocols[strings.ToLower(word)]; ok {
			proto, known = p, true
		} else if n, err := strconv.ParseUint(word, 10, 8); err == nil && !known {
			proto, known = layers.IPProtocol(n), true
		} else if end, ok := parseEnd(word); ok {
			ends = append(ends, end)
		} else if n, err := strconv.ParseUint(word, 10, 16); err == nil && len(ends) > 0 && ends[len(ends)-1].Port() == 0 {
			ends[len(ends)-1] = netip.AddrPortFrom(ends[len(ends)-1].Addr(), uint16(n))
		} else if word != "-" {
			return nil, usagef("trace %q: %q is no protocol, address or port; want PROTOCOL SOURCE[:PORT] DESTINATION[:PORT], hex, or FILE:N", strings.Join(args, " "), word)
		}
	}
	switch {
	case len(ends) != 2:
		return nil, usagef("trace %q: want a source and a destination address", strings.Join(args, " "))
	case ends[0].Addr().Is4() != ends[1].Addr().Is4():
		return nil, usagef("trace %q: source and destination are of different address families", strings.Join(args, " "))
	case !known:
		proto = layers.IPProtocolUDP
	}
	return buildPacket(proto, ends[0], ends[1])
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
	stack = append(stack, gopacket.Payload("vxlane trace"))
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...)
	return buf.Bytes(), err
}
