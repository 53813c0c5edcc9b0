// Package encap turns packets into datagrams and back: VXLAN (RFC 7348) and flannel-UDP framing, parsing of the inner
// packet, flow hash, checksums, splitting of super-packets, ECN (RFC 6040), ARP, neighbour discovery and ICMP errors.
//
// It works on bytes alone: no input or output, no goroutine, no clock, no package beyond the standard library.
// Nothing here allocates per packet, unless a function's name begins with Append and its buffer is too small.
//
// Words, used in no other sense here:
//
//	packet        one inner unit: an IP packet, or an Ethernet frame
//	frame         an Ethernet frame, only
//	datagram      one outer UDP payload: header and packet
//	super-packet  one packet of up to 64 KB that stands for several of equal size
//	segment       one wire-sized piece of a super-packet
//
// Slices are borrowed for the length of a call unless a function says otherwise. Results that are slices of an argument
// share its memory.
package encap
