//go:build netns

package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vxlane/vxlane/bench/lab"
	"github.com/vxlane/vxlane/bench/traffic"
)

// openVSwitch is Open vSwitch with its userspace datapath in a host: a VXLAN implementation that shares no code with the kernel's. The
// underlay's device is a port of br-phy, which has its address; br-int has the overlay's.
type openVSwitch struct {
	*pair
	h   *lab.Host
	dir string
}

func (p *pair) startOVS(h *lab.Host, underlay string) *openVSwitch {
	p.t.Helper()
	for _, program := range []string{"ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl"} {
		if _, err := exec.LookPath(program); err != nil {
			p.t.Skip("skipped: needs Open vSwitch (Debian: openvswitch-switch); make ovs installs it")
		}
	}
	o := &openVSwitch{p, h, p.t.TempDir()}
	at := func(file string) string { return filepath.Join(o.dir, file) }
	p.exec(h, "ovsdb-tool", "create", at("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema")
	o.daemon("ovsdb-server", at("conf.db"), "--remote=punix:"+at("db.sock"), "--unixctl="+at("db.ctl"), "--log-file="+at("db.log"))
	o.daemon("ovs-vswitchd", "unix:"+at("db.sock"), "--unixctl="+at("vs.ctl"), "--log-file="+at("vs.log"), "--disable-system")
	for _, bridge := range []string{"br-phy", "br-int"} {
		o.vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
	}
	p.exec(h, "ip", "addr", "flush", "dev", "eth0")
	o.vsctl("add-port", "br-phy", "eth0")
	p.exec(h, "ip", "addr", "add", underlay, "dev", "br-phy", "nodad")
	p.exec(h, "ip", "link", "set", "br-phy", "up")
	return o
}

// daemon starts a program that ends with the lab.
func (o *openVSwitch) daemon(name string, args ...string) {
	o.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(cmd.Environ(), "OVS_RUNDIR="+o.dir)
	_, err := o.h.Start(cmd)
	must(o.t, err)
}

// vsctl changes the configuration, and waits until it is in force.
func (o *openVSwitch) vsctl(args ...string) {
	o.t.Helper()
	o.exec(o.h, "ovs-vsctl", append([]string{"--db=unix:" + filepath.Join(o.dir, "db.sock"), "--timeout=20", "--retry"}, args...)...)
}

// An implementation that is neither the kernel's nor ours, with and without outer checksums, over both families, in both modes.
func TestOpenVSwitch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, local, remote, length, options string
	}{
		{"IPv4", "172.30.0.1", "172.30.0.2", "/24", "options:csum=false"},
		{"IPv4 with checksums", "172.30.0.1", "172.30.0.2", "/24", "options:csum=true"},
		{"IPv6", "fd30::1", "fd30::2", "/64", "options:csum=true"},
	} {
		for _, mode := range []string{"tun", "tap"} {
			t.Run(c.name+" "+mode, func(t *testing.T) {
				p := newPair(t, wire{Offloads: noOffloads})
				o := p.startOVS(p.b, c.remote+c.length)
				o.vsctl("add-port", "br-int", "vx", "--", "set", "interface", "vx", "type=vxlan", "options:remote_ip="+c.local, "options:key=1", "options:dst_port=8472", c.options)
				p.exec(p.b, "ip", "link", "set", "br-int", "mtu", "1430", "up")
				must(t, p.b.AddAddresses("br-int", prefixes("10.99.0.2/24", "fd99::2/64")...))
				d := p.start(p.a, "--config", p.write("ovs.yaml", fmt.Sprintf(`version: 1
tunnels:
  - device: {mode: %s, mtu: 1430, addresses: [10.99.0.1/24, "fd99::1/64"]}
    underlay: {local: %q}
    peers: [{name: b, endpoint: %q, allowed_ips: [10.99.0.2, "fd99::2"]}]
    fdb: {learning: true}
`, mode, c.local, c.remote)))
				must(t, traffic.PingUntil(t.Context(), p.a, overlayB[0])) // its first packets bring up flows, and go by
				must(t, traffic.PingUntil(t.Context(), p.b, overlayA[1]))
				for _, size := range []int{56, 1300, 4000} {
					p.pingAll(size)
				}
				for i := range overlayA {
					p.tcp(p.a, p.b, overlayB[i], 200*time.Millisecond)
					p.tcp(p.b, p.a, overlayA[i], 200*time.Millisecond)
				}
				if mode == "tap" {
					mac, err := p.b.MAC("br-int")
					must(t, err)
					d.awaitEntry(mac.String(), "b")
				}
				for _, reason := range []string{"vxlan_invalid_hdr", "vxlan_vni_not_found", "pkt_too_small", "not_ip", "mac_invalid_source", "ip_tunnel_ecn"} {
					if drops := d.stats().Decap.Reasons; drops[reason] != 0 { // others are about addresses that br-int gives itself
						t.Errorf("drops %v", drops)
					}
				}
				d.stop()
			})
		}
	}
}
