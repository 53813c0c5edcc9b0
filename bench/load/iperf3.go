package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// Iperf3 is traffic that iperf3 makes.
type Iperf3 struct {
	Streams       int
	Bidirectional bool
	UDP           bool
	Size          int // of a UDP payload, in bytes
}

// Iperf3Result is what iperf3 reports of the time after the first phase.
type Iperf3Result struct {
	Bytes, BytesBack float64 // a second
	Packets          float64 // a second, received; UDP only
	Offered          float64 // packets a second; UDP only
	Retransmits      float64
	Seconds          float64
}

// iperf3Streams is the most that iperf3 takes.
const iperf3Streams = 128

// Supports returns why iperf3 cannot make the traffic; nil when it can.
func (i Iperf3) Supports() error {
	if i.Streams > iperf3Streams {
		return fmt.Errorf("iperf3 has at most %d streams", iperf3Streams)
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		return fmt.Errorf("%w: install iperf3, or leave out --generator", err)
	}
	return nil
}

// Run runs iperf3 between the hosts while the phases pass; the first one is left out of its report.
func (i Iperf3) Run(ctx context.Context, p Path, phases []Phase) (Iperf3Result, error) {
	var r Iperf3Result
	if err := i.Supports(); err != nil {
		return r, err
	}
	server := exec.Command("iperf3", "--server", "--one-off", "--bind", p.Dst.String())
	listening, err := p.To.Start(server)
	if err != nil {
		return r, wrap("iperf3", p, err)
	}
	defer func() { _ = listening.Stop() }() // it has ended when all went well
	type outcome struct {
		report iperf3Report
		err    error
	}
	done, failed := make(chan outcome, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		report, err := i.client(ctx, p, phases)
		if err != nil {
			failed <- err
		}
		done <- outcome{report, err}
	}()
	if _, err := runPhases(ctx, phases, func() totals { return totals{} }, failed); err != nil {
		return r, wrap("iperf3", p, err)
	}
	o := <-done
	if o.err != nil {
		return r, wrap("iperf3", p, o.err)
	}
	return o.report.result(i), nil
}

func (i Iperf3) arguments(p Path, phases []Phase) []string {
	var measured time.Duration
	for _, phase := range phases[1:] {
		measured += phase.Length
	}
	seconds := func(d time.Duration) string { return strconv.Itoa(int(max(1, (d+time.Second/2)/time.Second))) }
	args := []string{
		"--client", p.Dst.String(), "--bind", p.Src.String(), "--json", "--parallel", strconv.Itoa(i.Streams),
		"--omit", seconds(phases[0].Length), "--time", seconds(measured),
	}
	if p.Congestion != "" && !i.UDP {
		args = append(args, "--congestion", p.Congestion)
	}
	if i.Bidirectional {
		args = append(args, "--bidir")
	}
	if i.UDP {
		args = append(args, "--udp", "--bandwidth", "0", "--length", strconv.Itoa(i.Size))
	}
	return args
}

// client runs iperf3's client; the server may need a moment to listen.
func (i Iperf3) client(ctx context.Context, p Path, phases []Phase) (report iperf3Report, err error) {
	for attempt := range 20 {
		if attempt > 0 {
			time.Sleep(50 * time.Millisecond)
		}
		var out, errOut bytes.Buffer
		cmd := exec.CommandContext(ctx, "iperf3", i.arguments(p, phases)...)
		cmd.Stdout, cmd.Stderr = &out, &errOut
		if err := p.From.Run(cmd.Start); err != nil {
			return report, err
		}
		exit := cmd.Wait()
		report = iperf3Report{}
		if jsonErr := json.Unmarshal(out.Bytes(), &report); jsonErr != nil {
			return report, errors.Join(exit, fmt.Errorf("iperf3 wrote no report: %w; %s", jsonErr, errOut.String()))
		}
		if report.Error == "" {
			return report, exit
		}
		err = errors.New(report.Error)
		if !bytes.Contains(out.Bytes(), []byte("refused")) {
			return report, err
		}
	}
	return report, err
}

// iperf3Report is the part of iperf3's JSON that is used.
type iperf3Report struct {
	Error string `json:"error"`
	End   struct {
		Sum           iperf3Sum `json:"sum"`
		Sent          iperf3Sum `json:"sum_sent"`
		Received      iperf3Sum `json:"sum_received"`
		ReceivedBidir iperf3Sum `json:"sum_received_bidir_reverse"`
	} `json:"end"`
}

type iperf3Sum struct {
	BitsPerSecond float64 `json:"bits_per_second"`
	Seconds       float64 `json:"seconds"`
	Retransmits   float64 `json:"retransmits"`
	Packets       float64 `json:"packets"`
	LostPackets   float64 `json:"lost_packets"`
}

func (r iperf3Report) result(i Iperf3) Iperf3Result {
	e := r.End
	if i.UDP {
		seconds := slices.Max([]float64{e.Sum.Seconds, 1e-3})
		received := (e.Sum.Packets - e.Sum.LostPackets) / seconds
		return Iperf3Result{Packets: received, Offered: e.Sum.Packets / seconds, Bytes: received * float64(i.Size), Seconds: seconds}
	}
	return Iperf3Result{
		Bytes: e.Received.BitsPerSecond / 8, BytesBack: e.ReceivedBidir.BitsPerSecond / 8,
		Retransmits: e.Sent.Retransmits, Seconds: e.Received.Seconds,
	}
}
