package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// write makes files below dir.
func write(t *testing.T, dir string, mode os.FileMode, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
}

// A helper says in the file asked, beside itself, what it was asked, and has credentials
// for one registry.
const helper = `#!/bin/sh
read server
echo "${0##*/} $* $server" >>"${0%/*}/asked"
case "$server" in
*r.test) echo '{"ServerURL":"r.test","Username":"a","Secret":"helped"}' ;;
*token.test) echo '{"Username":"<token>","Secret":"token"}' ;;
https://index.docker.io/v1/) echo '{"Username":"a","Secret":"hub"}' ;;
*broken.test) echo 'the vault is locked'; exit 1 ;;
*slow.test) exec sleep 600 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
`

func TestKeychain(t *testing.T) {
	// Passwords say where they are from, in base64 as a:PASSWORD.
	auths := func(key, basic string) string { return `{"auths": {"` + key + `": {"auth": "` + basic + `"}}}` }
	const explicit, docker, podman = "YTpleHBsaWNpdA==", "YTpkb2NrZXI=", "YTpwb2RtYW4="
	for _, tt := range []struct {
		name  string
		files map[string]string
		file  string
		env   map[string]string // values that begin with a slash are below the folder
		repo  string            // default r.test/team/plugin
		want  string            // password or token, or a part of the error if it begins with an exclamation mark
		asked string            // of the helpers
	}{
		{name: "nothing"},
		{name: "docker", files: map[string]string{".docker/config.json": auths("r.test", docker)}, want: "docker"},
		{name: "docker, elsewhere", files: map[string]string{
			"d/config.json": auths("r.test", docker), ".docker/config.json": auths("r.test", explicit)}, env: map[string]string{"DOCKER_CONFIG": "/d"}, want: "docker"},
		{name: "docker, in a variable", env: map[string]string{"DOCKER_AUTH_CONFIG": auths("r.test", docker)}, want: "docker"},
		{name: "docker, in a broken variable", env: map[string]string{"DOCKER_AUTH_CONFIG": `{"tell-nobody`},
			want: "!$DOCKER_AUTH_CONFIG has no credentials as docker login and podman login write them"},
		{name: "docker hub", files: map[string]string{".docker/config.json": auths("https://index.docker.io/v1/", docker)}, repo: "docker.io/a/b", want: "docker"},
		{name: "podman in its configuration", files: map[string]string{".config/containers/auth.json": auths("r.test", podman)}, want: "podman"},
		{name: "podman in its configuration, elsewhere", files: map[string]string{"c/containers/auth.json": auths("r.test", podman)},
			env: map[string]string{"XDG_CONFIG_HOME": "/c"}, want: "podman"},
		{name: "podman at run time", files: map[string]string{"run/containers/auth.json": auths("r.test", podman)}, want: "podman"},
		{name: "docker's for another hides none", files: map[string]string{
			".docker/config.json": auths("other.test", docker), "run/containers/auth.json": auths("r.test", podman)}, want: "podman"},
		{name: "by namespace", files: map[string]string{"run/containers/auth.json": auths("r.test/team", podman)}, want: "podman"},
		{name: "the variable goes first", files: map[string]string{
			"auth.json": auths("r.test", explicit), ".docker/config.json": auths("r.test", docker)}, env: map[string]string{"REGISTRY_AUTH_FILE": "/auth.json"}, want: "explicit"},
		{name: "the variable's has none", files: map[string]string{
			"auth.json": `{}`, ".docker/config.json": auths("r.test", docker)}, env: map[string]string{"REGISTRY_AUTH_FILE": "/auth.json"}, want: "docker"},
		{name: "the variable's is broken", files: map[string]string{"auth.json": `{"auths": {"r.test": "tell-nobody"`}, env: map[string]string{"REGISTRY_AUTH_FILE": "/auth.json"},
			want: "!auth.json has no credentials as docker login and podman login write them"},
		{name: "an entry is broken", files: map[string]string{".docker/config.json": `{"auths": {"r.test": {"auth": "tell-nobody"}}}`},
			want: "!config.json has no credentials"},
		{name: "a file that is named", files: map[string]string{
			"auth.json": auths("r.test", explicit), ".docker/config.json": auths("r.test", docker)}, file: "auth.json", want: "explicit"},
		{name: "and no other", files: map[string]string{
			"auth.json": auths("other.test", explicit), ".docker/config.json": auths("r.test", docker)}, file: "auth.json"},
		{name: "named, but not there", file: "auth.json", want: "!auth.json: no such file"},
		{name: "named, but empty", files: map[string]string{"auth.json": `{}`}, file: "auth.json", want: "!no credentials"},

		// Helpers.
		{name: "helpers that nobody names", files: map[string]string{".docker/config.json": `{"auths": {"r.test": {}}, "credHelpers": {"other.test": "one"}}`}},
		{name: "docker's helper", files: map[string]string{".docker/config.json": `{"credHelpers": {"r.test": "one"}}`},
			want: "helped", asked: "docker-credential-one get r.test\n"},
		{name: "docker's helper for all", files: map[string]string{".docker/config.json": `{"auths": {"r.test": {}}, "credsStore": "two"}`},
			want: "helped", asked: "docker-credential-two get r.test\n"},
		{name: "a registry's helper goes first", files: map[string]string{".docker/config.json": `{"auths": {"r.test": {"auth": "` + docker + `"}}, "credHelpers": {"r.test": "one"}, "credsStore": "two"}`},
			want: "helped", asked: "docker-credential-one get r.test\n"},
		{name: "what is written goes before the helper for all", files: map[string]string{".docker/config.json": `{"auths": {"r.test": {"auth": "` + docker + `"}}, "credsStore": "two"}`}, want: "docker"},
		{name: "podman's helper, beside docker's file", files: map[string]string{
			".docker/config.json": auths("other.test", docker), "run/containers/auth.json": `{"credHelpers": {"r.test": "one"}}`},
			want: "helped", asked: "docker-credential-one get r.test\n"},
		{name: "the helper of a file that is named", files: map[string]string{"auth.json": `{"credHelpers": {"r.test": "one"}}`, ".docker/config.json": `{"credsStore": "two"}`},
			file: "auth.json", want: "helped", asked: "docker-credential-one get r.test\n"},
		{name: "a helper has none", files: map[string]string{".docker/config.json": `{"credsStore": "two"}`, "run/containers/auth.json": auths("else.test", podman)},
			repo: "else.test/a", want: "podman", asked: "docker-credential-two get else.test\n"},
		{name: "docker hub's helper", files: map[string]string{".docker/config.json": `{"credHelpers": {"docker.io": "one"}}`},
			repo: "docker.io/a/b", want: "hub", asked: "docker-credential-one get https://index.docker.io/v1/\n"},
		{name: "a token", files: map[string]string{".docker/config.json": `{"credsStore": "two"}`},
			repo: "token.test/a", want: "token", asked: "docker-credential-two get token.test\n"},
		{name: "a helper that fails", files: map[string]string{".docker/config.json": `{"credsStore": "two"}`},
			repo: "broken.test/a", want: "!config.json names: error getting credentials - err: exit status 1, out: `the vault is locked`", asked: "docker-credential-two get broken.test\n"},
		{name: "a helper that is not there", files: map[string]string{".docker/config.json": `{"credsStore": "gone"}`},
			want: `!ask docker-credential-gone, which `},
		{name: "a helper that is a path", files: map[string]string{".docker/config.json": `{"credsStore": "/../../bin/docker-credential-one"}`},
			want: `!config.json: "/../../bin/docker-credential-one" is no name of a credential helper`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, 0o600, tt.files)
			write(t, dir, 0o700, map[string]string{"bin/docker-credential-one": helper, "bin/docker-credential-two": helper})
			t.Setenv("PATH", filepath.Join(dir, "bin")+":/usr/bin:/bin")
			env := map[string]string{"HOME": dir, "XDG_RUNTIME_DIR": filepath.Join(dir, "run")}
			for name, value := range tt.env {
				if strings.HasPrefix(value, "/") {
					value = filepath.Join(dir, value)
				}
				env[name] = value
			}
			file := tt.file
			if file != "" {
				file = filepath.Join(dir, file)
			}
			repo := tt.repo
			if repo == "" {
				repo = "r.test/team/plugin"
			}
			checkKeychain(t, Keychain(file, func(name string) (string, bool) { value, ok := env[name]; return value, ok }), repo, tt.want)
			asked, err := os.ReadFile(filepath.Join(dir, "bin/asked"))
			if string(asked) != tt.asked || err != nil && tt.asked != "" {
				t.Errorf("helpers were asked %q, %v, want %q", asked, err, tt.asked)
			}
		})
	}
}

