package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/cmd/internal/control"
)

func newPeer() *cobra.Command {
	return group("peer", "list or replace the peers of a running tunnel", newPeerList(), newPeerApply())
}

func newPeerList() *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"show"}, Short: "list peers: where they are, what is behind them, what was moved", Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			peers, err := c.Peers(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(cmd.OutOrStdout(), peers)
			}
			return printPeers(cmd.OutOrStdout(), peers)
		},
	}
	t.addFlags(cmd)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

func printPeers(w io.Writer, peers control.Peers) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tENDPOINT\tMAC\tSTATE\tSENT\tRECEIVED\tLAST RECEIVED\tALLOWED IPS")
	for _, p := range peers.Peers {
		mac, last := "-", "never"
		if p.MAC != "" {
			mac = p.MAC
		}
		if p.LastReceive != nil {
			last = age(*p.LastReceive) + " ago"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", p.Name, p.Endpoint, mac, p.State, p.Encap.Packets, p.Decap.Packets, last, strings.Join(p.AllowedIPs, " "))
	}
	return tw.Flush()
}

const applyLong = `Replace the whole set of peers of a running tunnel: those in the document stay or are added, all others are removed.
Any program can be the control plane of a tunnel so. The document is YAML or JSON, in the notation of the configuration
file: a list of peers, or the key peers with one. It is taken as a whole or not at all. The configuration file is not
changed; its next reload replaces the set again.`

const applyExample = `  vxlane peer apply -f peers.yaml
  echo '[{"name": "hb", "endpoint": "172.30.0.2", "allowed_ips": ["10.99.0.2/32"]}]' | vxlane peer apply -f -`

func newPeerApply() *cobra.Command {
	var t target
	var asJSON bool
	var file string
	cmd := &cobra.Command{
		Use: "apply -f FILE|-", Short: "replace the whole set of peers", Long: applyLong, Example: applyExample, Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return cli.Usagef("which peers? say -f FILE, or -f - for standard input")
			}
			origin, data, err := readInput(file, cmd.InOrStdin())
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			change, err := c.Apply(cmd.Context(), origin, data)
			if err != nil {
				return err
			}
			return printChanges(cmd.OutOrStdout(), []control.Change{change}, asJSON)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "`FILE` with the peers, - for standard input")
	t.addFlags(cmd)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}

// readInput reads a file or, for "-", stdin, and returns the name it goes by in errors.
func readInput(file string, stdin io.Reader) (origin string, data []byte, err error) {
	if file == "-" {
		data, err = io.ReadAll(stdin)
		return "stdin", data, err
	}
	data, err = os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrPermission):
		return file, nil, fmt.Errorf("read peers: %w", err)
	case err != nil:
		return file, nil, cli.Usagef("read peers: %w", err)
	}
	return file, data, nil
}

// printChanges prints what changed; problems make the exit code that of a degraded tunnel.
func printChanges(w io.Writer, changes []control.Change, asJSON bool) error {
	var problems error
	p := &printer{w: w}
	for _, c := range changes {
		if len(c.Problems) > 0 {
			problems = errDegraded
		}
		if asJSON {
			continue
		}
		p.line("%s", c.Result)
		for _, key := range c.NeedsRestart {
			p.line("%s changed: it takes effect at the next start", key)
		}
		for _, problem := range c.Problems {
			p.line("wrong: %s", problem)
		}
	}
	if asJSON && len(changes) > 0 {
		p.err = printAnswers(w, changes)
	}
	return errors.Join(p.err, problems)
}

func newReload() *cobra.Command {
	var t target
	var asJSON bool
	cmd := &cobra.Command{
		Use: "reload", Short: "have the configuration file read again", Args: cli.NoArgs,
		Long: "Have every tunnel of this network namespace read its configuration file again. A bad file changes nothing.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			clients, err := t.clients()
			if err != nil {
				return err
			}
			var changes []control.Change
			var errs []error
			for _, c := range clients {
				change, err := c.Reload(cmd.Context())
				if err != nil {
					errs = append(errs, err)
					continue
				}
				changes = append(changes, change)
			}
			return errors.Join(append(errs, printChanges(cmd.OutOrStdout(), changes, asJSON))...)
		},
	}
	t.addFlags(cmd)
	cli.AddJSON(cmd, &asJSON)
	return cmd
}
