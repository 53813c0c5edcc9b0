package static

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/vxlane/vxlane/encap"
)

// The example of the design, to the letter.
func TestDesignExample(t *testing.T) {
	c, err := Load("testdata/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := Tunnel{
		Device: Device{Name: "vxlane0", Mode: ModeTUN, Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24")}, MTU: 1450, MAC: encap.MAC{2, 5: 1}},
		Underlay: Underlay{
			Encap: encap.FramingVXLAN, VNI: 1, Local: netip.MustParseAddr("172.30.0.1"), Port: 8472,
			SourcePorts: SourcePorts{PortRange{32768, 60999}, 16}, TTL: TTL{Value: 64}, TOS: TOS{Inherit: true}, DF: DFUnset,
			Checksum: true, ReservedBits: ReservedStrict, PathProbe: true, KernelGRO: true, SourceCheck: SourceCheck{CheckEnforce, CheckEnforce},
		},
		Peers: []Peer{{
			Name: "hb", Endpoint: Endpoint{netip.MustParseAddrPort("172.30.0.2:8472")}, MAC: encap.MAC{2, 5: 2},
			AllowedIPs: []Prefix{{netip.MustParsePrefix("10.99.0.2/32")}, {netip.MustParsePrefix("10.244.2.0/24")}}, SuperPackets: true,
		}},
		Routes: true,
		Tier:   TierAuto,
		FDB:    FDB{Ageing: Duration(300 * time.Second), Limit: 4096, PeerLimit: 1024, Flood: Flood{All: true}, Suppress: SuppressOff},
	}
	if !reflect.DeepEqual(c.Tunnels, []Tunnel{want}) {
		t.Errorf("got  %+v\nwant %+v", c.Tunnels[0], want)
	}
}

const minimal = `version: 1
tunnels:
  - underlay: {local: 172.30.0.1}
`

func TestDefaults(t *testing.T) {
	c, err := Parse("x.yaml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	full, err := Load("testdata/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// The design's example spells every default out but for a few keys.
	want := full.Tunnels[0]
	want.Device = Device{Mode: ModeTUN, MAC: c.Tunnels[0].Device.MAC}
	want.Peers = nil
	if !reflect.DeepEqual(c.Tunnels[0], want) {
		t.Errorf("got  %+v\nwant %+v", c.Tunnels[0], want)
	}
	if c.Metrics != (Metrics{MaxPeers: 1000}) {
		t.Errorf("metrics: %+v", c.Metrics)
	}
	again, err := Parse("x.yaml", []byte(minimal))
	if err != nil || again.Tunnels[0].Device.MAC != c.Tunnels[0].Device.MAC || !c.Tunnels[0].Device.MAC.IsUnicast() {
		t.Errorf("the derived MAC %s does not outlive a restart", c.Tunnels[0].Device.MAC)
	}
	flannel, err := Parse("x.yaml", []byte("version: 1\ntunnels:\n  - underlay: {local: 172.30.0.1, encap: flannel-udp}\n"))
	if err != nil || flannel.Tunnels[0].Underlay.Port != 8285 {
		t.Errorf("flannel-udp: port %d, %v", flannel.Tunnels[0].Underlay.Port, err)
	}
}

func TestShownConfigurationIsReadBack(t *testing.T) {
	c, err := Load("testdata/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.Tunnels[0].Underlay.TTL = TTL{Inherit: true}
	c.Tunnels[0].FDB.Suppress = SuppressDrop
	c.Tunnels[0].FDB.Flood, c.Tunnels[0].FDB.Group = Flood{Names: []string{"hb"}}, netip.MustParseAddr("239.1.1.1")
	asYAML, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		t.Fatal(err)
	}

	for name, text := range map[string][]byte{"YAML": asYAML, "JSON": asJSON} {
		if again, err := Parse(name, text); err != nil || !reflect.DeepEqual(again.Tunnels, c.Tunnels) || again.Metrics != c.Metrics {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}

// Each mistake is named with its line, its key and what to do. The configuration is the minimal one with something put
// in its place.
func TestMistakes(t *testing.T) {
	tunnel := func(rest string) string { return minimal + rest }
	tap := func(fdb string) string {
		return strings.Replace(minimal, "underlay", "device: {mode: tap}\n    fdb: {"+fdb+"}\n    underlay", 1)
	}
	peers := func(list string) string { return tunnel("    peers:\n" + list) }
	for name, c := range map[string]struct{ text, want string }{
		"empty":                        {"", "x.yaml: empty"},
		"only a comment":               {"# nothing\n", "x.yaml: empty"},
		"no YAML":                      {"version: [", "x.yaml:1:1:"},
		"two documents":                {minimal + "---\n" + minimal, "x.yaml:4:1: a second document"},
		"no version":                   {"tunnels: []", "version: got 0"},
		"version 2":                    {strings.Replace(minimal, "1", "2", 1), "x.yaml:1:10: version: got 2"},
		"no tunnels":                   {"version: 1", "tunnels: missing"},
		"unknown key":                  {tunnel("    peer: []\n"), "x.yaml:4:5: tunnels[0].peer: unknown key; known here: device, underlay, peers"},
		"key twice":                    {tunnel("    routes: true\n    routes: false\n"), "x.yaml:5:5: tunnels[0].routes: given twice, first in line 4"},
		"no local":                     {"version: 1\ntunnels:\n  - underlay: {vni: 5}\n", "x.yaml:3:15: tunnels[0].underlay.local: missing"},
		"local 0.0.0.0":                {strings.Replace(minimal, "172.30.0.1", "0.0.0.0", 1), "tunnels[0].underlay.local: 0.0.0.0: want an address of this host"},
		"local link-local":             {strings.Replace(minimal, "172.30.0.1", "fe80::1", 1), "link-local addresses are not supported"},
		"local no address":             {strings.Replace(minimal, "172.30.0.1", "hosta", 1), "x.yaml:3:23: tunnels[0].underlay.local:"},
		"vni of 25 bits":               {strings.Replace(minimal, "}", ", vni: 16777216}", 1), "tunnels[0].underlay.vni: vni 16777216: out of range"},
		"vni negative":                 {strings.Replace(minimal, "}", ", vni: -1}", 1), `tunnels[0].underlay.vni: "-1": want a whole number within 0-`},
		"port 70000":                   {strings.Replace(minimal, "}", ", port: 70000}", 1), `tunnels[0].underlay.port: "70000": want a whole number within 0-`},
		"source port 0":                {strings.Replace(minimal, "}", ", source_ports: {range: 0-9}}", 1), `"0-9": want two ports`},
		"encap":                        {strings.Replace(minimal, "}", ", encap: geneve}", 1), `tunnels[0].underlay.encap: "geneve": want vxlan or flannel-udp`},
		"ttl 0":                        {strings.Replace(minimal, "}", ", ttl: 0}", 1), `"0": want 1-255, inherit or auto`},
		"tos 256":                      {strings.Replace(minimal, "}", ", tos: 256}", 1), `"256": want 0-255 or inherit`},
		"df":                           {strings.Replace(minimal, "}", ", df: maybe}", 1), `"maybe": want unset, set or inherit`},
		"ports backwards":              {strings.Replace(minimal, "}", ", source_ports: {range: 9-8}}", 1), `"9-8": want two ports`},
		"no buckets":                   {strings.Replace(minimal, "}", ", source_ports: {buckets: 0}}", 1), "buckets: 0: want 1-256"},
		"checksum word":                {strings.Replace(minimal, "}", ", checksum: maybe}", 1), `"maybe": want true or false`},
		"reserved bits":                {strings.Replace(minimal, "}", ", reserved_bits: loose}", 1), `"loose": want strict or ignore`},
		"list for a value":             {strings.Replace(minimal, "}", ", vni: [1]}", 1), "want a single value, got a list"},
		"keys for a prefix":            {peers("      - {endpoint: 172.30.0.2, allowed_ips: [{}]}\n"), "allowed_ips[0]: want a single value, got a set of keys"},
		"list for a MAC":               {tunnel("    device: {mac: [2, 0, 0, 0, 0, 1]}\n"), "device.mac: want a single value, got a list"},
		"keys for a number":            {tunnel("    device: {mtu: {}}\n"), "device.mtu: want a single value, got a set of keys"},
		"value for a list":             {tunnel("    peers: hb\n"), "tunnels[0].peers: want a list, got a single value"},
		"name too long":                {tunnel("    device: {name: abcdefghijklmnop}\n"), "want at most 15 characters"},
		"name with slash":              {tunnel("    device: {name: a/b}\n"), "want a device name"},
		"flood to nobody known":        {strings.Replace(minimal, "underlay", "device: {mode: tap}\n    fdb: {flood: [hx]}\n    underlay", 1), `fdb.flood names peer "hx"`},
		"suppress":                     {tap("suppress: maybe"), `tunnels[0].fdb.suppress: "maybe": want true, false or drop`},
		"group of one":                 {tap("group: 172.30.0.9"), "tunnels[0].fdb.group: 172.30.0.9: want a multicast group"},
		"group of another family":      {tap("group: \"ff05::1\""), "of another address family than underlay.local 172.30.0.1"},
		"group and nobody":             {tap("group: 239.1.1.1, flood: none"), "flood: none says that nobody gets such frames"},
		"learning from nobody":         {tap("group: 239.1.1.1, learning: true"), "source_check.outer accepts frames from nobody else"},
		"group of words":               {tap("group: all"), "tunnels[0].fdb.group:"},
		"learning of shared addresses": {"version: 1\ntunnels:\n  - device: {mode: tap}\n    underlay: {local: 172.30.0.1}\n    fdb: {learning: true}\n    peers: [{name: a, endpoint: 172.30.0.2}, {name: b, endpoint: \"172.30.0.2:9\"}]\n", `peers "a" and "b" share the address 172.30.0.2`},
		"tap":                          {"version: 1\ntunnels:\n  - device: {mode: tap}\n    underlay: {local: 172.30.0.1, encap: flannel-udp}\n", "flannel-udp carries IPv4 packets, not frames"},
		"tunnel-gso for flannel":       {strings.Replace(minimal, "}", ", encap: flannel-udp}", 1) + "    tier: tunnel-gso\n", "use auto with encap: flannel-udp"},
		"tier":                         {tunnel("    tier: fast\n"), "want auto, tunnel-gso, udp-gso or portable"},
		"address twice":                {tunnel("    device: {addresses: [10.0.0.1/24, 10.0.0.1/24]}\n"), "addresses[1]: 10.0.0.1/24: given twice"},
		"multicast address":            {tunnel("    device: {addresses: [224.0.0.1/24]}\n"), "not an address that a host can have"},
		"address without length":       {tunnel("    device: {addresses: [10.0.0.1]}\n"), "tunnels[0].device.addresses[0]:"},
		"mtu 10":                       {tunnel("    device: {mtu: 10}\n"), "mtu: 10: want 68-65535"},
		"mtu 1000 with IPv6":           {tunnel("    device: {mtu: 1000, addresses: [\"fd00::1/64\"]}\n"), "mtu: 1000: want 1280-65535"},
		"group mac":                    {tunnel("    device: {mac: 01:00:00:00:00:01}\n"), "want the address of one station"},
		"queues":                       {tunnel("    device: {queues: 1000}\n"), "queues: 1000: want 0-128"},
		"peer without address":         {peers("      - {name: hb, allowed_ips: [10.99.0.2/32]}\n"), `x.yaml:5:9: tunnels[0].peers[0].endpoint: missing: want the underlay address of peer "hb"`},
		"peer with a host name":        {peers("      - {endpoint: hostb, allowed_ips: [10.99.0.2]}\n"), "names are not looked up"},
		"peer of another family":       {peers("      - {endpoint: \"2001:db8::2\", allowed_ips: [10.99.0.2]}\n"), "of another address family"},
		"peer is myself":               {peers("      - {endpoint: 172.30.0.1, allowed_ips: [10.99.0.2]}\n"), "own address: packets would loop"},
		"peer multicast":               {peers("      - {endpoint: 239.1.1.1, allowed_ips: [10.99.0.2]}\n"), "want the address of one host"},
		"peer without allowed_ips":     {peers("      - {name: hb, endpoint: 172.30.0.2}\n"), `allowed_ips: missing: want the addresses behind peer "hb"`},
		"peer that cannot be asked":    {peers("      - {name: hb, endpoint: 172.30.0.2, allowed_ips: [10.99.1.0/24]}\n"), `peer "hb" needs mac, or a single host in allowed_ips`},
		"peer with host bits":          {peers("      - {endpoint: 172.30.0.2, allowed_ips: [10.99.0.2/24]}\n"), "10.99.0.0/24 is the network, 10.99.0.2/32 the host"},
		"peer with multicast":          {peers("      - {endpoint: 172.30.0.2, allowed_ips: [224.0.0.0/4]}\n"), "cannot come from a peer"},
		"peer with my MAC":             {"version: 1\ntunnels:\n  - device: {mac: 02:00:00:00:00:01}\n    underlay: {local: 172.30.0.1}\n    peers: [{endpoint: 172.30.0.2, mac: 02:00:00:00:00:01, allowed_ips: [10.0.0.2]}]\n", "is this VTEP's own"},
		"peer with my address":         {"version: 1\ntunnels:\n  - device: {addresses: [10.0.0.1/24]}\n    underlay: {local: 172.30.0.1}\n    peers: [{endpoint: 172.30.0.2, allowed_ips: [10.0.0.1]}]\n", "is this device's own address"},
		"prefix twice":                 {peers("      - {name: hb, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2/32]}\n      - {name: hc, endpoint: 172.30.0.3, allowed_ips: [10.99.0.3/32, 10.99.0.2/32]}\n"), `x.yaml:6:70: tunnels[0].peers[1].allowed_ips[1]: prefix 10.99.0.2/32: given for peer "hb" and for peer "hc"`},
		"endpoint twice":               {peers("      - {name: hb, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2/32]}\n      - {name: hc, endpoint: 172.30.0.2, allowed_ips: [10.99.0.3/32]}\n"), `peers[1].endpoint: endpoint 172.30.0.2:8472: given for peer "hb" and for peer "hc"`},
		"mac twice":                    {peers("      - {name: hb, endpoint: 172.30.0.2, mac: 02:00:00:00:00:09, allowed_ips: [10.99.0.2/32]}\n      - {name: hc, endpoint: 172.30.0.3, mac: 02:00:00:00:00:09, allowed_ips: [10.99.0.3/32]}\n"), `peers[1].mac: mac 02:00:00:00:00:09: given for peer "hb" and for peer "hc"`},
		"flannel-udp and IPv6":         {"version: 1\ntunnels:\n  - underlay: {local: 172.30.0.1, encap: flannel-udp}\n    peers: [{endpoint: 172.30.0.2, allowed_ips: [\"fd00::2\"]}]\n", "flannel-udp carries IPv4 only"},
		"device name twice":            {"version: 1\ntunnels:\n  - {device: {name: a}, underlay: {local: 172.30.0.1}}\n  - {device: {name: a}, underlay: {local: 172.30.0.1, port: 4789}}\n", "tunnels[1].device.name"},
		"vni twice on a port":          {"version: 1\ntunnels:\n  - underlay: {local: 172.30.0.1, vni: 2}\n  - underlay: {local: 172.30.0.1, vni: 2}\n", "x.yaml:4:40: tunnels[1].underlay.vni: 2: tunnels[0] has it already on 172.30.0.1 port 8472"},
		"port shared with flannel-udp": {"version: 1\ntunnels:\n  - underlay: {local: 172.30.0.1}\n  - underlay: {local: 172.30.0.1, port: 8472, encap: flannel-udp}\n", "tunnels[1].underlay.port: 172.30.0.1 port 8472 is tunnels[0]'s already: only vxlan tunnels can share a port"},
		"metrics without port":         {minimal + "metrics: {listen: localhost}\n", "metrics.listen: \"localhost\": want an address and a port"},
		"fraction":                     {strings.Replace(minimal, "}", ", vni: 1.9}", 1), `tunnels[0].underlay.vni: "1.9": want a whole number`},
		"merge key":                    {"version: 1\ntunnels:\n  - underlay: {<<: {vni: 5}, local: 172.30.0.1}\n", "merge keys are not read"},
		"mapped address":               {peers("      - {endpoint: 172.30.0.2, allowed_ips: [\"::ffff:10.99.0.2\"]}\n"), "write the IPv4 prefix itself"},
		"unspecified host":             {peers("      - {endpoint: 172.30.0.2, mac: 02:00:00:00:00:02, allowed_ips: [0.0.0.0/32]}\n"), "cannot come from a peer"},
		"broadcast endpoint":           {peers("      - {endpoint: 255.255.255.255, allowed_ips: [10.99.0.2]}\n"), "want the address of one host"},
		"half a bracket":               {peers("      - {endpoint: \"172.30.0.2]\", allowed_ips: [10.99.0.2]}\n"), "want an address such as"},
		"endpoint inside":              {peers("      - {endpoint: 172.30.0.2, allowed_ips: [172.30.0.2]}\n"), "the route would send the underlay's traffic into the tunnel"},
		"endpoint inside another":      {peers("      - {endpoint: 172.30.0.2, allowed_ips: [10.99.0.2]}\n      - {endpoint: 172.30.0.3, allowed_ips: [172.30.0.2]}\n"), "x.yaml:6:46: tunnels[0].peers[1].allowed_ips[0]: 172.30.0.2/32: is an underlay address"},
		"local inside":                 {peers("      - {endpoint: 172.30.0.2, allowed_ips: [172.30.0.1]}\n"), "172.30.0.1/32: is an underlay address"},
		"port 0":                       {strings.Replace(minimal, "}", ", port: 0}", 1), "tunnels[0].underlay.port: 0: want 1-65535"},
		"name all":                     {tunnel("    device: {name: all}\n"), "is the kernel's name"},
		"stray text":                   {"[]x", "x.yaml:1:1:"},
		"own port as source":           {strings.Replace(minimal, "}", ", source_ports: {range: 8472}}", 1), "is the port that is received on"},
		"metrics port":                 {minimal + "metrics: {listen: \"127.0.0.1:99999\"}\n", "want an address and a port"},
		"flood":                        {tunnel("    fdb: {flood: some}\n"), "want all, none or a list of peer names"},
		"ageing":                       {tunnel("    fdb: {ageing: soon}\n"), `"soon": want a duration`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("x.yaml", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got  %v\nwant %s", err, c.want)
			}
			var e *Error
			if !errors.As(err, &e) || e.File != "x.yaml" {
				t.Errorf("not an Error with the file: %#v", err)
			}
		})
	}
}

func TestAllMistakesAreTold(t *testing.T) {
	_, err := Parse("x.yaml", []byte("version: 1\ntunnels:\n  - device: {mtu: 1, queues: -1}\n    underlay: {vni: 99999999}\n"))
	for _, want := range []string{"x.yaml:3:19: tunnels[0].device.mtu", "device.queues", "underlay.vni", "underlay.local"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}

// A check is written as a boolean where it is one, and read back, in JSON and in YAML.
func TestCheckRoundTrip(t *testing.T) {
	for check, want := range map[Check]string{CheckOff: "false", CheckEnforce: "true", CheckCount: `"count"`} {
		text, err := json.Marshal(SourceCheck{check, CheckEnforce})
		if err != nil || string(text) != `{"outer":`+want+`,"inner":true}` {
			t.Errorf("%s: %s, %v", check, text, err)
		}
		var back SourceCheck
		if err := json.Unmarshal(text, &back); err != nil || back.Outer != check {
			t.Errorf("%s comes back as %+v, %v", text, back, err)
		}
		out, err := yaml.Marshal(SourceCheck{check, CheckEnforce})
		if err != nil || string(out) != "outer: "+strings.Trim(want, `"`)+"\ninner: true\n" {
			t.Errorf("%s: %s, %v", check, out, err)
		}
	}
	if err := new(Check).UnmarshalText([]byte("maybe")); err == nil {
		t.Error("maybe is a check")
	}
}

func TestParsePeers(t *testing.T) {
	c, err := Parse("x.yaml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	tunnel := &c.Tunnels[0]
	for name, text := range map[string]string{
		"bare list": "- {name: hb, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2]}",
		"key":       "peers:\n  - {name: hb, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2]}",
		"JSON":      "[\n\t{\"name\": \"hb\", \"endpoint\": \"172.30.0.2\", \"allowed_ips\": [\"10.99.0.2\\/32\"]}\n]",
	} {
		peers, err := tunnel.ParsePeers("stdin", []byte(text))
		if err != nil || len(peers) != 1 || peers[0].Name != "hb" || peers[0].Endpoint.String() != "172.30.0.2:8472" || peers[0].AllowedIPs[0].String() != "10.99.0.2/32" {
			t.Errorf("%s: %+v, %v", name, peers, err)
		}
	}
	for more, segmented := range map[string]bool{"": false, ", super_packets: true": false, ", super_packets: false": true} {
		peers, err := tunnel.ParsePeers("stdin", []byte("- {endpoint: 172.30.0.2, allowed_ips: [10.99.0.2]"+more+"}"))
		if err != nil || len(peers) != 1 || peers[0].Segmented != segmented {
			t.Errorf("%q: %+v, %v", more, peers, err)
		}
	}
	for _, text := range []string{"[]", "peers: []"} {
		if peers, err := tunnel.ParsePeers("stdin", []byte(text)); err != nil || len(peers) != 0 {
			t.Errorf("%s: %+v, %v", text, peers, err)
		}
	}
	for text, want := range map[string]string{
		"":           "stdin: empty",
		"{}":         "peers: missing",
		"peers:":     "peers: missing",
		"peers: ~":   "peers: missing",
		"peer: []":   "stdin:1:1: peer: unknown key",
		"- {nam: x}": "stdin:1:4: [0].nam: unknown key",
		"- {endpoint: 172.30.0.2, allowed_ips: [10.99.0.2]}\n- {endpoint: 172.30.0.3, allowed_ips: [10.99.0.2]}": "stdin:2:40: [1].allowed_ips[0]: prefix 10.99.0.2/32",
	} {
		if _, err := tunnel.ParsePeers("stdin", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	design, err := os.ReadFile("testdata/design.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(design)
	f.Add([]byte(minimal))
	f.Add([]byte("version: 1\ntunnels: [{underlay: {local: ::1}, peers: [{endpoint: ::2, mac: [], allowed_ips: [{}, ~, *a]}]}]"))
	f.Add([]byte(`{"version": 1, "tunnels": [{"underlay": {"local": "::1"}, "peers": [{"endpoint": "[::2]:1", "allowed_ips": ["::/0"], "mac": "02:00:00:00:00:01"}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("x", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "x") {
				t.Fatalf("the error does not begin with the file: %v", err)
			}
			return
		}
		shown, err := yaml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Parse("x", shown); err != nil || fmt.Sprint(again.Tunnels, again.Metrics) != fmt.Sprint(c.Tunnels, c.Metrics) {
			t.Fatalf("shown as\n%s\nand read back: %v", shown, err)
		}
		if _, err := c.Tunnels[0].ParsePeers("x", text); err == nil {
			t.Fatal("a whole configuration passes for a set of peers")
		}
	})
}

func FuzzParsePeers(f *testing.F) {
	c, err := Parse("x.yaml", []byte(minimal))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("- {name: hb, endpoint: 172.30.0.2, allowed_ips: [10.99.0.2, \"fd00::/8\"], mac: 02:00:00:00:00:07}"))
	f.Add([]byte("peers: [{endpoint: \"172.30.0.2:1\", allowed_ips: [0.0.0.0/0], mac: 02:00:00:00:00:07}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		peers, err := c.Tunnels[0].ParsePeers("x", text)
		if err != nil {
			return
		}
		for _, p := range peers {
			_, ask := p.ResolveAddr()
			if !p.Endpoint.IsValid() || p.Name == "" || len(p.AllowedIPs) == 0 || p.MAC.IsGroup() || p.MAC.IsZero() && !ask {
				t.Fatalf("accepted %+v", p)
			}
		}
	})
}
