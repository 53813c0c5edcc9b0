package main

import (
	"slices"
	"strings"

	"github.com/vxlane/vxlane/bench/network"
	"github.com/vxlane/vxlane/bench/system"
	"github.com/vxlane/vxlane/bench/workload"
	"github.com/vxlane/vxlane/cmd/internal/cli"
)

// all is a name that stands for every name.
const all = "all"

// set is what runs when nothing is named.
type set struct {
	systems, workloads, profiles []string
	repeats                      int
}

// standard takes about an hour, quick less than five minutes on two cores.
var (
	standard = set{
		systems: []string{all},
		workloads: []string{"tcp-1", "tcp-4", "tcp-8", "tcp-bidir", "udp-64", "udp-1400", "udp-imix", "udp-64-16f", "rr", "rr-loaded",
			"ping-idle", "connect", "tcp-1-fwd", "udp-64-fwd"},
		profiles: []string{"full", "wire"},
		repeats:  3,
	}
	quick = set{
		systems:   []string{"direct", system.Baseline, "vxlane", "flannel-udp"},
		workloads: []string{"tcp-1", "tcp-4", "udp-64", "rr", "connect", "tcp-1-fwd"},
		profiles:  []string{"full"},
		repeats:   2,
	}
)

// names splits the values of a flag at commas. What follows exec: is one name, commas and all.
func names(values []string) (list []string) {
	for _, value := range values {
		for value != "" {
			name, rest, _ := strings.Cut(value, ",")
			if strings.HasPrefix(strings.TrimSpace(value), system.ExecPrefix) {
				name, rest = value, ""
			}
			if name = strings.TrimSpace(name); name != "" && !slices.Contains(list, name) {
				list = append(list, name)
			}
			value = rest
		}
	}
	return list
}

// choose returns what the values of a flag name, or what fallback does when there are none. everything has all names.
func choose[T any](flag string, values, fallback, everything []string, find func(string) (T, error)) ([]T, error) {
	chosen := names(values)
	if len(chosen) == 0 {
		if len(values) > 0 {
			return nil, cli.Usagef("--%s is empty: want names; see vxlane-bench list", flag)
		}
		chosen = fallback
	}
	if i := slices.Index(chosen, all); i >= 0 {
		others := slices.DeleteFunc(slices.Clone(chosen), func(n string) bool { return n == all || slices.Contains(everything, n) })
		chosen = slices.Concat(everything, others)
	}
	var found []T
	for _, name := range chosen {
		one, err := find(name)
		if err != nil {
			return nil, cli.Usagef("--%s: %w; see vxlane-bench list", flag, err)
		}
		found = append(found, one)
	}
	return found, nil
}

// distinct returns an error when two systems have one name, by which their samples could not be told apart.
func distinct(systems []system.System) error {
	seen := make(map[string]system.System)
	for _, s := range systems {
		if other, ok := seen[s.Name]; ok {
			return cli.Usagef("--system: %q and %q would both be called %s: give them names, as in %sNAME:COMMAND", other.Summary, s.Summary, s.Name, system.ExecPrefix)
		}
		seen[s.Name] = s
	}
	return nil
}

func systemNames(systems []system.System) (list []string) {
	for _, s := range systems {
		list = append(list, s.Name)
	}
	return list
}

func workloadNames() (list []string) {
	for _, w := range workload.All() {
		list = append(list, w.Name)
	}
	return list
}

func profileNames() (list []string) {
	for _, p := range network.Profiles() {
		list = append(list, p.Name)
	}
	return list
}
