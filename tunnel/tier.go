package tunnel

// Tier is the set of kernel offloads in use.
type Tier string

// TierPortable needs nothing but a TUN device and UDP sockets.
const TierPortable Tier = "portable"

// Capability is one kernel feature: whether it is in use, and why not.
type Capability struct {
	Name    string `json:"name"`
	Enabled bool   `json:"enabled"`
	Reason  string `json:"reason,omitempty"` // why it is off
}

// Capabilities returns the features of the portable tier with n workers.
func Capabilities(n int) []Capability {
	const (
		notPortable = "the portable tier moves finished packets one by one"
		oneWorker   = "one worker needs no more than one queue (device.queues)"
	)
	several := func(name string) Capability {
		if n > 1 {
			return Capability{Name: name, Enabled: true}
		}
		return Capability{Name: name, Reason: oneWorker}
	}
	return []Capability{
		{Name: "tso", Reason: notPortable},
		{Name: "uso", Reason: notPortable},
		{Name: "gso", Reason: notPortable},
		{Name: "gro", Reason: notPortable},
		several("multiqueue"),
		several("reuseport"),
	}
}
