// Package fetch gets Wasm modules from where references point to.
//
// A [Fetcher] knows one way: fetch/oci registries, fetch/httpget web servers,
// [Local] files; [Schemes] chooses among them and [Retry] tries again. All pass
// the contract in fetch/fetchtest.
//
// Modules are streamed: whatever their size, a fetch needs a few hundred kB.
// Everything that is read is bounded, and what exceeds a bound is an [Error]
// that names it, never a shortened module. Digests are compared before the
// receiver sees the end of the stream, so it must keep nothing before that.
// Addresses that nobody should be made to ask are never dialled; see
// [Transport]. Nothing is stored here and no credential is logged.
package fetch

import (
	"context"
	"errors"
	"io"

	"github.com/chandler-proxy/chandler/internal/module"
)

// DefaultMaxModule is the largest module taken when nothing else is said, in
// bytes; Istio's ISTIO_WASM_MAX_BINARY_SIZE_BYTES.
const DefaultMaxModule = 256 << 20

// A Request is a Want and what to do with the module.
type Request struct {
	module.Want

	// Put takes the module, which must have digest want unless that is zero. It
	// returns r's error if r gives one, and an error that wraps
	// *module.DigestError if the digest is another. It may be called again after
	// it failed.
	Put func(want module.Digest, r io.Reader) error

	// Source is what the reference led to when it was last fetched, as a Result
	// said, or empty.
	Source string
	// Known says whether the module that was made from a source is at hand, so
	// that it need not be downloaded. It may be nil.
	Known func(source string) bool
}

// IsKnown says whether the module from source need not be downloaded.
func (r *Request) IsKnown(source string) bool {
	return source != "" && r.Known != nil && r.Known(source)
}

// A Result says what a reference led to.
type Result struct {
	// Source names the module's origin exactly: the digest of the manifest that
	// an image reference led to, URL and ETag for HTTP, or nothing. Equal
	// sources give equal modules.
	Source string
	// Known says that Put was not called because Request.Known knows Source.
	Known bool
}

// A Fetcher gets modules. Fetch calls Put with the module that r.Ref refers to;
// after that succeeded it returns nil. Asking the server is always part of it,
// so a nil error says that r.Secret is good for r.Ref. Errors are of type
// *Error, of r.Put, or ctx's. Fetch may be called concurrently.
type Fetcher interface {
	Fetch(ctx context.Context, r Request) (Result, error)
}

// Schemes is a Fetcher for each of module's URL schemes.
type Schemes map[string]Fetcher

// Fetch passes r to the Fetcher of its scheme.
func (s Schemes) Fetch(ctx context.Context, r Request) (Result, error) {
	f, ok := s[r.Ref.Scheme()]
	if !ok {
		return Result{}, &Error{Err: errors.New("scheme " + r.Ref.Scheme() + " is not enabled here")}
	}
	return f.Fetch(ctx, r)
}
