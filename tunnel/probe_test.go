package tunnel

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A device is asked for each kind of super-packet, in both families; one that refuses any does without that kind. EIO is what one
// says that is down, after it found them good.
func TestProbesOfADevice(t *testing.T) {
	const v4, v6 = 0x45, 0x60
	all := func(byte, byte) bool { return true }
	for _, c := range []struct {
		name     string
		refused  func(gso, version byte) bool
		err      error
		tso, uso bool
	}{
		{"good, and down", all, unix.EIO, true, true},
		{"good, and up", all, nil, true, true},
		{"none", all, unix.EINVAL, false, false},
		{"out of memory", all, unix.ENOMEM, false, false},
		{"no TCP over IPv4", func(gso, _ byte) bool { return gso == virtioGSOTCPv4 }, unix.EINVAL, false, true},
		{"no TCP over IPv6", func(gso, _ byte) bool { return gso == virtioGSOTCPv6 }, unix.EINVAL, false, true},
		{"no UDP", func(gso, _ byte) bool { return gso == virtioGSOUDP }, unix.EINVAL, true, false},
		{"no UDP over IPv4", func(gso, version byte) bool { return gso == virtioGSOUDP && version == v4 }, unix.EINVAL, true, false},
		{"no UDP over IPv6", func(gso, version byte) bool { return gso == virtioGSOUDP && version == v6 }, unix.EINVAL, true, false},
	} {
		for _, ethernet := range []bool{false, true} {
			dev := &TUN{cfg: TUNConfig{Ethernet: ethernet}}
			asked := 0
			dev.probe(func(pieces [][]byte) error {
				asked++
				version := pieces[1][0]
				if ethernet {
					version = pieces[1][14]
				}
				if c.refused(pieces[0][1], version) {
					return c.err
				}
				return unix.EIO
			})
			if asked != 4 || dev.tso.on() != c.tso || dev.uso.on() != c.uso {
				t.Errorf("%s, Ethernet %v: asked %d times, %+v", c.name, ethernet, asked, dev.Capabilities())
			}
			for _, f := range dev.Capabilities() {
				if !f.Enabled && (!strings.Contains(f.Reason, "refuses super-packets") || !strings.Contains(f.Reason, c.err.Error())) {
					t.Errorf("%s: %+v", c.name, f)
				}
			}
		}
	}
}

// What is no TUN device of a kernel that knows offloads makes none, and says what it answered.
func TestOffloadsRefused(t *testing.T) {
	fd, err := unix.Open("/dev/full", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	dev := &TUN{fds: []int{fd, fd}}
	dev.negotiate()
	for _, f := range dev.Capabilities() {
		if f.Enabled || !strings.Contains(f.Reason, "TUNSETOFFLOAD") || !strings.Contains(f.Reason, unix.ENOTTY.Error()) {
			t.Errorf("%+v", f)
		}
	}
}

// Trains are given up when what comes of one is not what was sent.
func TestProbeArrives(t *testing.T) {
	for _, c := range []struct {
		name, sent, want string
		segment          int
		reason           string
	}{
		{"as it was sent", "probe 1\n", "probe 1\n", 0, ""},
		{"the other datagram", "probe 2\n", "probe 1\n", 0, "damaged"},
		{"a bit is another", "probe 0\n", "probe 1\n", 0, "damaged"},
		{"a part of it", "probe 1", "probe 1\n", 0, "7 bytes"},
		{"nothing in it", "", "probe 1\n", 0, "0 bytes"},
		{"more than was sent", probeTrain, "probe 1\n", 0, "16 bytes"},
		{"longer than there is room", probeTrain + probeTrain + probeTrain, "probe 1\n", 0, "32 bytes"},
		{"whole, without the size of its segments", probeTrain, probeTrain, probeSegment, "segment size 0, want 16 with 8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(ends[0])
			defer unix.Close(ends[1])
			if err := unix.Send(ends[0], []byte(c.sent), 0); err != nil {
				t.Fatal(err)
			}
			err = awaitProbe(ends[1], c.want, c.segment)
			if c.reason == "" && err != nil || c.reason != "" && (err == nil || !strings.Contains(err.Error(), c.reason)) {
				t.Errorf("%v, want %q", err, c.reason)
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(ends[0])
		defer unix.Close(ends[1])
		if err := awaitProbe(ends[1], probeTrain, probeSegment); err == nil || !strings.Contains(err.Error(), "wait for what was sent") {
			t.Error(err)
		}
	})
}

// Where no train can be tried there are none, and why is said.
func TestTrainsThatCannotBeTried(t *testing.T) {
	u := &UDP{cfg: UDPConfig{Local: netip.MustParseAddr("192.0.2.77"), Offloads: true}}
	u.negotiate()
	for name, f := range map[string]*feature{"UDP_SEGMENT": &u.gso, "UDP_GRO": &u.gro} {
		if c := f.capability(name); c.Enabled || !strings.Contains(c.Reason, name) || !strings.Contains(c.Reason, "192.0.2.77") {
			t.Errorf("%+v", c)
		}
	}
}
