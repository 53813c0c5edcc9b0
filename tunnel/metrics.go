package tunnel

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vxlane/vxlane/encap"
)

// Metric describes one metric for the reference documentation.
type Metric struct {
	Name, Type, Help string
	Labels           []string
}

// metric is a Metric and its Prometheus description.
type metric struct {
	Metric
	desc *prometheus.Desc
}

func (m *metric) send(ch chan<- prometheus.Metric, value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if m.Type == "counter" {
		kind = prometheus.CounterValue
	}
	ch <- prometheus.MustNewConstMetric(m.desc, kind, value, labels...)
}

var metrics []*metric

func define(kind, name, help string, labels ...string) *metric {
	m := &metric{Metric{name, kind, help, labels}, prometheus.NewDesc(name, help, labels, nil)}
	metrics = append(metrics, m)
	return m
}

// Every metric there is; docs/metrics.md is made from this table. Labels are closed sets, but for peer names.
var (
	metricReceived  = define("counter", "vxlane_received_packets_total", "Packets that entered: from the device (encap) or the underlay (decap).", "direction", "vni")
	metricPackets   = define("counter", "vxlane_packets_total", "Packets delivered: to the underlay (encap) or the device (decap).", "direction", "vni")
	metricBytes     = define("counter", "vxlane_bytes_total", "Bytes of the packets delivered, without outer headers.", "direction", "vni")
	metricConsumed  = define("counter", "vxlane_consumed_packets_total", "Packets that the tunnel answered itself: ARP and neighbour discovery.", "direction", "vni")
	metricDropped   = define("counter", "vxlane_dropped_packets_total", "Packets dropped, by reason.", "direction", "reason")
	metricOddECN    = define("counter", "vxlane_odd_ecn_packets_total", "Packets received, dropped or not, with ECN fields in the outer and inner headers that no sender should make (RFC 6040 section 4.2).")
	metricCopies    = define("counter", "vxlane_flood_copies_total", "Copies of flooded frames sent beside the one that counts as delivered (Ethernet mode).")
	metricCopyDrops = define("counter", "vxlane_flood_copies_dropped_total", "Copies of flooded frames that were not sent, by reason (Ethernet mode).", "reason")
	metricStations  = define("gauge", "vxlane_fdb_entries", "Entries of the forwarding database, by kind: peer, static, learned, and flood for those who get what is for all (Ethernet mode).", "kind")
	metricFDB       = define("counter", "vxlane_fdb_events_total", "What happened in the forwarding database: move, refused_limit, refused_moves, missed (Ethernet mode).", "event")
	metricSuspect   = define("counter", "vxlane_suspect_packets_total", "Packets received and let pass that a source check would have dropped if it enforced (source_check: count), by the reason.", "reason")
	metricHeld      = define("gauge", "vxlane_held_packets", "Packets that wait for a peer's MAC.")
	metricGenerated = define("counter", "vxlane_generated_packets_total", "Packets that the tunnel sent of its own accord.", "kind")

	metricPeerInfo    = define("gauge", "vxlane_peer_info", "Always 1; says where a peer is.", "endpoint", "peer")
	metricPeerUp      = define("gauge", "vxlane_peer_up", "1 when the peer's MAC is known or none is needed; 0 while it does not answer.", "peer")
	metricPeerPackets = define("counter", "vxlane_peer_packets_total", "Packets delivered to (encap) and from (decap) a peer.", "direction", "peer")
	metricPeerBytes   = define("counter", "vxlane_peer_bytes_total", "Bytes of the packets delivered to and from a peer.", "direction", "peer")
	metricPeerMTU     = define("gauge", "vxlane_peer_path_mtu_bytes", "Largest outer packet that is known to reach the peer; 0 when nothing is known.", "peer")
	metricPeerHeard   = define("gauge", "vxlane_peer_last_receive_timestamp_seconds", "When the last packet of the peer was delivered; 0 when none was.", "peer")

	metricBatch      = define("histogram", "vxlane_batch_packets", "Packets that one wake-up yielded; a native histogram.", "direction")
	metricSyscalls   = define("counter", "vxlane_syscalls_total", "System calls on the way of packets.", "call")
	metricSegments   = define("counter", "vxlane_gso_segments_total", "Segments that super-packets were split into here.")
	metricOverflow   = define("counter", "vxlane_udp_receive_queue_overflow_total", "Datagrams that found the socket's receive buffer full, or the queues of the outer TAP device (tunnel-gso).")
	metricTUNErrors  = define("counter", "vxlane_tun_errors_total", "Writes that the device refused, by errno.", "errno")
	metricOuterDrops = define("counter", "vxlane_outer_drops_total", "Packets (super-packets count once) that left through the outer TAP device (tunnel-gso) and had no way to their peer, by what the host's routes said.", "answer")
	metricUDPErrors  = define("counter", "vxlane_udp_receive_errors_total", "Receive calls that failed and were made again, by errno.", "errno")
	metricFeature    = define("gauge", "vxlane_feature_enabled", "1 when a kernel feature is in use.", "feature")

	metricReloadOK = define("gauge", "vxlane_config_last_reload_successful", "1 when the last read of the configuration succeeded.")
	metricReloadAt = define("gauge", "vxlane_config_last_reload_success_timestamp_seconds", "When the configuration was last read with success.")
	metricBuild    = define("gauge", "vxlane_build_info", "Always 1; says which build this is.", "goversion", "version")
)

