package tunnel

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
)

// helper is the second thread of a worker. In a stream that goes both ways, such as TCP with its acknowledgements, one thread is a
// core's worth of work while another core is idle. Then the helper has the way from the underlay to the device (docs/decisions/0009).
//
// The receiver is the worker's, but from lend until reclaim it is the helper's.
type helper struct {
	receive *receiver
	inward  Waiter // for the receiver's end
	outward Waiter // for the queue: what the worker waits for meanwhile

	lent    bool // the worker's own knowledge
	working atomic.Bool
	begin   chan struct{}
	done    chan struct{} // the receiver is the worker's again
	gone    chan struct{} // closed when run has returned

	packets, bytes atomic.Int64 // moved, and not counted by the worker yet

	scheduler *Scheduler
	clock     atomic.Pointer[func() time.Duration]
	stream    atomic.Bool // this way alone is one
	patient   bool
	wanted    atomic.Int32 // the Place where the worker's threads run
	place     Place
	move      func(Place) // moves the helper's; nil: it stays roaming
}

func newHelper(r *receiver, s *Scheduler) *helper {
	return &helper{receive: r, scheduler: s, begin: make(chan struct{}, 1), done: make(chan struct{}), gone: make(chan struct{})}
}

// run moves packets while the receiver is lent, until dismiss, or until an end fails. Its thread ends with it, as its scheduling policy would stay.
func (h *helper) run() error {
	runtime.LockOSThread()
	defer close(h.gone)
	clock := h.scheduler.Clock()
	h.clock.Store(&clock)
	if h.scheduler.Keep != nil {
		workers, own := h.receive.t.cores(h.receive.worker)
		h.move = h.scheduler.Keep(own, workers)
	}
	for range h.begin {
		if err := h.work(); err != nil {
			return err
		}
		h.done <- struct{}{}
	}
	return nil
}

func (h *helper) work() error {
	defer h.settle(Roaming)
	for h.working.Load() {
		h.settle(Place(h.wanted.Load()))
		moved, err := h.receive.turn()
		if err != nil {
			return fmt.Errorf("move packets to the device: %w", err)
		}
		if stream := h.stream.Load(); stream != h.patient {
			h.patient = stream
			h.scheduler.Patient(stream)
		}
		if moved.packets == 0 {
			if err := h.inward.Wait(true); err != nil {
				return fmt.Errorf("wait for packets from the underlay: %w", err)
			}
			continue
		}
		goOn(h.inward, true)
		h.packets.Add(int64(moved.packets))
		h.bytes.Add(int64(moved.bytes))
	}
	return nil
}

// settle moves the thread where it is to run.
func (h *helper) settle(where Place) {
	if h.move != nil && where != h.place {
		h.place = where
		h.move(where)
	}
}

// moved returns what was moved since it was asked last.
func (h *helper) moved() haul {
	return haul{int(h.packets.Swap(0)), int(h.bytes.Swap(0))}
}

// spent returns how long the helper has been on a core.
func (h *helper) spent() time.Duration {
	if clock := h.clock.Load(); clock != nil {
		return (*clock)()
	}
	return 0
}

// lend gives the receiver to the helper. Only the worker may call it.
func (h *helper) lend() {
	h.lent = true
	h.working.Store(true)
	select {
	case h.begin <- struct{}{}:
	case <-h.gone:
	}
}

// reclaim takes the receiver back, as soon as the helper's turn is over. Only the worker may call it.
func (h *helper) reclaim() {
	h.working.Store(false)
	h.inward.Wake()
	select {
	case <-h.done:
	case <-h.gone: // its error ends the tunnel
	}
	h.lent = false
}

// dismiss ends run. Only the worker may call it, once.
func (h *helper) dismiss() {
	if h.lent {
		h.reclaim()
	}
	close(h.begin)
}
