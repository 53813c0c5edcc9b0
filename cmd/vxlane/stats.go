package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/tunnel"
)

func newStats() *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use: "stats", Short: "show counters: what was moved, what was dropped and why", Args: cli.NoArgs,
		Long: "Show what became of the packets of each direction: received = delivered + consumed + dropped (+ held).\nencap is from the device to the underlay, decap the way back.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			s, err := c.Stats(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(cmd.OutOrStdout(), s)
			}
			return printStats(cmd.OutOrStdout(), s)
		},
	}
	t.addFlags(cmd)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

func printStats(w io.Writer, s control.Stats) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "%s\tencap\tdecap\t\n", s.Device)
	row := func(name string, of func(f *tunnel.Flow) uint64) {
		fmt.Fprintf(tw, "%s\t%d\t%d\t\n", name, of(&s.Encap), of(&s.Decap))
	}
	row("received", func(f *tunnel.Flow) uint64 { return f.Received })
	row("delivered", func(f *tunnel.Flow) uint64 { return f.Delivered })
	row("consumed", func(f *tunnel.Flow) uint64 { return f.Consumed })
	row("held", func(f *tunnel.Flow) uint64 { return f.Held })
	row("dropped", func(f *tunnel.Flow) uint64 { return f.Dropped })
	row("bytes delivered", func(f *tunnel.Flow) uint64 { return f.Bytes })
	if err := tw.Flush(); err != nil {
		return err
	}
	return printReasons(w, s)
}

func printReasons(w io.Writer, s control.Stats) error {
	words := make(map[string]bool)
	for _, f := range []*tunnel.Flow{&s.Encap, &s.Decap} {
		for word := range f.Reasons {
			words[word] = true
		}
	}
	p := &printer{w: w}
	if len(words) > 0 {
		p.line("\ndropped, by reason")
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, word := range slices.Sorted(maps.Keys(words)) {
			fmt.Fprintf(tw, "%s\t%d\t%d\t\n", word, s.Encap.Reasons[word], s.Decap.Reasons[word])
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for _, word := range slices.Sorted(maps.Keys(s.Decap.Suspects)) {
		p.line("%d received packets were let pass that a source check would drop if it enforced: %s", s.Decap.Suspects[word], word)
	}
	if s.Decap.OddECN > 0 {
		p.line("%d received packets had ECN fields that no sender should make (RFC 6040 section 4.2)", s.Decap.OddECN)
	}
	for _, word := range slices.Sorted(maps.Keys(s.Encap.CopiesDropped)) {
		p.line("%d copies of flooded frames were not sent: %s", s.Encap.CopiesDropped[word], word)
	}
	g := s.Generated
	p.line("\nsent by the tunnel itself: %d ARP requests, %d ARP replies, %d neighbour solicitations, %d advertisements, %d ICMP errors",
		g.ARPRequests, g.ARPReplies, g.Solicitations, g.Advertisements, g.ICMPErrors)
	if s.QueueOverflows > 0 {
		p.line("%d datagrams found the receive buffer full", s.QueueOverflows)
	}
	for _, errno := range slices.Sorted(maps.Keys(s.DeviceErrors)) {
		p.line("the device refused %d writes: %s", s.DeviceErrors[errno], errno)
	}
	for _, answer := range slices.Sorted(maps.Keys(s.OuterDrops)) {
		p.line("%d packets that left through the outer device had no way to their peer: %s", s.OuterDrops[answer], answer)
	}
	for _, errno := range slices.Sorted(maps.Keys(s.ReceiveErrors)) {
		p.line("receiving failed %d times and was tried again: %s", s.ReceiveErrors[errno], errno)
	}
	return p.err
}
