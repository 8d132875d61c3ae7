package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/resource"
)

const plugins = "/apis/extensions.istio.io/v1alpha1/namespaces/default/wasmplugins/"

// A bench is a Writer and what it writes to.
type bench struct {
	*Writer
	t   *testing.T
	api *api
	log *bytes.Buffer
}

func newBench(t *testing.T, change ...func(*Config)) *bench {
	b := &bench{t: t, api: newAPI(), log: new(bytes.Buffer)}
	cfg := Config{
		Objects: objects(t, b.api.config()), Events: eventsOf(t, b.api.config()), Instance: "chandler-1",
		Log: slog.New(slog.NewTextHandler(b.log, nil)), Registerer: prometheus.NewRegistry(),
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if b.Writer, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return b
}

// start runs the writer until stop is called.
func (b *bench) start() (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

func (b *bench) want(path, kind, want string) {
	b.t.Helper()
	if got := b.api.condition(path, kind); got != want {
		b.t.Errorf("%s of %s = %q, want %q", kind, path, got, want)
	}
}

func (b *bench) wantCalls(part string, want int) {
	b.t.Helper()
	if got := b.api.count(part); got != want {
		b.t.Errorf("%d calls %q, want %d", got, part, want)
	}
}

// settle lets d pass, and all that is then under way end.
func settle(d time.Duration) {
	time.Sleep(d) // in a bubble of synctest
	synctest.Wait()
}

func TestWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		b.api.setStatus(plugins+"a", map[string]any{
			"conditions":         []any{map[string]any{"type": "Others", "status": "True", "lastProbeTime": "2020-01-01T00:00:00Z", "observedGeneration": "1"}},
			"validationMessages": []any{"keep"},
		})
		b.Update([]Fact{fact("a", 1, 2)})
		defer b.start()()
		synctest.Wait()
		b.want(plugins+"a", Accepted, "True Accepted")
		b.want(plugins+"a", Resolved, "True Resolved")
		b.want(plugins+"a", Programmed, "Unknown Pending")
		status := b.api.all(plugins + "a")[0]["status"].(map[string]any)
		if diff := cmp.Diff(map[string]any{"proxies": "1/2", "digest": "sha256:0123456789ab"}, status["chandler"]); diff != "" {
			t.Errorf("status.chandler (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]any{"keep"}, status["validationMessages"]); diff != "" {
			t.Errorf("status.validationMessages (-want +got):\n%s", diff)
		}
		others := b.api.conditionMap(plugins+"a", "Others")
		if diff := cmp.Diff(map[string]any{"type": "Others", "status": "True", "lastProbeTime": "2020-01-01T00:00:00Z", "observedGeneration": "1"}, others); diff != "" {
			t.Errorf("condition of others (-want +got):\n%s", diff)
		}

		b.wantCalls("PATCH", 1)
		b.Update([]Fact{fact("a", 1, 2)}) // as after the write has come back
		settle(time.Minute)
		b.wantCalls("PATCH", 1)
		b.wantCalls("GET", 1) // the list
		since := b.api.conditionMap(plugins+"a", Programmed)["lastTransitionTime"]

		b.Update([]Fact{fact("a", 2, 2), {Key: resource.Key{Kind: "Service", Name: "x"}}})
		synctest.Wait()
		b.want(plugins+"a", Programmed, "True Programmed")
		if b.api.conditionMap(plugins+"a", Programmed)["lastTransitionTime"] == since {
			t.Error("lastTransitionTime did not change with the status")
		}
		b.wantCalls("PATCH", 2)
		if got := testutil.ToFloat64(b.metrics.writes.WithLabelValues("written")); got != 2 {
			t.Errorf("metric counts %v writes", got)
		}
	})
}

