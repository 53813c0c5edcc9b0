package static

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vxlane/vxlane/encap"
)

const (
	maxNameLen = 15 // IFNAMSIZ - 1 (include/uapi/linux/if.h)
	minMTU     = 68 // RFC 791
	minMTUv6   = 1280
	maxBuckets = 256

	// MaxQueues is half of the kernel's MAX_TAP_QUEUES: each worker reads one and writes another.
	MaxQueues = 128
)

func (d *document) checkConfig(c *Config) {
	if c.Version != 1 {
		d.fail("version", "got %d: this vxlane reads version 1; write version: 1", c.Version)
	}
	if len(c.Tunnels) == 0 {
		d.fail("tunnels", "missing: want at least one tunnel")
	}
	for i := range c.Tunnels {
		key := fmt.Sprintf("tunnels[%d]", i)
		t := &c.Tunnels[i]
		d.checkDevice(t, key+".device")
		d.checkUnderlay(&t.Underlay, key+".underlay")
		d.checkPeers(t, t.Peers, key+".peers")
		d.checkTier(t, key+".tier")
		d.checkFDB(t, key+".fdb")
		d.checkAgainst(c.Tunnels[:i], t, key)
	}
	d.checkMetrics(&c.Metrics)
}

func (d *document) checkTier(t *Tunnel, key string) {
	switch t.Tier {
	case TierAuto, TierPortable, TierUDPGSO:
	case TierTunnelGSO:
		if t.Underlay.Encap == encap.FramingFlannelUDP {
			d.fail(key, "tunnel-gso sends super-packets whole, and flannel's own udp backend, which may be the peer, cuts off what is longer than its MTU: use auto with encap: flannel-udp")
		}
	default:
		d.fail(key, "%q: want auto, tunnel-gso, udp-gso or portable", t.Tier)
	}
}

func (d *document) checkFDB(t *Tunnel, key string) {
	f := &t.FDB
	for name, n := range map[string]int{"limit": f.Limit, "peer_limit": f.PeerLimit} {
		if n < 0 {
			d.fail(key+"."+name, "%d: want 0 or more", n)
		}
	}
	d.checkGroup(t, key+".group")
	d.checkFlood(t, t.Peers, key+".flood")
}

// checkGroup judges a multicast group of the underlay, and what it is to be used with.
func (d *document) checkGroup(t *Tunnel, key string) {
	g, local := t.FDB.Group, t.Underlay.Local
	switch {
	case !g.IsValid() || t.Device.Mode != ModeTAP:
	case !g.IsMulticast() || g.Zone() != "":
		d.fail(key, "%s: want a multicast group, such as 239.1.1.1 or ff05::100", g)
	case local.IsValid() && g.Is4() != local.Is4():
		d.fail(key, "%s: of another address family than underlay.local %s", g, local)
	case t.FDB.Flood.None():
		d.fail(key, "%s: flood: none says that nobody gets such frames: take one of the two out", g)
	case t.FDB.Learning && len(t.Peers) == 0 && t.Underlay.SourceCheck.Outer == CheckEnforce:
		d.fail(key, "%s: there are no peers, and source_check.outer accepts frames from nobody else: list the peers, or set underlay.source_check: {outer: false} to learn from every VTEP in the group", g)
	}
}

// checkFlood makes sure that those who get broadcast are there, and that what is learned of a peer can be told from another's.
func (d *document) checkFlood(t *Tunnel, peers []Peer, key string) {
	if t.Device.Mode != ModeTAP {
		return
	}
	for _, name := range t.FDB.Flood.Names {
		if !slices.ContainsFunc(peers, func(p Peer) bool { return p.Name == name }) {
			d.fail(key, "fdb.flood names peer %q, and there is none of this name", name)
		}
	}
	addresses := make(map[netip.Addr]string)
	for _, p := range peers {
		a := p.Endpoint.Addr()
		if other := addresses[a]; t.FDB.Learning && other != "" {
			d.fail(key, "fdb.learning: peers %q and %q share the address %s, so that nobody can tell whose frames come from there: give one of them another address, or add stations with vxlane fdb", other, p.Name, a)
		}
		addresses[a] = p.Name
	}
}

