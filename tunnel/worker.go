package tunnel

import (
	"fmt"
	"runtime"
	"sync/atomic"
)

// worker moves packets both ways between one queue of the device and one receiver of the underlay, on a thread of its own. One
// thread serves both directions because packets come in answer to packets: what a received packet makes the host send is
// there when the write returns, and nobody has to be woken for it.
type worker struct {
	transmit *transmitter
	receive  *receiver
	waiter   Waiter
	spinner  spinner
	stopping atomic.Bool
}

// run moves packets until stop, or until an end fails.
func (w *worker) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for !w.stopping.Load() {
		received, sent, err := w.turn()
		switch {
		case err != nil:
			return err
		case received.packets+sent.packets > 0:
			w.spinner.found(received, sent)
		case w.spinner.again():
		default:
			if err := w.waiter.Wait(w.spinner.expects()); err != nil {
				return fmt.Errorf("wait for packets: %w", err)
			}
			w.spinner.woken()
		}
	}
	return nil
}

// turn moves what is there, in both directions, and returns how much that was.
func (w *worker) turn() (received, sent haul, err error) {
	if received, err = w.receive.turn(); err != nil {
		return haul{}, haul{}, fmt.Errorf("move packets to the device: %w", err)
	}
	if sent, err = w.transmit.turn(); err != nil {
		return haul{}, haul{}, fmt.Errorf("move packets from the device: %w", err)
	}
	return received, sent, nil
}

// stop makes run return. Any goroutine may call it while the waiter is open.
func (w *worker) stop() {
	w.stopping.Store(true)
	w.waiter.Wake()
}