// TestRate: no resource is written more than once a second, and what is written is the newest.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		const resources, proxies = 3, 100
		for i := range resources {
			b.api.put(fmt.Sprint(plugins, i), "spec")
		}
		defer b.start()()
		for n := range proxies + 1 {
			var facts []Fact
			for i := range resources {
				facts = append(facts, fact(fmt.Sprint(i), n, proxies))
			}
			b.Update(facts)
			settle(50 * time.Millisecond)
		}
		settle(time.Second)
		for i := range resources {
			path := fmt.Sprint(plugins, i)
			b.want(path, Programmed, "True Programmed")
			writes := b.api.writes[path]
			if len(writes) < 5 || len(writes) > 7 {
				t.Errorf("%d writes in 5 seconds", len(writes))
			}
			for i := range writes[1:] {
				if apart := writes[i+1].Sub(writes[i]); apart < time.Second {
					t.Errorf("two writes %s apart", apart)
				}
			}
		}
	})
}

// TestTotalRate: the calls for many resources are bounded, and one that turns does
// not wait for those that only count.
func TestTotalRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(c *Config) { c.Rate, c.Burst, c.Events = 10, 20, nil })
		const resources = 600
		facts := make([]Fact, resources)
		for i := range facts {
			b.api.put(fmt.Sprint(plugins, i), "spec")
		}
		all := func(n int) {
			facts = make([]Fact, resources)
			for i := range facts {
				facts[i] = fact(fmt.Sprint(i), n, 9)
			}
			b.Update(facts)
		}
		all(1)
		defer b.start()()
		settle(10 * time.Second)
		if got := b.api.count(" "); got > 20+10*10 || got < 100 {
			t.Errorf("%d calls in 10 seconds", got)
		}
		b.wantCalls("GET", 2) // pages
		settle(2 * time.Minute)
		b.wantCalls("PATCH", resources)

		all(2)
		settle(2 * time.Second)
		facts[444] = fact("444", 9, 9)
		b.Update(facts)
		settle(6 * time.Second)
		b.want(plugins+"444", Programmed, "True Programmed")
		if got := b.api.count("PATCH"); got > resources+20+80 {
			t.Errorf("%d writes", got-resources)
		}
	})
}

// TestConflict: what others write meanwhile is kept.
func TestConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		n := 0
		b.api.before = func(path string) {
			if n++; n <= 2 {
				b.api.setStatus(path, map[string]any{"conditions": []any{map[string]any{"type": fmt.Sprint("Others", n)}}})
			}
		}
		b.Update([]Fact{fact("a", 1, 1)})
		defer b.start()()
		synctest.Wait()
		b.want(plugins+"a", Programmed, "True Programmed")
		if b.api.conditionMap(plugins+"a", "Others2") == nil {
			t.Error("the condition of another writer is lost")
		}
		if got := len(b.api.writes[plugins+"a"]); got != 1 {
			t.Errorf("%d writes", got)
		}
	})
}

// TestBusy: of a resource that others never leave alone, little is tried.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		b.api.put(plugins+"b", "spec")
		b.api.before = func(path string) {
			if strings.HasSuffix(path, "/a") {
				b.api.setStatus(path, nil)
			}
		}
		b.Update([]Fact{fact("a", 1, 1), fact("b", 1, 1)})
		defer b.start()()
		settle(10 * time.Minute)
		if got := b.api.count("PATCH " + plugins + "a"); got < 8 || got > 60 {
			t.Errorf("%d tries", got)
		}
		b.want(plugins+"b", Programmed, "True Programmed")
		if got := strings.Count(b.log.String(), "status not written"); got != 1 {
			t.Errorf("told %d times:\n%s", got, b.log)
		}
	})
}

