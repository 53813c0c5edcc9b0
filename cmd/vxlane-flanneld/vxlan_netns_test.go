//go:build netns

package main

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

const vxlanNetwork = `{"Network": "10.10.0.0/16", "Backend": {"Type": "vxlan"}}`

// deviceType returns what kind of device a node's flannel.1 is.
func (n *member) deviceType() (kind string) {
	n.c.t.Helper()
	err := n.host.Run(func() error {
		l, err := netlink.LinkByName("flannel.1")
		if err == nil {
			kind = l.Type()
		}
		return err
	})
	if err != nil {
		n.c.t.Fatal(err)
	}
	return kind
}

// vtepMAC is what a lease says of the VTEP.
func vtepMAC(lease string) string {
	_, rest, _ := strings.Cut(lease, `"VtepMAC":"`)
	mac, _, _ := strings.Cut(rest, `"`)
	return mac
}

// vxlane's dataplane and flannel's own vxlan backend, with the kernel's device, talk; nodes change from one to the other, in
// both directions, and keep their subnets.
func TestVXLANDataplanes(t *testing.T) {
	c := newCluster(t, vxlanNetwork)
	const userspace, kernel = "userspace", "kernel"
	kinds := map[string]string{userspace: "tuntap", kernel: "vxlan"}
	macs := make(map[*member]string)
	for _, dataplanes := range [][2]string{{userspace, kernel}, {userspace, userspace}, {kernel, userspace}, {kernel, kernel}, {userspace, kernel}} {
		for i, n := range []*member{c.a, c.b} {
			before := n.subnet
			if n.command != nil {
				if err := n.command.Stop(); err != nil {
					t.Errorf("%v\n%s", err, n.output())
				}
			}
			n.env = []string{dataplaneVariable + "=" + dataplanes[i]}
			n.start("vxlane-flanneld")
			if before.IsValid() && n.subnet != before {
				t.Errorf("%v: %s has %s, had %s", dataplanes, n.host.Name(), n.subnet, before)
			}
			mac := vtepMAC(c.etcd.get(n.key()))
			if was := macs[n]; dataplanes[i] == userspace && was != "" && was != mac { // flannel's own code takes a new one
				t.Errorf("%v: %s has MAC %s, had %s", dataplanes, n.host.Name(), mac, was)
			}
			macs[n] = mac
			if got := n.deviceType(); got != kinds[dataplanes[i]] {
				t.Errorf("%v: the device of %s is a %s", dataplanes, n.host.Name(), got)
			}
		}
		c.both()
	}
}

// Without being told, the kernel's vxlan is taken where there is one.
func TestVXLANAuto(t *testing.T) {
	c := newCluster(t, vxlanNetwork)
	want := "vxlan"
	err := c.a.host.Run(func() error {
		has, err := kernelHasVXLAN()
		if !has {
			want = "tuntap"
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.a.start("vxlane-flanneld")
	if got := c.a.deviceType(); got != want {
		t.Errorf("%s, want %s\n%s", got, want, c.a.output())
	}
	if out := c.a.run("vxlane-flanneld", "cleanup"); out != "" {
		t.Errorf("cleanup: %s", out)
	}
}
