//go:build netns

package main

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

var ethtoolLine = regexp.MustCompile(`ethtool -K (\S+)((?: \S+ on)+)$`)

// What status advises for a device that takes trains apart is a command that its owner can type, tells that it was followed, and
// does what it is said to: what arrived datagram by datagram arrives in trains. A veth device has no GRO at all unless it is told.
func TestAdviceForReceiving(t *testing.T) {
	t.Parallel()
	p := newPair(t, wire{Offloads: map[string]bool{"tx-udp-segmentation": false, "tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false}})
	d := p.start(p.a, upArgs("--tier", "udp-gso")...)
	far := p.start(p.b, "--local", "172.30.0.2", "--address", "10.99.0.2/24", "--peer", "endpoint=172.30.0.1,allowed_ips=10.99.0.1")
	perMessage := func() float64 {
		before, messages := d.stats().Decap.Received, p.netstat(p.a)["Udp.InDatagrams"]
		p.tcp(p.b, p.a, overlayA[0], 300*time.Millisecond)
		return float64(d.stats().Decap.Received-before) / float64(p.netstat(p.a)["Udp.InDatagrams"]-messages)
	}
	advised := func(want string) {
		t.Helper()
		c := capability(d.status(), "rx-udp-gro-forwarding")
		advice := ethtoolLine.FindStringSubmatch(c.Reason)
		if c.Enabled || advice == nil || advice[2] != want {
			t.Fatalf("%+v, want advice to set%s", c, want)
		}
		if n := perMessage(); n > 1.01 {
			t.Errorf("before the advice was followed, %.2f datagrams came in a message", n)
		}
		settings := make(map[string]bool)
		for name := range strings.SplitSeq(strings.ReplaceAll(advice[2], " on", ""), " ") {
			if name != "" {
				settings[name] = true
			}
		}
		must(t, p.a.SetOffloads(advice[1], settings))
		if c := capability(d.status(), "rx-udp-gro-forwarding"); !c.Enabled || c.Reason != "" {
			t.Errorf("after the advice was followed: %+v", c)
		}
		if n := perMessage(); n < 3 {
			t.Errorf("after the advice was followed, %.2f datagrams came in a message", n)
		}
	}
	advised(" rx-gro on rx-udp-gro-forwarding on")
	for _, one := range []string{"rx-gro", "rx-udp-gro-forwarding"} {
		must(t, p.a.SetOffloads("eth0", map[string]bool{one: false}))
		advised(" " + one + " on")
	}
	d.stop()
	far.stop()
}