func checkKeychain(t *testing.T, keys authn.Keychain, repository, want string) {
	t.Helper()
	repo, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	auth, err := authn.Resolve(t.Context(), keys, repo)
	if want, ok := strings.CutPrefix(want, "!"); ok {
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "tell-nobody") {
			t.Errorf("Resolve = %v, want an error with %q", err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	config, err := authn.Authorization(t.Context(), auth)
	if err != nil || config.Password+config.IdentityToken != want {
		t.Errorf("credentials are %q %q, %v, want %q", config.Password, config.IdentityToken, err, want)
	}
}

// A helper runs no longer than whoever asks waits.
func TestKeychainSlowHelper(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 0o600, map[string]string{".docker/config.json": `{"credsStore": "slow"}`})
	write(t, dir, 0o700, map[string]string{"docker-credential-slow": helper})
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	repo, err := name.NewRepository("slow.test/a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // the helper would sleep for ten minutes
	defer cancel()
	lookup := func(name string) (string, bool) { return map[string]string{"HOME": dir}[name], name == "HOME" }
	if _, err = authn.Resolve(ctx, Keychain("", lookup), repo); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Resolve = %v", err)
	}
}

// Whatever is in a file, no credentials of others, and no panic.
func FuzzAuthFile(f *testing.F) {
	f.Add(`{"auths": {"r.test": {"auth": "YTpi"}}, "credHelpers": {"other.test": "one"}}`)
	f.Add(`{"auths": {"r.test/team": {"username": "a", "password": "b"}}}`)
	f.Add(`{"auths": null, "credsStore": ""}`)
	f.Add(`[]`)
	repo, err := name.NewRepository("nobody.test/team/plugin")
	if err != nil {
		f.Fatal(err)
	}
	f.Setenv("PATH", f.TempDir()) // there is no helper to run
	f.Fuzz(func(t *testing.T, text string) {
		auth, err := authFile{path: "x", text: text}.Resolve(repo)
		if err == nil && auth != authn.Anonymous && !strings.Contains(text, "*") && !strings.Contains(strings.ToLower(text), "nobody.test") && !strings.Contains(text, `\u`) {
			t.Errorf("credentials of %q for a registry it does not name", text)
		}
	})
}
