package tunnel

import (
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/encap"
)

const (
	// Headroom is how many bytes are free in front of a packet that was read: more than any header that is written there.
	Headroom = 128
	// maxPacket is the largest IP packet, in a frame with room for tags. No smaller buffer will do: over veth, even a plain UDP socket receives a whole
	// super-packet of 64 KB from a kernel vxlan peer.
	maxPacket = 1<<16 + 64
	// BatchSize is the most packets, or super-packets, that one wake-up takes from a device.
	BatchSize = 256
	// batchBytes bounds the bytes of a batch: what a core's second-level cache holds together with their copies.
	batchBytes = 4 * (Headroom + maxPacket)
)

// Packet is one packet between a device and a worker, with the offload metadata that belongs to it.
type Packet struct {
	// Data is the packet. Read sets it, with Headroom bytes in front that belong to the reader until the next Read. For
	// Write it may be any memory, borrowed until Write returns.
	Data []byte
	// Parts are what follows Data, for Write: a super-packet is not copied together.
	Parts   [][]byte
	Headers encap.Headers // Data parsed; Write needs it when Offload says that work is left, Read leaves it alone
	Offload encap.Offload

	// Count is how many wire packets it stands for. Write sets Sent to how many of them the device took.
	Count, Sent int

	whole []byte // Headroom and Data, where Read put it
}

// withHeader returns the n bytes in front of Data, and them together with Data. Data must be where Read put it.
func (p *Packet) withHeader(n int) (header, whole []byte) {
	whole = p.whole[Headroom-n : Headroom+len(p.Data)]
	return whole[:n], whole
}

// wireBytes returns how many bytes the packets that it stands for have together: each but one repeats the headers.
func (p *Packet) wireBytes() int {
	n := len(p.Data)
	for _, part := range p.Parts {
		n += len(part)
	}
	if p.Count > 1 {
		n += (p.Count - 1) * p.Headers.HeaderLen(p.Data)
	}
	return n
}

// longest returns the length of the longest packet that it stands for, in bytes.
func (p *Packet) longest() int {
	if p.Count <= 1 {
		return len(p.Data)
	}
	return p.Headers.HeaderLen(p.Data) + p.Offload.SegmentSize
}

// clone returns a copy with memory of its own.
func (p *Packet) clone() Packet {
	c := *p
	c.whole = append([]byte(nil), p.whole[:Headroom+len(p.Data)]...)
	c.Data = c.whole[Headroom:]
	return c
}

// Batch is what one wake-up takes from a device: packets, and the memory they are in, packed densely.
type Batch struct {
	packets []Packet
	arena   []byte
	used    int
}

// NewBatch returns an empty batch.
func NewBatch() *Batch {
	return &Batch{packets: make([]Packet, 0, BatchSize), arena: make([]byte, batchBytes)}
}

// Reset empties the batch.
func (b *Batch) Reset() { b.packets, b.used = b.packets[:0], 0 }

// Packets returns what was added.
func (b *Batch) Packets() []Packet { return b.packets }

// Space returns room for one more packet of any size, with Headroom bytes in front of it within the same memory, or nil
// when the batch is full.
func (b *Batch) Space() []byte {
	if len(b.packets) == cap(b.packets) || len(b.arena)-b.used < Headroom+maxPacket {
		return nil
	}
	return b.arena[b.used : b.used+Headroom+maxPacket]
}

// Add makes a packet of the first n bytes behind the headroom of what Space returned.
func (b *Batch) Add(n int, o encap.Offload) {
	const line = 64 // bytes of a cache line: headers of neighbours do not share one
	whole := b.arena[b.used : b.used+Headroom+n : b.used+Headroom+n]
	b.packets = append(b.packets, Packet{Data: whole[Headroom:], Offload: o, Count: 1, whole: whole})
	b.used += (Headroom + n + line - 1) &^ (line - 1)
}

// Queue is one queue of a device. One goroutine at a time may call Read, and one, which may be another, Write.
type Queue interface {
	// Read adds the packets that are there to an empty batch, without waiting. They are borrowed until the next Read.
	Read(b *Batch) error

	// Write hands packets to the device and sets Sent in each. Packets that it refuses are the caller's to count; an
	// error means that the device is gone.
	Write(packets []Packet) error

	// Joins reports whether super-packets of a kind can be written whole: then it pays to make them.
	Joins(g encap.GSO) bool
}

// Device is the overlay end of a tunnel.
type Device interface {
	// Queues returns the device's queues, at least one. Packets of one flow are always read from the same queue.
	Queues() []Queue
	// Inject hands one finished packet to the host. Any goroutine may call it.
	Inject(packet []byte) error
	// Close gives the device back. Its queues must not be in use.
	Close() error
}

