package result

// Metric is a quantity that workloads measure. Values are in base units.
type Metric struct {
	Name   string
	Title  string
	Unit   string  // for people; values divided by Scale are in it
	Scale  float64 // base units in a Unit
	Better Better
}

// Better says which values users want.
type Better string

// The directions.
const (
	HigherIsBetter Better = "higher"
	LowerIsBetter  Better = "lower"
	Neither        Better = ""
)

// The names of metrics.
const (
	Throughput      = "throughput_bits_per_second"
	ThroughputBack  = "throughput_back_bits_per_second"
	Retransmits     = "retransmits_per_gigabyte"
	Received        = "received_packets_per_second"
	Offered         = "offered_packets_per_second"
	Loss            = "loss_ratio"
	NoLoss          = "no_loss_packets_per_second"
	Transactions    = "transactions_per_second"
	Connections     = "connections_per_second"
	P50             = "p50_seconds"
	P90             = "p90_seconds"
	P99             = "p99_seconds"
	P999            = "p999_seconds"
	MachinePerGB    = "machine_cpu_seconds_per_gigabyte"
	TunnelPerGB     = "tunnel_cpu_seconds_per_gigabyte"
	MachinePerMpkt  = "machine_cpu_seconds_per_million_packets"
	TunnelPerMpkt   = "tunnel_cpu_seconds_per_million_packets"
	MachinePerKConn = "machine_cpu_seconds_per_thousand_connections"
	TunnelPerKConn  = "tunnel_cpu_seconds_per_thousand_connections"
	SyscallsPerPkt  = "tunnel_syscalls_per_packet"
	SwitchesPerGB   = "tunnel_context_switches_per_gigabyte"
	SwitchesPerMpkt = "tunnel_context_switches_per_million_packets"
	WakeupsPerGB    = "tunnel_wakeups_per_gigabyte"
	WakeupsPerMpkt  = "tunnel_wakeups_per_million_packets"
	PeakMemory      = "tunnel_peak_memory_bytes"
	Busy            = "machine_busy_cores"
	Steal           = "machine_steal_cores"
)

// Metrics returns all metrics in the order of reports.
func Metrics() []Metric {
	return []Metric{
		{Throughput, "throughput", "Gbit/s", 1e9, HigherIsBetter},
		{ThroughputBack, "throughput of the way back", "Gbit/s", 1e9, HigherIsBetter},
		{Retransmits, "TCP retransmits", "segments/GB", 1, LowerIsBetter},
		{Received, "received", "kpps", 1e3, HigherIsBetter},
		{Offered, "offered", "kpps", 1e3, Neither},
		{Loss, "loss at the offered rate", "%", 1e-2, Neither},
		{NoLoss, "highest rate with loss below 0.1 %", "kpps", 1e3, HigherIsBetter},
		{Transactions, "transactions", "1/s", 1, HigherIsBetter},
		{Connections, "connections", "1/s", 1, HigherIsBetter},
		{P50, "latency p50", "µs", 1e-6, LowerIsBetter},
		{P90, "latency p90", "µs", 1e-6, LowerIsBetter},
		{P99, "latency p99", "µs", 1e-6, LowerIsBetter},
		{P999, "latency p99.9", "µs", 1e-6, LowerIsBetter},
		{MachinePerGB, "CPU of the machine per gigabyte", "s/GB", 1, LowerIsBetter},
		{TunnelPerGB, "CPU of the tunnel's processes per gigabyte", "s/GB", 1, LowerIsBetter},
		{MachinePerMpkt, "CPU of the machine per million packets", "s/Mpkt", 1, LowerIsBetter},
		{TunnelPerMpkt, "CPU of the tunnel's processes per million packets", "s/Mpkt", 1, LowerIsBetter},
		{MachinePerKConn, "CPU of the machine per thousand connections", "s/1000 connections", 1, LowerIsBetter},
		{TunnelPerKConn, "CPU of the tunnel's processes per thousand connections", "s/1000 connections", 1, LowerIsBetter},
		{SyscallsPerPkt, "system calls of the tunnel's processes per packet", "1/packet", 1, LowerIsBetter},
		{SwitchesPerGB, "context switches of the tunnel's processes per gigabyte", "1/GB", 1, LowerIsBetter},
		{SwitchesPerMpkt, "context switches of the tunnel's processes per million packets", "1/Mpkt", 1, LowerIsBetter},
		{WakeupsPerGB, "wake-ups (context switches after a sleep) of the tunnel's processes per gigabyte", "1/GB", 1, LowerIsBetter},
		{WakeupsPerMpkt, "wake-ups (context switches after a sleep) of the tunnel's processes per million packets", "1/Mpkt", 1, LowerIsBetter},
		{PeakMemory, "peak memory of the tunnel's processes, per host", "MiB", 1 << 20, LowerIsBetter},
		{Busy, "busy cores", "cores", 1, Neither},
		{Steal, "cores taken by the hypervisor", "cores", 1, Neither},
	}
}

// FindMetric returns the metric called name; one that is unknown has its name as title.
func FindMetric(name string) Metric {
	for _, m := range Metrics() {
		if m.Name == name {
			return m
		}
	}
	return Metric{Name: name, Title: name, Scale: 1}
}