// TestGone: what is not there is not asked for again, until it is another.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"there", "spec")
		uid := b.api.all(plugins + "there")[0]["metadata"].(map[string]any)["uid"].(string)
		of := func(uid, name string, n int) Fact {
			f := fact(name, n, 2)
			f.UID = types.UID(uid)
			return f
		}
		b.Update([]Fact{of(uid, "there", 1), of("", "gone", 1)})
		defer b.start()()
		settle(time.Second)
		b.Update([]Fact{of(uid, "there", 1), of("", "gone", 2)})
		settle(time.Second)
		b.wantCalls("gone", 0)

		b.api.remove(plugins + "there")
		b.Update([]Fact{of(uid, "there", 2)})
		settle(time.Minute)
		b.wantCalls("PATCH "+plugins+"there", 2) // of which one was told that it is gone

		b.api.put(plugins+"there", "spec") // of the same generation
		next := b.api.all(plugins + "there")[0]["metadata"].(map[string]any)["uid"].(string)
		b.Update([]Fact{of(next, "there", 2)})
		synctest.Wait()
		b.want(plugins+"there", Programmed, "True Programmed")

		b.Update([]Fact{of(uid, "there", 1)}) // late word of the one before
		settle(time.Minute)
		b.want(plugins+"there", Programmed, "True Programmed")
		b.wantCalls("PATCH "+plugins+"there", 3)
	})
}

// TestTwoPlanes: an extension that another control plane tells of is left to it, until
// its namespace chooses this one, or the other is gone; what nobody tells of is taken.
func TestTwoPlanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there := true
		found := map[string]string{} // owners, by name
		var mu sync.Mutex
		b := newBench(t, func(c *Config) {
			c.Plane = identity.Plane{Namespace: "two", Revision: "canary"}
			c.There = func(namespace string) bool {
				mu.Lock()
				defer mu.Unlock()
				return namespace != "one" || there
			}
			c.Found = func(f identity.Foreign) {
				mu.Lock()
				defer mu.Unlock()
				found[f.Name] = f.Owner.String()
			}
		})
		for _, name := range []string{"theirs", "chosen", "free"} {
			b.api.put(plugins+name, "spec")
		}
		for _, name := range []string{"theirs", "chosen"} {
			b.api.setStatus(plugins+name, map[string]any{"chandler": map[string]any{"controlPlane": "one/default", "proxies": "1/1"}})
		}
		all := func(n int) (facts []Fact) {
			for _, name := range []string{"theirs", "chosen", "free"} {
				f := fact(name, n, 2)
				if name == "chosen" {
					f.Revision = "canary"
				}
				facts = append(facts, f)
			}
			return facts
		}
		b.Update(all(1))
		defer b.start()()
		settle(time.Second)
		b.Update(all(2))
		settle(time.Minute)
		b.wantCalls("PATCH "+plugins+"theirs", 0)
		b.want(plugins+"chosen", Programmed, "True Programmed")
		b.want(plugins+"free", Programmed, "True Programmed")
		owner := func(name string) any {
			return b.api.all(plugins + name)[0]["status"].(map[string]any)["chandler"].(map[string]any)["controlPlane"]
		}
		if owner("free") != "two/canary" || owner("chosen") != "two/canary" || owner("theirs") != "one/default" {
			t.Errorf("owners: %v, %v, %v", owner("free"), owner("chosen"), owner("theirs"))
		}
		if diff := cmp.Diff(map[string]string{"theirs": "one/default"}, found); diff != "" {
			t.Errorf("found (-want +got):\n%s", diff)
		}

		mu.Lock()
		there = false
		mu.Unlock()
		b.Update(all(1))
		settle(time.Minute)
		b.want(plugins+"theirs", Programmed, "Unknown Pending")
		if owner("theirs") != "two/canary" || found["theirs"] != "" {
			t.Errorf("after the other is gone it is %v's, and told to be %q's", owner("theirs"), found["theirs"])
		}
	})
}

