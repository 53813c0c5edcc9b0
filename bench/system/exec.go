package system

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/vxlane/vxlane/bench/network"
)

// ExecPrefix begins the name of a system that is any two commands.
const ExecPrefix = "exec:"

// ExecHelp tells users about such systems.
const ExecHelp = `exec:[NAME:]COMMAND[;;COMMAND] is any other tunnel: sh runs the first command on host a and the second on host b, or one command on
both. A command brings the tunnel up with the addresses that it finds in its environment, and stays until SIGTERM, or ends with 0
once the tunnel is set up. Everything in --system after exec: belongs to it, commas too. The environment:
  BENCH_HOST                               a or b
  BENCH_DEVICE, BENCH_MTU                  underlay device and its MTU
  BENCH_UNDERLAY, BENCH_UNDERLAY_PEER      underlay addresses of this host and the other, such as 172.30.0.1
  BENCH_ADDRESS, BENCH_ADDRESS_PEER        addresses in the tunnel, such as 10.99.0.1/24
  BENCH_PODS, BENCH_PODS_PEER              subnets of the pods behind the hosts, for workloads with -fwd`

const execSeparator = ";;"

var execName = regexp.MustCompile(`(?s)^([A-Za-z0-9][A-Za-z0-9_.-]*):(.*)$`)

// ParseExec reads the name of an exec: system.
func ParseExec(spec string) (System, error) {
	text, ok := strings.CutPrefix(spec, ExecPrefix)
	if !ok {
		return System{}, fmt.Errorf("system %q: want %sCOMMAND", spec, ExecPrefix)
	}
	name := ""
	if m := execName.FindStringSubmatch(text); m != nil {
		name, text = m[1], m[2]
	}
	commands := strings.Split(text, execSeparator)
	for i, c := range commands {
		commands[i] = strings.TrimSpace(c)
		if commands[i] == "" || len(commands) > 2 {
			return System{}, fmt.Errorf("system %q: want one or two commands, as in %sNAME:COMMAND%sCOMMAND", spec, ExecPrefix, execSeparator)
		}
	}
	if name == "" {
		name = filepath.Base(strings.Fields(commands[0])[0])
	}
	if len(commands) == 1 {
		commands = append(commands, commands[0])
	}
	return System{
		Name: ExecPrefix + name, Summary: strings.Join(commands, " "+execSeparator+" "),
		start: func(n *network.Network) (*Instance, error) { return startExec(n, commands) },
	}, nil
}

func startExec(n *network.Network, commands []string) (*Instance, error) {
	in := overlay(n)
	for i, pair := range n.Sides() {
		near, far := pair[0], pair[1]
		cmd := exec.Command("/bin/sh", "-c", commands[i])
		cmd.Env = append(os.Environ(),
			"BENCH_HOST="+near.Host.Name(), "BENCH_DEVICE="+network.Device, "BENCH_MTU="+strconv.Itoa(n.Profile.MTU),
			"BENCH_UNDERLAY="+near.Underlay.String(), "BENCH_UNDERLAY_PEER="+far.Underlay.String(),
			"BENCH_ADDRESS="+near.Address.String(), "BENCH_ADDRESS_PEER="+far.Address.String(),
			"BENCH_PODS="+near.Pods.String(), "BENCH_PODS_PEER="+far.Pods.String(),
		)
		if err := in.run(near.Host, strconv.Quote(commands[i]), cmd); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// Find returns the system that a user calls name.
func Find(all []System, name string) (System, error) {
	if strings.HasPrefix(name, ExecPrefix) {
		return ParseExec(name)
	}
	var names []string
	for _, s := range all {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return System{}, fmt.Errorf("unknown system %q; known: %s, %sCOMMAND", name, strings.Join(names, ", "), ExecPrefix)
}

var errNoFlannel = errors.New("this program was built without flannel's C proxy; build it with: " +
	"CGO_ENABLED=1 go build -tags flannel ./cmd/vxlane-bench (amd64 with gcc only), or run make bench")

// FlannelPeerCommand is the hidden command of this program that runs one end of flannel's udp backend; its arguments are
// those of RunFlannelPeer.
const FlannelPeerCommand = "flannel-peer"
