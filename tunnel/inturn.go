package tunnel

// source is a receiver that a worker can wait for.
type source interface {
	Receiver
	descriptor
}

// receiverPair receives from two sources in turn.
type receiverPair struct {
	ends [2]source
	next int
}

func inTurn(a, b source) *receiverPair { return &receiverPair{ends: [2]source{a, b}} }

// Receive implements Receiver.
func (p *receiverPair) Receive() ([]Datagram, error) {
	for range p.ends {
		r := p.ends[p.next]
		p.next ^= 1
		if batch, err := r.Receive(); len(batch) > 0 || err != nil {
			return batch, err
		}
	}
	return nil, nil
}

func (p *receiverPair) inputs() []*input { return append(p.ends[0].inputs(), p.ends[1].inputs()...) }
