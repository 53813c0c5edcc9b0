package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vxlane/vxlane/cmd/internal/cli"
	"github.com/vxlane/vxlane/encap"
	"github.com/vxlane/vxlane/routing/static"
)

const upLong = `Bring a tunnel up and keep it up until SIGTERM or SIGINT. It is described by a file, or by flags; the defaults are the same.

With flags, --local is needed; peers can also come later (vxlane peer apply). Each --peer is a list of KEY=VALUE separated by commas:
  endpoint=ADDRESS[:PORT]     underlay address of the peer
  allowed_ips=PREFIX          addresses behind it; can be repeated
  mac=MAC                     of its VTEP; asked for by default
  name=NAME                   the endpoint by default
  super_packets=false         for one that takes no datagrams of 64 KB (tier tunnel-gso)

SIGHUP, vxlane reload and any change of the file read the file again; a bad file changes nothing.`

const upExample = `  vxlane up --local 172.30.0.1 --address 10.99.0.1/24 --peer endpoint=172.30.0.2,allowed_ips=10.99.0.2/32
  vxlane up --config /etc/vxlane/vxlane.yaml

  # the other side, with the kernel's own device:
  ip link add vxlan0 type vxlan id 1 remote 172.30.0.1 dstport 8472
  ip addr add 10.99.0.2/24 dev vxlan0 && ip link set vxlan0 up`

// upFlags are the flags that describe a tunnel.
type upFlags struct {
	config, socket string

	local, device, mode, mac, encap, tier, metrics string
	addresses, peers                               []string
	mtu, port                                      int
	vni                                            int64
}

func newUp() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use: "up", Short: "bring a tunnel up and keep it up", Long: upLong, Example: upExample, Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, file, err := f.load(cmd.Flags())
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return runUp(ctx, config, file, f.socket, log)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func (f *upFlags) add(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringVar(&f.config, "config", "", "configuration `FILE` (default "+static.DefaultPath+" when no other flag is given)")
	fs.StringVar(&f.local, "local", "", "underlay `ADDRESS` of this host")
	fs.StringArrayVar(&f.addresses, "address", nil, "`ADDRESS/LENGTH` of the device; can be repeated")
	fs.StringArrayVar(&f.peers, "peer", nil, "a peer, as `KEY=VALUE,…`; can be repeated")
	fs.StringVar(&f.device, "device", "", "`NAME` of the device (default vxlane0, vxlane1, …)")
	fs.StringVar(&f.mode, "mode", string(static.ModeTUN), "what the device carries: tun (IP packets) or tap (Ethernet frames)")
	fs.IntVar(&f.mtu, "mtu", 0, "largest packet of the device in `BYTES` (default: underlay MTU minus the outer headers)")
	fs.StringVar(&f.mac, "mac", "", "`MAC` of this VTEP (default: derived from --local and --vni)")
	fs.StringVar(&f.encap, "encap", string(encap.FramingVXLAN), "framing: vxlan or flannel-udp")
	fs.Int64Var(&f.vni, "vni", 1, "VXLAN network identifier")
	fs.IntVar(&f.port, "port", 0, "UDP `PORT` (default 8472, with flannel-udp 8285)")
	fs.StringVar(&f.tier, "tier", string(static.TierAuto), "kernel offloads to use: auto, tunnel-gso, udp-gso or portable")
	fs.StringVar(&f.metrics, "metrics", "", "`ADDRESS:PORT` that serves Prometheus metrics (default: off)")
	fs.StringVar(&f.socket, "socket", "", "`PATH` of the control socket (default: in /run/vxlane)")
}

// load returns the configuration, and the file that it came from when it did.
func (f *upFlags) load(fs *pflag.FlagSet) (*static.Config, string, error) {
	described := ""
	fs.Visit(func(flag *pflag.Flag) {
		if flag.Name != "config" && flag.Name != "socket" {
			described = flag.Name
		}
	})
	if fs.Changed("port") && (f.port < 1 || f.port > 65535) {
		return nil, "", cli.Usagef("--port %d: want 1-65535", f.port)
	}
	switch {
	case f.config != "" && described != "":
		return nil, "", cli.Usagef("--config and --%s exclude each other: put it into the file", described)
	case described != "":
		config, err := f.fromFlags()
		return config, "", err
	case f.config == "":
		f.config = static.DefaultPath
		if _, err := os.Stat(f.config); errors.Is(err, os.ErrNotExist) {
			return nil, "", cli.Usagef("nothing to bring up: %s is not there; write it, or describe a tunnel with --local, --address and --peer", f.config)
		}
	}
	config, err := loadConfig(f.config)
	if err != nil {
		return nil, "", err
	}
	file, err := filepath.Abs(f.config) // as status tells it to people who are elsewhere
	return config, file, err
}

