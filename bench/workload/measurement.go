package workload

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/vxlane/vxlane/bench/cost"
	"github.com/vxlane/vxlane/bench/load"
	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/result"
)

// Hosts are the addresses of host a and host b in a tunnel.
type Hosts = [2]netip.Addr

// The phases of a measurement.
const (
	warmup   = iota
	measured // what is reported
	counted  // the traffic goes on, and system calls are counted: that costs time, which must not be measured
)

const countingTime = 200 * time.Millisecond

// measurement is one while it goes on.
type measurement struct {
	path      load.Path
	options   Options
	meter     *cost.Meter
	processes []int // of the tunnel
	cost      cost.Cost
	counter   *cost.SyscallCounter
	syscalls  uint64
	outcome   Outcome
}

func newMeasurement(n *network.Network, path load.Path, o Options) (*measurement, error) {
	s := &measurement{path: path, options: o, outcome: Outcome{Values: make(map[string]float64)}}
	var hosts [][]int
	for _, pair := range n.Sides() {
		pids, err := pair[0].Host.Processes()
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, pids)
		s.processes = append(s.processes, pids...)
	}
	var err error
	s.meter, err = cost.NewMeter(hosts)
	return s, err
}

// phases returns the phases of the measurement, with the meters at their bounds.
func (s *measurement) phases() []load.Phase {
	all := []load.Phase{
		warmup: {Length: s.options.Warmup},
		measured: {
			Length: s.options.Duration, Begin: s.meter.Begin,
			End: func() (err error) { s.cost, err = s.meter.End(); return err },
		},
	}
	if len(s.processes) == 0 {
		return all
	}
	var first uint64
	return append(all, load.Phase{
		Length: countingTime,
		Begin: func() (err error) {
			if s.counter, err = cost.CountSyscalls(s.processes); err != nil {
				s.note("%v", err)
				return nil
			}
			first, err = s.counter.Count()
			return err
		},
		End: func() error {
			if s.counter == nil {
				return nil
			}
			last, err := s.counter.Count()
			s.syscalls = last - first
			return err
		},
	})
}

// close ends what is still measured: counting system calls slows down the whole machine.
func (s *measurement) close() error {
	if s.counter == nil {
		return nil
	}
	return s.counter.Close()
}

func (s *measurement) note(format string, args ...any) {
	s.outcome.Notes = append(s.outcome.Notes, fmt.Sprintf(format, args...))
}

func (s *measurement) set(metric string, value float64) { s.outcome.Values[metric] = value }

// carried is what a tunnel carried during a phase.
type carried struct {
	elapsed time.Duration
	bytes   float64
	packets float64 // for TCP, segments of full size
}

// setCosts sets what it took to carry what was carried while it was measured, and while system calls were counted.
func (s *measurement) setCosts(m carried, later ...carried) {
	s.set(result.Busy, s.cost.Machine.Seconds()/m.elapsed.Seconds())
	s.set(result.Steal, s.cost.Steal.Seconds()/m.elapsed.Seconds())
	gigabytes, millions := m.bytes/1e9, m.packets/1e6
	s.setPer(result.MachinePerGB, s.cost.Machine.Seconds(), gigabytes)
	s.setPer(result.MachinePerMpkt, s.cost.Machine.Seconds(), millions)
	if len(s.processes) == 0 {
		return
	}
	s.set(result.PeakMemory, float64(s.cost.PeakMemory))
	s.setPer(result.TunnelPerGB, s.cost.Tunnel.Seconds(), gigabytes)
	s.setPer(result.TunnelPerMpkt, s.cost.Tunnel.Seconds(), millions)
	s.setPer(result.SwitchesPerGB, float64(s.cost.Switches), gigabytes)
	s.setPer(result.SwitchesPerMpkt, float64(s.cost.Switches), millions)
	s.setPer(result.WakeupsPerGB, float64(s.cost.Wakeups), gigabytes)
	s.setPer(result.WakeupsPerMpkt, float64(s.cost.Wakeups), millions)
	if len(later) > 0 && s.syscalls > 0 {
		s.setPer(result.SyscallsPerPkt, float64(s.syscalls), later[0].packets)
	}
}

// setPer sets a quotient, unless nothing was carried.
func (s *measurement) setPer(metric string, quantity, carried float64) {
	if carried > 0 {
		s.set(metric, quantity/carried)
	}
}

// setLatency sets the percentiles of a histogram of nanoseconds, and keeps all of it.
func (s *measurement) setLatency(h *hdrhistogram.Histogram) error {
	for metric, quantile := range map[string]float64{result.P50: 50, result.P90: 90, result.P99: 99, result.P999: 99.9} {
		if float64(h.TotalCount()) >= 1/(1-quantile/100) {
			s.set(metric, float64(h.ValueAtPercentile(quantile))/1e9)
		}
	}
	encoded, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return fmt.Errorf("keep histogram: %w", err)
	}
	s.outcome.Histogram = string(encoded)
	return nil
}

// The shares of a core from which a generator was likely what was measured: its own code, or all that a receiver does.
const (
	ownLimit      = 0.5
	receiverLimit = 0.95
)

func (s *measurement) noteGenerator(sender, receiver load.Load) {
	if own := max(sender.Own, receiver.Own); own > ownLimit {
		s.note("the generator may have been the bottleneck: its own code took %.0f %% of a core", 100*own)
	}
	if receiver.Busy > receiverLimit {
		s.note("the receiving application may have been the bottleneck: a thread of it was busy for %.0f %% of the time", 100*receiver.Busy)
	}
}

// noteFragments says so when packets do not fit through the tunnel in one piece.
func (s *measurement) noteFragments(d load.Datagrams) {
	const headers = 28 // IPv4 and UDP
	_, mtu, err := s.path.From.RouteTo(s.path.Dst)
	if largest := slices.Max(d.Sizes) + headers; err == nil && largest > mtu {
		s.note("packets were sent in fragments: %d bytes do not fit into the tunnel's MTU of %d", largest, mtu)
	}
}
