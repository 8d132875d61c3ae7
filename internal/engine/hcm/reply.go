package hcm

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A reply is an answer of the proxy's own.
type reply struct {
	status  int
	body    string
	headers []abi.Pair
	details string
	grpc    int32
	hasGRPC bool
	flag    flag
}

// head is the head of the answer. To a gRPC client it says the same in gRPC's way,
// and then there is no body.
func (r *reply) head(s *stream) *http1.Fields {
	s.details.Store(&r.details)
	s.flag(r.flag)
	if s.isGRPC() {
		return r.grpcHead()
	}
	f := proxywasm.NewResponseFields(abi.Pair{Key: ":status", Value: strconv.Itoa(r.status)})
	for _, h := range r.headers {
		f.Add(h.Key, h.Value)
	}
	if r.body != "" {
		put(f, "content-length", strconv.Itoa(len(r.body)))
		if _, ok := f.Get("content-type"); !ok {
			f.Add("content-type", "text/plain")
		}
	} else {
		f.Remove("content-length")
		f.Remove("content-type")
	}
	if method, _ := s.fields.Get(":method"); method == "HEAD" {
		r.body = ""
	}
	return f
}

func (r *reply) grpcHead() *http1.Fields {
	f := proxywasm.NewResponseFields(abi.Pair{Key: ":status", Value: "200"})
	for _, h := range r.headers {
		f.Add(h.Key, h.Value)
	}
	put(f, "content-type", "application/grpc")
	status := r.grpc
	if !r.hasGRPC {
		status = grpcStatus(r.status)
	}
	put(f, "grpc-status", strconv.Itoa(int(status)))
	if r.body != "" {
		put(f, "grpc-message", percent(r.body))
	}
	r.body = ""
	return f
}

func (s *stream) isGRPC() bool {
	v, _ := s.fields.Get("content-type")
	return v == "application/grpc" || strings.HasPrefix(v, "application/grpc+") || strings.HasPrefix(v, "application/grpc;")
}

// grpcStatus is gRPC's for a status of HTTP.
func grpcStatus(status int) int32 {
	switch status {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}

// percent encodes a message as gRPC wants it.
func percent(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c >= 0x7f || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// put sets a field where it is, or adds it: what Envoy does with the fields it
// holds in a slot of their own.
func put(f *http1.Fields, name, value string) {
	pairs := f.Pairs()
	for i := range pairs {
		if pairs[i].Key == name {
			pairs[i].Value = value
			return
		}
	}
	f.Add(name, value)
}
