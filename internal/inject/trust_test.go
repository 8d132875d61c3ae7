package inject

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// apiServer has one webhook configuration, or none yet. What it tells a watch is its
// state at first and what Trust patches.
type apiServer struct {
	t       *testing.T
	state   *admissionregistrationv1.MutatingWebhookConfiguration
	watches []*watch.FakeWatcher
	refuse  error // of the next watch or patch
	patches int
}

func (s *apiServer) Watch(_ context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	if opts.FieldSelector != "metadata.name=chandler-sidecar-injector" {
		s.t.Errorf("watches %s", opts.FieldSelector)
	}
	if err := s.refused(); err != nil {
		return nil, err
	}
	w := watch.NewFakeWithChanSize(10, false)
	if s.state != nil {
		w.Add(s.state.DeepCopy())
	}
	s.watches = append(s.watches, w)
	return w, nil
}

func (s *apiServer) refused() error {
	err := s.refuse
	s.refuse = nil
	return err
}

func (s *apiServer) Patch(_ context.Context, name string, pt types.PatchType, data []byte, _ metav1.PatchOptions, _ ...string) (*admissionregistrationv1.MutatingWebhookConfiguration, error) {
	if name != "chandler-sidecar-injector" || pt != types.JSONPatchType {
		s.t.Errorf("patches %s with a %s", name, pt)
	}
	if err := s.refused(); err != nil {
		return nil, err
	}
	if s.state == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, name)
	}
	s.patches++
	var ops []operation
	if err := json.Unmarshal(data, &ops); err != nil {
		s.t.Fatal(err)
	}
	var changes []operation
	for _, op := range ops { // patch does no tests
		if op.Op != "test" {
			changes = append(changes, op)
		} else if op.Path != "/webhooks/0/name" || op.Value != s.state.Webhooks[0].Name {
			s.t.Errorf("tests %s for %v", op.Path, op.Value)
		}
	}
	document, err := generic(s.state)
	if err != nil {
		s.t.Fatal(err)
	}
	if document, err = patch(document, changes); err != nil {
		s.t.Fatal(err)
	}
	next := new(admissionregistrationv1.MutatingWebhookConfiguration)
	if err := decode(document.(map[string]any), next); err != nil {
		s.t.Fatal(err)
	}
	s.put(next)
	return next, nil
}

// put makes c the state, and tells the newest watch.
func (s *apiServer) put(c *admissionregistrationv1.MutatingWebhookConfiguration) {
	s.state = c
	if len(s.watches) > 0 {
		s.watches[len(s.watches)-1].Modify(c.DeepCopy())
	}
}

func (s *apiServer) bundle() string {
	if s.state == nil {
		return ""
	}
	return string(s.state.Webhooks[0].ClientConfig.CABundle)
}

func configuration(bundle string) *admissionregistrationv1.MutatingWebhookConfiguration {
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "chandler-sidecar-injector"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "namespace", ClientConfig: admissionregistrationv1.WebhookClientConfig{CABundle: []byte(bundle)},
		}},
	}
}

// trusting runs a Trust while test does, in a bubble of time.
func trusting(t *testing.T, s *apiServer, test func(t *testing.T, bundles chan<- []byte)) {
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		bundles := make(chan []byte)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		trust := Trust{Configurations: s, Name: ConfigurationName(DefaultRevision), Bundles: bundles, Log: slog.New(slog.DiscardHandler)}
		go func() { ended <- trust.Run(ctx) }()
		test(t, bundles)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestTrust(t *testing.T) {
	s := &apiServer{state: configuration("")}
	trusting(t, s, func(t *testing.T, bundles chan<- []byte) {
		want := func(bundle string, patches int) {
			t.Helper()
			synctest.Wait()
			if s.bundle() != bundle || s.patches != patches {
				t.Fatalf("bundle %q after %d patches, want %q after %d", s.bundle(), s.patches, bundle, patches)
			}
		}
		want("", 0) // it has no bundle to give yet
		bundles <- []byte("one")
		want("one", 1)
		bundles <- []byte("one")
		want("one", 1)
		bundles <- []byte("two")
		want("two", 2)
		s.put(configuration("")) // applied anew
		want("two", 3)
		s.state = nil // deleted, installed again
		s.watches[0].Delete(configuration("two"))
		bundles <- []byte("three")
		want("", 3)
		s.put(configuration(""))
		want("three", 4)
	})
}

// TestTrustAgain: a watch that is refused, ends or tells an error is begun again, and
// so it is after a patch that failed. Time is the bubble's.
func TestTrustAgain(t *testing.T) {
	s := &apiServer{state: configuration(""), refuse: errors.New("no API server")}
	trusting(t, s, func(t *testing.T, bundles chan<- []byte) {
		want := func(why, bundle string, watches int) {
			t.Helper()
			<-time.After(2 * maxWait)
			synctest.Wait()
			if s.bundle() != bundle || len(s.watches) != watches {
				t.Fatalf("%s: bundle %q after %d watches, want %q after %d", why, s.bundle(), len(s.watches), bundle, watches)
			}
		}
		bundles <- []byte("one") // while it waits to try again
		want("the first watch is refused", "one", 1)

		s.watches[0].Stop()
		want("the watch ends", "one", 2)

		s.state = configuration("changed unseen")
		s.watches[1].Error(&metav1.Status{Status: metav1.StatusFailure, Code: http.StatusGone, Reason: metav1.StatusReasonExpired})
		want("the watch tells an error", "one", 3)

		s.refuse = errors.New("no API server")
		bundles <- []byte("two")
		want("a patch fails", "two", 4)

		s.refuse = apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", "testing value failed", 0, false)
		bundles <- []byte("three")
		want("the configuration is another by now", "two", 4)
		s.put(configuration(""))
		want("its next state comes", "three", 4)
	})
}
