package status

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const leasePath = "/apis/coordination.k8s.io/v1/namespaces/istio-system/leases/chandler-leader"

// An election is processes that would lead, each with its own way to the API server.
type election struct {
	t   *testing.T
	api *api
	now atomic.Pointer[string] // who leads
}

// join lets a process take part until leave is called. cut ends its way to the API server.
func (e *election) join(name string, patience time.Duration) (leave func(), cut *atomic.Bool) {
	e.t.Helper()
	way := &road{to: e.api}
	ctx, cancel := context.WithCancel(e.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := Lead(ctx, leases(e.t, way.config()), LeadConfig{Namespace: "istio-system", Identity: name, Log: slog.New(slog.DiscardHandler)}, func(ctx context.Context) error {
			if !e.now.CompareAndSwap(nil, &name) {
				e.t.Errorf("%s leads while %s does", name, *e.now.Load())
			}
			<-ctx.Done()
			time.Sleep(patience) // what is under way ends
			e.now.Store(nil)
			return nil
		})
		if err != nil {
			e.t.Errorf("Lead of %s: %v", name, err)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}, &way.cut
}

func (e *election) leader() string {
	synctest.Wait()
	if name := e.now.Load(); name != nil {
		return *name
	}
	return ""
}

// within waits until want leads and fails if that takes longer than limit.
func (e *election) within(limit time.Duration, want string) {
	e.t.Helper()
	began := time.Now()
	for e.leader() != want {
		if time.Since(began) > limit {
			e.t.Fatalf("%q leads after %s, want %q", e.leader(), limit, want)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func newElection(t *testing.T) *election { return &election{t: t, api: newAPI()} }

func TestLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElection(t)
		leaveA, _ := e.join("a", time.Second)
		e.within(0, "a")
		leaveB, _ := e.join("b", 0)
		settle(time.Minute)
		e.within(0, "a")
		lease := e.api.all(leasePath)[0]["spec"].(map[string]any)
		if lease["holderIdentity"] != "a" || lease["leaseTransitions"] != float64(0) {
			t.Errorf("lease = %v", lease)
		}

		leaveA() // which waits until what a does has ended
		e.within(1100*time.Millisecond, "b")
		if lease := e.api.all(leasePath)[0]["spec"].(map[string]any); lease["leaseTransitions"] != float64(1) {
			t.Errorf("lease = %v", lease)
		}
		leaveB()
		if lease := e.api.all(leasePath)[0]["spec"].(map[string]any); lease["holderIdentity"] != "" {
			t.Errorf("lease after all have left = %v", lease)
		}
	})
}

// TestFailover: a leader that cannot renew ends what it does before another begins,
// which is soon.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElection(t)
		leaveA, cut := e.join("a", time.Second)
		defer leaveA()
		e.within(0, "a")
		leaveB, _ := e.join("b", 0)
		defer func() { leaveB() }() // the last
		settle(10 * time.Second)
		for range 3 {
			cut.Store(true)
			e.within(10*time.Second, "b")
			cut.Store(false)
			settle(10 * time.Second)
			e.within(0, "b") // a does not take it back
			leaveB()
			e.within(3*time.Second, "a")
			leaveB, _ = e.join("b", 0)
		}
	})
}

// TestLeadAway: while the API server is away nobody leads for long; then somebody does.
func TestLeadAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElection(t)
		leave, _ := e.join("a", 0)
		defer leave()
		e.within(0, "a")
		e.api.set(func() { e.api.down = true })
		settle(2 * time.Second)
		e.within(0, "a") // a moment is nothing
		e.api.set(func() { e.api.down = false })
		settle(20 * time.Second)
		e.within(0, "a")
		if n := e.api.all(leasePath)[0]["spec"].(map[string]any)["leaseTransitions"]; n != float64(0) {
			t.Errorf("%v transitions", n)
		}
		e.api.set(func() { e.api.down = true })
		e.within(renewDeadline+time.Second, "")
		settle(time.Minute)
		e.within(0, "")
		e.api.set(func() { e.api.down = false })
		e.within(2*time.Second, "a")
	})
}

// TestLeaseTaken: who finds another's name in the lease leads no more.
func TestLeaseTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElection(t)
		leave, _ := e.join("a", 0)
		defer leave()
		e.within(0, "a")
		e.api.set(func() {
			e.api.objects[leasePath]["spec"].(map[string]any)["holderIdentity"] = "intruder"
			e.api.touch(e.api.objects[leasePath])
		})
		e.within(1100*time.Millisecond, "")
		e.within(8*time.Second, "a")

		e.api.remove(leasePath) // nobody else has it
		settle(3 * time.Second)
		e.within(0, "a")
		if len(e.api.all(leasePath)) != 1 {
			t.Error("the lease is not made again")
		}
	})
}

// TestLeadRun: what run ends with is what Lead ends with, and the lease is free.
func TestLeadRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		broken := errors.New("broken")
		cfg := LeadConfig{Namespace: "istio-system", Identity: "a"}
		err := Lead(t.Context(), leases(t, a.config()), cfg, func(context.Context) error { return broken })
		if !errors.Is(err, broken) {
			t.Errorf("Lead = %v", err)
		}
		if lease := a.all(leasePath)[0]["spec"].(map[string]any); lease["holderIdentity"] != "" {
			t.Errorf("lease = %v", lease)
		}
		if err := Lead(t.Context(), leases(t, a.config()), LeadConfig{Namespace: "x"}, nil); err == nil || !strings.Contains(err.Error(), "identity") {
			t.Errorf("Lead without an identity = %v", err)
		}
	})
}

// TestOneWriter: of two replicas that are told the same, one writes; when it is cut
// off, the other does.
func TestOneWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newAPI()
		shared.put(plugins+"a", "spec")
		type replica struct {
			*Writer
			way  *road
			stop func()
		}
		start := func(name string) *replica {
			r := &replica{way: &road{to: shared}}
			var err error
			if r.Writer, err = New(Config{Objects: objects(t, r.way.config()), Instance: name}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := Lead(ctx, leases(t, r.way.config()), LeadConfig{Namespace: "istio-system", Identity: name}, r.Run); err != nil {
					t.Errorf("Lead: %v", err)
				}
			})
			r.stop = func() { cancel(); wg.Wait() }
			return r
		}
		one := start("one")
		synctest.Wait()
		two := start("two")
		tell := func(n int) {
			one.Update([]Fact{fact("a", n, 9)})
			two.Update([]Fact{fact("a", n, 9)})
		}
		for n := range 5 {
			tell(n)
			settle(2 * time.Second)
		}
		if got := shared.count("PATCH"); got != 5 {
			t.Errorf("%d writes of 5 changes", got)
		}
		one.way.cut.Store(true)
		tell(9)
		settle(10 * time.Second)
		if got := shared.condition(plugins+"a", Programmed); got != "True Programmed" {
			t.Errorf("Programmed = %q after the leader was cut off", got)
		}
		if got := shared.count("PATCH"); got != 6 {
			t.Errorf("%d writes of 6 changes", got)
		}
		one.way.cut.Store(false)
		one.stop()
		two.stop()
	})
}
