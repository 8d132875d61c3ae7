package module

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// The schemes a Ref can have.
const (
	OCI   = "oci"
	HTTP  = "http"
	HTTPS = "https"
	File  = "file"
)

// A Ref says where a module comes from, and optionally what it must be. It is
// comparable, immutable, and made by [ParseRef]; the zero Ref refers to nothing.
type Ref struct {
	scheme string
	target string // image name with tag or digest, URL, or path; may hold credentials
	shown  string // what people may see
	key    string
	pin    Digest
	digest bool // the pin is part of an image name
	latest bool // an OCI reference that follows the tag latest
}

// ParseRef reads the url and sha256 of a WasmPlugin. A url without scheme is
// OCI. sha256 may be empty; it is of the module for http, https and file, of
// the manifest for oci, as Istio has it. Errors are for the author of the
// resource and hold no credentials.
func ParseRef(rawURL, sha string) (Ref, error) {
	if strings.TrimSpace(rawURL) == "" {
		return Ref{}, errors.New("url is empty")
	}
	var pin Digest
	if sha != "" {
		var err error
		if pin, err = ParseDigest(sha); err != nil {
			return Ref{}, fmt.Errorf("sha256: %w", err)
		}
	}
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok {
		scheme, rest = OCI, rawURL
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case OCI:
		return parseImage(rest, pin)
	case HTTP, HTTPS:
		return parseURL(scheme+"://"+rest, pin)
	case File:
		return parseFile(rest, pin)
	}
	return Ref{}, fmt.Errorf("url: scheme %q is not supported, use oci, http, https or file", scheme)
}

func parseImage(image string, pin Digest) (Ref, error) {
	const help = "want oci://REGISTRY/REPOSITORY:TAG or …@sha256:DIGEST"
	base, digest, pinned := strings.Cut(image, "@")
	if strings.ContainsAny(digest, "@/") {
		return Ref{}, errors.New("url: credentials do not belong in an image reference, use imagePullSecret")
	}
	if strings.ContainsAny(image, "?#") {
		return Ref{}, fmt.Errorf("url %q: an image reference has no query and no fragment, %s", image, help)
	}
	tag, err := name.NewTag(base)
	if err != nil {
		return Ref{}, fmt.Errorf("url %q: not an image reference, %s: %w", image, help, err)
	}
	r := Ref{scheme: OCI, shown: "oci://" + image, target: tag.Name(), pin: pin}
	if !pinned {
		r.latest = tag.TagStr() == name.DefaultTag
		return r.withKey(), nil
	}
	d, err := ParseDigest(digest)
	if err != nil {
		return Ref{}, fmt.Errorf("url %q: %w", image, err)
	}
	if !pin.IsZero() && pin != d {
		return Ref{}, fmt.Errorf("sha256 %s contradicts the digest in url %q", pin.Hex(), image)
	}
	r.pin, r.digest = d, true
	r.target = tag.Repository.Name() + "@" + d.String()
	return r.withKey(), nil
}

func parseURL(raw string, pin Digest) (Ref, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// The parser's own message quotes the URL, which may hold a password.
		return Ref{}, errors.New("url: not a valid http or https URL")
	}
	if u.Hostname() == "" {
		return Ref{}, fmt.Errorf("url: %s:// needs a host", u.Scheme)
	}
	u.Fragment, u.RawFragment = "", ""
	u.Host = strings.ToLower(u.Host)
	shown := *u
	shown.User = nil
	if shown.RawQuery != "" {
		shown.RawQuery = "…" // signed URLs carry their credentials there
	}
	return Ref{scheme: u.Scheme, target: u.String(), shown: shown.String(), pin: pin}.withKey(), nil
}

func parseFile(path string, pin Digest) (Ref, error) {
	if path = strings.TrimPrefix(path, "localhost"); !strings.HasPrefix(path, "/") {
		return Ref{}, fmt.Errorf("url: file:// needs an absolute path, as in file:///etc/plugin.wasm, got %q", path)
	}
	if strings.ContainsRune(path, 0) {
		return Ref{}, errors.New("url: file path holds a zero byte")
	}
	return Ref{scheme: File, target: path, shown: "file://" + path, pin: pin}.withKey(), nil
}

func (r Ref) withKey() Ref {
	sum := sha256.Sum256([]byte(r.scheme + "\n" + r.target + "\n" + r.pin.Hex()))
	r.key = hex.EncodeToString(sum[:])
	return r
}

// String is the reference as its author wrote it, without credentials and query values.
func (r Ref) String() string { return r.shown }

// Key is a stable name for what is referred to: equal for two spellings of one
// image, different for different digests. It is 64 hexadecimal digits and
// reveals nothing.
func (r Ref) Key() string { return r.key }

// Scheme is one of the constants OCI, HTTP, HTTPS, File.
func (r Ref) Scheme() string { return r.scheme }

// Target is what to ask for: an image name with its registry spelt out and a
// tag or digest, a URL with its credentials, or a path. It is not for logs.
func (r Ref) Target() string { return r.target }

// Digest is what the module (http, https, file) or the manifest (oci) must be,
// or zero.
func (r Ref) Digest() Digest { return r.pin }

// Policy is the pull policy that asking for p amounts to: never PullDefault,
// and never PullAlways where a digest makes pulling again pointless.
func (r Ref) Policy(p PullPolicy) PullPolicy {
	switch {
	case !r.pin.IsZero():
		return PullIfNotPresent
	case p != PullDefault:
		return p
	case r.latest:
		return PullAlways
	}
	return PullIfNotPresent
}

// PullPolicy is w's effective policy; see [Ref.Policy].
func (w Want) PullPolicy() PullPolicy { return w.Ref.Policy(w.Policy) }