// Datagram is one outer UDP payload, or a train of them.
type Datagram struct {
	// Data is header and packet. For Send it is borrowed until Send returns; Receive sets it, borrowed until the next.
	Data []byte
	// Parts are what follows Data in a train, for Send. No datagram of it begins or ends within one.
	Parts [][]byte
	// SegmentSize, when not 0, says that this is a train: datagrams of so many bytes, the last may be shorter. It may be one alone.
	SegmentSize int
	// Whole, set by Receive, says that it is no train, but one datagram with a super-packet whose packets carry SegmentSize bytes each.
	Whole bool
	// Count is how many datagrams it is. For Send it is at most MaxTrain, and together they have at most maxTrainBytes.
	Count int

	Remote netip.AddrPort
	TOS    uint8 // of the outer header; ECN included
	TTL    uint8 // Send only; 0 is the socket's
	DF     bool  // Send only; counts when the underlay's policy is inherit
	Flow   uint32

	// Packet, when not nil, is what Data ends with, for Send: a super-packet that goes whole, or another packet of a flow
	// that has such. The sender has said that it takes them so.
	Packet *Packet

	// Sent is how many datagrams were handed to the kernel; Reason why the rest were not. Send sets both. Receive sets Reason in what is to be
	// dropped.
	Sent   int
	Reason encap.Reason
	// Refused says that nothing of Packet was sent, and that the sender takes none any more. Send sets it.
	Refused bool
}

const (
	// MaxTrain is the most datagrams in a train: UDP_MAX_SEGMENTS (include/linux/udp.h) was that before it was 128, and
	// UDP_GRO joins no more (net/ipv4/udp_offload.c).
	MaxTrain = 64
	// maxTrainBytes is the most bytes in a train: what a UDP datagram over IPv4 can hold.
	maxTrainBytes = 65507
)

// Sender is one worker's way into the underlay. One goroutine may use it.
type Sender interface {
	// Send hands datagrams to the kernel, those of one flow in order, and sets Sent, Reason and Refused in each.
	Send(batch []Datagram)

	// Carries reports whether a packet goes as Datagram.Packet.
	Carries(p *Packet) bool
}

// Receiver is one worker's way out of the underlay. One goroutine at a time may use it.
type Receiver interface {
	// Receive returns the datagrams that are there, without waiting. They are borrowed until the next Receive. Those of
	// one outer flow always come from the same receiver, but for fragmented ones beside whole ones when there is an outer TAP device.
	Receive() ([]Datagram, error)
}

// Underlay is the network that the datagrams cross.
type Underlay interface {
	// NewSender returns a sender for one more goroutine.
	NewSender() Sender
	// Receivers returns one receiver for each worker.
	Receivers() []Receiver
	// Close gives the sockets back. Senders and receivers must not be in use.
	Close() error
}

// Waiter lets a worker sleep.
type Waiter interface {
	// Wait returns when one of its ends may have something, after Wake, or for no reason. Brief says that more is expected soon.
	Wait(brief bool) error
	// Drained reports whether no end has more, as far as the last Wait and what was read since tell. Ends that have no more need not look for
	// packets: only the next Wait, or Look, says otherwise.
	Drained() bool
	// Look has all ends look for packets again, without a Wait.
	Look()
	// Wake ends the current or the next Wait. Any goroutine may call it, until Close.
	Wake()
	// Close gives back what the waiter holds. Wait must have returned.
	Close() error
}

// Scheduler is how workers sleep and share their cores with other threads.
type Scheduler struct {
	// NewWaiter makes a Waiter for a queue and a receiver, or for one of them; the other is nil.
	NewWaiter func(Queue, Receiver) (Waiter, error)
	// Cores is how many cores there are. When there are more than workers, these have a second thread for streams, if there is Yield.
	Cores int
	// Yield offers the core to others. When it is nil, workers that find nothing sleep at once.
	Yield func()
	// Patient makes the calling thread one that does not preempt others when it is woken, or an ordinary one again. It is
	// used where Yield is.
	Patient func(on bool)
	// Idle returns how long the machine's cores have been idle, added up. It is used where Yield is.
	Idle func() time.Duration
	// Clock returns how to ask, from any thread, how long the calling one has been on a core. It is used where Cores allows second threads.
	Clock func() func() time.Duration
	// Keep prepares the calling thread for keeping to one core, of the two with these numbers, from 0 on: what it returns moves the thread to the first
	// (Home) or the second (Away), or gives it back to the scheduler (Roaming). It is nil where there is no choice. Keep may be nil. It is used where Yield is.
	Keep func(home, away int) (move func(Place))
}
