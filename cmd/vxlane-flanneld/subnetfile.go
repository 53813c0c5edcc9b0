package main

import (
	"math/big"
	"net"
	"os"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/joho/godotenv"
	"k8s.io/klog/v2"
)

// previous is what the subnet file of the run before says, which leases and masquerade rules go on from.
type previous struct {
	network, subnet   ip.IP4Net
	network6, subnet6 ip.IP6Net
}

// readSubnetFile reads what is there; what is missing or wrong is logged and left empty.
func readSubnetFile(path string) previous {
	none6 := ip.IP6Net{IP: (*ip.IP6)(big.NewInt(0))}
	p := previous{network6: none6, subnet6: none6}
	values, err := godotenv.Read(path)
	if err != nil {
		if !os.IsNotExist(err) {
			klog.Errorf("read previous subnet from %s: %v", path, err)
		}
		return p
	}
	for key, set := range map[string]func(*net.IPNet){
		"FLANNEL_NETWORK":      func(n *net.IPNet) { p.network = ip.FromIPNet(n) },
		"FLANNEL_SUBNET":       func(n *net.IPNet) { p.subnet = ip.FromIPNet(n) },
		"FLANNEL_IPV6_NETWORK": func(n *net.IPNet) { p.network6 = ip.FromIP6Net(n) },
		"FLANNEL_IPV6_SUBNET":  func(n *net.IPNet) { p.subnet6 = ip.FromIP6Net(n) },
	} {
		value, ok := values[key]
		if !ok {
			continue
		}
		if _, cidr, err := net.ParseCIDR(value); err == nil {
			set(cidr)
		} else {
			klog.Errorf("read previous subnet from %s: %s: %v", path, key, err)
		}
	}
	return p
}
