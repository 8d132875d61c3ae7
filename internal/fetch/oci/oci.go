// Package oci fetches Wasm modules from container registries.
//
// It takes every image form that Istio does, and what users push besides; see
// chooseLayer. Registries are asked as docker does: HTTPS, credentials from the
// pull secret of the plugin or else from what docker and podman left on the
// machine, token services where a registry has one. Plain HTTP is only for registries
// listed as insecure and for this machine itself; a private address is no
// reason.
//
// Manifests are bounded to 4 MiB and compared with the digest asked for; layers
// are streamed, unpacked as they come, bounded before and after, and compared
// with their digest before the receiver sees the end. A pinned digest may be
// that of an index or of the image chosen from it.
//
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
package oci

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/module"
)

// maxManifest is the size that registries must take at least, and so the
// largest to be expected.
const maxManifest = 4 << 20

// Config says how to ask registries.
type Config struct {
	// Transport carries the requests; a *fetch.Transport with the same Insecure.
	Transport http.RoundTripper
	// Insecure lists registries that may be asked over plain HTTP.
	Insecure fetch.Hosts
	// Keychain has the credentials for wants without a pull secret, such as
	// those that [Keychain] finds on this machine. Nil is none.
	Keychain authn.Keychain
	// MaxModule bounds modules, in bytes; default fetch.DefaultMaxModule.
	MaxModule int64
}

// A Fetcher fetches from registries. It remembers for some minutes over which scheme a
// registry is asked, what it wants of those who ask, and tokens, for the credentials for
// which it got them and no others. What failed is not remembered, and what is remembered
// is asked for again when it does not work any more.
type Fetcher struct {
	cfg        Config
	challenges memory[string, *transport.Challenge] // by registry
	tokens     memory[tokenKey, *transport.Token]
}

// New makes a Fetcher.
func New(cfg Config) *Fetcher {
	cfg.MaxModule = cmp.Or(cfg.MaxModule, fetch.DefaultMaxModule)
	return &Fetcher{cfg: cfg}
}

// Fetch implements fetch.Fetcher. A Result's Source is the digest of the
// manifest or index that the reference led to.
func (f *Fetcher) Fetch(ctx context.Context, r fetch.Request) (fetch.Result, error) {
	s, err := f.open(ctx, r)
	if err != nil {
		return fetch.Result{}, inManifest(err)
	}
	if source, ok := s.unchanged(ctx); ok {
		return fetch.Result{Source: source, Known: true}, nil
	}
	source, l, err := s.resolve(ctx)
	if err != nil {
		return fetch.Result{}, inManifest(err)
	}
	if r.IsKnown(source) {
		return fetch.Result{Source: source, Known: true}, nil
	}
	return fetch.Result{Source: source}, s.download(ctx, l)
}

// inManifest marks an error of a step before the download.
func inManifest(err error) error {
	if e, ok := errors.AsType[*fetch.Error](err); ok {
		marked := *e
		marked.Manifest = true
		marked.Err = fmt.Errorf("manifest: %w", e.Err)
		return &marked
	}
	return err
}

// A session is one request's authenticated way to one repository.
type session struct {
	req    *fetch.Request
	ref    name.Reference
	login  *login
	client *http.Client
	max    int64 // bytes of a module
}

func (f *Fetcher) open(ctx context.Context, r fetch.Request) (*session, error) {
	ref, l, err := f.login(ctx, r.Ref, r.Secret, transport.PullScope)
	if err != nil {
		return nil, err
	}
	rt, err := l.enter(ctx)
	if err != nil {
		return nil, err
	}
	return &session{&r, ref, l, &http.Client{Transport: rt}, f.cfg.MaxModule}, nil
}

// Connect finds an authenticated way to the repository of an image, to pull
// from it or to push: the actions are transport.PullScope or PushScope. What
// pushes goes the same way as what fetches, but that nothing is remembered; it
// needs no wrapping, and no credentials besides. Errors are of type *fetch.Error.
func (f *Fetcher) Connect(ctx context.Context, image module.Ref, secret []byte, actions string) (name.Reference, http.RoundTripper, error) {
	ref, l, err := f.login(ctx, image, secret, actions)
	if err != nil {
		return nil, nil, err
	}
	rt, err := transport.NewWithContext(ctx, l.repo.Registry, l.auth(), l.way, []string{l.scope})
	if err != nil {
		return nil, nil, l.way.explain(err)
	}
	return ref, rt, nil
}

