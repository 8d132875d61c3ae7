package plugintest

import (
	"strconv"
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// Headers are the fields of a message in order, each a name and a value. Names are made
// lower case where they go to a plugin, and are so where they come from it.
type Headers [][2]string

// Get returns the first value of a field, or nothing.
func (h Headers) Get(name string) string {
	if all := h.Values(name); len(all) > 0 {
		return all[0]
	}
	return ""
}

// Values returns all values of a field, in order.
func (h Headers) Values(name string) []string {
	var all []string
	for _, f := range h {
		if strings.EqualFold(f[0], name) {
			all = append(all, f[1])
		}
	}
	return all
}

// Has reports whether there is a field of that name.
func (h Headers) Has(name string) bool { return len(h.Values(name)) > 0 }

func (h Headers) pairs() []abi.Pair {
	var list []abi.Pair
	for _, f := range h {
		list = append(list, abi.Pair{Key: strings.ToLower(f[0]), Value: f[1]})
	}
	return list
}

// headersOf returns the fields without pseudo-headers.
func headersOf(f *proxywasm.Fields) Headers {
	if f == nil {
		return nil
	}
	var h Headers
	for _, p := range f.Pairs() {
		if !strings.HasPrefix(p.Key, ":") {
			h = append(h, [2]string{p.Key, p.Value})
		}
	}
	return h
}

// A Request is an HTTP request. The zero value is GET http://example.com/.
type Request struct {
	Method  string // default GET
	Scheme  string // default http
	Host    string // default example.com
	Path    string // with the query; default /
	Headers Headers
	Body    string
	// Chunks are more pieces of the body, after Body. The plugin sees each by itself.
	Chunks   []string
	Trailers Headers
	// More says that this is not all of the request: [Stream.Send], [Stream.SendLast] and
	// [Stream.SendTrailers] bring the rest.
	More bool

	// Backend answers the request if the plugin lets it through, and all of it; default:
	// that of the Config. It is not part of the request that a backend gets.
	Backend func(Request) Response
	// Properties are what the plugin can read besides those of the Config, likewise.
	Properties map[string]any
}

// fields are the request's headers as a plugin sees them, in Envoy's order.
func (r Request) fields() *proxywasm.Fields {
	or := func(value, other string) string {
		if value == "" {
			return other
		}
		return value
	}
	return proxywasm.NewRequestFields(append([]abi.Pair{
		{Key: ":authority", Value: or(r.Host, "example.com")},
		{Key: ":path", Value: or(r.Path, "/")},
		{Key: ":method", Value: or(r.Method, "GET")},
		{Key: ":scheme", Value: or(r.Scheme, "http")},
	}, r.Headers.pairs()...)...)
}

// requestOf is the reverse of fields.
func requestOf(f *proxywasm.Fields, body string, trailers *proxywasm.Fields) Request {
	get := func(name string) string {
		value, _ := f.Get(name)
		return value
	}
	return Request{
		Method: get(":method"), Scheme: get(":scheme"), Host: get(":authority"), Path: get(":path"),
		Headers: headersOf(f), Body: body, Trailers: headersOf(trailers),
	}
}

// A Response is an HTTP response. The zero value is 200 without a body.
type Response struct {
	Status  int // default 200
	Headers Headers
	Body    string
	// Chunks are more pieces of the body, after Body. The plugin sees each by itself.
	Chunks   []string
	Trailers Headers
	// More says that this is not all of the response: [Stream.Reply], [Stream.ReplyLast]
	// and [Stream.ReplyTrailers] bring the rest.
	More bool
}

func (r Response) fields() *proxywasm.Fields {
	if r.Status == 0 {
		r.Status = 200
	}
	return proxywasm.NewResponseFields(append([]abi.Pair{{Key: ":status", Value: strconv.Itoa(r.Status)}}, r.Headers.pairs()...)...)
}

func responseOf(f *proxywasm.Fields, body string, trailers *proxywasm.Fields) Response {
	text, _ := f.Get(":status")
	status, _ := strconv.Atoi(text) // 0 if a plugin made it no number
	return Response{Status: status, Headers: headersOf(f), Body: body, Trailers: headersOf(trailers)}
}

// chunks are the pieces of a body that a plugin is shown.
func chunks(body string, more []string) []string {
	if body == "" {
		return more
	}
	return append([]string{body}, more...)
}

func trailersOf(h Headers) *proxywasm.Fields {
	if len(h) == 0 {
		return nil
	}
	return proxywasm.NewFields(h.pairs()...)
}
