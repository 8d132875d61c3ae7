package proxywasm

import (
	"slices"
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// Fields is a header map in memory. The zero value is empty. It is not safe for
// concurrent use.
//
// It behaves as Envoy's: pseudo-headers stay ahead of all others. In the headers of a
// request, host is another name of :authority, and adding a field that Envoy holds in
// one slot, when it is there already, extends its value after a comma instead;
// likewise in those of a response, with other fields.
type Fields struct {
	pairs []abi.Pair
	of    message
}

type message uint8

const (
	anyMessage message = iota
	requestHeaders
	responseHeaders
)

// NewFields returns a map of the pairs, in their order, which it owns from now on, for
// trailers or metadata. All names are in lower case.
func NewFields(pairs ...abi.Pair) *Fields { return &Fields{pairs: pairs} }

// NewRequestFields is NewFields for the headers of a request.
func NewRequestFields(pairs ...abi.Pair) *Fields { return &Fields{pairs: pairs, of: requestHeaders} }

// NewResponseFields is NewFields for the headers of a response.
func NewResponseFields(pairs ...abi.Pair) *Fields { return &Fields{pairs: pairs, of: responseHeaders} }

// Pairs returns the fields in order. They are valid until the map changes.
func (f *Fields) Pairs() []abi.Pair { return f.pairs }

// Len is the number of fields.
func (f *Fields) Len() int { return len(f.pairs) }

// Get returns the first value of the field.
func (f *Fields) Get(name string) (string, bool) {
	name = f.canonical(name)
	if i := f.index(name); i >= 0 {
		return f.pairs[i].Value, true
	}
	return "", false
}

// Add adds a field after all others, or extends the one there is.
func (f *Fields) Add(name, value string) {
	name = f.canonical(name)
	if f.single(name) {
		if i := f.index(name); i >= 0 {
			f.pairs[i].Value = join(f.pairs[i].Value, value)
			return
		}
	}
	at := len(f.pairs)
	if strings.HasPrefix(name, ":") {
		at = slices.IndexFunc(f.pairs, func(p abi.Pair) bool { return !strings.HasPrefix(p.Key, ":") })
		if at < 0 {
			at = len(f.pairs)
		}
	}
	f.pairs = slices.Insert(f.pairs, at, abi.Pair{Key: name, Value: value})
}

// Set removes all fields of that name, then adds one.
func (f *Fields) Set(name, value string) {
	f.Remove(name)
	f.Add(name, value)
}

// Remove removes all fields of that name.
func (f *Fields) Remove(name string) {
	name = f.canonical(name)
	if f.index(name) >= 0 {
		f.pairs = slices.DeleteFunc(f.pairs, func(p abi.Pair) bool { return p.Key == name })
	}
}

// Each calls yield for each field in order until it returns false.
func (f *Fields) Each(yield func(name, value string) bool) {
	for _, p := range f.pairs {
		if !yield(p.Key, p.Value) {
			return
		}
	}
}

func (f *Fields) index(name string) int {
	for i := range f.pairs {
		if f.pairs[i].Key == name {
			return i
		}
	}
	return -1
}

// canonical is the name under which the field is kept.
func (f *Fields) canonical(name string) string {
	if f.of == requestHeaders && name == "host" {
		return ":authority"
	}
	return name
}

// join extends a value by another, of which an empty one is none.
func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "," + b
}

// single reports whether Envoy has one slot for the field. The lists are what Envoy
// 1.40 was seen to do when a plugin adds each field twice.
func (f *Fields) single(name string) bool {
	switch f.of {
	case requestHeaders:
		return singleInRequest(name)
	case responseHeaders:
		return singleInResponse(name)
	}
	return false
}

func singleInRequest(name string) bool {
	switch name {
	case ":authority", ":method", ":path", ":protocol", ":scheme", "accept", "accept-encoding",
		"access-control-request-headers", "access-control-request-method", "access-control-request-private-network",
		"authentication", "authorization", "cache-control", "cdn-loop", "connection", "content-encoding", "content-length",
		"content-type", "expect", "grpc-accept-encoding", "grpc-timeout", "if-match", "if-modified-since", "if-none-match",
		"if-range", "if-unmodified-since", "keep-alive", "origin", "pragma", "proxy-connection", "proxy-status", "referer",
		"te", "transfer-encoding", "upgrade", "user-agent", "via", "x-client-trace-id", "x-envoy-attempt-count",
		"x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
		"x-envoy-expected-rq-timeout-ms", "x-envoy-external-address", "x-envoy-force-trace",
		"x-envoy-hedge-on-per-try-timeout", "x-envoy-internal", "x-envoy-ip-tags", "x-envoy-is-timeout-retry",
		"x-envoy-max-retries", "x-envoy-original-host", "x-envoy-original-path", "x-envoy-retriable-header-names",
		"x-envoy-retriable-status-codes", "x-envoy-retry-grpc-on", "x-envoy-retry-on", "x-envoy-upstream-alt-stat-name",
		"x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response",
		"x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-stream-duration-ms", "x-forwarded-client-cert",
		"x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-request-id":
		return true
	}
	return false
}

func singleInResponse(name string) bool {
	switch name {
	case ":status", "access-control-allow-credentials", "access-control-allow-headers", "access-control-allow-methods",
		"access-control-allow-origin", "access-control-allow-private-network", "access-control-expose-headers",
		"access-control-max-age", "age", "cache-control", "connection", "content-encoding", "content-length",
		"content-type", "date", "etag", "expires", "grpc-message", "grpc-status", "keep-alive", "last-modified", "location",
		"proxy-connection", "proxy-status", "server", "transfer-encoding", "upgrade", "vary", "via",
		"x-envoy-attempt-count", "x-envoy-decorator-operation", "x-envoy-degraded", "x-envoy-immediate-health-check-fail",
		"x-envoy-ratelimited", "x-envoy-upstream-canary", "x-envoy-upstream-healthchecked-cluster",
		"x-envoy-upstream-service-time", "x-request-id":
		return true
	}
	return false
}
