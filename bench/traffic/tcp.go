package traffic

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
)

// Result is what a transfer moved.
type Result struct {
	Bytes   int64
	Elapsed time.Duration
}

// BitsPerSecond returns the rate of the transfer.
func (r Result) BitsPerSecond() float64 { return float64(r.Bytes) * 8 / r.Elapsed.Seconds() }

const (
	blockSize   = 1 << 16
	connectTime = 5 * time.Second
	stallTime   = 10 * time.Second
)

// TCP sends bytes over one connection from one host to an address of another for the given time, and checks every byte
// where it arrives. The result is what the receiver got, in the time that it took until the last byte.
func TCP(ctx context.Context, from, to *lab.Host, dst netip.Addr, duration time.Duration) (Result, error) {
	var listener net.Listener
	err := to.Run(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("tcp to %s: %w", dst, err)
	}
	defer listener.Close()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()

	received := make(chan outcome, 1)
	go func() { received <- accept(listener) }()

	var conn net.Conn
	err = from.Run(func() (err error) {
		conn, err = net.DialTimeout("tcp", listener.Addr().String(), connectTime)
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("tcp from %s to %s: %w", from.Name(), dst, err)
	}
	sent, err := send(ctx, conn, duration)
	if err != nil {
		return Result{}, fmt.Errorf("tcp from %s to %s: %w", from.Name(), dst, err)
	}
	got := <-received
	switch {
	case got.err != nil:
		return Result{}, fmt.Errorf("tcp from %s to %s: %w", from.Name(), dst, got.err)
	case got.Bytes != sent:
		return Result{}, fmt.Errorf("tcp from %s to %s: %d bytes were sent and %d arrived", from.Name(), dst, sent, got.Bytes)
	}
	return got.Result, nil
}

// send writes blocks for the given time, at least one, and closes the connection.
func send(ctx context.Context, conn net.Conn, duration time.Duration) (sent int64, err error) {
	defer func() { err = errors.Join(err, conn.Close()) }()
	block := pattern(blockSize)
	for deadline := time.Now().Add(duration); ; {
		if err := conn.SetWriteDeadline(time.Now().Add(stallTime)); err != nil {
			return sent, err
		}
		n, err := conn.Write(block)
		sent += int64(n)
		if err != nil {
			return sent, err
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return sent, nil
		}
	}
}

type outcome struct {
	Result
	err error
}

// accept takes one connection and checks what it carries.
func accept(l net.Listener) outcome {
	conn, err := l.Accept()
	if err != nil {
		return outcome{err: err}
	}
	defer conn.Close()
	r, want, got := bufio.NewReaderSize(conn, 4*blockSize), pattern(blockSize), make([]byte, blockSize)
	start := time.Now()
	var o outcome
	for {
		if err := conn.SetReadDeadline(time.Now().Add(stallTime)); err != nil {
			return outcome{err: err}
		}
		n, err := io.ReadFull(r, got)
		if !bytes.Equal(got[:n], want[:n]) {
			return outcome{err: fmt.Errorf("the block at byte %d arrived changed", o.Bytes)}
		}
		o.Bytes += int64(n)
		if err != nil {
			o.Elapsed = time.Since(start)
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				o.err = err
			}
			return o
		}
	}
}
