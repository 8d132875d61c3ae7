// Package sourcetest is the contract of source.Source as tests. Whatever feeds
// resources to the control plane passes Run; what is particular to files or to
// Kubernetes is tested where it is written.
//
// It waits for what has to come and never for time to pass; the deadline is
// that of the test binary.
package sourcetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"

	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

// A Harness is a place that holds resources, and what reads it.
type Harness interface {
	// Source returns the source under test. It is called once, maybe after Put.
	Source() source.Source
	// Put creates the resource in manifest, one YAML document with a namespace,
	// or replaces the one of the same kind, namespace and name.
	Put(t *testing.T, manifest string)
	// Delete removes what Put created with that manifest.
	Delete(t *testing.T, manifest string)
}

// Run tests the source of a new Harness in each subtest. The place is empty at
// first, or at least holds nothing in the namespace "sourcetest".
func Run(t *testing.T, start func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"EmptyAtFirst":       emptyAtFirst,
		"CompleteAtFirst":    completeAtFirst,
		"WholeSets":          wholeSets,
		"TypedObjects":       typedObjects,
		"ResourceVersion":    resourceVersion,
		"ManyAtOnce":         manyAtOnce,
		"OneDeliveryAtATime": oneDeliveryAtATime,
		"EndsWithItsContext": endsWithItsContext,
		"NeverBegins":        neverBegins,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

// plugin is the manifest of a WasmPlugin.
func plugin(name, tag string) string {
	return fmt.Sprintf(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata:
  name: %s
  namespace: sourcetest
spec:
  url: oci://registry.example/%s:%s
`, name, name, tag)
}

// service is the manifest of a Service.
func service(name string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: sourcetest
spec:
  ports:
  - port: 80
`, name)
}

// A session is a source that runs.
type session struct {
	t         *testing.T
	snapshots chan source.Snapshot
	cancel    context.CancelFunc
	done      chan error
}

// run starts h's source; it ends with the test.
func run(t *testing.T, h Harness) *session {
	ctx, cancel := context.WithCancel(t.Context())
	s := &session{t: t, snapshots: make(chan source.Snapshot), cancel: cancel, done: make(chan error, 1)}
	src := h.Source()
	go func() {
		s.done <- src.Run(ctx, func(snapshot source.Snapshot) {
			select {
			case s.snapshots <- snapshot:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-s.done; err != nil {
			t.Errorf("Run = %v after its context ended, want nil", err)
		}
	})
	return s
}

// next returns what the next snapshot holds in our namespace, as text.
func (s *session) next() map[string]string {
	s.t.Helper()
	select {
	case snapshot := <-s.snapshots:
		return held(s.t, snapshot)
	case err := <-s.done:
		s.done <- nil
		s.t.Fatalf("Run returned early: %v", err)
		return nil
	}
}

// until reads snapshots up to the one that holds want and no more. Those on the
// way may be anything that was there before.
func (s *session) until(want map[string]string, before ...map[string]string) {
	s.t.Helper()
	for {
		got := s.next()
		if maps.Equal(got, want) {
			return
		}
		if !slices.ContainsFunc(before, func(b map[string]string) bool { return maps.Equal(b, got) }) {
			s.t.Fatalf("snapshot holds %v, want %v", got, want)
		}
	}
}

// held tells what a snapshot holds in our namespace, and that each is there once.
func held(t *testing.T, snapshot source.Snapshot) map[string]string {
	t.Helper()
	objects := map[string]string{}
	for _, o := range snapshot.Objects {
		if o.GetNamespace() != "sourcetest" {
			continue
		}
		key := resource.KeyOf(o)
		name := key.Kind + "/" + key.Name
		if _, twice := objects[name]; twice {
			t.Errorf("%s is in the snapshot twice", name)
		}
		objects[name] = ""
		if p, ok := o.(*extensionsv1alpha1.WasmPlugin); ok {
			objects[name] = p.Spec.Url
		}
	}
	return objects
}

func emptyAtFirst(t *testing.T, h Harness) {
	if got := run(t, h).next(); len(got) > 0 {
		t.Errorf("first snapshot holds %v, want nothing", got)
	}
}

func completeAtFirst(t *testing.T, h Harness) {
	want := map[string]string{}
	for i := range 20 {
		name := fmt.Sprintf("p%d", i)
		h.Put(t, plugin(name, "v1"))
		h.Put(t, service(name))
		want["WasmPlugin/"+name] = "oci://registry.example/" + name + ":v1"
		want["Service/"+name] = ""
	}
	if got := run(t, h).next(); !maps.Equal(got, want) {
		t.Errorf("first snapshot holds %v, want %v", got, want)
	}
}

func wholeSets(t *testing.T, h Harness) {
	h.Put(t, service("stays"))
	s := run(t, h)
	first := map[string]string{"Service/stays": ""}
	s.until(first)

	h.Put(t, plugin("a", "v1"))
	created := map[string]string{"Service/stays": "", "WasmPlugin/a": "oci://registry.example/a:v1"}
	s.until(created, first)

	h.Put(t, plugin("a", "v2"))
	replaced := map[string]string{"Service/stays": "", "WasmPlugin/a": "oci://registry.example/a:v2"}
	s.until(replaced, created)

	h.Delete(t, plugin("a", "v2"))
	s.until(first, replaced)
}

func typedObjects(t *testing.T, h Harness) {
	h.Put(t, plugin("a", "v1"))
	h.Put(t, service("s"))
	s := run(t, h)
	for _, o := range (<-s.snapshots).Objects {
		if o.GetNamespace() != "sourcetest" {
			continue
		}
		gvk := o.GetObjectKind().GroupVersionKind()
		switch o := o.(type) {
		case *extensionsv1alpha1.WasmPlugin:
			if gvk.String() != "extensions.istio.io/v1alpha1, Kind=WasmPlugin" {
				t.Errorf("TypeMeta of a WasmPlugin = %v", gvk)
			}
		case *corev1.Service:
			if gvk.String() != "/v1, Kind=Service" {
				t.Errorf("TypeMeta of a Service = %v", gvk)
			}
			if p := o.Spec.Ports[0]; p.Protocol != corev1.ProtocolTCP || p.TargetPort.IntValue() != 80 {
				t.Errorf("port of a Service has no defaults: %v", p)
			}
		default:
			t.Errorf("object of type %T", o)
		}
	}
}

// A resource's version changes when it does, and not when another one does.
func resourceVersion(t *testing.T, h Harness) {
	h.Put(t, plugin("a", "v1"))
	s := run(t, h)
	version := func(want map[string]string) string {
		for {
			snapshot := <-s.snapshots
			if !maps.Equal(held(t, snapshot), want) {
				continue
			}
			for _, o := range snapshot.Objects {
				if o.GetNamespace() == "sourcetest" && o.GetName() == "a" {
					return o.GetResourceVersion()
				}
			}
		}
	}
	a := map[string]string{"WasmPlugin/a": "oci://registry.example/a:v1"}
	first := version(a)
	if first == "" {
		t.Error("no resource version")
	}
	h.Put(t, service("s"))
	a["Service/s"] = ""
	if got := version(a); got != first {
		t.Errorf("resource version went from %q to %q when another resource changed", first, got)
	}
	h.Put(t, plugin("a", "v2"))
	a["WasmPlugin/a"] = "oci://registry.example/a:v2"
	if got := version(a); got == first {
		t.Errorf("resource version still %q after the resource changed", got)
	}
}

// However many changes come while nobody takes snapshots, the last one holds all.
func manyAtOnce(t *testing.T, h Harness) {
	s := run(t, h)
	s.until(map[string]string{})
	want := map[string]string{}
	for i := range 100 {
		name := fmt.Sprintf("p%d", i)
		h.Put(t, plugin(name, "v1"))
		want["WasmPlugin/"+name] = "oci://registry.example/" + name + ":v1"
	}
	for i := 0; i < 100; i += 2 {
		name := fmt.Sprintf("p%d", i)
		h.Delete(t, plugin(name, "v1"))
		delete(want, "WasmPlugin/"+name)
	}
	for got := s.next(); !maps.Equal(got, want); got = s.next() {
	}
}

func oneDeliveryAtATime(t *testing.T, h Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var busy atomic.Bool
	entered, leave, done := make(chan map[string]string), make(chan bool), make(chan error)
	src := h.Source()
	go func() {
		done <- src.Run(ctx, func(s source.Snapshot) {
			if !busy.CompareAndSwap(false, true) {
				t.Error("deliver was called while it was still running")
			}
			entered <- held(t, s)
			<-leave
			busy.Store(false)
		})
	}()
	<-entered
	h.Put(t, plugin("a", "v1"))
	h.Put(t, plugin("b", "v1"))
	leave <- true
	for got := <-entered; len(got) < 2; got = <-entered {
		leave <- true
	}
	cancel()
	leave <- true
	if err := <-done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

func endsWithItsContext(t *testing.T, h Harness) {
	h.Put(t, plugin("a", "v1"))
	ctx, cancel := context.WithCancel(t.Context())
	var ended atomic.Bool
	err := h.Source().Run(ctx, func(source.Snapshot) {
		if ended.Load() {
			t.Error("deliver was called after the context ended")
		}
		ended.Store(true)
		cancel()
	})
	if err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	h.Put(t, plugin("b", "v1"))
}

func neverBegins(t *testing.T, h Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := h.Source().Run(ctx, func(source.Snapshot) { t.Error("deliver was called after the context ended") })
	if err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}
