package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
	"github.com/vxlane/vxlane/tunnel"
)

func newStatus() *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show what runs here and how it is", Args: cli.NoArgs,
		Long: "Show the tunnels of this network namespace: device, underlay, tier, kernel features and what is wrong.\nThe exit code is 3 when a tunnel runs but not as it should.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			clients, err := t.clients()
			if err != nil {
				return err
			}
			var all []control.Status
			var errs []error
			for _, c := range clients {
				s, err := c.Status(cmd.Context())
				if err != nil {
					errs = append(errs, err)
					continue
				}
				all = append(all, s)
				if len(s.Degraded) > 0 {
					errs = append(errs, errDegraded)
				}
			}
			return errors.Join(append(errs, printStatuses(cmd.OutOrStdout(), all, asJSON))...)
		},
	}
	t.addFlags(cmd)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

func printStatuses(w io.Writer, all []control.Status, asJSON bool) error {
	if len(all) == 0 {
		return nil
	}
	if asJSON {
		return printAnswers(w, all)
	}
	for _, s := range all {
		if err := printStatus(w, s); err != nil {
			return err
		}
	}
	return nil
}

func printStatus(w io.Writer, s control.Status) error {
	state := "up"
	if len(s.Degraded) > 0 {
		state = "degraded"
	}
	p := &printer{w: w}
	p.line("%s: %s for %s, %s tier, %s, pid %d", s.Device.Name, state, age(s.Started), s.Tier, count(s.Device.Queues, "queue"), s.PID)
	for _, d := range s.Degraded {
		p.line("  wrong        %s", d)
	}
	for _, a := range s.Device.AddressesNow {
		p.line("  address      %s", a)
	}
	p.line("  device       %s, mtu %d, mac %s", s.Device.Mode, s.Device.MTU, s.Device.MAC)
	p.line("  underlay     %s%s, %s port %d, on %s (mtu %d)", s.Underlay.Encap, vniOf(s), s.Underlay.Local, s.Underlay.Port, s.Underlay.Device, s.Underlay.MTU)
	p.line("  source ports %s of %s", count(len(s.Underlay.SourcesUsed), "port"), mustText(s.Underlay.SourcePorts.Range))
	p.line("  peers        %d, %d of them can be sent to", s.Peers.Total, s.Peers.Up)
	for _, path := range s.Paths {
		p.line("  path         %s", path)
	}
	if s.Config != nil {
		p.line("  config       %s, read %s ago", s.Config.File, age(s.Config.LastReload))
	}
	printFeatures(p, s.Capabilities)
	for _, c := range s.HostChanges {
		p.line("  changed here %s", c)
	}
	return p.err
}

// printFeatures prints the features that are on, and those that are off by what keeps them so.
func printFeatures(p *printer, all []tunnel.Capability) {
	var reasons []string // in order; "" stands for on
	names := make(map[string][]string)
	for _, c := range all {
		if names[c.Reason] == nil {
			reasons = append(reasons, c.Reason)
		}
		names[c.Reason] = append(names[c.Reason], c.Name)
	}
	for _, reason := range reasons {
		list := strings.Join(names[reason], ", ")
		if reason == "" {
			p.line("  features on  %s", list)
		} else {
			p.line("  features off %s: %s", list, reason)
		}
	}
}

func vniOf(s control.Status) string {
	if s.Underlay.Encap != "vxlan" {
		return ""
	}
	return fmt.Sprintf(" vni %d", s.Underlay.VNI)
}

// printer writes lines until one fails.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func mustText(v interface{ MarshalText() ([]byte, error) }) string {
	text, err := v.MarshalText()
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func count(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

// age returns the time since t in whole seconds.
func age(t time.Time) string { return time.Since(t).Truncate(time.Second).String() }
