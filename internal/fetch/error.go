package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/chandler-proxy/chandler/internal/module"
)

// A Kind is why a fetch failed.
type Kind int

const (
	Failed    Kind = iota // anything else: network, server, malformed answers
	Denied                // the server wants other credentials (401, 403)
	NotFound              // no such image, tag or file
	Checksum              // not what the digest says
	TooLarge              // over a limit, which the error names
	NotModule             // what was found is no Wasm module, or there is none in the image
	Blocked               // at an address that must not be asked
)

var kindNames = [...]string{"failed", "denied", "not found", "checksum", "too large", "not a module", "blocked"}

func (k Kind) String() string { return kindNames[k] }

// kindCodes are what gRPC has for kinds: so an agent tells the control plane why
// it refuses an extension.
var kindCodes = [...]codes.Code{
	Failed:    codes.Unavailable,
	Denied:    codes.Unauthenticated,
	NotFound:  codes.NotFound,
	Checksum:  codes.DataLoss,
	TooLarge:  codes.ResourceExhausted,
	NotModule: codes.FailedPrecondition,
	Blocked:   codes.PermissionDenied,
}

// Code is k as gRPC has it.
func (k Kind) Code() codes.Code { return kindCodes[k] }

// KindOf is the kind that has that code, if one has.
func KindOf(c codes.Code) (Kind, bool) {
	i := slices.Index(kindCodes[:], c)
	return Kind(max(i, 0)), i >= 0
}

// An Error is why a fetch failed.
type Error struct {
	Kind     Kind
	Manifest bool          // it failed before the module itself was asked for
	Retry    bool          // trying again may help
	After    time.Duration // but not before that, if the server said so
	Err      error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// A BlockedError says that an address must not be dialled.
type BlockedError struct{ Addr netip.Addr }

func (e *BlockedError) Error() string {
	return fmt.Sprintf("address %s is blocked for module downloads", e.Addr)
}

// tooLarge is an Error for what is over limit bytes.
func tooLarge(what string, limit int64) *Error {
	return &Error{Kind: TooLarge, Err: fmt.Errorf("%s is larger than the limit of %d bytes", what, limit)}
}

// Transient makes an Error of one that came from the network: a retryable one,
// unless trying again cannot help. It drops URLs, which may hold credentials.
func Transient(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	e := &Error{Err: err, Retry: true}
	if b, ok := errors.AsType[*BlockedError](err); ok {
		e.Kind, e.Retry, e.Err = Blocked, false, b
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Retry = false
		e.Err = fmt.Errorf("%w; to trust the server unverified, list it in WASM_INSECURE_REGISTRIES", err)
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		e.Retry = false
		e.Err = fmt.Errorf("%w; if it has no TLS, list it in WASM_INSECURE_REGISTRIES", err)
	}
	if errors.Is(err, errDowngrade) || errors.Is(err, context.Canceled) {
		e.Retry = false
	}
	return e
}

// Status makes an Error of an HTTP status other than success. detail is what
// the server said about it, or empty.
func Status(code int, header http.Header, detail string) *Error {
	text := fmt.Sprintf("server answers %d %s", code, http.StatusText(code))
	if detail != "" {
		text += ": " + clip(detail)
	}
	e := &Error{Err: errors.New(text)}
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		e.Kind = Denied
	case code == http.StatusNotFound, code == http.StatusGone:
		e.Kind = NotFound
	case code >= 500, code == http.StatusTooManyRequests:
		e.Retry = true
		e.After = retryAfter(header)
	}
	return e
}

// clip shortens what a server said to what fits a status message.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%q", s)
}

// retryAfter reads the header of that name, in seconds or as a date.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil && s > 0 {
		return time.Duration(min(s, 24*3600)) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// checksum is err as an Error if it is about a digest, else err.
func checksum(err error) error {
	if d, ok := errors.AsType[*module.DigestError](err); ok {
		return &Error{Kind: Checksum, Err: d}
	}
	return err
}
