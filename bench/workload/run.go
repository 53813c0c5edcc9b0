package workload

import (
	"context"
	"slices"
	"time"

	"github.com/vxlane/vxlane/bench/load"
	"github.com/vxlane/vxlane/bench/result"
)

// bulk measures TCP streams, some of them the other way.
func (s *session) bulk(ctx context.Context, there, back int) error {
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
	var all uint64
	for _, c := range r.Counts {
		all += c.Bytes
	}
	s.set(result.Retransmits, float64(r.Retransmits)/(float64(all)/1e9))
	s.noteGenerator(r.GeneratorShare)
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
func (s *session) datagrams(ctx context.Context, d load.Datagrams) error {
	r, err := load.Send(ctx, s.path, d, s.phases())
	if err != nil {
		return err
	}
	m := r.Counts[measured]
	packets := func(c load.Count) carried { return carried{c.Elapsed, float64(c.Bytes), float64(c.Packets)} }
	s.set(result.Received, m.PerSecond(m.Packets))
	s.set(result.Offered, m.PerSecond(m.Offered))
	s.set(result.Throughput, m.PerSecond(m.Bytes)*8)
	s.set(result.Loss, r.Loss())
	s.noteGenerator(r.GeneratorShare)
	if dropped := float64(r.ReceiverDropped) / float64(max(1, r.Sent)); dropped > load.LossLimit {
		s.note("the receiving application was a bottleneck: its socket dropped %.1f %% of all packets", 100*dropped)
	}
	s.setCosts(packets(m), laterCounts(r.Counts, packets)...)
	if r.Loss() <= load.LossLimit {
		s.note("the sender was the bottleneck: everything that it could offer arrived")
		s.set(result.NoLoss, m.PerSecond(m.Packets))
		return nil
	}
	return s.searchRate(ctx, d, m.PerSecond(m.Offered))
}

// searchRate sets the highest rate without loss.
func (s *session) searchRate(ctx context.Context, d load.Datagrams, most float64) error {
	const shortest = 100 * time.Millisecond
	trial := []load.Phase{{Length: max(shortest, s.options.Duration/8)}}
	best, err := load.HighestRate(ctx, most, func(rate float64) (load.Trial, error) {
		d.Rate = rate
		r, err := load.Send(ctx, s.path, d, trial)
		if err != nil {
			return load.Trial{}, err
		}
		return load.Trial{Rate: r.Counts[0].PerSecond(r.Received), Loss: r.Loss()}, nil
	})
	if err != nil {
		return err
	}
	s.set(result.NoLoss, best)
	if best == 0 {
		s.note("no rate down to %.0f packets a second was free of loss", most/load.SearchRange)
	}
	return nil
}

const requestBytes = 64

// pingPong measures round trips, on an idle tunnel or beside a TCP stream.
func (s *session) pingPong(ctx context.Context, loaded bool) error {
	if !loaded {
		r, err := load.PingPong(ctx, s.path, requestBytes, s.phases(), measured)
		if err != nil {
			return err
		}
		return s.roundTrips(r, result.Transactions, 2, requestBytes)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var bulk load.BulkResult
	done := make(chan error, 1)
	go func() {
		var err error
		bulk, err = load.Bulk(ctx, []load.Path{s.path}, s.idlePhases())
		if err != nil {
			cancel(err)
		}
		done <- err
	}()
	r, err := load.PingPong(ctx, s.path, requestBytes, s.phases(), measured)
	if err != nil {
		return err
	}
	if err := <-done; err != nil {
		return err
	}
	m := bulk.Counts[measured]
	s.set(result.Throughput, m.PerSecond(m.Bytes)*8)
	return s.roundTrips(r, result.Transactions, 0, requestBytes)
}

// idlePhases are the phases without the meters.
func (s *session) idlePhases() []load.Phase {
	all := s.phases()
	for i := range all {
		all[i].Begin, all[i].End = nil, nil
	}
	return all
}

// roundTrips sets what a client saw; each round trip is so many packets of size bytes, 0 where it cannot be told.
func (s *session) roundTrips(r load.RoundTrips, rate string, packets, size float64) error {
	m := r.Counts[measured]
	s.set(rate, m.PerSecond(m.Packets))
	if r.Lost > 0 {
		s.note("%d round trips were lost", r.Lost)
	}
	convert := func(c load.Count) carried {
		return carried{c.Elapsed, float64(c.Packets) * packets * size, float64(c.Packets) * packets}
	}
	s.setCosts(convert(m), laterCounts(r.Counts, convert)...)
	return s.setLatency(r.Histogram)
}

func (s *session) ping(ctx context.Context) error {
	r, err := load.Ping(ctx, s.path, s.phases(), measured)
	if err != nil {
		return err
	}
	return s.roundTrips(r, result.Transactions, 2, 0)
}

func (s *session) connect(ctx context.Context) error {
	r, err := load.Connections(ctx, s.path, s.phases(), measured)
	if err != nil {
		return err
	}
	return s.roundTrips(r, result.Connections, 0, 0)
}

// iperf3 measures what iperf3 reports.
func (s *session) iperf3(ctx context.Context, i load.Iperf3) error {
	r, err := i.Run(ctx, s.path, s.phases()[:counted])
	if err != nil {
		return err
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
	seconds := s.options.Duration.Seconds()
	s.setCosts(carried{s.options.Duration, (r.Bytes + r.BytesBack) * seconds, r.Packets * seconds})
	return nil
}
