package trust

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/chandler-proxy/chandler/internal/identity"
)

const root = "istio-system"

func TestSecretKeeper(t *testing.T) {
	ctx := t.Context()
	client := fake.NewClientset()
	k := NewSecretKeeper(client, root, nil)
	kept, err := k.Load(ctx)
	if err != nil || len(kept.Data) > 0 || kept.Version != "" {
		t.Fatalf("no Secret: %v, %v", kept, err)
	}
	if err := k.Save(ctx, []byte("one"), ""); err != nil {
		t.Fatal(err)
	}
	if err := k.Save(ctx, []byte("two"), ""); !errors.Is(err, identity.ErrConflict) {
		t.Errorf("second first save: %v, want ErrConflict", err)
	}
	secrets := client.CoreV1().Secrets(root)
	secret, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// What somebody else has put there stays.
	secret.Annotations = map[string]string{"note": "x"}
	secret.Data["other"] = []byte("y")
	secret.ResourceVersion = "7"
	if _, err := secrets.Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if kept, err = k.Load(ctx); err != nil || string(kept.Data) != "one" {
		t.Fatalf("loaded %q, %v", kept.Data, err)
	}
	if err := k.Save(ctx, []byte("two"), kept.Version); err != nil {
		t.Fatal(err)
	}
	if err := k.Save(ctx, []byte("three"), "/6"); !errors.Is(err, identity.ErrConflict) {
		t.Errorf("save of another version: %v, want ErrConflict", err)
	}
	secret, err = secrets.Get(ctx, SecretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if string(secret.Data[secretKey]) != "two" || string(secret.Data["other"]) != "y" || secret.Annotations["note"] != "x" || secret.Labels["app"] != "chandler" {
		t.Errorf("secret = %+v", secret)
	}
	if err := secrets.Delete(ctx, SecretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.Save(ctx, []byte("three"), kept.Version); !errors.Is(err, identity.ErrConflict) {
		t.Errorf("save when it is gone: %v, want ErrConflict", err)
	}
}

// TestSecretKeeperFills: a Secret may be applied empty, so that RBAC need not
// allow to create one.
func TestSecretKeeperFills(t *testing.T) {
	client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: root, Name: SecretName, ResourceVersion: "5"}})
	k := NewSecretKeeper(client, root, nil)
	kept, err := k.Load(t.Context())
	if err != nil || len(kept.Data) > 0 || kept.Version == "" {
		t.Fatalf("empty Secret: %v, %v", kept, err)
	}
	if err := k.Save(t.Context(), []byte("one"), kept.Version); err != nil {
		t.Fatal(err)
	}
	if kept, err = k.Load(t.Context()); err != nil || string(kept.Data) != "one" {
		t.Errorf("loaded %q, %v", kept.Data, err)
	}
}

// TestSecretKeeperErrors: only what another replica's success explains is a conflict.
func TestSecretKeeperErrors(t *testing.T) {
	resource := schema.GroupResource{Resource: "secrets"}
	for _, tt := range []struct {
		verb     string
		err      error
		conflict bool
	}{
		{"get", apierrors.NewForbidden(resource, SecretName, nil), false},
		{"update", apierrors.NewForbidden(resource, SecretName, nil), false},
		{"update", apierrors.NewConflict(resource, SecretName, nil), true},
		{"update", apierrors.NewNotFound(resource, SecretName), true},
		{"update", context.DeadlineExceeded, false},
	} {
		client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: root, Name: SecretName, ResourceVersion: "5"}})
		client.PrependReactor(tt.verb, "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, tt.err
		})
		err := NewSecretKeeper(client, root, nil).Save(t.Context(), []byte("hush"), "/5")
		if err == nil || errors.Is(err, identity.ErrConflict) != tt.conflict || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v: Save = %v", tt.verb, tt.err, err)
		}
	}
}

func TestSecretKeeperWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		client := fake.NewClientset()
		k := NewSecretKeeper(client, root, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 10})))
		ctx, cancel := context.WithCancel(t.Context())
		changes := 0
		done := make(chan error, 1)
		go func() { done <- k.Watch(ctx, func() { changes++ }) }()
		synctest.Wait()
		if err := k.Save(ctx, []byte("hush"), ""); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if changes != 1 {
			t.Errorf("%d changes after one save", changes)
		}
		if err := client.CoreV1().Secrets(root).Delete(ctx, SecretName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if changes != 2 {
			t.Errorf("%d changes after the removal", changes)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), "hush") {
			t.Error("the Secret's data is in the log")
		}
		for _, action := range client.Actions() {
			if w, ok := action.(clienttesting.WatchAction); ok && w.GetWatchRestrictions().Fields.String() != named(SecretName) {
				t.Errorf("watch is of %q: RBAC by name would refuse it", w.GetWatchRestrictions().Fields)
			}
		}
	})
}

// TestAuthorities: two replicas that start without a CA have one in the end, in the
// Secret.
func TestAuthorities(t *testing.T) {
	client := fake.NewClientset()
	var bundles []string
	for range 2 {
		a, err := identity.Open(t.Context(), identity.AuthorityConfig{Keeper: NewSecretKeeper(client, root, nil), Names: []string{"chandler.istio-system.svc"}})
		if err != nil {
			t.Fatal(err)
		}
		bundles = append(bundles, string(a.Bundle()))
	}
	if bundles[0] != bundles[1] {
		t.Error("two replicas have a CA each")
	}
}
