package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/static"
)

const traceLong = `Say what would happen to a packet in a running tunnel: which peer it goes to or came from, or why it is dropped.
Nothing is sent and nothing is counted.

The packet is one of
  a 5-tuple             PROTOCOL SOURCE[:PORT] DESTINATION[:PORT]; the protocol is tcp, udp, sctp, icmp or a number
  hex                   the bytes of an IP packet, of an Ethernet frame, or of a datagram's payload
  FILE:N                packet N, counted from 1, of a pcap or pcapng file

It is taken as a packet that this host sends (encap). With --from, it is taken as one that arrives from the peer with that
underlay address (decap). A captured datagram of the tunnel says for itself which of the two it is.

Where the tunnel carries frames (device.mode: tap), a frame is made of a bare packet: for the station that --mac names, or that
the configuration gives the address.`

const traceExample = `  vxlane trace udp 10.99.0.1:40000 10.99.0.2:53
  vxlane trace --from 172.30.0.2 tcp 10.99.0.2:443 10.99.0.1:50000
  vxlane trace --mac 52:54:00:12:34:56 udp 10.55.0.1:1 10.55.0.2:2
  vxlane trace capture.pcap:17`

func newTrace() *cobra.Command {
	var t target
	var asJSON bool
	var from string
	var tos uint8
	var stations stationFlags
	cmd := &cobra.Command{
		Use: "trace PACKET", Short: "say where a packet would go, or why it would be dropped", Long: traceLong, Example: traceExample,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usagef("which packet? say, for example, %s udp 10.99.0.1:40000 10.99.0.2:53; see %s --help", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			peers, err := c.Peers(cmd.Context())
			if err != nil {
				return err
			}
			req, err := parseTrace(args, from, newVantage(st, peers))
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("tos") {
				req.TOS = tos
			}
			if err := stations.apply(&req, st.Device.Mode); err != nil {
				return err
			}
			result, err := c.Trace(cmd.Context(), req)
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(cmd.OutOrStdout(), result)
			}
			return printTrace(cmd.OutOrStdout(), result)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "underlay `ADDRESS` that the packet arrives from")
	cmd.Flags().Uint8Var(&tos, "tos", 0, "outer TOS of a packet that arrives")
	stations.add(cmd)
	t.addFlags(cmd)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

// stationFlags say what is around a packet in Ethernet mode.
type stationFlags struct {
	from, to string
	vlan     uint16
}

func (f *stationFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.to, "mac", "", "Ethernet mode: `MAC` of the station that the packet is for")
	cmd.Flags().StringVar(&f.from, "from-mac", "", "Ethernet mode: `MAC` of the station that the packet is from")
	cmd.Flags().Uint16Var(&f.vlan, "vlan", 0, "Ethernet mode: VLAN of the frame, 1-4094")
}

// apply puts the stations into a request.
func (f *stationFlags) apply(req *control.TraceRequest, mode static.Mode) error {
	given := f.from != "" || f.to != "" || f.vlan != 0
	switch {
	case given && mode != static.ModeTAP:
		return cli.Usagef("--mac, --from-mac and --vlan are for tunnels that carry frames (device.mode: tap)")
	case given && !req.Bare:
		return cli.Usagef("--mac, --from-mac and --vlan are for a bare packet: what was captured has them already")
	case f.vlan > 4094:
		return cli.Usagef("--vlan %d: want 1-4094", f.vlan)
	}
	req.VLAN = f.vlan
	return errors.Join(parseStation("--mac", f.to, &req.ToMAC), parseStation("--from-mac", f.from, &req.FromMAC))
}

func parseStation(flag, text string, mac *encap.MAC) (err error) {
	if text == "" {
		return nil
	}
	if *mac, err = encap.ParseMAC(text); err != nil {
		return cli.Usagef("%s: %w", flag, err)
	}
	return nil
}

// parseTrace finds out what the arguments describe.
func parseTrace(args []string, from string, at vantage) (control.TraceRequest, error) {
	if from != "" {
		if _, err := netip.ParseAddr(from); err != nil {
			return control.TraceRequest{}, cli.Usagef("--from %q: want an underlay address, such as 172.30.0.2", from)
		}
	}
	if file, number, ok := captureReference(args); ok {
		frame, err := readCaptured(file, number)
		if err != nil {
			return control.TraceRequest{}, err
		}
		return at.classify(frame, from), nil
	}
	if data, ok := parseHex(args); ok {
		return at.classify(capturedFrame{data: data}, from), nil
	}
	packet, err := packetFromTuple(args)
	if err != nil {
		return control.TraceRequest{}, err
	}
	return control.TraceRequest{Decap: from != "", Data: packet, Bare: true, Outer: from}, nil
}

func printTrace(w io.Writer, t control.Trace) error {
	p := &printer{w: w}
	p.line("%-13s %s", t.Direction, t.Packet)
	for _, s := range t.Steps {
		p.line("%-13s %s", s.Step, s.Result)
	}
	verdict := t.Verdict
	if t.Reason != "" {
		verdict = fmt.Sprintf("%s: %s", t.Verdict, t.Reason)
	}
	p.line("%-13s %s", "verdict", verdict)
	p.line("%-13s %s", "why", t.Why)
	return p.err
}