// TestGenerations: a change of the spec is followed, and word of an older one is not.
func TestGenerations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "one")
		b.Update([]Fact{fact("a", 1, 1)})
		defer b.start()()
		synctest.Wait()
		b.api.put(plugins+"a", "two")
		b.Update([]Fact{fact("a", 0, 1).with(func(f *Fact) { f.Generation = 2 })})
		settle(time.Second)
		c := b.api.conditionMap(plugins+"a", Programmed)
		if c["observedGeneration"] != float64(2) || c["status"] != "Unknown" {
			t.Errorf("condition = %v", c)
		}
		b.wantCalls("GET", 2) // the list, and once since the generation is new
		b.Update([]Fact{fact("a", 1, 1)})
		settle(time.Second)
		if diff := cmp.Diff(c, b.api.conditionMap(plugins+"a", Programmed)); diff != "" {
			t.Errorf("word of an older generation was written (-want +got):\n%s", diff)
		}
		b.Update([]Fact{fact("a", 1, 1).with(func(f *Fact) { f.Generation = 0 })})
		settle(time.Second)
		b.want(plugins+"a", Programmed, "True Programmed")
		if got := b.api.conditionMap(plugins+"a", Programmed)["observedGeneration"]; got != float64(2) {
			t.Errorf("observedGeneration = %v where it is not known", got)
		}
	})
}

// TestAway: while the API server is away it is asked less and less, and then gets the newest.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		b.api.put(plugins+"b", "spec")
		b.Update([]Fact{fact("a", 1, 5), fact("b", 5, 5)})
		defer b.start()()
		settle(2 * time.Second)
		b.api.set(func() { b.api.down, b.api.calls = true, nil })
		for n := range 4 {
			b.Update([]Fact{fact("a", n, 5), fact("b", n, 5)})
			settle(30 * time.Second)
		}
		if got := b.api.count(" "); got < 6 || got > 12 {
			t.Errorf("%d calls in 2 minutes", got)
		}
		b.Update([]Fact{fact("a", 5, 5), fact("b", 4, 5)})
		b.api.set(func() { b.api.down, b.api.calls = false, nil })
		settle(31 * time.Second)
		b.want(plugins+"a", Programmed, "True Programmed")
		b.want(plugins+"b", Programmed, "Unknown Pending")
		b.wantCalls("PATCH", 2)
		for _, told := range []string{"API server away", "API server back"} {
			if got := strings.Count(b.log.String(), told); got != 1 {
				t.Errorf("%q told %d times:\n%s", told, got, b.log)
			}
		}
	})
}

// TestHang: a call that is not answered ends, and Run with it.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		hangs := true
		b.api.hang = func(path string) bool { return hangs && strings.HasSuffix(path, "/status") }
		b.Update([]Fact{fact("a", 1, 1)})
		stop := b.start()
		settle(12 * time.Second)
		b.api.set(func() { hangs = false })
		settle(20 * time.Second)
		b.want(plugins+"a", Programmed, "True Programmed")
		b.api.set(func() { hangs = true })
		b.Update([]Fact{fact("a", 0, 1)})
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took > 0 {
			t.Errorf("Run ended after %s", took)
		}
	})
}

// TestRefusals: what the API server does not take of one resource is tried later
// and later, and holds up no other.
func TestRefusals(t *testing.T) {
	for _, code := range []int{http.StatusForbidden, http.StatusUnprocessableEntity, http.StatusInternalServerError} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.api.put(plugins+"bad", "spec")
				b.api.put(plugins+"good", "spec")
				b.api.refuse = func(method, path string) int {
					if method == http.MethodPatch && strings.Contains(path, "/bad/") {
						return code
					}
					return 0
				}
				b.Update([]Fact{fact("bad", 1, 1), fact("good", 1, 1)})
				defer b.start()()
				settle(time.Hour)
				b.want(plugins+"good", Programmed, "True Programmed")
				if got := b.api.count("PATCH " + plugins + "bad"); got < 12 || got > 130 {
					t.Errorf("%d tries in an hour", got)
				}
				b.api.set(func() { b.api.refuse = nil })
				settle(6 * time.Minute)
				b.want(plugins+"bad", Programmed, "True Programmed")
			})
		})
	}
}

// TestNotKept: a status that does not stay as it was written is not written over and over.
func TestNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		b.api.keep = true
		b.Update([]Fact{fact("a", 1, 1)})
		defer b.start()()
		settle(time.Hour)
		if got := b.api.count("PATCH"); got < 12 || got > 30 {
			t.Errorf("%d writes in an hour", got)
		}
	})
}