// login is who asks for an image, and whom.
func (f *Fetcher) login(ctx context.Context, image module.Ref, secret []byte, actions string) (name.Reference, *login, error) {
	registry, _, _ := strings.Cut(image.Target(), "/")
	plain := f.cfg.Insecure.Has(registry) || isLoopback(registry)
	var opts []name.Option
	if plain {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(image.Target(), opts...)
	if err != nil {
		return nil, nil, &fetch.Error{Err: err}
	}
	cfg, err := f.credentials(ctx, secret, ref.Context())
	if err != nil {
		return nil, nil, err
	}
	return ref, &login{
		f: f, repo: ref.Context(), scope: ref.Scope(actions), cfg: cfg,
		way: &way{next: f.cfg.Transport, plain: plain, registry: ref.Context().RegistryStr()},
	}, nil
}

// authenticate finds the credentials: the secret's if there is one, and then
// no others.
func (f *Fetcher) authenticate(ctx context.Context, secret []byte, repo name.Repository) (authn.Authenticator, error) {
	var keys authn.Keychain
	switch {
	case len(secret) > 0:
		s, err := ParseSecret(secret)
		if err != nil {
			return nil, err
		}
		keys = s
	case f.cfg.Keychain != nil:
		keys = f.cfg.Keychain
	default:
		return authn.Anonymous, nil
	}
	auth, err := authn.Resolve(ctx, keys, repo)
	if err != nil {
		return nil, fmt.Errorf("read credentials for %s: %w", repo.RegistryStr(), err)
	}
	return auth, nil
}

// isLoopback says whether a registry is written as this machine.
func isLoopback(registry string) bool {
	u := url.URL{Host: registry}
	host := u.Hostname()
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// A way to a registry over the schemes allowed for it. The library tries HTTPS
// first, then on its own HTTP at this machine, at listed registries and at
// private addresses; the last we refuse.
type way struct {
	next     http.RoundTripper
	plain    bool // HTTP is allowed
	registry string
	scheme   string // that the registry is asked over, whatever a request says; empty if that is open

	mu          sync.Mutex
	http, https error // the last one over each
}

// to is w over one scheme, or again over either.
func (w *way) to(scheme string) *way {
	return &way{next: w.next, plain: w.plain, registry: w.registry, scheme: scheme}
}

func (w *way) RoundTrip(r *http.Request) (*http.Response, error) {
	if w.scheme != "" && r.URL.Host == w.registry && r.URL.Scheme != w.scheme {
		r = r.Clone(r.Context())
		r.URL.Scheme = w.scheme
	}
	secure := r.URL.Scheme == "https"
	if !secure && !w.plain {
		return nil, errPlain
	}
	resp, err := w.next.RoundTrip(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	if secure {
		w.https = err
	} else {
		w.http = err
	}
	return resp, err
}

// explain makes a fetch.Error of the failure to find a way. The library joins
// the errors of both schemes; what counts is that of HTTP where it is allowed,
// because HTTPS always fails there if the registry speaks only HTTP. What went
// wrong after a way was found, as with a realm that the library refuses, has
// nothing to do with either.
func (w *way) explain(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, answered := errors.AsType[*transport.Error](err)
	_, distrusted := errors.AsType[*tls.CertificateVerificationError](w.https)
	switch {
	case distrusted: // what it answers over HTTP is that it wants TLS
		return classify(w.https)
	case answered:
		return classify(err)
	case w.http != nil && errors.Is(err, w.http):
		return classify(w.http)
	case w.https != nil && errors.Is(err, w.https):
		return classify(w.https)
	}
	e := fetch.Transient(err)
	e.Retry = false
	return e
}

var errPlain = errors.New("plain HTTP refused, list the registry in WASM_INSECURE_REGISTRIES to allow it")

var accept = strings.Join([]string{
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
	string(types.OCIImageIndex), string(types.DockerManifestList),
}, ",")

// do asks for part of the repository. A status other than 200 is an error.
func (s *session) do(ctx context.Context, method, kind, id string) (*http.Response, error) {
	resp, err := s.send(ctx, method, kind, id)
	if err == nil || ctx.Err() != nil || !s.login.mayBeStale(resp) {
		return resp, err
	}
	rt, err := s.login.enterAnew(ctx)
	if err != nil {
		return nil, err
	}
	s.client = &http.Client{Transport: rt}
	return s.send(ctx, method, kind, id)
}

// send sends a request. If there was an answer, it is returned also with an error.
func (s *session) send(ctx context.Context, method, kind, id string) (*http.Response, error) {
	repo := s.ref.Context()
	u := url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/" + kind + "/" + id}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, &fetch.Error{Err: err}
	}
	if kind == "manifests" {
		req.Header.Set("Accept", accept)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, classify(err)
	}
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		resp.Body.Close()
		return resp, classifyStatus(err, resp.Header)
	}
	return resp, nil
}

// unchanged asks for the manifest's digest alone if that may spare the rest.
// Whatever is in the way of it, resolve reports better.
func (s *session) unchanged(ctx context.Context) (source string, ok bool) {
	pin := s.req.Ref.Digest()
	if !s.req.IsKnown(s.req.Source) && (pin.IsZero() || !s.req.IsKnown(pin.String())) {
		return "", false
	}
	resp, err := s.do(ctx, http.MethodHead, "manifests", s.ref.Identifier())
	if err != nil {
		return "", false
	}
	resp.Body.Close()
	d, err := module.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil || !pin.IsZero() && d != pin {
		return "", false
	}
	return d.String(), s.req.IsKnown(d.String())
}

// resolve follows the reference to a layer, over an index if need be.
func (s *session) resolve(ctx context.Context) (source string, l layer, err error) {
	image, err := s.image(ctx)
	if err != nil {
		return "", layer{}, err
	}
	l, err = chooseLayer(&image.Manifest)
	return image.Source.String(), l, err
}

// An Image is what a registry says of an image without its layers.
type Image struct {
	Source    module.Digest   // of what the reference leads to: the manifest, or the index it is from
	Digest    module.Digest   // of the manifest
	MediaType types.MediaType // of the manifest
	Manifest  v1.Manifest     // not checked further
	Layer     int             // which of its layers is the module or has it
}

// Describe asks for the manifest of the image that r.Ref leads to, over an index
// if need be, and says where the module is. It downloads no layer. Errors are of
// type *fetch.Error, or ctx's.
func (f *Fetcher) Describe(ctx context.Context, r fetch.Request) (Image, error) {
	s, err := f.open(ctx, r)
	if err != nil {
		return Image{}, inManifest(err)
	}
	image, err := s.image(ctx)
	if err != nil {
		return Image{}, inManifest(err)
	}
	l, err := chooseLayer(&image.Manifest)
	if err != nil {
		return Image{}, inManifest(err)
	}
	image.Layer = slices.IndexFunc(image.Manifest.Layers, func(d v1.Descriptor) bool {
		return d.Digest.String() == l.digest.String()
	})
	return image, nil
}

// image gets the manifest that the reference leads to.
func (s *session) image(ctx context.Context) (Image, error) {
	data, mediaType, err := s.manifest(ctx, s.ref.Identifier())
	if err != nil {
		return Image{}, err
	}
	top := module.Digest(sha256.Sum256(data))
	i := Image{Source: top, Digest: top, MediaType: mediaType}
	if mediaType == types.OCIImageIndex || mediaType == types.DockerManifestList {
		if data, i.MediaType, i.Digest, err = s.fromIndex(ctx, data); err != nil {
			return Image{}, err
		}
	}
	if pin := s.req.Ref.Digest(); !pin.IsZero() && pin != i.Source && pin != i.Digest {
		return Image{}, &fetch.Error{Kind: fetch.Checksum, Err: &module.DigestError{Want: pin, Got: i.Source}}
	}
	if i.MediaType != types.OCIManifestSchema1 && i.MediaType != types.DockerManifestSchema2 {
		return Image{}, &fetch.Error{Kind: fetch.NotModule, Err: fmt.Errorf("media type %.100q is not an image's", i.MediaType)}
	}
	if err := json.Unmarshal(data, &i.Manifest); err != nil {
		return Image{}, malformed("manifest", err)
	}
	return i, nil
}

// malformed is an error of parsing what a registry sent, of which it may quote any length.
func malformed(what string, err error) error {
	return &fetch.Error{Err: fmt.Errorf("parse %s: %.300v", what, err)}
}

// fromIndex gets the image of an index that has the module.
func (s *session) fromIndex(ctx context.Context, data []byte) ([]byte, types.MediaType, module.Digest, error) {
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, "", module.Digest{}, malformed("index", err)
	}
	d, err := chooseManifest(&index)
	if err != nil {
		return nil, "", module.Digest{}, err
	}
	want, err := toDigest(d.Digest)
	if err != nil {
		return nil, "", want, err
	}
	data, mediaType, err := s.manifest(ctx, want.String())
	return data, mediaType, want, err
}

