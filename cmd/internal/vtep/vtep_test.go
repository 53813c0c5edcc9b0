package vtep

import (
	"testing"

	"github.com/vxlane/vxlane/tunnel"
)

func TestSummary(t *testing.T) {
	for _, c := range []struct {
		features []tunnel.Capability
		on, off  string
	}{
		{nil, "", ""},
		{[]tunnel.Capability{{Name: "tso", Enabled: true}, {Name: "uso", Enabled: true}}, "tso uso", ""},
		{[]tunnel.Capability{{Name: "tso", Reason: "one"}, {Name: "gro", Enabled: true}, {Name: "uso", Reason: "two"}}, "gro", "tso (one); uso (two)"},
	} {
		if on, off := summary(c.features); on != c.on || off != c.off {
			t.Errorf("%+v: on %q, off %q", c.features, on, off)
		}
	}
}
