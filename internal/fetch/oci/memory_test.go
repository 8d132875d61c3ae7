package oci

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m memory[int, string]
		has := func(k int, want string) {
			t.Helper()
			if got, ok := m.get(k); got != want || ok != (want != "") {
				t.Errorf("get(%d) = %q, %v, want %q", k, got, ok, want)
			}
		}
		has(1, "")
		m.put(1, "one", time.Minute)
		m.put(2, "two", time.Hour)
		has(1, "one")
		m.drop(3)
		time.Sleep(time.Minute)
		has(1, "")
		has(2, "two")
		m.put(3, "three", time.Minute)
		if len(m.entries) != 2 {
			t.Errorf("%d entries, one of them of no more use", len(m.entries))
		}
		m.drop(2)
		has(2, "")
		for k := range 10 * mostRemembered {
			m.put(k, "k", time.Hour)
			has(k, "k")
		}
		if len(m.entries) > mostRemembered {
			t.Errorf("%d entries", len(m.entries))
		}
	})
}

// Whoever asks for anything else, or by other credentials, has another key.
func TestTokenKeys(t *testing.T) {
	ch := func(realm string, insecure bool) *transport.Challenge {
		return &transport.Challenge{Scheme: "bearer", Parameters: map[string]string{"realm": realm}, Insecure: insecure}
	}
	seen := make(map[tokenKey]int)
	for i, of := range []struct {
		registry, scope string
		ch              *transport.Challenge
		cfg             authn.AuthConfig
	}{
		{"r.io", "pull", ch("a", false), authn.AuthConfig{}},
		{"s.io", "pull", ch("a", false), authn.AuthConfig{}},
		{"r.io", "push", ch("a", false), authn.AuthConfig{}},
		{"r.io", "pull", ch("b", false), authn.AuthConfig{}},
		{"r.io", "pull", ch("a", true), authn.AuthConfig{}},
		{"r.io", "pull", ch("a", false), authn.AuthConfig{Username: "u"}},
		{"r.io", "pull", ch("a", false), authn.AuthConfig{Password: "u"}},
		{"r.io", "pull", ch("a", false), authn.AuthConfig{Username: "u", Password: "p"}},
		{"r.io", "pull", ch("a", false), authn.AuthConfig{Username: "up"}},
		{"r.io", "pull", ch("a", false), authn.AuthConfig{Auth: "u"}},
		{"r.io", "pull", ch("a", false), authn.AuthConfig{IdentityToken: "u"}},
		{"r.io", "pull", ch("a", false), authn.AuthConfig{RegistryToken: "u"}},
	} {
		key, err := keyOf(of.registry, of.scope, of.ch, &of.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if j, ok := seen[key]; ok {
			t.Errorf("%d and %d have one key", i, j)
		}
		seen[key] = i
		again, err := keyOf(of.registry, of.scope, ch(of.ch.Parameters["realm"], of.ch.Insecure), &of.cfg)
		if err != nil || again != key {
			t.Errorf("%d has two keys, %v", i, err)
		}
	}
}

func TestValidity(t *testing.T) {
	for seconds, want := range map[int]time.Duration{
		-1: 48 * time.Second, 0: 48 * time.Second, 60: 48 * time.Second, 300: 4 * time.Minute, 1e15: 5 * time.Minute,
	} {
		if got := validity(seconds); got != want {
			t.Errorf("validity(%d) = %v, want %v", seconds, got, want)
		}
	}
}