// manifest gets a manifest and its media type; one that is asked for by digest
// has that.
func (s *session) manifest(ctx context.Context, id string) ([]byte, types.MediaType, error) {
	resp, err := s.do(ctx, http.MethodGet, "manifests", id)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, "", fetch.Transient(err)
	}
	if len(data) > maxManifest {
		return nil, "", &fetch.Error{Kind: fetch.TooLarge, Err: fmt.Errorf("larger than the limit of %d bytes", maxManifest)}
	}
	if want, err := module.ParseDigest(id); err == nil {
		if got := module.Digest(sha256.Sum256(data)); got != want {
			return nil, "", &fetch.Error{Kind: fetch.Checksum, Err: &module.DigestError{Want: want, Got: got}}
		}
	}
	return data, mediaTypeOf(resp.Header.Get("Content-Type"), data), nil
}

// mediaTypeOf trusts the manifest's own word first: it is covered by the digest.
func mediaTypeOf(header string, data []byte) types.MediaType {
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Layers    []json.RawMessage `json:"layers"`
	}
	// What does not parse here does not parse later, and is reported there.
	_ = json.Unmarshal(data, &m)
	header, _, _ = strings.Cut(header, ";")
	switch {
	case m.MediaType != "":
		return types.MediaType(m.MediaType)
	case m.Manifests != nil && m.Layers == nil:
		return types.OCIImageIndex
	case m.Layers != nil:
		return types.OCIManifestSchema1
	}
	return types.MediaType(strings.TrimSpace(header))
}

