package network

import (
	"fmt"
	"maps"
	"strings"
)

// Profile is what the NICs of the underlay can do.
type Profile struct {
	Name      string          `json:"name"`
	Summary   string          `json:"summary"`
	StandsFor string          `json:"stands_for"` // in the real world
	MTU       int             `json:"mtu"`        // of the underlay, in bytes
	Offloads  map[string]bool `json:"offloads"`   // ethtool features, by the kernel's names, that differ from veth's defaults
}

const jumbo = 9000

// Profiles returns all profiles: each NIC with the usual MTU, then each with jumbo frames.
func Profiles() []Profile {
	noTunnelTSO := map[string]bool{"tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false}
	noUDPGSO := with(noTunnelTSO, map[string]bool{"tx-udp-segmentation": false, "rx-gro": true})
	wire := with(noUDPGSO, map[string]bool{
		"tx-tcp-segmentation": false, "tx-tcp6-segmentation": false, "tx-tcp-ecn-segmentation": false, "tx-tcp-mangleid-segmentation": false,
		"tx-generic-segmentation": false, "tx-checksum-ip-generic": false,
	})
	base := []Profile{
		{
			Name: "full", Summary: "all offloads of veth: super-packets cross the link whole, checksums are never computed",
			StandsFor: "two containers on one host, and the best that a NIC with tunnel segmentation (mlx5, ice, …) can come to. On veth nobody ever segments.",
		},
		{
			Name: "no-tunnel-tso", Summary: "no segmentation of tunnelled packets; TCP and UDP segmentation stay", Offloads: noTunnelTSO,
			StandsFor: "the common cloud NIC (virtio-net, ENA, gVNIC). It flatters tunnels that send UDP trains: on veth a train is handed over unsplit, a NIC has to segment it.",
		},
		{
			Name: "no-udp-gso", Summary: "neither tunnel nor UDP segmentation; the receiver does GRO", Offloads: noUDPGSO,
			StandsFor: "older and simple NICs: TCP segmentation and nothing more.",
		},
		{
			Name: "no-udp-gso-advised", Summary: "no-udp-gso, with the setting on that vxlane status advises: rx-udp-gro-forwarding", Offloads: with(noUDPGSO, map[string]bool{"rx-udp-gro-forwarding": true}),
			StandsFor: "as no-udp-gso, on hosts whose owner followed the advice. It is on for all systems.",
		},
		{
			Name: "wire", Summary: "no segmentation and no checksum offload: MTU-sized frames with real checksums; the receiver does GRO", Offloads: wire,
			StandsFor: "a plain Ethernet NIC, and what the frames on any cable look like. The most honest of them for traffic between machines.",
		},
	}
	var all []Profile
	for _, p := range base {
		p.MTU = 1500
		all = append(all, p)
	}
	for _, p := range base {
		p.Name, p.MTU = p.Name+jumboSuffix, jumbo
		p.StandsFor = "as " + strings.TrimSuffix(p.Name, jumboSuffix) + ", with jumbo frames."
		all = append(all, p)
	}
	return all
}

const jumboSuffix = "-9000"

func with(a, b map[string]bool) map[string]bool {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

// FindProfile returns the profile called name.
func FindProfile(name string) (Profile, error) {
	var names []string
	for _, p := range Profiles() {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Profile{}, fmt.Errorf("unknown profile %q; known: %s", name, strings.Join(names, ", "))
}
