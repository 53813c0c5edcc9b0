package tunnel

import (
	"fmt"

	"github.com/safchain/ethtool"
)

// groForwarding is the kernel's name for the feature that makes a veth device do GRO for UDP.
const groForwarding = "rx-udp-gro-forwarding"

// NICCapabilities returns the features of the underlay's device that receiving trains depends on, and what its owner could
// do about those that are off. Devices that do without are not spoken of, nor those that cannot be asked.
//
// A veth device hands what it receives to GRO only when its peer segments in software, or when it has this feature
// (drivers/net/veth.c, veth_skb_is_eligible_for_gro); a train that was segmented on the way is received datagram by
// datagram otherwise. It changes how the host forwards UDP as well, so it is the owner's to turn on.
func NICCapabilities(device string) []Capability {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return nil
	}
	defer e.Close()
	driver, err := e.DriverName(device)
	if err != nil || driver != "veth" {
		return nil
	}
	features, err := e.Features(device)
	if err != nil {
		return nil
	}
	c := Capability{Name: groForwarding, Enabled: features[groForwarding] || features["rx-gro-list"]}
	if !c.Enabled {
		c.Reason = fmt.Sprintf("off on %s, which receives segmented trains datagram by datagram; faster, but it changes how this host forwards UDP: ethtool -K %s %s on", device, device, groForwarding)
	}
	return []Capability{c}
}