// loadConfig is static.Load with a missing file counted as a wrong configuration.
func loadConfig(path string) (*static.Config, error) {
	config, err := static.Load(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return nil, cli.Usagef("%w: want a configuration file; see --config", err)
	}
	return config, err
}

func (f *upFlags) fromFlags() (*static.Config, error) {
	t := static.NewTunnel()
	t.Tier = static.Tier(f.tier)
	errs := []error{
		f.fillDevice(&t.Device),
		f.fillUnderlay(&t.Underlay),
	}
	for _, p := range f.peers {
		peer, err := parsePeer(p)
		errs = append(errs, err)
		t.Peers = append(t.Peers, peer)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if f.local == "" {
		return nil, cli.Usagef("--local is missing: the underlay address of this host, such as --local 172.30.0.1")
	}
	config := &static.Config{Version: 1, Tunnels: []static.Tunnel{t}, Metrics: static.Metrics{Listen: f.metrics, MaxPeers: 1000}}
	config.Tunnels[0].Routes = config.Tunnels[0].Device.Mode != static.ModeTAP // as in a file that says nothing of it
	config.Complete()
	return config, config.Check("command line")
}

func (f *upFlags) fillDevice(d *static.Device) error {
	d.Name, d.MTU, d.Mode = f.device, f.mtu, static.Mode(f.mode)
	var errs []error
	for _, a := range f.addresses {
		prefix, err := netip.ParsePrefix(a)
		if err != nil {
			errs = append(errs, cli.Usagef("--address %q: want an address with prefix length, such as 10.99.0.1/24", a))
		}
		d.Addresses = append(d.Addresses, prefix)
	}
	if f.mac != "" {
		mac, err := encap.ParseMAC(f.mac)
		if err != nil {
			errs = append(errs, cli.Usagef("--mac: %w", err))
		}
		d.MAC = mac
	}
	return errors.Join(errs...)
}

func (f *upFlags) fillUnderlay(u *static.Underlay) error {
	u.Encap = encap.Framing(f.encap)
	var errs []error
	if f.local != "" {
		local, err := netip.ParseAddr(f.local)
		if err != nil {
			errs = append(errs, cli.Usagef("--local %q: want an address of this host, such as 172.30.0.1", f.local))
		}
		u.Local = local
	}
	u.Port = uint16(f.port)
	vni, err := encap.NewVNI(uint64(f.vni))
	if err != nil {
		errs = append(errs, cli.Usagef("--vni %d: want 0-16777215", f.vni))
	}
	u.VNI = uint32(vni)
	return errors.Join(errs...)
}

// parsePeer reads the value of one --peer.
func parsePeer(s string) (static.Peer, error) {
	p := static.NewPeer()
	seen := make(map[string]bool)
	for _, field := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return p, cli.Usagef("--peer %q: %q is not KEY=VALUE; repeat the key for a second value, as in allowed_ips=A,allowed_ips=B", s, field)
		}
		if seen[key] && key != "allowed_ips" {
			return p, cli.Usagef("--peer %q: %s is given twice", s, key)
		}
		seen[key] = true
		if err := setPeerField(&p, key, value); err != nil {
			return p, cli.Usagef("--peer %q: %w", s, err)
		}
	}
	return p, nil
}

func setPeerField(p *static.Peer, key, value string) (err error) {
	switch key {
	case "name":
		p.Name = value
	case "endpoint":
		err = p.Endpoint.UnmarshalText([]byte(value))
	case "mac":
		err = p.MAC.UnmarshalText([]byte(value))
	case "super_packets":
		if p.SuperPackets = value == "true"; !p.SuperPackets && value != "false" {
			err = fmt.Errorf("%q is neither true nor false", value)
		}
	case "allowed_ips":
		var prefix static.Prefix
		err = prefix.UnmarshalText([]byte(value))
		p.AllowedIPs = append(p.AllowedIPs, prefix)
	default:
		return fmt.Errorf("unknown key %q; known here: endpoint, allowed_ips, mac, name, super_packets", key)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}
