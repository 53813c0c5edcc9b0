package tunnel

import "testing"

// The next call asks for as many messages as bring what still fits in the cache, by what those of this one had in them, and for
// no fewer than two: with one, no two could be joined.
func TestReceiveAdapts(t *testing.T) {
	for _, c := range []struct {
		name                     string
		messages, bytes, packets int
		want                     int
	}{
		{"small packets", 128, 128 * 100, 128, receiveSlots},
		{"of a size", 100, 100 * 1472, 100, receiveSlots},
		{"whole trains of large ones", 4, 4 * 64768, 4 * 44, 4},
		{"whole trains of small ones", 10, 10 * 64 * 114, 10 * 64, 16},
		{"mixed", 8, 4 * 64768, 4*44 + 4, 8},
		{"trains of nearly nothing", 2, 4 * 1024, 2 * 1024, 2},
		{"the largest there is", 1, 65535, 1, 4},
		{"empty ones", 3, 0, 3, receiveSlots},
	} {
		r := &udpReceiver{want: 77}
		if r.adapt(c.messages, c.bytes, c.packets); r.want != c.want {
			t.Errorf("%s: asks for %d messages, want %d", c.name, r.want, c.want)
		}
	}
	r := &udpReceiver{want: 77}
	if r.adapt(0, 0, 0); r.want != 77 {
		t.Errorf("a call that brought nothing changed it to %d", r.want)
	}
}
