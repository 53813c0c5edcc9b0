package tunnel

import (
	"testing"

	"golang.org/x/sys/unix"
)

// pipeEnd is an end that is readable while something is in a pipe.
type pipeEnd struct {
	Receiver
	r, w int
}

func (p *pipeEnd) fds() []int { return []int{p.r} }

func newPipeEnd(t *testing.T) *pipeEnd {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return &pipeEnd{r: fds[0], w: fds[1]}
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
		if _, err := unix.Read(end.r, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		go w.Wake()
		for wait(); !readable(1); wait() {
		}
	}
}
