package tunnel

import (
	"sync"

	"github.com/vxlane/vxlane/encap"
)

// strays is a tunnel's way to the device for datagrams that came with another tunnel's (SharedPort).
type strays struct {
	mu       sync.Mutex
	receiver *receiver
	one      [1]Datagram
}

// takeStray moves a datagram, which is borrowed until it returns, as the workers would have. Any goroutine may call it.
func (t *Tunnel) takeStray(d Datagram) {
	s := &t.strays
	s.mu.Lock()
	defer s.mu.Unlock()
	s.one[0] = d
	_ = s.receiver.step(s.one[:]) // the device's own worker ends the tunnel when the device is gone
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
		if p.Count > 1 || p.Offload.NeedsChecksum && !p.Offload.FinishChecksum(p.Data) {
			continue // no part of a train is a super-packet
		}
		if w.device.Inject(p.Data) == nil {
			p.Sent = 1
		}
	}
	return nil
}
