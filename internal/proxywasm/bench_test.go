package proxywasm

import (
	"context"
	"os"
	"testing"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// noHost is a stream without anything.
type noHost struct{}

func (noHost) AppendProperty(dst []byte, _ string) ([]byte, abi.Status) { return dst, abi.NotFound }
func (noHost) SetProperty(string, string) abi.Status                    { return abi.OK }
func (noHost) Continue(abi.Stream)                                      {}
func (noHost) SendLocalResponse(LocalResponse)                          {}
func (noHost) Close(abi.Stream)                                         {}
func (noHost) ClearRouteCache()                                         {}
func (noHost) AddTrailers(abi.Stream) Headers                           { return &Fields{} }

func benchPlugin(b testing.TB, wasm []byte, cfg PluginConfig) *Plugin {
	b.Helper()
	ctx := context.Background()
	h, err := NewHost(ctx, Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := h.Close(ctx); err != nil {
			b.Error(err)
		}
	})
	m, err := h.Load(ctx, wasm)
	if err != nil {
		b.Fatal(err)
	}
	cfg.VM.Module = m
	p, err := h.Open(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func request() *Fields {
	f := NewRequestFields(abi.Pair{Key: ":authority", Value: "example.com"}, abi.Pair{Key: ":path", Value: "/productpage"},
		abi.Pair{Key: ":method", Value: "GET"}, abi.Pair{Key: ":scheme", Value: "http"},
		abi.Pair{Key: "user-agent", Value: "curl/8"}, abi.Pair{Key: "accept", Value: "*/*"},
		abi.Pair{Key: "authorization", Value: "Basic YWRtaW4zOmFkbWluMw=="})
	f.pairs = append(make([]abi.Pair, 0, 16), f.pairs...)
	return f
}

// A request through a plugin that adds a header each way.
func BenchmarkAddHeader(b *testing.B) {
	wasm, err := os.ReadFile("testdata/addheader.wasm")
	if err != nil {
		b.Fatal(err)
	}
	p := benchPlugin(b, wasm, PluginConfig{})
	req, resp := request(), NewFields(abi.Pair{Key: ":status", Value: "200"})
	resp.pairs = append(make([]abi.Pair, 0, 8), resp.pairs...)
	b.ReportAllocs()
	for b.Loop() {
		req.pairs, resp.pairs = req.pairs[:7], resp.pairs[:1]
		s := p.NewHTTP(noHost{})
		s.OnRequestHeaders(req, true)
		s.OnResponseHeaders(resp, true)
		s.Close()
	}
	if v, _ := resp.Get("x-added"); v != "yes" {
		b.Fatalf("x-added = %q", v)
	}
}

const basic = "Basic YWRtaW4zOmFkbWluMw=="

// A request through a plugin in Go that checks a header and counts.
func BenchmarkGo(b *testing.B) {
	wasm, err := goModule()
	if err != nil {
		b.Fatal(err)
	}
	p := benchPlugin(b, wasm, PluginConfig{Configuration: []byte(basic)})
	req, resp := request(), NewFields(abi.Pair{Key: ":status", Value: "200"})
	resp.pairs = append(make([]abi.Pair, 0, 8), resp.pairs...)
	b.ReportAllocs()
	for b.Loop() {
		resp.pairs = resp.pairs[:1]
		s := p.NewHTTP(noHost{})
		if act := s.OnRequestHeaders(req, true); act != Continue {
			b.Fatal(act)
		}
		s.OnResponseHeaders(resp, true)
		s.Close()
	}
}