func (d *document) checkDevice(t *Tunnel, key string) {
	v := &t.Device
	if msg := badDeviceName(v.Name); msg != "" {
		d.fail(key+".name", "%q: %s", v.Name, msg)
	}
	switch v.Mode {
	case ModeTUN:
	case ModeTAP:
		if t.Underlay.Encap == encap.FramingFlannelUDP {
			d.fail(key+".mode", "tap: flannel-udp carries IPv4 packets, not frames: use tun, or encap: vxlan")
		}
	default:
		d.fail(key+".mode", "%q: want tun or tap", v.Mode)
	}
	lowest := minMTU
	for i, a := range v.Addresses {
		at := fmt.Sprintf("%s.addresses[%d]", key, i)
		if a.Addr().Is6() {
			lowest = minMTUv6
		}
		switch {
		case !isHostAddress(a.Addr()) || a.Addr().IsLoopback():
			d.fail(at, "%s: not an address that a host can have on a tunnel", a)
		case a.Addr().Is6() && t.Underlay.Encap == encap.FramingFlannelUDP:
			d.fail(at, "%s: flannel-udp carries IPv4 only", a)
		case slices.Index(v.Addresses, a) < i:
			d.fail(at, "%s: given twice", a)
		}
	}
	if v.MTU != 0 && (v.MTU < lowest || v.MTU > 65535) {
		d.fail(key+".mtu", "%d: want %d-65535", v.MTU, lowest)
	}
	if !v.MAC.IsUnicast() {
		d.fail(key+".mac", "%s: want the address of one station, not a group", v.MAC)
	}
	if v.Queues < 0 || v.Queues > MaxQueues {
		d.fail(key+".queues", "%d: want 0-%d", v.Queues, MaxQueues)
	}
}

