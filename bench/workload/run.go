package workload

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vxlane/vxlane/bench/load"
	"github.com/vxlane/vxlane/bench/result"
)

// bulk measures TCP streams, some of them the other way.
func (s *measurement) bulk(ctx context.Context, there, back int) error {
	paths := append(slices.Repeat([]load.Path{s.path}, there), slices.Repeat([]load.Path{s.path.Reverse()}, back)...)
	r, err := load.Bulk(ctx, paths, s.phases())
	if err != nil {
		return err
	}
	m := r.Counts[measured]
	s.set(result.Throughput, m.PerSecond(m.Bytes)*8)
	if back > 0 {
		var bytes uint64
		for _, n := range m.PerPath[there:] {
			bytes += n
		}
		s.set(result.ThroughputBack, m.PerSecond(bytes)*8)
	}
	s.setPer(result.Retransmits, float64(m.Retransmits), float64(m.Bytes)/1e9)
	s.noteGenerator(r.Sender, r.Receiver)
	if n := m.Idle(); n > 0 {
		s.note("a stream starved: %d of %d moved nothing", n, len(paths))
	}
	s.setCosts(segments(m, r.SegmentSize), laterCounts(r.Counts, func(c load.Count) carried { return segments(c, r.SegmentSize) })...)
	return nil
}

func segments(c load.Count, size int) carried {
	return carried{c.Elapsed, float64(c.Bytes), float64(c.Bytes) / float64(max(1, size))}
}

// laterCounts returns what was carried in the phases after the measured one.
func laterCounts(counts []load.Count, f func(load.Count) carried) (later []carried) {
	for _, c := range counts[counted:] {
		later = append(later, f(c))
	}
	return later
}

// datagrams measures UDP packets: as many as the sender can, then the highest rate without loss.
func (s *measurement) datagrams(ctx context.Context, d load.Datagrams) error {
	r, err := load.Send(ctx, s.path, d, s.phases())
	if err != nil {
		return err
	}
	m := r.Counts[measured]
	packets := func(c load.Count) carried { return carried{c.Elapsed, float64(c.Bytes), float64(c.Packets)} }
	s.set(result.Received, m.PerSecond(m.Packets))
	s.set(result.Offered, m.PerSecond(m.Offered))
	s.set(result.Throughput, m.PerSecond(m.Bytes)*8)
	s.set(result.Loss, m.Loss())
	s.noteGenerator(r.Sender, r.Receiver)
	s.noteFragments(d)
	if dropped := float64(r.ReceiverDropped) / float64(max(1, r.Sent)); dropped > load.LossLimit {
		s.note("the receiving application was a bottleneck: its socket dropped %.1f %% of all packets", 100*dropped)
	}
	s.setCosts(packets(m), laterCounts(r.Counts, packets)...)
	if d.Rate > 0 {
		return nil // the highest rate is not asked for
	}
	if r.Loss() <= load.LossLimit && m.Sustained() {
		s.note("the sender was the bottleneck: everything that it could offer arrived")
		s.set(result.NoLoss, m.PerSecond(m.Packets))
		return nil
	}
	return s.searchRate(ctx, d, m.PerSecond(m.Offered))
}

// searchRate sets the highest rate without loss.
func (s *measurement) searchRate(ctx context.Context, d load.Datagrams, most float64) error {
	const settle, shortest = 50 * time.Millisecond, 150 * time.Millisecond
	trial := []load.Phase{{Length: settle}, {Length: max(shortest, s.options.Duration/6)}}
	best, err := load.HighestRate(ctx, most, func(rate float64) (load.Trial, error) {
		d.Rate = rate
		r, err := load.Send(ctx, s.path, d, trial)
		if err != nil {
			return load.Trial{}, err
		}
		m := r.Counts[len(trial)-1]
		return load.Trial{Rate: m.PerSecond(m.Packets), Good: m.Sustained() && r.Loss() <= load.LossLimit}, nil
	})
	if err != nil {
		return err
	}
	s.set(result.NoLoss, best)
	if best == 0 {
		s.note("no rate was free of loss: down to %.0f packets a second", most/load.SearchRange)
	}
	return nil
}

const requestBytes = 64

