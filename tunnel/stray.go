package tunnel

import (
	"sync"

	"github.com/vxlane/vxlane/encap"
)

// strays is a tunnel's way to the device for datagrams that came with another tunnel's (SharedPort). Those take a lock.
type strays struct {
	mu       sync.Mutex
	receiver *receiver // nil: none are taken
	count    *counters // the receiver's; nil when there never was one
	one      [1]Datagram
}

// take moves a datagram, which is borrowed until it returns, as the workers would have, and reports whether it did. Any goroutine may
// call it.
func (s *strays) take(d Datagram) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.receiver == nil {
		return false
	}
	s.one[0] = d
	_ = s.receiver.step(s.one[:]) // the device's own worker ends the tunnel when the device is gone
	return true
}

// close takes no more.
func (s *strays) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receiver = nil
}

// injector writes packets to a device one by one, beside its queues.
type injector struct{ device Device }

// Read implements Queue: there is nothing to read.
func (injector) Read(*Batch) error { return nil }

// Joins implements Queue.
func (injector) Joins(encap.GSO) bool { return false }

// Write implements Queue.
func (w injector) Write(packets []Packet) error {
	for i := range packets {
		p := &packets[i]
		p.Sent = 0
		switch {
		case p.Count > 1:
			p.Sent = w.split(p)
		case p.Offload.NeedsChecksum && !p.Offload.FinishChecksum(p.Data):
		case w.device.Inject(p.Data) == nil:
			p.Sent = 1
		}
	}
	return nil
}

// split writes a super-packet packet by packet, and returns how many the device took.
func (w injector) split(p *Packet) (sent int) {
	var s encap.Splitter
	if !s.Reset(p.Data, &p.Headers, p.Offload) {
		return 0
	}
	for range p.Count {
		packet := make([]byte, s.HeaderLen())
		s.Next(packet)
		if w.device.Inject(append(packet, s.Payload()...)) == nil {
			sent++
		}
	}
	return sent
}
