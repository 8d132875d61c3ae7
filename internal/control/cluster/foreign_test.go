package cluster

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/inject"
)

// TestForeign: of a thousand objects that another control plane has, the log and the
// events have one, and the metric has all.
func TestForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		client := fake.NewClientset()
		f := newForeign(client.EventsV1(), "chandler-1", slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		defer wg.Wait()
		defer cancel()

		plugin := func(name string, owner identity.Plane) identity.Foreign {
			return identity.Foreign{
				APIVersion: "extensions.istio.io/v1alpha1", Kind: "WasmPlugin", Resource: "wasmplugins",
				Namespace: "apps", Name: name, UID: name, Owner: owner,
			}
		}
		one := identity.Plane{Namespace: "one", Revision: "default"}
		for range 1000 {
			f.found(plugin("a", one))
			f.found(plugin("b", one))
		}
		f.found(identity.Foreign{Kind: "MutatingWebhookConfiguration", Resource: configurations, Name: "x", Owner: one})
		synctest.Wait()
		expect := func(resource string, want float64) {
			t.Helper()
			if got := testutil.ToFloat64(f.gauge.WithLabelValues(resource)); got != want {
				t.Errorf("%s: %v are foreign, want %v", resource, got, want)
			}
		}
		expect("wasmplugins", 2)
		if n := strings.Count(log.String(), "left to another control plane"); n != 2 {
			t.Errorf("%d lines, want one of each resource:\n%s", n, &log)
		}
		events, err := client.EventsV1().Events("").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(events.Items) != 2 {
			t.Fatalf("%d events, want 2", len(events.Items))
		}
		for _, e := range events.Items {
			if e.Regarding.Kind == "WasmPlugin" && (e.Namespace != "apps" || e.Regarding.Name != "a" || !strings.Contains(e.Note, "one/default")) {
				t.Errorf("event %+v", e)
			}
			if e.Regarding.Kind != "WasmPlugin" && e.Namespace != "default" {
				t.Errorf("an event about an object in no namespace is in %q", e.Namespace)
			}
		}
		f.found(plugin("a", identity.Plane{}))
		f.found(plugin("never", identity.Plane{}))
		expect("wasmplugins", 1)
		f.forget()
		expect("wasmplugins", 0)
		expect(configurations, 1)
		f.found(plugin("b", one)) // the next time that it leads
		synctest.Wait()
		expect("wasmplugins", 1)
		if again, err := client.EventsV1().Events("").List(ctx, metav1.ListOptions{}); err != nil || len(again.Items) != 3 {
			t.Errorf("%d events, %v", len(again.Items), err)
		}
		f.forget()
		f.found(plugin("b", one))
		synctest.Wait()
		if again, err := client.EventsV1().Events("").List(ctx, metav1.ListOptions{}); err != nil || len(again.Items) != 3 {
			t.Errorf("the same is an event once more: %d, %v", len(again.Items), err)
		}
	})
}

// TestForeignEventRefused: an API server that takes no event stops nothing.
func TestForeignEventRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		client := fake.NewClientset()
		client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("not today")
		})
		f := newForeign(client.EventsV1(), "chandler-1", slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
		for range 100 { // nobody reads yet: it does not block
			f.found(identity.Foreign{Resource: "wasmplugins", Name: "a", Owner: identity.Plane{Namespace: "one", Revision: "default"}})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
		if !strings.Contains(log.String(), "not today") {
			t.Errorf("the log does not say why:\n%s", &log)
		}
	})
}

// TestOwnConfigurations: a webhook configuration that leads to another control plane
// is not shown, and reported; one that leads here again is.
func TestOwnConfigurations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		all := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
		var found []string
		own := ownConfigurations{all, identity.Plane{Namespace: "here", Revision: "default"}, func(f identity.Foreign) { found = append(found, f.Owner.String()) }}
		w, err := own.Watch(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		of := func(namespace string) *admissionregistrationv1.MutatingWebhookConfiguration {
			opts, err := inject.Options{Image: "i", RootNamespace: namespace}.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			return inject.WebhookConfiguration(opts)
		}
		if _, err := all.Create(t.Context(), of("here"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if e := <-w.ResultChan(); e.Type != watch.Added {
			t.Errorf("event %v", e.Type)
		}
		if _, err := all.Update(t.Context(), of("there"), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case e := <-w.ResultChan():
			t.Errorf("another's is shown: %v", e.Object)
		default:
		}
		if _, err := all.Update(t.Context(), of("here"), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if e := <-w.ResultChan(); e.Type != watch.Modified {
			t.Errorf("event %v", e.Type)
		}
		if got := strings.Join(found, ","); got != ",there/default," {
			t.Errorf("found %q", got)
		}
	})
}
