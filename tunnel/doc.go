// Package tunnel is the dataplane: a device (TUN), an underlay (UDP sockets), and the two ways between them.
//
// Words, used in no other sense here (encap has the rest):
//
//	batch     what one wake-up yields; a single packet is a batch of one
//	train     datagrams of equal size to one peer, handed to the kernel in one call
//	snapshot  an immutable peer table; a loop loads one per batch
//	verdict   what happens to a packet: a peer, or a drop with one reason
//	worker    a thread that serves one queue of the device and one socket, both ways, with counters of its own
//	helper    a worker's second thread, which has the way from the underlay in a busy stream
//	tier      the set of kernel offloads in use
//
// The way of a packet:
//
//	transmit: Queue.Read -> DecideTransmit -> Codec.Encap in the headroom, or cut into a train -> Sender.Send
//	receive:  Receiver.Receive -> DecideReceive -> Codec.Forward, ECN, checksum -> join -> Queue.Write
//
// Every packet that enters a direction is delivered, consumed, or dropped with exactly one reason:
// received = delivered + consumed + dropped (+ held, while packets wait for a peer's MAC). A super-packet counts as the
// segments it stands for. What the tunnel generates itself is counted apart.
package tunnel
