package main

import (
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/tunnel"
)

const fdbLong = `Show and change the forwarding database of a tunnel in Ethernet mode (device.mode: tap): which peer a station is behind.

Entries are shown much as bridge(8) shows them, with the peer's port and name. permanent are those of the configuration (peers[].mac) and those that were added by hand; the
others were learned, with the time since their last frame. 00:00:00:00:00:00 stands for who gets what is for all, or for nobody
known: they follow from fdb.flood and fdb.group in the configuration.`

func newFDB() *cobra.Command {
	cmd := group("fdb", "show and change the forwarding database of a tunnel in Ethernet mode", newFDBShow(), newFDBAdd(), newFDBDel(), newFDBFlush(), newFDBMonitor())
	cmd.Long = fdbLong
	return cmd
}

func newFDBShow() *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show", Aliases: []string{"list"}, Short: "show every entry", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			f, err := c.FDB(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(cmd.OutOrStdout(), f)
			}
			p := &printer{w: cmd.OutOrStdout()}
			for i := range f.Entries {
				p.line("%s", fdbLine(f.Device, &f.Entries[i]))
			}
			return p.err
		},
	}
	t.addFlags(cmd)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

// fdbLine is an entry as bridge(8) prints it, with the peer's name.
func fdbLine(device string, e *tunnel.FDBEntry) string {
	line := e.MAC + " dev " + device
	if e.VLAN != 0 {
		line += fmt.Sprintf(" vlan %d", e.VLAN)
	}
	line += fmt.Sprintf(" dst %s peer %s self", e.Endpoint, e.Peer)
	switch {
	case e.Kind != tunnel.FDBLearned:
		line += " permanent"
	case e.Heard != nil:
		line += fmt.Sprintf(" used %d", int(time.Since(*e.Heard).Seconds()))
	}
	return line
}

func newFDBAdd() *cobra.Command {
	var t target
	req := control.FDBRequest{Op: "add"}
	cmd := &cobra.Command{
		Use: "add MAC", Short: "add a static entry, which learning never moves", Args: cli.ExactArgs(1, "a MAC"),
		Example: "  vxlane fdb add 02:00:00:00:00:07 --peer hb",
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.Peer == "" {
				return cli.Usagef("--peer is missing: the name of the peer that the station is behind")
			}
			req.MAC = args[0]
			_, err := changeFDB(cmd, &t, req)
			return err
		},
	}
	cmd.Flags().StringVar(&req.Peer, "peer", "", "`NAME` of the peer that the station is behind")
	cmd.Flags().Uint16Var(&req.VLAN, "vlan", 0, "VLAN of the station, 1-4094, with fdb.vlans")
	t.addFlags(cmd)
	return cmd
}

func newFDBDel() *cobra.Command {
	var t target
	req := control.FDBRequest{Op: "del"}
	cmd := &cobra.Command{
		Use: "del MAC", Short: "remove a static or learned entry", Args: cli.ExactArgs(1, "a MAC"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.MAC = args[0]
			_, err := changeFDB(cmd, &t, req)
			return err
		},
	}
	cmd.Flags().Uint16Var(&req.VLAN, "vlan", 0, "VLAN of the station, 1-4094, with fdb.vlans")
	t.addFlags(cmd)
	return cmd
}

func newFDBFlush() *cobra.Command {
	var t target
	req := control.FDBRequest{Op: "flush"}
	cmd := &cobra.Command{
		Use: "flush", Short: "remove the learned entries", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := changeFDB(cmd, &t, req)
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%d entries removed\n", n)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&req.Peer, "peer", "", "`NAME` of a peer: only what is behind it")
	cmd.Flags().BoolVar(&req.All, "all", false, "static entries that were added by hand, too")
	t.addFlags(cmd)
	return cmd
}

func changeFDB(cmd *cobra.Command, t *target, req control.FDBRequest) (int, error) {
	c, err := t.client()
	if err != nil {
		return 0, err
	}
	change, err := c.ChangeFDB(cmd.Context(), req)
	return change.Count, err
}

func newFDBMonitor() *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use: "monitor", Short: "show changes as they happen, until interrupted", Args: cli.NoArgs,
		Long: "Show changes of the forwarding database as they happen: new, move, age, add and del. With --json, one object a line.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			f, err := c.FDB(cmd.Context())
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return c.WatchFDB(ctx, func(e tunnel.FDBEvent) error { return printEvent(cmd.OutOrStdout(), f.Device, e, asJSON) })
		},
	}
	t.addFlags(cmd)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

func printEvent(w io.Writer, device string, e tunnel.FDBEvent, asJSON bool) error {
	if asJSON {
		return cli.PrintLine(w, control.FDBEvent{Schema: control.SchemaEvent, Device: device, FDBEvent: e})
	}
	from := ""
	if e.From != "" {
		from = " from " + e.From
	}
	_, err := fmt.Fprintf(w, "%-4s  %s%s\n", e.Op, fdbLine(device, &e.Entry), from)
	return err
}
