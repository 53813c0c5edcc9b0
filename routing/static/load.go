package static

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/vxlane/vxlane/routing"
)

// DefaultPath is where the configuration file is looked for.
const DefaultPath = "/etc/vxlane/vxlane.yaml"

// Load reads and checks a configuration file. All defaults are filled in but those that depend on the running system
// (device.name, device.mtu, device.queues). The error joins an *Error for each thing that is wrong.
func Load(path string) (*Config, error) {
	r, err := load(path)
	if err != nil {
		return nil, err
	}
	return r.config, nil
}

// Parse is Load for text that was read already; file names it in errors.
func Parse(file string, data []byte) (*Config, error) {
	r, err := read(file, data)
	if err != nil {
		return nil, err
	}
	return r.config, nil
}

// reading is a configuration, and what is needed to judge its peers again for a tunnel that runs.
type reading struct {
	config *Config
	peers  [][]Peer // of each tunnel, as they were written: without defaults
	nodes  map[string]*yaml.Node
	file   string
}

func load(path string) (*reading, error) {
	st := stamp(path)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	r, err := read(path, data)
	if err != nil {
		return nil, err
	}
	r.config.read = st
	return r, nil
}

func read(file string, data []byte) (*reading, error) {
	c := new(Config)
	d, err := parse(file, data, c)
	if err != nil {
		return nil, err
	}
	c.digest = sha256.Sum256(data)
	r := &reading{config: c, nodes: d.nodes, file: file}
	for i, t := range c.Tunnels {
		r.peers = append(r.peers, slices.Clone(t.Peers))
		if key := fmt.Sprintf("tunnels[%d].underlay.port", i); t.Underlay.Port == 0 && d.nodes[key] != nil {
			d.fail(key, "0: want 1-65535, or leave it out")
		}
		if t.Device.Mode == ModeTAP && d.nodes[fmt.Sprintf("tunnels[%d].routes", i)] == nil {
			c.Tunnels[i].Routes = false
		}
	}
	c.Complete()
	d.checkConfig(c)
	if err := d.err(); err != nil {
		return nil, err
	}
	return r, nil
}

// Complete fills in the defaults that follow from other keys.
func (c *Config) Complete() {
	for i := range c.Tunnels {
		c.Tunnels[i].complete()
	}
}

// Check says everything that is wrong with a configuration that was put together by a program; origin names it in errors.
func (c *Config) Check(origin string) error {
	d := &document{file: origin}
	d.checkConfig(c)
	return d.err()
}

// ParsePeers reads a set of peers for tunnel t: a document with the single key peers, or the bare list, in the notation
// of the configuration file. file names it in errors.
func (t *Tunnel) ParsePeers(file string, data []byte) ([]routing.Peer, error) {
	var set struct {
		Peers []Peer `yaml:"peers"`
	}
	key, out := "peers", any(&set)
	if isList(data) {
		key, out = "", &set.Peers
	}
	d, err := parse(file, data, out)
	if err != nil {
		return nil, err
	}
	if n := d.nodes[key]; n == nil || n.Tag == "!!null" {
		return nil, &Error{File: file, Message: "peers: missing; an empty set is written peers: []"}
	}
	t.completePeers(set.Peers)
	d.checkPeers(t, set.Peers, key)
	d.checkFlood(t, set.Peers, key)
	if err := d.err(); err != nil {
		return nil, err
	}
	return toRouting(set.Peers), nil
}

// isList reports whether a document is a bare list.
func isList(data []byte) bool {
	var root yaml.Node
	err := yaml.Unmarshal(yamlOf(data), &root)
	return err == nil && len(root.Content) == 1 && root.Content[0].Kind == yaml.SequenceNode
}

// RoutingPeers returns the tunnel's peers as the routing table takes them.
func (t *Tunnel) RoutingPeers() []routing.Peer { return toRouting(t.Peers) }

func toRouting(peers []Peer) []routing.Peer {
	out := make([]routing.Peer, len(peers))
	for i, p := range peers {
		out[i] = routing.Peer{Name: p.Name, Endpoint: p.Endpoint.AddrPort, MAC: p.MAC, Segmented: !p.SuperPackets}
		for _, prefix := range p.AllowedIPs {
			out[i].AllowedIPs = append(out[i].AllowedIPs, prefix.Prefix)
		}
	}
	return out
}

// checkConflicts notes what two peers both claim, at the second of them. prefix is the key of the list.
func (d *document) checkConflicts(peers []Peer, prefix string) {
	_, err := routing.NewSnapshot(toRouting(peers))
	if err == nil {
		return
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		d.fail(prefix, "%v", err)
		return
	}
	for _, e := range joined.Unwrap() {
		var c *routing.Conflict
		if !errors.As(e, &c) {
			d.fail(prefix, "%v", e)
			continue
		}
		d.fail(conflictKey(c, peers, prefix), "%v", c)
	}
}

// conflictKey finds the key at which the second peer of a conflict says the conflicting thing.
func conflictKey(c *routing.Conflict, peers []Peer, prefix string) string {
	key := fmt.Sprintf("%s[%d]", prefix, c.Second)
	switch c.What {
	case "name", "endpoint", "mac":
		return key + "." + c.What
	}
	for j, p := range peers[c.Second].AllowedIPs {
		if p.String() == c.Value && (c.First != c.Second || j > 0) {
			return fmt.Sprintf("%s.allowed_ips[%d]", key, j)
		}
	}
	return key
}
