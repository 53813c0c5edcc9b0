package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
)

func TestBackendConfig(t *testing.T) {
	external := &backend.ExternalInterface{Iface: &net.Interface{MTU: 1500}, IfaceName: "eth0"}
	network := func(text string) *subnet.Config { return &subnet.Config{Backend: json.RawMessage(text)} }
	for _, c := range []struct {
		text, variable string
		want           vxlanConfig
		err            string
	}{
		{``, "", vxlanConfig{VNI: 1, MTU: 1500, Dataplane: "auto"}, ""},
		{`{"type": "vxlan", "vni": 7, "port": 4789, "mtu": 1400, "DATAPLANE": "userspace"}`, "", vxlanConfig{VNI: 7, Port: 4789, MTU: 1400, Dataplane: "userspace"}, ""},
		{`{"Dataplane": "userspace"}`, "kernel", vxlanConfig{VNI: 1, MTU: 1500, Dataplane: "kernel"}, ""},
		{`{"dataplane": "Userspace", "udpport": 8285}`, "", vxlanConfig{VNI: 1, MTU: 1500, Dataplane: "userspace", UDPPort: 8285}, ""},
		{`{"Dataplane": "fast"}`, "", vxlanConfig{}, `Backend.Dataplane: "fast": want auto, kernel or userspace`},
		{`{}`, "fast", vxlanConfig{}, `VXLANE_VXLAN_DATAPLANE: "fast": want`},
		{`{"Port": "x"}`, "", vxlanConfig{}, "network configuration: Backend:"},
		{`{"Port": 70000}`, "", vxlanConfig{}, "network configuration: Backend:"},
	} {
		t.Setenv(dataplaneVariable, c.variable)
		got, err := (&vxlanBackend{ourBackend{external: external}}).parse(network(c.text))
		switch {
		case c.err == "" && (err != nil || got != c.want):
			t.Errorf("%s: %+v, %v, want %+v", c.text, got, err, c.want)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: %v, want %s", c.text, err, c.err)
		}
	}
	for text, want := range map[string]udpConfig{
		``:                                    {8285, 1500, ""},
		`{"Type": "udp", "PORT": 9285}`:       {9285, 1500, ""},
		`{"type": "udp", "mtu": 1400, "x":1}`: {8285, 1400, ""},
	} {
		if got, err := (&udpBackend{ourBackend{external: external}}).parse(network(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func TestOurDevices(t *testing.T) {
	for name, want := range map[string]bool{"flannel0": true, "flannel.1": true, "flannel-v6.1": true, "flannel-v6": false, "flannel.4096": true, "flannel1": false, "flannel.": false, "flannel.1x": false, "eth0": false, "flannel.01": false} {
		if ours(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

// racer is a manager whose subnet another node takes a few times.
type racer struct {
	subnet.Manager
	losses int
	fail   error
}

func (r *racer) AcquireLease(context.Context, *lease.LeaseAttrs) (*lease.Lease, error) {
	if r.losses > 0 {
		r.losses--
		return nil, r.fail
	}
	return new(lease.Lease), nil
}

// A subnet that another node took at the same moment is no reason to end: the next one is tried.
func TestAcquireAfterARace(t *testing.T) {
	for _, c := range []struct {
		losses int
		fail   string
		ok     bool
	}{{0, "", true}, {3, "subnet already exists", true}, {100, "subnet already exists", false}, {1, "no leader", false}} {
		b := &ourBackend{manager: &racer{losses: c.losses, fail: errors.New(c.fail)}}
		if _, err := b.acquire(t.Context(), nil); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
