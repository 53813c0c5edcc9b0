package tunnel

import (
	"errors"
	"net/netip"

	"github.com/vxlane/vxlane/encap"
)

const (
	// Headroom is how many bytes are free in front of a packet in a slot: more than any header that is written there.
	Headroom = 128
	// slotSize holds the largest IP packet. Nothing smaller will do: over veth, even a plain UDP socket receives a
	// whole super-packet of 64 KB from a kernel vxlan peer.
	slotSize = Headroom + 1<<16
	// BatchSize is the most packets that one wake-up yields.
	BatchSize = 64
)

// ErrClosed is what Read and Receive return once their end was closed.
var ErrClosed = errors.New("closed")

// Packet is one packet between a device and a worker, with the offload metadata that belongs to it.
type Packet struct {
	slot []byte

	// Data is the packet. Read sets it within the slot, Headroom bytes from its start: what is in front belongs to the
	// reader until the next Read. For Write it may be any memory, borrowed until Write returns.
	Data    []byte
	Headers encap.Headers // Data parsed; Write needs it when Offload says that work is left, Read leaves it alone
	Offload encap.Offload

	// Count is how many wire packets Data stands for. Write sets Sent to how many of them the device took.
	Count, Sent int
}

// NewPackets returns n packets with slots of their own.
func NewPackets(n int) []Packet {
	packets, arena := make([]Packet, n), make([]byte, n*slotSize)
	for i := range packets {
		packets[i].slot = arena[i*slotSize : (i+1)*slotSize : (i+1)*slotSize]
	}
	return packets
}

// Space returns where Read puts a packet.
func (p *Packet) Space() []byte { return p.slot[Headroom:] }

// withHeader returns the n bytes in front of Data, and them together with Data. Data must be where Read put it.
func (p *Packet) withHeader(n int) (header, whole []byte) {
	whole = p.slot[Headroom-n : Headroom+len(p.Data)]
	return whole[:n], whole
}

// Queue is one queue of a device. One goroutine may call Read while another calls Write.
type Queue interface {
	// Read waits for packets and fills batch from the front; n is at least 1 when err is nil. The packets are borrowed
	// until the next Read. It returns ErrClosed once the device was closed.
	Read(batch []Packet) (n int, err error)

	// Write hands packets to the device and sets Sent in each. Packets that it refuses are the caller's to count; an
	// error means that the device is gone.
	Write(batch []Packet) error
}

// Device is the overlay end of a tunnel.
type Device interface {
	// Queues returns the device's queues, at least one. Packets of one flow are always read from the same queue.
	Queues() []Queue
	// Inject hands one finished packet to the host. Any goroutine may call it.
	Inject(packet []byte) error
	// Close ends every Read.
	Close() error
}

// Datagram is one outer UDP payload, or a train of them.
type Datagram struct {
	// Data is header and packet. For Send it is borrowed until Send returns; Receive sets it, borrowed until the next.
	Data []byte
	// SegmentSize, when not 0, says that Data is a train: datagrams of this many bytes, the last may be shorter.
	SegmentSize int

	Remote netip.AddrPort
	TOS    uint8 // of the outer header; ECN included
	TTL    uint8 // Send only; 0 is the socket's
	DF     bool  // Send only; counts when the underlay's policy is inherit
	Flow   uint32

	// Sent is how many datagrams of Data were handed to the kernel; Reason why the rest were not. Send sets both.
	Sent   int
	Reason encap.Reason
}

// Sender is one worker's way into the underlay. One goroutine may use it.
type Sender interface {
	// Send hands datagrams to the kernel, those of one flow in order, and sets Sent and Reason in each.
	Send(batch []Datagram)
}

// Receiver is one worker's way out of the underlay. One goroutine may use it.
type Receiver interface {
	// Receive waits for datagrams and fills batch from the front; n is at least 1 when err is nil. Datagrams of one
	// outer flow always come from the same receiver. It returns ErrClosed once the underlay was closed.
	Receive(batch []Datagram) (n int, err error)
}

// Underlay is the network that the datagrams cross.
type Underlay interface {
	// NewSender returns a sender for one more goroutine.
	NewSender() Sender
	// Receivers returns one receiver for each worker.
	Receivers() []Receiver
	// Close ends every Receive.
	Close() error
}
