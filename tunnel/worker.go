package tunnel

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
)

// worker moves packets both ways between one queue of the device and one receiver of the underlay, on a thread of its own. One
// thread serves both directions because packets come in answer to packets: what a received packet makes the host send is
// there when the write returns, and nobody has to be woken for it. Only a stream is shared with a second one.
type worker struct {
	transmit *transmitter
	receive  *receiver
	waiter   Waiter // for both ends
	spinner  spinner
	place    Place       // where its threads run
	move     func(Place) // moves its own; nil: it stays roaming
	helper   *helper     // nil: there is no core for one
	waiters  []Waiter    // its own and its helper's
	stopping atomic.Bool
}

// run moves packets until stop, or until an end fails. Its thread ends with it, as its scheduling policy would stay.
func (w *worker) run() error {
	runtime.LockOSThread()
	if s := &w.transmit.t.cfg.Scheduler; s.Keep != nil && s.Yield != nil {
		own, helpers := w.transmit.t.cores(w.transmit.worker)
		w.move = s.Keep(own, helpers)
		w.spinner.keeper.able = w.move != nil
	}
	if w.helper != nil {
		w.spinner.keeper.shares = true
		own := w.helper.scheduler.Clock()
		w.spinner.relief.spent = func() time.Duration { return own() + w.helper.spent() }
		defer w.helper.dismiss()
	}
	for !w.stopping.Load() {
		received, sent, err := w.turn()
		if err != nil {
			return err
		}
		found := received.packets+sent.packets > 0
		again := !found && w.spinner.again()
		if found {
			w.spinner.found(received, sent)
		}
		w.share()
		w.settle()
		if err := w.rest(found, again); err != nil {
			return fmt.Errorf("wait for packets: %w", err)
		}
	}
	return nil
}

// settle has the threads keep to cores, or not, as the spinner finds right.
func (w *worker) settle() {
	if w.place == w.spinner.keeper.wanted.place {
		return
	}
	w.place = w.spinner.keeper.wanted.place
	w.move(w.place)
	if w.helper != nil {
		w.helper.wanted.Store(int32(w.place))
	}
}

// turn moves what is there, in both directions, and returns how much that was; what the helper moves it only counts.
func (w *worker) turn() (received, sent haul, err error) {
	if w.lent() {
		w.spinner.count(Decap, w.helper.moved())
		w.helper.stream.Store(w.spinner.crowded[Decap])
	} else if received, err = w.receive.turn(); err != nil {
		return haul{}, haul{}, fmt.Errorf("move packets to the device: %w", err)
	}
	if sent, err = w.transmit.turn(); err != nil {
		return haul{}, haul{}, fmt.Errorf("move packets from the device: %w", err)
	}
	return received, sent, nil
}

// lent reports whether the receiver is the helper's.
func (w *worker) lent() bool { return w.helper != nil && w.helper.lent }

// share lends the receiver to the helper, or takes it back, as the spinner finds right.
func (w *worker) share() {
	switch {
	case w.helper == nil || w.helper.lent == w.spinner.shared():
	case w.spinner.shared():
		w.helper.lend()
	default:
		w.helper.reclaim()
	}
}

// rest looks again at once, or sleeps until there may be something to move.
func (w *worker) rest(found, again bool) error {
	if found || again {
		goOn(w.sleeper(), found)
		return nil
	}
	err := w.sleeper().Wait(w.lent() || w.spinner.expects())
	w.spinner.woken()
	return err
}

// sleeper is for the ends that the worker reads from.
func (w *worker) sleeper() Waiter {
	if w.lent() {
		return w.helper.outward
	}
	return w.waiter
}

// goOn prepares another turn without a wait, in which ends are looked at that may have more. Where there is one that always has, so may all.
func goOn(ends Waiter, found bool) {
	if !found || !ends.Drained() {
		ends.Look()
	}
}

// open prepares what the worker, and its helper, sleep in. On error, waiters has what must be closed.
func (w *worker) open(s *Scheduler) error {
	prepare := func(to *Waiter, q Queue, r Receiver) (err error) {
		if *to, err = s.NewWaiter(q, r); err == nil {
			w.waiters = append(w.waiters, *to)
		}
		return err
	}
	q, r := w.transmit.queue, w.receive.underlay
	err := prepare(&w.waiter, q, r)
	if w.helper != nil {
		err = errors.Join(err, prepare(&w.helper.outward, q, nil), prepare(&w.helper.inward, nil, r))
	}
	return err
}

// stop makes run return. Any goroutine may call it while the waiters are open.
func (w *worker) stop() {
	w.stopping.Store(true)
	for _, sleeper := range w.waiters {
		sleeper.Wake()
	}
}