// pingPong measures round trips, on an idle tunnel or beside a TCP stream.
func (s *measurement) pingPong(ctx context.Context, loaded bool) error {
	if !loaded {
		r, err := load.PingPong(ctx, s.path, requestBytes, s.phases(), measured)
		if err != nil {
			return err
		}
		return s.roundTrips(r, result.Transactions, 2, requestBytes)
	}
	bulk, err := load.StartBulk([]load.Path{s.path})
	if err != nil {
		return err
	}
	phases := s.phases()
	counts := make([]load.Count, len(phases))
	for i := range phases {
		countPhase(bulk, &phases[i], &counts[i])
	}
	r, err := load.PingPong(ctx, s.path, requestBytes, phases, measured)
	size := bulk.Stop().SegmentSize
	if err != nil {
		return err
	}
	if err := s.roundTrips(r, result.Transactions, 0, requestBytes); err != nil {
		return err
	}
	m := counts[measured]
	s.set(result.Throughput, m.PerSecond(m.Bytes)*8)
	s.setCosts(segments(m, size), laterCounts(counts, func(c load.Count) carried { return segments(c, size) })...)
	return nil
}

// countPhase makes a phase count what the streams move meanwhile.
func countPhase(t *load.Transfer, p *load.Phase, count *load.Count) {
	begin, end := t.Phase()
	before, after := p.Begin, p.End
	p.Begin = func() error {
		if before != nil {
			if err := before(); err != nil {
				return err
			}
		}
		begin()
		return nil
	}
	p.End = func() error {
		*count = end()
		if after != nil {
			return after()
		}
		return nil
	}
}

// roundTrips sets what a client saw; each round trip is so many packets of size bytes, 0 where it cannot be told.
func (s *measurement) roundTrips(r load.RoundTrips, rate string, packets, size float64) error {
	m := r.Counts[measured]
	s.set(rate, m.PerSecond(m.Packets))
	if m.Lost > 0 {
		s.note("round trips were lost: %d, which count as 500 ms each", m.Lost)
	}
	convert := func(c load.Count) carried {
		return carried{c.Elapsed, float64(c.Packets) * packets * size, float64(c.Packets) * packets}
	}
	s.setCosts(convert(m), laterCounts(r.Counts, convert)...)
	return s.setLatency(r.Histogram)
}

func (s *measurement) ping(ctx context.Context) error {
	r, err := load.Ping(ctx, s.path, s.phases(), measured)
	if err != nil {
		return err
	}
	return s.roundTrips(r, result.Transactions, 2, 0)
}

func (s *measurement) connect(ctx context.Context) error {
	r, err := load.Connections(ctx, s.path, s.phases(), measured)
	if err != nil {
		return err
	}
	thousands := float64(r.Counts[measured].Packets) / 1e3
	s.setPer(result.MachinePerKConn, s.cost.Machine.Seconds(), thousands)
	if len(s.processes) > 0 {
		s.setPer(result.TunnelPerKConn, s.cost.Tunnel.Seconds(), thousands)
	}
	return s.roundTrips(r, result.Connections, 0, 0)
}

// iperf3 measures what iperf3 reports.
func (s *measurement) iperf3(ctx context.Context, i load.Iperf3) error {
	phases := s.phases()[:counted]
	for p := range phases { // iperf3 counts in seconds
		phases[p].Length = max(time.Second, phases[p].Length.Round(time.Second))
	}
	r, err := i.Run(ctx, s.path, phases)
	if err != nil {
		return err
	}
	if r.Bytes == 0 || i.Bidirectional && r.BytesBack == 0 {
		return errors.New("iperf3 reports that nothing arrived")
	}
	s.set(result.Throughput, (r.Bytes+r.BytesBack)*8)
	if i.Bidirectional {
		s.set(result.ThroughputBack, r.BytesBack*8)
	}
	if i.UDP {
		s.set(result.Received, r.Packets)
		s.set(result.Offered, r.Offered)
		if r.Offered > 0 {
			s.set(result.Loss, 1-r.Packets/r.Offered)
		}
	} else if r.Seconds > 0 && r.Bytes > 0 {
		s.set(result.Retransmits, r.Retransmits/(r.Bytes*r.Seconds/1e9))
	}
	seconds := phases[measured].Length.Seconds()
	s.setCosts(carried{phases[measured].Length, (r.Bytes + r.BytesBack) * seconds, r.Packets * seconds})
	return nil
}
