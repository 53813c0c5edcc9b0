package lab

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ringBlock  = 1 << 20 // bytes
	ringBlocks = 64
	ringRetire = 10 // milliseconds until a block is handed over that is not full
)

// ring receives the frames of a packet socket in memory that it shares with the kernel (TPACKET_V3, packet(7)), as tcpdump does. The kernel copies
// each frame there at once. A queue would hold a clone of it, and those change what they watch: until a clone is read, gro_cells_receive (net/core/gro_cells.c) takes
// its frame past GRO, so that a vxlan device of the kernel mixes up the order of flows.
type ring struct {
	socket *os.File
	wait   syscall.RawConn
	memory []byte
	block  int
}

// newRing gives a packet socket a ring. The socket stays its caller's, to be closed after the ring.
func newRing(socket *os.File) (*ring, error) {
	wait, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &ring{socket: socket, wait: wait}
	unused := wait.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3)
		if err != nil {
			return
		}
		err = unix.SetsockoptTpacketReq3(int(fd), unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
			Block_size: ringBlock, Block_nr: ringBlocks, Retire_blk_tov: ringRetire,
			Frame_size: ringBlock, Frame_nr: ringBlocks, // frames lie in blocks one behind the other, whatever this says
		})
		if err != nil {
			return
		}
		r.memory, err = unix.Mmap(int(fd), 0, ringBlock*ringBlocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	})
	if err := errors.Join(unused, err); err != nil {
		return nil, fmt.Errorf("make ring of %s: %w", socket.Name(), err)
	}
	return r, nil
}

// read waits for the next block, until the socket's read deadline, and calls f with each frame of it and the time of its arrival. The frame is f's until it returns.
func (r *ring) read(f func(frame []byte, at time.Time) error) error {
	block := r.memory[r.block*ringBlock:][:ringBlock]
	h := (*unix.TpacketHdrV1)(unsafe.Pointer(&block[unsafe.Offsetof(unix.TpacketBlockDesc{}.Hdr)]))
	err := r.wait.Read(func(uintptr) bool { return atomic.LoadUint32(&h.Block_status)&unix.TP_STATUS_USER != 0 })
	if err != nil {
		return err
	}
	next := block[h.Offset_to_first_pkt:]
	for range h.Num_pkts {
		p := (*unix.Tpacket3Hdr)(unsafe.Pointer(&next[0]))
		if err := f(next[p.Mac:][:p.Snaplen], time.Unix(int64(p.Sec), int64(p.Nsec))); err != nil {
			return err
		}
		next = next[p.Next_offset:]
	}
	atomic.StoreUint32(&h.Block_status, unix.TP_STATUS_KERNEL)
	r.block = (r.block + 1) % ringBlocks
	return nil
}

// missed returns how many frames came while the ring was full.
func (r *ring) missed() (n int, err error) {
	var s *unix.TpacketStatsV3
	unused := r.wait.Control(func(fd uintptr) {
		s, err = unix.GetsockoptTpacketStatsV3(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(unused, err); err != nil {
		return 0, fmt.Errorf("count frames of %s: %w", r.socket.Name(), err)
	}
	return int(s.Drops), nil
}

func (r *ring) close() error { return unix.Munmap(r.memory) }