// TestResync: what others take away comes back.
func TestResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		b.Update([]Fact{fact("a", 1, 1), fact("late", 1, 1)})
		defer b.start()()
		settle(time.Second)
		b.api.setStatus(plugins+"a", nil)
		b.api.put(plugins+"late", "spec")
		settle(11 * time.Minute)
		b.want(plugins+"a", Programmed, "True Programmed")
		b.want(plugins+"late", Programmed, "True Programmed")
		b.wantCalls("GET", 2)
	})
}

// TestNotListed: without the right to list, resources are read one by one.
func TestNotListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		b.api.refuse = func(_, path string) int {
			if strings.HasSuffix(path, "/wasmplugins") {
				return http.StatusForbidden
			}
			return 0
		}
		b.Update([]Fact{fact("a", 1, 1)})
		defer b.start()()
		settle(time.Second)
		b.want(plugins+"a", Programmed, "True Programmed")
	})
}

// TestNextLeader: who runs next writes nothing that is written already.
func TestNextLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		b.Update([]Fact{fact("a", 1, 1)})
		stop := b.start()
		settle(time.Second)
		stop()
		b.Update([]Fact{fact("a", 1, 1), fact("b", 1, 1)})
		settle(time.Second)
		b.api.put(plugins+"b", "spec")
		b.wantCalls("PATCH", 1)
		stop = b.start()
		settle(time.Minute)
		stop()
		b.wantCalls("PATCH "+plugins+"a", 1)
		b.wantCalls("PATCH "+plugins+"b", 1)
		b.wantCalls("POST", 2) // one event each
	})
}

// TestOtherKinds: that a route is valid is told only to take back that it was not.
func TestOtherKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		const path = "/apis/networking.istio.io/v1/namespaces/default/virtualservices/a"
		b.api.put(path, "spec")
		f := Fact{Key: resource.Key{Group: "networking.istio.io", Kind: "VirtualService", Namespace: "default", Name: "a"}, Generation: 1}
		b.Update([]Fact{f})
		defer b.start()()
		settle(time.Second)
		b.wantCalls("PATCH", 0)
		b.Update([]Fact{f.with(func(f *Fact) { f.Problems = []resource.Problem{{Message: "no such host"}} })})
		settle(time.Second)
		b.want(path, Accepted, "False Invalid")
		b.want(path, Programmed, "")
		b.Update([]Fact{f})
		settle(time.Second)
		b.want(path, Accepted, "True Accepted")
		if got := events(b.api); cmp.Diff([]string{"Warning Invalid no such host", "Normal Accepted valid"}, got) != "" {
			t.Errorf("events = %q\n%s", got, b.log)
		}
	})
}

// events are "TYPE REASON NOTE", and how often if more than once, in the order of their making.
func events(a *api) []string {
	var all []string
	for i := range 10000 {
		for _, e := range a.all("/events/") {
			if e["metadata"].(map[string]any)["uid"] != fmt.Sprint("uid-", i) {
				continue
			}
			text := fmt.Sprint(e["type"], " ", e["reason"], " ", e["note"])
			if series, ok := e["series"].(map[string]any); ok {
				text += fmt.Sprint(" x", series["count"])
			}
			all = append(all, text)
		}
	}
	return all
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		defer b.start()()
		bad := fact("a", 0, 2).with(func(f *Fact) { f.Digest, f.ResolveError = "", errors.New("timeout") })
		for _, f := range []Fact{
			bad, fact("a", 0, 2), fact("a", 1, 2), fact("a", 2, 2),
			fact("a", 2, 3), fact("a", 3, 3), // a proxy more is not worth an event
			fact("a", 3, 3).refusedBy("trap"), fact("a", 3, 3).refusedBy("trap", "trap"),
			fact("a", 3, 3), // all is as before
		} {
			b.Update([]Fact{f})
			settle(40 * time.Second)
		}
		want := []string{
			"Warning FetchFailed " + reference + ": timeout",
			"Normal Programmed 2 of 2 proxies run it x2",
			"Warning Refused 2 of 3 proxies run it, 1 refuses it: httpbin-0.default: trap",
		}
		if diff := cmp.Diff(want, events(b.api)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		e := b.api.all("/events/")[0]
		regarding := e["regarding"].(map[string]any)
		delete(regarding, "uid")
		if diff := cmp.Diff(map[string]any{"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin", "namespace": "default", "name": "a"}, regarding); diff != "" {
			t.Errorf("regarding (-want +got):\n%s", diff)
		}
		if e["reportingController"] != controllerName || e["reportingInstance"] != "chandler-1" || e["action"] == "" {
			t.Errorf("event = %v", e)
		}
	})
}

