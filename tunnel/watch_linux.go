package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// WatchAddresses calls changed with the device's addresses, now and whenever they change, until ctx ends.
func (l *Link) WatchAddresses(ctx context.Context, changed func([]netip.Prefix)) error {
	w := &watch[netlink.AddrUpdate]{
		link: l,
		open: func(updates chan<- netlink.AddrUpdate, done <-chan struct{}, failed func(error)) error {
			return netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{ErrorCallback: failed})
		},
		ours: func(u netlink.AddrUpdate) bool { return u.LinkIndex == l.index },
		report: func() {
			addrs, err := l.Addresses()
			if err != nil {
				l.log.Warn("cannot follow the device's addresses", "device", l.name, "err", err)
				return
			}
			changed(addrs)
		},
	}
	return w.start(ctx)
}

// WatchUp calls up whenever the device was brought up, until ctx ends; not for the state that it has now.
func (l *Link) WatchUp(ctx context.Context, up func()) error {
	was := l.IsUp()
	return l.watchState(ctx, func(is bool) {
		if is && !was {
			up()
		}
		was = is
	})
}

// WatchDown calls down when the device is down, or gone, and again with every change while it is, until ctx ends.
func (l *Link) WatchDown(ctx context.Context, down func()) error {
	return l.watchState(ctx, func(is bool) {
		if !is {
			down()
		}
	})
}

// watchState calls check with whether the device is up, now and whenever something of it changes, until ctx ends.
func (l *Link) watchState(ctx context.Context, check func(up bool)) error {
	w := &watch[netlink.LinkUpdate]{
		link: l,
		open: func(updates chan<- netlink.LinkUpdate, done <-chan struct{}, failed func(error)) error {
			return netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ErrorCallback: failed})
		},
		ours: func(u netlink.LinkUpdate) bool {
			if int(u.Index) == l.index {
				check(u.Attrs().Flags&net.FlagUp != 0)
			}
			return false
		},
		report: func() {
			if up, err := l.state(); err != nil {
				l.log.Warn("cannot follow the device", "device", l.name, "err", err)
			} else {
				check(up)
			}
		},
	}
	return w.start(ctx)
}

// watch follows what the kernel says of one device. It ends subscriptions when it has more to tell than the socket takes:
// then the watch begins anew, and looks for itself at what it missed.
type watch[T any] struct {
	link   *Link
	open   func(updates chan<- T, done <-chan struct{}, failed func(error)) error
	ours   func(T) bool // whether report is to be called for an update
	report func()

	updates chan T
	done    chan struct{}
}

const resubscribeTime = time.Second

func (w *watch[T]) start(ctx context.Context) error {
	if err := w.subscribe(); err != nil {
		return err
	}
	w.report()
	go w.run(ctx)
	return nil
}

func (w *watch[T]) subscribe() error {
	w.updates, w.done = make(chan T, 64), make(chan struct{})
	failed := func(err error) { w.link.log.Debug("netlink subscription ended", "device", w.link.name, "err", err) }
	if err := w.open(w.updates, w.done, failed); err != nil {
		return fmt.Errorf("follow device %s: %w", w.link.name, err)
	}
	return nil
}

func (w *watch[T]) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			close(w.done)
			return
		case u, ok := <-w.updates:
			switch {
			case ok && w.ours(u):
				w.report()
			case !ok && !w.resubscribe(ctx):
				return
			}
		}
	}
}

// resubscribe starts anew after a subscription ended, and catches up; false when ctx ended first.
func (w *watch[T]) resubscribe(ctx context.Context) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(resubscribeTime):
		}
		if err := w.subscribe(); err != nil {
			w.link.log.Warn("cannot follow the device", "device", w.link.name, "err", err)
			continue
		}
		w.report()
		return true
	}
}
