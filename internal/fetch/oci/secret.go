package oci

import (
	"cmp"
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// errSecret quotes nothing of what it is about.
var errSecret = errors.New(`pull secret is not a dockerconfigjson, as in {"auths":{"REGISTRY":{"auth":"…"}}}`)

// A Secret is a dockerconfigjson: credentials by registry. It is an
// authn.Keychain. Credential helpers that it names are not run: they are for
// the machine where it was written.
type Secret struct{ entries []entry }

type entry struct {
	host string // may have *, for within one label, as Kubernetes does
	path string // of repositories, or empty for all
	auth authn.AuthConfig
}

// ParseSecret reads a dockerconfigjson. An entry that cannot be read is an
// error, so that a typing error does not turn into an anonymous request.
func ParseSecret(data []byte) (*Secret, error) {
	var file struct {
		Auths map[string]authn.AuthConfig `json:"auths"`
	}
	if err := json.Unmarshal(data, &file); err != nil || file.Auths == nil {
		return nil, errSecret
	}
	s := new(Secret)
	for key, auth := range file.Auths {
		host, repos := splitKey(key)
		s.entries = append(s.entries, entry{host, repos, auth})
	}
	// The most specific first: longer paths, hosts without wildcards.
	slices.SortFunc(s.entries, func(a, b entry) int {
		return cmp.Or(
			cmp.Compare(len(b.path), len(a.path)),
			cmp.Compare(strings.Count(a.host, "*"), strings.Count(b.host, "*")),
			cmp.Compare(a.host, b.host),
		)
	})
	return s, nil
}

// splitKey reads a key as docker, podman and Kubernetes write it:
// https://index.docker.io/v1/, quay.io, *.example.com:5000/team.
func splitKey(key string) (host, repos string) {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	host, repos, _ = strings.Cut(key, "/")
	repos = strings.Trim(repos, "/")
	if repos == "v1" || repos == "v2" {
		repos = "" // of the registry's API, not of a repository
	}
	return canonical(host), repos
}

// canonical is one name for Docker Hub's many.
func canonical(host string) string {
	switch host = strings.ToLower(host); host {
	case "docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "index.docker.io"
	}
	return host
}

// Resolve returns the credentials for a repository, or authn.Anonymous.
func (s *Secret) Resolve(target authn.Resource) (authn.Authenticator, error) {
	host := canonical(target.RegistryStr())
	repo := strings.TrimPrefix(strings.TrimPrefix(target.String(), target.RegistryStr()), "/")
	for _, e := range s.entries {
		if matchHost(e.host, host) && within(e.path, repo) && e.auth != (authn.AuthConfig{}) {
			return authn.FromConfig(e.auth), nil
		}
	}
	return authn.Anonymous, nil
}

// matchHost compares label by label; a pattern's * does not reach over a dot.
// A pattern without port is for the default port only.
func matchHost(pattern, host string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == host
	}
	p, h := strings.Split(pattern, "."), strings.Split(host, ".")
	return len(p) == len(h) && slices.EqualFunc(p, h, func(p, h string) bool {
		ok, err := path.Match(p, h)
		return ok && err == nil
	})
}

// within says whether repo is dir or below it.
func within(dir, repo string) bool {
	return dir == "" || repo == dir || strings.HasPrefix(repo, dir+"/")
}