// download streams the layer's module to the receiver.
func (s *session) download(ctx context.Context, l layer) error {
	if l.raw && l.size > s.max || l.size > s.max+1<<20 {
		return &fetch.Error{Kind: fetch.TooLarge, Err: fmt.Errorf("layer of %d bytes is larger than the limit of %d bytes", l.size, s.max)}
	}
	resp, err := s.do(ctx, http.MethodGet, "blobs", l.digest.String())
	if err != nil {
		return fmt.Errorf("layer %w", err)
	}
	defer resp.Body.Close()
	if l.raw {
		body := fetch.NewBody(resp.Body, s.max, l.digest, nil) // Put compares
		return fetch.Deliver(s.req, body, l.digest, fetch.Bound(body, s.max))
	}
	body := fetch.NewBody(resp.Body, s.max, l.digest, sha256.New())
	return fetch.Unpack(s.req, body, module.Digest{}, pluginFile, s.max)
}

// classify makes a fetch.Error of one from the registry library.
func classify(err error) error {
	if _, ok := errors.AsType[*transport.Error](err); ok {
		return classifyStatus(err, nil)
	}
	e := fetch.Transient(err)
	if errors.Is(err, errPlain) {
		e.Retry = false
	}
	return e
}

// classifyStatus makes a fetch.Error of a registry's answer.
func classifyStatus(err error, header http.Header) error {
	te, ok := errors.AsType[*transport.Error](err)
	if !ok {
		return fetch.Transient(err)
	}
	said := ""
	if len(te.Errors) > 0 {
		said = strings.TrimSpace(string(te.Errors[0].Code) + " " + te.Errors[0].Message)
	}
	e := fetch.Status(te.StatusCode, header, said)
	switch e.Kind {
	case fetch.Denied:
		e.Err = fmt.Errorf("registry denies access, check that the image exists and the imagePullSecret is right: %w", e.Err)
	case fetch.NotFound:
		e.Err = fmt.Errorf("no such image: %w", e.Err)
	}
	return e
}
