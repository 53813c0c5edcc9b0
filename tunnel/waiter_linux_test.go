package tunnel

import (
	"testing"

	"golang.org/x/sys/unix"
)

// pipeEnd is an end that is readable while something is in a pipe.
type pipeEnd struct {
	Receiver
	input
	w int
}

func (p *pipeEnd) inputs() []*input { return []*input{&p.input} }

func newPipeEnd(t *testing.T) *pipeEnd {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return &pipeEnd{input: input{fd: fds[0]}, w: fds[1]}
}

// Wake ends one Wait, the current or the next; what is readable ends every one.
func TestPollWaiter(t *testing.T) {
	for _, brief := range []bool{false, true} {
		end := newPipeEnd(t)
		w, err := newPollWaiter(nil, end)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		wait := func() {
			if err := w.Wait(brief); err != nil {
				t.Fatal(err)
			}
		}
		readable := func(i int) bool { return w.(*pollWaiter).fds[i].Revents != 0 }
		w.Wake()
		wait()
		if readable(0) || !readable(1) {
			t.Error("the wait did not end by Wake")
		}
		if _, err := unix.Write(end.w, []byte{1}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wait()
			if !readable(0) || readable(1) {
				t.Error("the wait did not end by what is readable, or Wake ended a second one")
			}
		}
		if _, err := unix.Read(end.fd, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		go w.Wake()
		for wait(); !readable(1); wait() {
		}
	}
}

// An input that was read to its end is not asked again until a Wait has seen more there, or Look. It is the reader's to say what its end is, and
// without a waiter there is none.
func TestInputsAreReadWhenThereIsMore(t *testing.T) {
	for _, brief := range []bool{false, true} {
		one, other := newPipeEnd(t), newPipeEnd(t)
		one.exhausted()
		if one.drained {
			t.Error("drained, and nobody would find out otherwise")
		}
		w, err := newPollWaiter(nil, inTurn(one, other))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		check := func(when string, first, second bool) {
			t.Helper()
			if one.drained != first || other.drained != second || w.Drained() != (first && second) {
				t.Errorf("%s: drained %v and %v, want %v and %v; all %v", when, one.drained, other.drained, first, second, w.Drained())
			}
		}
		check("at first", false, false)
		one.exhausted()
		check("one read", true, false)
		other.exhausted()
		check("both read", true, true)
		w.Look()
		check("after Look", false, false)
		if _, err := unix.Write(other.w, []byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(brief); err != nil {
			t.Fatal(err)
		}
		check("the other one has something", true, false)
		other.exhausted()
		w.Wake()
		if err := w.Wait(brief); err != nil {
			t.Fatal(err)
		}
		check("it still has", true, false)
	}
}

// What was read to its end costs no system call until a waiter has seen more.
func TestDrainedInputsAreNotRead(t *testing.T) {
	calls := 0
	outer := new(frameKernel).receiver(t, "172.30.0.2", false)
	outer.queue.watched = true
	outer.read = func(int, []byte) (int, error) { calls++; return 0, unix.EAGAIN }
	sockets := newUDPReceiver(-1)
	sockets.socket.watched = true
	sockets.recvmmsg = func(_ int, msgs []mmsghdr) (int, error) { // fewer than there is room for
		calls++
		msgs[0].len = 60
		msgs[0].hdr.SetControllen(0)
		return 1, nil
	}
	queue := newTUNQueue(&TUN{}, -1, -1)
	queue.reader.watched = true
	queue.read = func(_ int, b []byte) (int, error) {
		if calls++; calls%2 == 1 {
			return 60, nil
		}
		return 0, unix.EAGAIN
	}
	receive := func(r Receiver) func() int {
		return func() int {
			batch, err := r.Receive()
			if err != nil {
				t.Fatal(err)
			}
			return len(batch)
		}
	}
	batch := NewBatch()
	for name, c := range map[string]struct {
		read         func() int
		in           *input
		found, calls int
	}{
		"outer TAP": {receive(outer), &outer.queue, 0, 1},
		"socket":    {receive(sockets), &sockets.socket, 1, 1},
		"device": {func() int {
			batch.Reset()
			if err := queue.Read(batch); err != nil {
				t.Fatal(err)
			}
			return len(batch.packets)
		}, &queue.reader, 1, 2},
	} {
		calls = 0
		for i, want := range []struct{ found, calls int }{{c.found, c.calls}, {0, c.calls}} {
			if found := c.read(); found != want.found || calls != want.calls {
				t.Errorf("%s, read %d: found %d in %d calls in all, want %d in %d", name, i, found, calls, want.found, want.calls)
			}
		}
		c.in.drained = false
		if found := c.read(); found != c.found || calls != 2*c.calls {
			t.Errorf("%s, when there is more: found %d in %d calls in all, want %d in %d", name, found, calls, c.found, 2*c.calls)
		}
	}
}
