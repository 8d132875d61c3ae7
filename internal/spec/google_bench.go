package spec

import (
	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// bench measures what a test does, without checking it; and if it is the first to be
// measured of its file, what plugins and streams cost in themselves.
func (g *googleFile) bench(t *run, test googleTest, b benchmark, first bool) {
	if first {
		b.measure("PluginLifecycle", nil, func() {
			one := &run{runner: t.runner, file: t.file, line: t.line}
			g.mustStart(one)
			one.end()
		})
	}
	p := g.mustStart(t)
	if first {
		b.measure("StreamLifecycle", nil, func() {
			s := p.stream(test)
			s.http.OnLog(nil, nil, nil) // or the plugin would not learn of it
			s.http.Close()
		})
	}
	others := p.otherStreams(test, g.env)
	t.Cleanup(others.close)
	var s *googleStream
	b.measure(b.name, func() {
		if s != nil {
			s.http.Close()
		}
		s = p.stream(test)
		others.advance()
	}, func() {
		for _, call := range s.calls(test) {
			call()
		}
	})
	s.http.Close()
	p.healthy(test.At.Line, "benchmark")
}

func (g *googleFile) mustStart(t *run) *googlePlugin {
	p, err := g.start(t, true)
	if err != nil {
		t.Fatalf("the plugin does not start: %v", err)
	}
	return p
}

// calls are the calls that the test makes to the plugin, in order. After a local response
// they do nothing.
func (s *googleStream) calls(test googleTest) []func() {
	var all []func()
	headers := func(in *googleInvocation, dir abi.Stream, call func(proxywasm.Headers, bool) proxywasm.Action) {
		if in == nil {
			return
		}
		all = append(all, func() {
			if s.local == nil && call(in.Input.headers.clone(), false) == proxywasm.Pause && s.local == nil {
				s.http.Resume(dir)
			}
		})
	}
	bodies := func(list []googleInvocation, dir abi.Stream, call func([]byte, bool) ([]byte, proxywasm.Action)) {
		for _, in := range list {
			for i, chunk := range in.chunks {
				all = append(all, func() {
					if s.local == nil {
						s.callBody(dir, chunk, i == len(in.chunks)-1, call)
					}
				})
			}
		}
	}
	headers(test.RequestHeaders, abi.Request, s.http.OnRequestHeaders)
	bodies(test.RequestBody, abi.Request, s.http.OnRequestBody)
	headers(test.ResponseHeaders, abi.Response, s.http.OnResponseHeaders)
	bodies(test.ResponseBody, abi.Response, s.http.OnResponseBody)
	return all
}

// otherStreams are streams that are open besides the one that is measured.
type otherStreams struct {
	p    *googlePlugin
	test googleTest
	all  []otherStream
	next int
	rate int // how many go on each time
}

type otherStream struct {
	stream *googleStream
	calls  []func() // that are left
}

// otherStreams begins as many as the file wants.
func (p *googlePlugin) otherStreams(test googleTest, env googleEnv) *otherStreams {
	o := &otherStreams{p: p, test: test, rate: 3, all: make([]otherStream, env.NumAdditionalStreams)}
	if env.AdditionalStreamAdvanceRate > 0 {
		o.rate = int(min(env.AdditionalStreamAdvanceRate, maxStreams))
	}
	for i := range o.all {
		o.all[i].advance(p, test)
	}
	return o
}

// advance makes the next call in some of the streams, in turn.
func (o *otherStreams) advance() {
	for range min(o.rate, len(o.all)) {
		o.all[o.next].advance(o.p, o.test)
		o.next = (o.next + 1) % len(o.all)
	}
}

// advance makes the stream's next call. One that has none left ends, and another begins.
func (o *otherStream) advance(p *googlePlugin, test googleTest) {
	if len(o.calls) == 0 {
		if o.stream != nil {
			o.stream.http.Close()
		}
		o.stream = p.stream(test)
		o.calls = o.stream.calls(test)
	}
	if len(o.calls) > 0 {
		o.calls[0]()
		o.calls = o.calls[1:]
	}
}

func (o *otherStreams) close() {
	for _, s := range o.all {
		s.stream.http.Close()
	}
}
