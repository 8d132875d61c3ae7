package all

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/chandler-proxy/chandler/internal/fetch/oci"
)

// Keychain has the credentials that this machine's user left for registries. They are
// looked for in the file, if one is named, and nowhere else; else, until there are some,
// in $REGISTRY_AUTH_FILE, where docker keeps them (and asks its helpers), and where
// podman, buildah and skopeo do. Files are read when credentials are wanted: a login
// takes effect at once. lookup is that of environment variables.
//
// The order is podman's, but that docker's file, once there, hides no other.
//
// https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md
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
	keys = append(keys, authn.DefaultKeychain)
	add(get("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if get("XDG_RUNTIME_DIR") == "" {
		add(fmt.Sprintf("/run/containers/%d", os.Getuid()), "auth.json")
	}
	if config := get("XDG_CONFIG_HOME"); config != "" {
		add(config, "containers", "auth.json")
	} else if home := get("HOME"); home != "" {
		add(home, ".config", "containers", "auth.json")
	}
	return authn.NewMultiKeychain(keys...)
}

// An authFile is a keychain in a file of podman's: as docker's, and its keys may name
// a registry's namespaces. Helpers that it names are asked by authn.DefaultKeychain.
type authFile struct {
	path string
	must bool // it is an error if there is no such file, or it has no credentials at all
}

// Resolve returns the file's credentials for a repository, or authn.Anonymous.
func (f authFile) Resolve(target authn.Resource) (authn.Authenticator, error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) && !f.must {
		return authn.Anonymous, nil
	}
	if err != nil {
		return nil, err
	}
	keys, err := oci.ParseSecret(data)
	switch {
	case err == nil:
		return keys.Resolve(target)
	case f.must || !json.Valid(data):
		return nil, fmt.Errorf("%s has no credentials as podman login writes them", f.path)
	}
	return authn.Anonymous, nil // it may name helpers only
}
