package tunnel

import (
	"fmt"

	"github.com/safchain/ethtool"
)

// The kernel's names for features of a device (net/ethtool/common.c, netdev_features_strings).
const (
	receiveOffload       = "rx-gro"
	groForwarding        = "rx-udp-gro-forwarding" // a veth device does GRO for UDP
	tunnelSegmentation   = "tx-udp_tnl-segmentation"
	tunnelSegmentationCS = "tx-udp_tnl-csum-segmentation" // with outer checksums
	trainSegmentation    = "tx-udp-segmentation"
)

// NICCapabilities returns the features of the underlay's device that a tier depends on, and what its owner could do about
// those that are off. Devices that do without are not spoken of, nor those that cannot be asked.
func (u *UDP) NICCapabilities(device string, tier Tier) []Capability {
	if tier == TierPortable {
		return nil
	}
	e, err := ethtool.NewEthtool()
	if err != nil {
		return nil
	}
	defer e.Close()
	features, err := e.Features(device)
	if err != nil {
		return nil
	}
	var all []Capability
	if driver, err := e.DriverName(device); err == nil && driver == "veth" {
		all = append(all, receivesTrains(device, features))
	}
	if tier == TierTunnelGSO {
		checksum := !u.cfg.NoChecksum
		if u.cfg.Local.Is6() {
			checksum = !u.cfg.NoChecksum6TX
		}
		all = append(all, segmentsTunnels(device, features, checksum, u.outer.trains != nil && u.outer.trains.on()))
	}
	return all
}

// A veth device hands what it receives to GRO when it has GRO, which is off unless somebody turns it on (drivers/net/veth.c,
// veth_disable_gro), and then only if its peer segments in software or it has this feature (veth_skb_is_eligible_for_gro); a train that
// was segmented on the way is received datagram by datagram otherwise. It changes how the host forwards UDP as well, so it is the owner's to turn on.
func receivesTrains(device string, features map[string]bool) Capability {
	forwards := features[groForwarding] || features["rx-gro-list"]
	c := Capability{Name: groForwarding, Enabled: features[receiveOffload] && forwards}
	if c.Enabled {
		return c
	}
	var settings string
	if !features[receiveOffload] {
		settings += " " + receiveOffload + " on"
	}
	if !forwards {
		settings += " " + groForwarding + " on"
	}
	c.Reason = fmt.Sprintf("off on %s, which receives segmented trains datagram by datagram; faster, but it changes how this host forwards UDP: ethtool -K %s%s", device, device, settings)
	return c
}

// segmentsTunnels tells whether a device segments what the outer TAP sends whole. Where none does, TCP goes as trains, if the device
// segments those (prefersTrains, asked at the start), or the CPU segments it.
func segmentsTunnels(device string, features map[string]bool, checksum, trains bool) Capability {
	name := tunnelSegmentation
	if checksum {
		name = tunnelSegmentationCS
	}
	c := Capability{Name: name, Enabled: features[name] && !trains}
	switch {
	case c.Enabled:
	case trains && features[name]:
		c.Reason = fmt.Sprintf("turned on for %s after the start: TCP is sent as trains until the next", device)
	case trains:
		c.Reason = fmt.Sprintf("off on %s, which segments trains instead: TCP is sent as such; if the device has it, before the start: ethtool -K %s %s on", device, device, name)
	default:
		c.Reason = fmt.Sprintf("off on %s, so the CPU segments what leaves whole; if the device has it: ethtool -K %s %s on", device, device, name)
	}
	return c
}

// doesGRO reports whether a device hands what it receives to GRO.
func doesGRO(device string) bool {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return false
	}
	defer e.Close()
	features, err := e.Features(device)
	return err == nil && features[receiveOffload]
}

// prefersTrains reports whether a device segments trains and not tunnels' super-packets, which the CPU would do for it. Trains have outer
// checksums (UDP_SEGMENT goes not with SO_NO_CHECK: net/ipv4/udp.c, udp_send_skb).
func prefersTrains(device string) bool {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return false
	}
	defer e.Close()
	features, err := e.Features(device)
	return err == nil && features[trainSegmentation] && !features[tunnelSegmentationCS]
}
