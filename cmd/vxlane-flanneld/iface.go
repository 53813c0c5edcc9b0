package main

import (
	"errors"
	"fmt"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
)

// externalInterface chooses the interface to other nodes in flanneld's order: --iface, --iface-regex, --iface-can-reach, each in the order
// given; without any of them the one that has --public-ip, else that of the default route.
func externalInterface(o *options, config *subnet.Config) (*backend.ExternalInterface, error) {
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return nil, err
	}
	public := ipmatch.PublicIPOpts{PublicIP: o.publicIP, PublicIPv6: o.publicIPv6}
	if len(o.iface) == 0 && len(o.ifaceRegex) == 0 && o.ifaceCanReach == "" {
		name := o.publicIP
		if name == "" {
			name = o.publicIPv6
		}
		found, err := ipmatch.LookupExtIface(name, "", "", stack, public)
		if err != nil {
			return nil, fmt.Errorf("find an interface to other nodes: %w: name one with --iface", err)
		}
		return found, nil
	}
	var misses []error
	try := func(name, regex, reach string) *backend.ExternalInterface {
		found, err := ipmatch.LookupExtIface(name, regex, reach, stack, public)
		if err != nil {
			misses = append(misses, fmt.Errorf("%s%s%s: %w", name, regex, reach, err))
		}
		return found
	}
	for _, name := range o.iface {
		if found := try(name, "", ""); found != nil {
			return found, nil
		}
	}
	for _, regex := range o.ifaceRegex {
		if found := try("", regex, ""); found != nil {
			return found, nil
		}
	}
	if o.ifaceCanReach != "" {
		if found := try("", "", o.ifaceCanReach); found != nil {
			return found, nil
		}
	}
	return nil, fmt.Errorf("find an interface to other nodes: none matches --iface, --iface-regex or --iface-can-reach: %w", errors.Join(misses...))
}
