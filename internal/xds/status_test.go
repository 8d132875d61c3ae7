package xds

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
)

// TestListenerStatus: listeners whose newest is not accepted are told, each with its
// answer, and what all was sent of.
func TestListenerStatus(t *testing.T) {
	c := newClient(t, true)
	c.publish("lds a=1 b=1")
	status := func() Type { return c.s.watches[ListenerType].status() }
	c.subscribe("lds", "*")
	if got := status().Settled; got != "" {
		t.Errorf("settled at %s before anything was sent", got)
	}
	send := func() *response {
		t.Helper()
		r, _ := c.s.next(c.now)
		if r == nil {
			t.Fatal("nothing is sent")
		}
		return r
	}
	told := func(what string, want ...Held) {
		t.Helper()
		got := status()
		for i, h := range got.Open {
			got.Open[i] = Held{Name: h.Name, State: h.State, Reason: h.Reason}
		}
		if diff := cmp.Diff(want, got.Open); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		if version := c.snap.Version(ListenerType); got.Settled != version {
			t.Errorf("%s: settled at %q, want %q", what, got.Settled, version)
		}
	}
	first := send()
	told("sent", Held{Name: "a", State: Pending}, Held{Name: "b", State: Pending})
	c.ack(first)
	told("accepted")
	c.publish("lds a=1 b=2")
	if got := status().Settled; got != "" {
		t.Errorf("settled at %s while b is to be sent", got)
	}
	second := send()
	c.nack(second, "b: taken")
	told("refused", Held{Name: "b", State: Nacked, Reason: "taken"})
	c.publish("lds a=1 b=3")
	c.ack(send())
	told("healed")
}

// TestNamedListeners: of a response that is refused the listeners that the reason names
// are, by their whole names; all if it names none.
func TestNamedListeners(t *testing.T) {
	all := []string{"0.0.0.0_80", "0.0.0.0_8080"}
	for _, tt := range []struct {
		reason string
		want   map[string]string
	}{
		{"Error adding/updating listener(s) 0.0.0.0_8080: cannot bind\n0.0.0.0_9: more", map[string]string{all[1]: "cannot bind"}},
		{"0.0.0.0_8080: taken; 0.0.0.0_80: refused", map[string]string{all[0]: "refused", all[1]: "taken; 0.0.0.0_80: refused"}},
		{"10.0.0.0_80 is not it, 0.0.0.0_80 is", map[string]string{all[0]: "10.0.0.0_80 is not it, 0.0.0.0_80 is"}},
		{"out of memory", map[string]string{all[0]: "out of memory", all[1]: "out of memory"}},
	} {
		w := newWatch(ListenerType, true)
		d := &delivery{nonce: "1", resources: []*Resource{{Name: all[0]}, {Name: all[1]}}}
		w.deliver(d)
		w.answer(d, true, codes.Internal, tt.reason, time.Time{})
		got := make(map[string]string)
		for _, h := range w.open() {
			got[h.Name] = h.Reason
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.reason, diff)
		}
	}
}
