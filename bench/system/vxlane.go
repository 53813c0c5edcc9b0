package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/network"
)

var errNoVXLANE = errors.New("there is no vxlane beside this program or in PATH: run make build, or name it with --vxlane PATH")

// vxlane returns how vxlane is started with some more flags.
func (t Tools) vxlane(flags ...string) func(*network.Network) (*Instance, error) {
	return func(n *network.Network) (*Instance, error) {
		in := overlay(n)
		in.MakesRoutes = true
		for _, pair := range n.Sides() {
			near, far := pair[0], pair[1]
			args := append([]string{
				"up", "--local", near.Underlay.String(), "--address", near.Address.String(), "--peer",
				fmt.Sprintf("name=%s,endpoint=%s,allowed_ips=%s,allowed_ips=%s", far.Host.Name(), far.Underlay, far.Address.Addr(), far.Pods),
			}, flags...)
			line := "vxlane up … " + strings.Join(flags, " ")
			if err := in.run(near.Host, line, exec.Command(t.VXLANE, args...)); err != nil {
				return nil, err
			}
		}
		in.describe = func() map[string]string { return t.about(n.A.Host) }
		return in, nil
	}
}

// about asks the tunnel in h for its tier and the program for its version; what cannot be had is left out.
func (t Tools) about(h *lab.Host) map[string]string {
	about := make(map[string]string)
	for _, q := range []struct {
		key  string
		args []string
	}{{"tier", []string{"status", "--json"}}, {"version", []string{"version", "--json"}}} {
		var out []byte
		err := h.Run(func() (err error) {
			out, err = exec.Command(t.VXLANE, q.args...).Output()
			return err
		})
		var answer map[string]any
		if err != nil || json.Unmarshal(out, &answer) != nil {
			continue
		}
		if value, ok := answer[q.key].(string); ok {
			about[q.key] = value
		}
	}
	return about
}
