package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
)

// Keychain has the credentials that this machine's user left for registries. They are
// looked for in the file, if one is named, and nowhere else; else, until there are some,
// in $REGISTRY_AUTH_FILE, where docker keeps them ($DOCKER_AUTH_CONFIG, then config.json
// in $DOCKER_CONFIG or ~/.docker), and where podman, buildah and skopeo do. Files are read
// when credentials are wanted: a login takes effect at once. A credential helper is run
// if a file names it for the registry, or for all, and for nothing else. lookup is that of
// environment variables.
//
// The order is podman's, but that docker's file, once there, hides no other.
//
// https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md
// https://docs.docker.com/reference/cli/docker/login/#credential-stores
func Keychain(file string, lookup func(string) (string, bool)) authn.Keychain {
	if file != "" {
		return authFile{path: file, must: true}
	}
	get := func(name string) string { value, _ := lookup(name); return value }
	var keys []authn.Keychain
	add := func(dir string, below ...string) {
		if dir != "" {
			keys = append(keys, authFile{path: filepath.Join(append([]string{dir}, below...)...)})
		}
	}
	add(get("REGISTRY_AUTH_FILE"))
	if text := get("DOCKER_AUTH_CONFIG"); text != "" {
		keys = append(keys, authFile{path: "$DOCKER_AUTH_CONFIG", text: text})
	}
	if dir := get("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(get("HOME"), ".docker", "config.json")
	}
	add(get("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if get("XDG_RUNTIME_DIR") == "" {
		add(fmt.Sprintf("/run/containers/%d", os.Getuid()), "auth.json")
	}
	if config := get("XDG_CONFIG_HOME"); config != "" {
		add(config, "containers", "auth.json")
	} else {
		add(get("HOME"), ".config", "containers", "auth.json")
	}
	return authn.NewMultiKeychain(keys...)
}

// An authFile is a keychain in a file as docker and podman write it: credentials by
// registry, or by a registry's namespaces, and names of helpers that have them.
type authFile struct {
	path string
	text string // what is there instead of a file
	must bool   // it is an error if there is no such file, or it has no credentials at all
}

// authHelpers are those that a file names.
type authHelpers struct {
	Auths       json.RawMessage   `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"` // by registry
	CredsStore  string            `json:"credsStore"`  // for all
}

// Resolve is ResolveContext without a deadline.
func (f authFile) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return f.ResolveContext(context.Background(), target)
}

// ResolveContext returns the file's credentials for a repository, or authn.Anonymous: the
// registry's helper goes before what is written out, and that before the helper for all.
func (f authFile) ResolveContext(ctx context.Context, target authn.Resource) (authn.Authenticator, error) {
	data, err := f.read()
	if errors.Is(err, fs.ErrNotExist) && !f.must {
		return authn.Anonymous, nil
	}
	if err != nil {
		return nil, err
	}
	var helpers authHelpers
	written := new(Secret)
	err = json.Unmarshal(data, &helpers)
	if err == nil && helpers.Auths != nil {
		written, err = ParseSecret(data)
	}
	if err != nil || f.must && helpers.Auths == nil && helpers.CredHelpers == nil && helpers.CredsStore == "" {
		return nil, fmt.Errorf("%s has no credentials as docker login and podman login write them", f.path) // the cause may quote some
	}
	for key, name := range helpers.CredHelpers {
		if host, _ := splitKey(key); host == canonical(target.RegistryStr()) {
			if auth, err := f.ask(ctx, name, target); err != nil || auth != authn.Anonymous {
				return auth, err
			}
		}
	}
	if auth, err := written.Resolve(target); err != nil || auth != authn.Anonymous {
		return auth, err
	}
	if helpers.CredsStore != "" {
		return f.ask(ctx, helpers.CredsStore, target)
	}
	return authn.Anonymous, nil
}

func (f authFile) read() ([]byte, error) {
	if f.text != "" {
		return []byte(f.text), nil
	}
	return os.ReadFile(f.path)
}

// ask runs a credential helper, docker-credential-NAME, and returns what it has for the
// registry, or authn.Anonymous.
func (f authFile) ask(ctx context.Context, helper string, target authn.Resource) (authn.Authenticator, error) {
	if helper == "" || strings.ContainsAny(helper, `/\`) {
		return nil, fmt.Errorf("%s: %q is no name of a credential helper", f.path, helper)
	}
	server := target.RegistryStr()
	if canonical(server) == "index.docker.io" {
		server = authn.DefaultAuthKey
	}
	got, err := client.Get(func(args ...string) client.Program {
		cmd := exec.CommandContext(ctx, "docker-credential-"+helper, args...)
		cmd.WaitDelay = time.Second // for what it started and left behind
		return program{cmd}
	}, server)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return authn.Anonymous, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(ctx.Err(), context.Canceled):
		return nil, fmt.Errorf("ask docker-credential-%s, which %s names: %w", helper, f.path, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("ask docker-credential-%s, which %s names: %w", helper, f.path, err)
	case got.Username == identityToken:
		return authn.FromConfig(authn.AuthConfig{IdentityToken: got.Secret}), nil
	}
	return authn.FromConfig(authn.AuthConfig{Username: got.Username, Password: got.Secret}), nil
}

// identityToken is what helpers have for a user's name when the secret is a token.
const identityToken = "<token>"

// A program is a helper that runs as long as whoever asks waits.
type program struct{ cmd *exec.Cmd }

// Output runs it.
func (p program) Output() ([]byte, error) {
	var out bytes.Buffer
	p.cmd.Stdout = &out
	err := p.cmd.Run()
	return out.Bytes(), err
}

// Input is what it reads.
func (p program) Input(in io.Reader) { p.cmd.Stdin = in }