// badDeviceName says what the kernel would not accept of an interface name (net/core/dev.c, dev_valid_name).
func badDeviceName(name string) string {
	switch {
	case name == "":
		return ""
	case len(name) > maxNameLen:
		return fmt.Sprintf("want at most %d characters", maxNameLen)
	case name == "all" || name == "default":
		return "is the kernel's name for the settings of every device; choose another"
	case name == "." || name == "..", strings.ContainsAny(name, "/: \t\r\n\v\f%"), !printable(name):
		return "want a device name: printable ASCII without spaces, '/', ':' or '%'"
	}
	return ""
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

func (d *document) checkUnderlay(u *Underlay, key string) {
	if u.Encap != encap.FramingVXLAN && u.Encap != encap.FramingFlannelUDP {
		d.fail(key+".encap", "%q: want %s or %s", u.Encap, encap.FramingVXLAN, encap.FramingFlannelUDP)
	}
	if _, err := encap.NewVNI(uint64(u.VNI)); err != nil {
		d.fail(key+".vni", "%v", err)
	}
	switch l := u.Local; {
	case !l.IsValid():
		d.fail(key+".local", "missing: want the address of this host on the underlay, such as 172.30.0.1")
	case l.IsUnspecified() || l.IsMulticast():
		d.fail(key+".local", "%s: want an address of this host, so that only what is sent to it is accepted", l)
	case l.Zone() != "" || l.IsLinkLocalUnicast() && l.Is6():
		d.fail(key+".local", "%s: IPv6 link-local addresses are not supported; use a global or unique local one", l)
	}
	if n := u.SourcePorts.Buckets; n < 1 || n > maxBuckets {
		d.fail(key+".source_ports.buckets", "%d: want 1-%d", n, maxBuckets)
	}
	if r := u.SourcePorts.Range; r.Low == r.High && r.Low == u.Port {
		d.fail(key+".source_ports.range", "%d: is the port that is received on (port); datagrams are sent from others", r.Low)
	} else if u.DF == DFInherit && r.Low == r.High {
		d.fail(key+".source_ports.range", "%d: df: inherit needs two ports at least", r.Low)
	}
	if u.DF != DFUnset && u.DF != DFSet && u.DF != DFInherit {
		d.fail(key+".df", "%q: want unset, set or inherit", u.DF)
	}
	if u.ReservedBits != ReservedStrict && u.ReservedBits != ReservedIgnore {
		d.fail(key+".reserved_bits", "%q: want strict or ignore", u.ReservedBits)
	}
}

// isHostAddress reports whether a can be the address of one host.
func isHostAddress(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.Is4In6() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func (d *document) checkPeers(t *Tunnel, peers []Peer, key string) {
	endpoints := make(map[netip.Addr]bool, len(peers))
	for _, p := range peers {
		endpoints[p.Endpoint.Addr()] = true
	}
	for i := range peers {
		d.checkPeer(t, &peers[i], endpoints, fmt.Sprintf("%s[%d]", key, i))
	}
	d.checkConflicts(peers, key)
}

func (d *document) checkPeer(t *Tunnel, p *Peer, endpoints map[netip.Addr]bool, key string) {
	d.checkEndpoint(t, p, key)
	if msg := badPeerName(p.Name); msg != "" {
		d.fail(key+".name", "%q: %s", p.Name, msg)
	}
	switch {
	case p.MAC.IsGroup():
		d.fail(key+".mac", "%s: want the address of one station, not a group", p.MAC)
	case !p.MAC.IsZero() && p.MAC == t.Device.MAC:
		d.fail(key+".mac", "%s: is this VTEP's own", p.MAC)
	}
	if len(p.AllowedIPs) == 0 && t.Device.Mode == ModeTAP {
		return
	}
	if len(p.AllowedIPs) == 0 {
		d.fail(key+".allowed_ips", "missing: want the addresses behind peer %q, such as [10.99.0.2/32]", p.Name)
		return
	}
	single := false
	for j, prefix := range p.AllowedIPs {
		at := fmt.Sprintf("%s.allowed_ips[%d]", key, j)
		single = single || prefix.IsSingleIP()
		switch a := prefix.Addr(); {
		case a.IsMulticast() || a.IsLoopback() || prefix.IsSingleIP() && !isHostAddress(a):
			d.fail(at, "%s: packets from there cannot come from a peer", prefix)
		case t.Routes && prefix.IsSingleIP() && (a == t.Underlay.Local || endpoints[a]):
			d.fail(at, "%s: is an underlay address, of a peer or of this host: the route would send the underlay's traffic into the tunnel", prefix)
		case a.Is6() && t.Underlay.Encap == encap.FramingFlannelUDP:
			d.fail(at, "%s: flannel-udp carries IPv4 only", prefix)
		case prefix.IsSingleIP() && slices.ContainsFunc(t.Device.Addresses, func(own netip.Prefix) bool { return own.Addr() == a }):
			d.fail(at, "%s: is this device's own address", prefix)
		}
	}
	if !single && p.MAC.IsZero() && t.Device.Mode != ModeTAP && t.Underlay.Encap == encap.FramingVXLAN {
		d.fail(key, "peer %q needs mac, or a single host in allowed_ips to ask for it", p.Name)
	}
}

func (d *document) checkEndpoint(t *Tunnel, p *Peer, key string) {
	at := key + ".endpoint"
	a := p.Endpoint.Addr()
	switch local := t.Underlay.Local; {
	case !p.Endpoint.IsValid():
		d.fail(at, "missing: want the underlay address of peer %q, such as 172.30.0.2", p.Name)
	case !isHostAddress(a):
		d.fail(at, "%s: want the address of one host", p.Endpoint)
	case a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast():
		d.fail(at, "%s: IPv6 link-local addresses are not supported; use a global or unique local one", p.Endpoint)
	case local.IsValid() && a.Is4() != local.Is4():
		d.fail(at, "%s: of another address family than underlay.local %s", p.Endpoint, local)
	case a == local && p.Endpoint.Port() == t.Underlay.Port:
		d.fail(at, "%s: is this tunnel's own address: packets would loop", p.Endpoint)
	}
}

// badPeerName keeps names fit for a label, a table column and a log line.
func badPeerName(name string) string {
	if name == "other" {
		return "is what metrics call the peers beyond metrics.max_peers; choose another name"
	}
	if len(name) > 64 || !printable(name) {
		return "want at most 64 printable ASCII characters without spaces"
	}
	return ""
}

// checkAgainst finds what a tunnel may not share with those before it.
func (d *document) checkAgainst(before []Tunnel, t *Tunnel, key string) {
	for j := range before {
		o := &before[j]
		if t.Device.Name != "" && t.Device.Name == o.Device.Name {
			d.fail(key+".device.name", "%q: tunnels[%d] has it already", t.Device.Name, j)
		}
		if !t.Underlay.Local.IsValid() || t.Underlay.Local != o.Underlay.Local || t.Underlay.Port != o.Underlay.Port {
			continue
		}
		switch {
		case t.Underlay.Encap != encap.FramingVXLAN || o.Underlay.Encap != encap.FramingVXLAN:
			d.fail(key+".underlay.port", "%s port %d is tunnels[%d]'s already: only vxlan tunnels can share a port, by their VNI; give this one another", t.Underlay.Local, t.Underlay.Port, j)
		case t.Underlay.VNI == o.Underlay.VNI:
			d.fail(key+".underlay.vni", "%d: tunnels[%d] has it already on %s port %d; give this one another VNI, or another port", t.Underlay.VNI, j, t.Underlay.Local, t.Underlay.Port)
		}
	}
}

func (d *document) checkMetrics(m *Metrics) {
	if m.Listen != "" {
		_, port, err := net.SplitHostPort(m.Listen)
		if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
			d.fail("metrics.listen", "%q: want an address and a port, such as 127.0.0.1:9472", m.Listen)
		}
	}
	if m.MaxPeers < 0 {
		d.fail("metrics.max_peers", "%d: want 0 or more", m.MaxPeers)
	}
}