// Metrics returns every metric there is, sorted by name.
func Metrics() []Metric {
	all := make([]Metric, len(metrics))
	for i, m := range metrics {
		all[i] = m.Metric
	}
	slices.SortFunc(all, func(a, b Metric) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Collector exports one tunnel's metrics.
type Collector struct {
	Tunnel   *Tunnel
	MaxPeers int                 // peers with series of their own
	Counts   func() Counts       // of system calls; may be nil
	Features func() []Capability // may be nil
}

var _ prometheus.Collector = (*Collector)(nil)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		if m != metricReloadOK && m != metricReloadAt && m != metricBuild {
			ch <- m.desc
		}
	}
}

// copyDrops are why a copy of a frame is not sent.
var copyDrops = []encap.Reason{encap.PktTooBig, encap.QueueFull, encap.UDPSend}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	stats := c.Tunnel.Stats()
	c.collectFlow(ch, Encap, &stats.Encap)
	c.collectFlow(ch, Decap, &stats.Decap)
	for _, r := range sourceChecks {
		metricSuspect.send(ch, float64(stats.Decap.bySuspect[r]), r.String())
	}
	metricOddECN.send(ch, float64(stats.Decap.OddECN))
	metricCopies.send(ch, float64(stats.Encap.Copies))
	for _, r := range copyDrops {
		metricCopyDrops.send(ch, float64(stats.Encap.byCopy[r]), r.String())
	}
	c.collectFDB(ch)
	metricHeld.send(ch, float64(stats.Encap.Held))
	metricSegments.send(ch, float64(stats.Encap.split+stats.Decap.split))
	for kind, n := range map[string]uint64{
		"arp_request": stats.Generated.ARPRequests, "arp_reply": stats.Generated.ARPReplies,
		"neighbour_solicitation":  stats.Generated.Solicitations,
		"neighbour_advertisement": stats.Generated.Advertisements,
		"icmp_error":              stats.Generated.ICMPErrors,
	} {
		metricGenerated.send(ch, float64(n), kind)
	}
	c.collectPeers(ch)
	c.collectKernel(ch)
}

// sourceChecks are the reasons that a source check has.
var sourceChecks = []encap.Reason{encap.PeerUnknown, encap.InnerSourceNotAllowed}

func (c *Collector) collectFlow(ch chan<- prometheus.Metric, d Direction, f *Flow) {
	direction, vni := d.String(), fmt.Sprint(uint32(c.Tunnel.cfg.VNI))
	metricReceived.send(ch, float64(f.Received), direction, vni)
	metricPackets.send(ch, float64(f.Delivered), direction, vni)
	metricBytes.send(ch, float64(f.Bytes), direction, vni)
	metricConsumed.send(ch, float64(f.Consumed), direction, vni)
	for _, r := range encap.Reasons() {
		metricDropped.send(ch, float64(f.byReason[r]), direction, r.String())
	}
	buckets := make(map[int]int64)
	var count uint64
	for i, n := range f.batches {
		buckets[i], count = int64(n), count+n
	}
	// Schema 0 has a bucket for each power of two, as the counters do.
	ch <- prometheus.MustNewConstNativeHistogram(metricBatch.desc, count, float64(f.batchSum), buckets, nil, 0, 0, 0, c.Tunnel.started, direction)
}

