package oci

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

func basic(user string) string { return base64.StdEncoding.EncodeToString([]byte(user + ":s3cret")) }

func TestSecret(t *testing.T) {
	secret := fmt.Sprintf(`{"auths":{
		"https://index.docker.io/v1/": {"auth": %q},
		"quay.io":                     {"username": "quay", "password": "s3cret"},
		"quay.io/team":                {"auth": %q},
		"quay.io/team/app":            {"auth": %q},
		"https://Port.io:5000/v2/":    {"auth": %q},
		"*.wild.io":                   {"auth": %q},
		"exact.wild.io":               {"auth": %q},
		"token.io":                    {"identitytoken": "tok"},
		"empty.io":                    {}
	}, "credsStore": "evil", "credHelpers": {"quay.io": "evil"}}`,
		basic("hub"), basic("team"), basic("app"), basic("port"), basic("wild"), basic("exact"))
	keys, err := ParseSecret([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{
		"library/x":        "hub",
		"docker.io/a/b:1":  "hub",
		"quay.io/other/x":  "quay",
		"quay.io/team":     "team",
		"quay.io/team/x":   "team",
		"quay.io/teamster": "quay",
		"quay.io/team/app": "app",
		"port.io:5000/x":   "port",
		"port.io/x":        "",
		"a.wild.io/x":      "wild",
		"exact.wild.io/x":  "exact",
		"a.b.wild.io/x":    "",
		"wild.io/x":        "",
		"empty.io/x":       "",
		"other.io/x":       "",
		"token.io/x":       "<token>",
	} {
		ref, err := name.ParseReference(image)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := keys.Resolve(ref.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			if auth != authn.Anonymous {
				t.Errorf("%s: not anonymous", image)
			}
			continue
		}
		cfg, err := auth.Authorization()
		switch {
		case err != nil:
			t.Error(err)
		case want == "<token>" && cfg.IdentityToken != "tok":
			t.Errorf("%s: no token", image)
		case want != "<token>" && (cfg.Username != want || cfg.Password != "s3cret"):
			t.Errorf("%s: user %q, want %q", image, cfg.Username, want)
		}
	}
}

func TestParseSecretRefuses(t *testing.T) {
	for _, in := range []string{
		"", "null", "s3cret", `{}`, `{"auths":null}`, `{"auths":{"x":"s3cret"}}`, `{"auths":{"x":{"auth":"s3cret!"}}}`,
		`{"auths":{"x":{"auth":"czNjcmV0"}}}`, // base64 of no user:password
	} {
		_, err := ParseSecret([]byte(in))
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: error is %v", in, err)
		}
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add(`{"auths":{"quay.io/a":{"auth":"`+basic("u")+`"}}}`, "quay.io/a/b")
	f.Add(`{"auths":{"*.[io":{"username":"u"}}}`, "a.b")
	f.Fuzz(func(t *testing.T, secret, image string) {
		keys, err := ParseSecret([]byte(secret))
		if err != nil {
			return
		}
		ref, err := name.ParseReference(image)
		if err != nil {
			return
		}
		if auth, err := keys.Resolve(ref.Context()); err != nil || auth == nil {
			t.Fatalf("Resolve = %v, %v", auth, err)
		}
	})
}
