package load

import (
	"errors"

	"golang.org/x/sys/unix"
)

// vector is how many packets one system call moves at most.
const vector = 64

// message is struct mmsghdr, recvmmsg(2). The dataplane has its own: the harness shares nothing with what it measures.
type message struct {
	header unix.Msghdr
	length uint32
}

// batch is the argument of sendmmsg and recvmmsg: messages of one buffer each.
type batch struct {
	messages []message
	buffers  []unix.Iovec
}

// newBatch makes a batch of n messages, each with a buffer of size bytes.
func newBatch(n, size int) *batch {
	b := &batch{messages: make([]message, n), buffers: make([]unix.Iovec, n)}
	memory := make([]byte, n*size)
	for i := range b.messages {
		b.buffers[i].Base = &memory[i*size]
		b.buffers[i].SetLen(size)
		b.messages[i].header.Iov = &b.buffers[i]
		b.messages[i].header.SetIovlen(1)
	}
	return b
}

// send sends the first n messages on a connected socket and returns how many went.
func (b *batch) send(fd, n int) (int, error) { return mmsg(unix.SYS_SENDMMSG, fd, b.messages[:n], 0) }

// receive takes the messages that are there, without waiting.
func (b *batch) receive(fd int) (int, error) {
	return mmsg(unix.SYS_RECVMMSG, fd, b.messages, unix.MSG_DONTWAIT)
}

// transient reports whether a send or receive may simply be tried again.
func transient(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS)
}