// TestEventsAreBounded: neither a resource that turns all the time nor many at once
// make many events.
func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		stop := b.start()
		for i := range 120 {
			f := fact("a", 2, 2)
			if i%2 == 0 {
				f = f.refusedBy("trap")
			}
			b.Update([]Fact{f})
			settle(time.Second)
		}
		if got := b.api.count("/events"); got < 6 || got > 30 {
			t.Errorf("%d calls for events in two minutes", got)
		}
		if got := len(events(b.api)); got != 2 {
			t.Errorf("%d events: %q", got, events(b.api))
		}
		stop()

		b = newBench(t)
		var facts []Fact
		for i := range 1000 {
			b.api.put(fmt.Sprint(plugins, i), "spec")
			facts = append(facts, fact(fmt.Sprint(i), 1, 1))
		}
		b.Update(facts)
		defer b.start()()
		settle(time.Minute)
		b.wantCalls("PATCH", 1000)
		if got := b.api.count("/events"); got < 50 || got > 200 {
			t.Errorf("%d calls for events", got)
		}
	})
}

// TestEventsFail: that no event can be made keeps no status from being written.
func TestEventsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.api.put(plugins+"a", "spec")
		b.api.refuse = func(_, path string) int {
			if strings.HasSuffix(path, "/events") {
				return http.StatusForbidden
			}
			return 0
		}
		b.Update([]Fact{fact("a", 1, 1)})
		defer b.start()()
		settle(time.Minute)
		b.want(plugins+"a", Programmed, "True Programmed")
		b.wantCalls("/events", 1)
	})
}

func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a Writer without a client was made")
	}
}

// FuzzObject: whatever others have written to a status, what is written next keeps
// their conditions, and is then as it should be.
func FuzzObject(f *testing.F) {
	f.Add(`{"conditions":[{"type":"Others"},{"type":"Programmed","status":"True","observedGeneration":"7","lastTransitionTime":"2020-01-01T00:00:00Z"}]}`, int64(1))
	f.Add(`{"conditions":[{"type":"Accepted","observedGeneration":1e300},{"type":"Accepted"},null,7],"observedGeneration":"x","chandler":{"proxies":7}}`, int64(2))
	f.Add(`{"conditions":{},"chandler":[]}`, int64(0))
	f.Fuzz(func(t *testing.T, text string, generation int64) {
		var status any
		if json.Unmarshal([]byte(text), &status) != nil || generation < 0 {
			t.Skip()
		}
		u := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"generation": generation}, "status": status}}
		before := newObject(u, true)
		v := judge(fact("x", 1, 2).with(func(f *Fact) { f.Generation = generation }))
		patch := before.status(v, time.Unix(0, 0))
		body, err := json.Marshal(patch)
		if err != nil {
			t.Fatal(err)
		}
		var sent any
		if err := json.Unmarshal(body, &sent); err != nil {
			t.Fatal(err)
		}
		u.Object["status"] = merge(status, sent)
		after := newObject(u, true)
		if after.compare(v) != same {
			t.Errorf("after the write there is more to write: %v", u.Object["status"])
		}
		if len(after.ours) != 3 {
			t.Errorf("%d conditions are ours", len(after.ours))
		}
		if diff := cmp.Diff(before.others, after.others); diff != "" {
			t.Errorf("conditions of others (-want +got):\n%s", diff)
		}
	})
}