func (c *Collector) collectFDB(ch chan<- prometheus.Metric) {
	entries, stats, err := c.Tunnel.FDB()
	if err != nil { // it forwards by address
		return
	}
	kinds := map[FDBKind]int{FDBPeer: 0, FDBStatic: 0, FDBLearned: 0, FDBFlood: 0}
	for _, e := range entries {
		kinds[e.Kind]++
	}
	for kind, n := range kinds {
		metricStations.send(ch, float64(n), string(kind))
	}
	for event, n := range map[string]uint64{"move": stats.Moves, "refused_limit": stats.Full, "refused_moves": stats.Restless, "missed": stats.Missed} {
		metricFDB.send(ch, float64(n), event)
	}
}

func (c *Collector) collectPeers(ch chan<- prometheus.Metric) {
	peers := c.Tunnel.PeerStatus()
	own := peers[:min(len(peers), c.MaxPeers)]
	for _, p := range own {
		metricPeerInfo.send(ch, 1, p.Peer.Endpoint.String(), p.Peer.Name)
		collectPeer(ch, p, p.Peer.Name, p.Up(), p.PathMTU)
	}
	if rest := peers[len(own):]; len(rest) > 0 {
		sum, up := PeerStatus{}, true
		for _, p := range rest {
			sum.EncapPackets += p.EncapPackets
			sum.EncapBytes += p.EncapBytes
			sum.DecapPackets += p.DecapPackets
			sum.DecapBytes += p.DecapBytes
			up = up && p.Up()
			if p.LastReceive.After(sum.LastReceive) {
				sum.LastReceive = p.LastReceive
			}
		}
		collectPeer(ch, sum, "other", up, 0)
	}
}

func collectPeer(ch chan<- prometheus.Metric, p PeerStatus, name string, up bool, mtu int) {
	metricPeerUp.send(ch, boolValue(up), name)
	metricPeerPackets.send(ch, float64(p.EncapPackets), Encap.String(), name)
	metricPeerPackets.send(ch, float64(p.DecapPackets), Decap.String(), name)
	metricPeerBytes.send(ch, float64(p.EncapBytes), Encap.String(), name)
	metricPeerBytes.send(ch, float64(p.DecapBytes), Decap.String(), name)
	metricPeerMTU.send(ch, float64(mtu), name)
	heard := 0.0
	if !p.LastReceive.IsZero() {
		heard = float64(p.LastReceive.Unix())
	}
	metricPeerHeard.send(ch, heard, name)
}

func (c *Collector) collectKernel(ch chan<- prometheus.Metric) {
	if c.Counts != nil {
		counts := c.Counts()
		for call, n := range counts.Syscalls {
			metricSyscalls.send(ch, float64(n), call)
		}
		metricOverflow.send(ch, float64(counts.QueueOverflows))
		for errno, n := range counts.DeviceErrors {
			metricTUNErrors.send(ch, float64(n), errno)
		}
		for errno, n := range counts.ReceiveErrors {
			metricUDPErrors.send(ch, float64(n), errno)
		}
		for answer, n := range counts.OuterDrops {
			metricOuterDrops.send(ch, float64(n), answer)
		}
	}
	if c.Features != nil {
		for _, f := range c.Features() {
			metricFeature.send(ch, boolValue(f.Enabled), f.Name)
		}
	}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// BuildCollector exports which build a process is.
func BuildCollector(version, goVersion string) prometheus.Collector {
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: metricBuild.Name, Help: metricBuild.Help}, metricBuild.Labels)
	build.WithLabelValues(goVersion, version).Set(1)
	return build
}

// ProcessCollector exports what is known of the process: its build, and its configuration.
type ProcessCollector struct {
	Version, GoVersion string
	Reload             func() (ok bool, at time.Time)
}

var _ prometheus.Collector = (*ProcessCollector)(nil)

// Describe implements prometheus.Collector.
func (c *ProcessCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range []*metric{metricReloadOK, metricReloadAt, metricBuild} {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *ProcessCollector) Collect(ch chan<- prometheus.Metric) {
	ok, at := c.Reload()
	metricReloadOK.send(ch, boolValue(ok))
	metricReloadAt.send(ch, float64(at.Unix()))
	metricBuild.send(ch, 1, c.GoVersion, c.Version)
}
