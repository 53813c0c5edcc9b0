package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vxlane/vxlane/tunnel"
	"github.com/vxlane/vxlane/tunnel/tunneltest"
)

// helpedConfig is for a rig on a machine of two cores, of which each thread takes so much, and half a core is idle.
func helpedConfig(load float64) tunnel.Config {
	start := time.Now()
	share := func(cores float64) time.Duration { return time.Duration(cores * float64(time.Since(start))) }
	cfg := rigConfig()
	cfg.Scheduler = tunnel.Scheduler{
		NewWaiter: tunneltest.NewWaiter, Cores: 2, Patient: func(bool) {},
		Yield: func() { time.Sleep(time.Microsecond) },
		Idle:  func() time.Duration { return share(0.5) },
		Clock: func() func() time.Duration { return func() time.Duration { return share(load) } },
	}
	return cfg
}

// helpedRig is a rig whose worker is busy, on a machine with a core to spare.
func helpedRig(t *testing.T) *rig { return newRig(t, helpedConfig(0.95)) }

// traffic is numbered packets both ways.
type traffic struct {
	r   *rig
	out int
	in  int
}

// exchange sends n packets each way within a millisecond.
func (f *traffic) exchange(n int) { f.move(n, n, 0) }

// move sends so many packets within a millisecond, those that come in with a trailer that makes them so long, in bytes.
func (f *traffic) move(out, in, length int) {
	f.r.t.Helper()
	number := func(packet []byte, i *int) []byte {
		*i++
		return binary.BigEndian.AppendUint32(bytes.Clone(packet[:len(packet)-4]), uint32(*i))
	}
	outgoing, incoming := udp(f.r.t, "10.99.0.1", "10.99.0.2", 53, make([]byte, 4)), frame(udp(f.r.t, "10.99.0.2", "10.99.0.1", 53, make([]byte, 4)))
	trailer := make([]byte, max(0, length-len(incoming)))
	for range out {
		f.r.device.Queue(0).Put(number(outgoing, &f.out))
	}
	for range in {
		f.r.underlay.Receiver(0).Put(tunneltest.From("172.30.0.2", append(number(incoming, &f.in), trailer...)))
	}
	time.Sleep(time.Millisecond)
}

// check wants every packet at the other end, in order.
func (f *traffic) check() {
	f.r.t.Helper()
	synctest.Wait()
	var sent, written [][]byte
	for _, d := range sentTo(f.r, "172.30.0.2:8472") {
		sent = append(sent, d.Data)
	}
	written = f.r.device.Queue(0).Written()
	for name, way := range map[string]struct {
		packets [][]byte
		want    int
	}{"out": {sent, f.out}, "in": {written, f.in}} {
		if len(way.packets) != way.want {
			f.r.t.Errorf("%s: %d of %d packets", name, len(way.packets), way.want)
		}
		for i, p := range way.packets {
			if got := binary.BigEndian.Uint32(p[len(p)-4:]); got != uint32(i+1) {
				f.r.t.Fatalf("%s: packet %d in the place of %d", name, got, i+1)
			}
		}
	}
}

// untilHelped runs a stream until the second thread is at work.
func (f *traffic) untilHelped() {
	f.r.t.Helper()
	for range 1000 {
		if f.exchange(50); f.r.tunnel.Helped(0) {
			return
		}
	}
	f.r.t.Fatal("no second thread after a second")
}

// A stream is shared with a second thread; when it is over the worker is alone again. No packet is lost or overtaken.
func TestStreamIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := helpedRig(t)
		r.start()
		f := &traffic{r: r}
		for range 3 {
			f.exchange(1)
			if r.tunnel.Helped(0) {
				t.Error("a second thread for single packets")
			}
			f.untilHelped()
			for range 100 {
				f.exchange(50)
			}
			if !r.tunnel.Helped(0) {
				t.Error("the second thread left amid the stream")
			}
			f.check()
			for range 200 {
				f.exchange(1)
			}
			if r.tunnel.Helped(0) {
				t.Error("the second thread outlived the stream")
			}
			f.check()
		}
	})
}

// A tunnel can be stopped while a stream is shared, and an end that is gone ends it, whoever finds out.
func TestStopWhileShared(t *testing.T) {
	for _, c := range []struct{ write, read error }{{}, {write: tunneltest.ErrGone}, {read: tunneltest.ErrGone}} {
		synctest.Test(t, func(t *testing.T) {
			r := helpedRig(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- r.tunnel.Run(ctx) }()
			f := &traffic{r: r}
			f.untilHelped()
			f.check()
			if !r.tunnel.Helped(0) {
				t.Error("the stream is not shared any more")
			}
			r.device.Queue(0).Gone, r.device.Queue(0).Unreadable = c.write, c.read
			want := errors.Join(c.write, c.read)
			if want == nil {
				cancel()
			} else {
				f.exchange(1)
			}
			if err := <-done; (err == nil) != (want == nil) || want != nil && !errors.Is(err, tunneltest.ErrGone) {
				t.Errorf("ended with %v, want %v", err, want)
			}
		})
	}
}

// Small datagrams are a stream by their number, alone or in few trains: a worker that preempted their sender would move train by train.
func TestTrainsAreAStream(t *testing.T) {
	small := frame(udp(t, "10.99.0.2", "10.99.0.1", 53, []byte("hello")))
	for _, c := range []struct {
		name         string
		trains, each int // in a millisecond
		stream       bool
	}{
		{"five trains of 16", 5, 16, true},
		{"eighty alone", 80, 1, true},
		{"five alone", 5, 1, false},
		{"one train of 16", 1, 16, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg := rigConfig()
			patient := false
			cfg.Scheduler = tunnel.Scheduler{
				NewWaiter: tunneltest.NewWaiter, Cores: 1, Yield: func() { time.Sleep(time.Microsecond) }, Patient: func(on bool) { patient = on },
				Idle: func() time.Duration { return 0 },
			}
			r := newRig(t, cfg)
			r.start()
			train := tunneltest.From("172.30.0.2", bytes.Repeat(small, c.each))
			train.Count = c.each
			if c.each > 1 {
				train.SegmentSize = len(small)
			}
			for range 10 {
				for range c.trains {
					r.underlay.Receiver(0).Put(train)
				}
				time.Sleep(time.Millisecond)
			}
			synctest.Wait()
			if patient != c.stream {
				t.Errorf("%s: patient: %v", c.name, patient)
			}
			if got, want := len(r.device.Queue(0).Written()), 10*c.trains*c.each; got != want {
				t.Errorf("%s: %d of %d packets", c.name, got, want)
			}
		})
	}
}
