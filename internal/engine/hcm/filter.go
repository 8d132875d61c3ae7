package hcm

import (
	"sync/atomic"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/extension"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A filter is one of a stream. It is the host of the plugin in it.
type filter struct {
	s     *stream
	index int
	ext   *extension.Extension // nil if it has no configuration
	http  *proxywasm.HTTP      // nil unless it is a plugin
	off   bool                 // the route does without it

	cors   *config.CORS // set for a request that a browser makes for another origin
	origin string

	request, response atomic.Bool // whether the plugin has the headers
	asked             atomic.Bool // the plugin was shown the request: only then it is shown the response
}

// openFilters makes the filters of the stream, with the configuration of now.
func (s *stream) openFilters() {
	list := make([]filter, len(s.m.filters))
	s.filters = make([]*filter, len(list))
	for i := range list {
		f := &list[i]
		f.s, f.index, f.ext = s, i, s.m.filters[i].Slot.Acquire()
		if said := s.said(f.name()); len(said) > 0 {
			f.off = said[0].Disabled
		}
		if f.ext != nil && f.ext.Plugin != nil && !f.off {
			f.http = f.ext.Plugin.NewHTTP(f)
		}
		s.filters[i] = f
	}
}

// closeFilters tells the plugins that the stream is over.
func (s *stream) closeFilters() {
	for _, f := range s.filters {
		if f.http != nil {
			f.request.Store(true)
			f.response.Store(true)
			f.http.OnLog(s.fields, headersOrNil(s.head.Load()), headersOrNil(s.trailers.Load()))
			f.http.Close()
		}
		if f.ext != nil {
			f.ext.Release()
		}
	}
}

func headersOrNil(f *http1.Fields) proxywasm.Headers {
	if f == nil {
		return nil
	}
	return f
}

func (f *filter) headers(kind abi.Stream, h *http1.Fields, end bool) proxywasm.Action {
	switch {
	case f.http != nil && kind == abi.Request:
		f.request.Store(true)
		f.asked.Store(true)
		act := f.http.OnRequestHeaders(h, end)
		if act == proxywasm.Pause && !end {
			f.s.ahead.start()
		}
		return gone(&f.request, act)
	case f.http != nil && !f.asked.Load(): // an earlier filter has answered
	case f.http != nil:
		f.response.Store(true)
		return gone(&f.response, f.http.OnResponseHeaders(h, end))
	case f.cors != nil && kind == abi.Response:
		f.corsResponse(h)
	case kind != abi.Request, f.off:
	case f.ext == nil:
		f.s.reply(&reply{status: 500, details: "no_filter_config_found", flag: noFilterConfig})
		return proxywasm.Stop
	default:
		return f.native()
	}
	return proxywasm.Continue
}

func (f *filter) name() string { return f.s.m.filters[f.index].Name }

// gone notes that the plugin has the headers no more, if they go on.
func gone(has *atomic.Bool, act proxywasm.Action) proxywasm.Action {
	if act == proxywasm.Continue {
		has.Store(false)
	}
	return act
}

func (s *stream) peer() *config.Peer {
	path, _ := s.fields.Get(":path")
	path, _ = cutQuery(path)
	return &config.Peer{
		Headers: s.fields, Path: path, Port: uint32(s.conn.Dst.Port()),
		Direct: s.conn.Remote.Addr(), Remote: s.remote.addr.Addr(),
	}
}

func (f *filter) data(kind abi.Stream, p []byte, end bool) ([]byte, proxywasm.Action) {
	switch {
	case f.http == nil, !f.asked.Load():
		return p, proxywasm.Continue
	case kind == abi.Request:
		return f.http.OnRequestBody(p, end)
	}
	return f.http.OnResponseBody(p, end)
}

func (f *filter) trailers(kind abi.Stream, h *http1.Fields) ([]byte, proxywasm.Action) {
	switch {
	case f.http == nil, !f.asked.Load():
		return nil, proxywasm.Continue
	case kind == abi.Request:
		return f.http.OnRequestTrailers(h)
	}
	return f.http.OnResponseTrailers(h)
}

func (f *filter) resume(kind abi.Stream) ([]byte, proxywasm.Action) {
	if f.http == nil {
		return nil, proxywasm.Continue
	}
	if kind == abi.Request {
		f.request.Store(false)
	} else {
		f.response.Store(false)
	}
	return f.http.Resume(kind)
}

// Continue is [proxywasm.HTTPHost]'s, as are the following.
func (f *filter) Continue(kind abi.Stream) {
	if kind == abi.Request {
		f.s.request.resume(f)
	} else {
		f.s.response.resume(f)
	}
}

// SendLocalResponse answers the request.
func (f *filter) SendLocalResponse(r proxywasm.LocalResponse) {
	f.s.reply(&reply{status: int(r.Status), body: r.Body, headers: r.Headers, details: r.Details, grpc: r.GRPCStatus, hasGRPC: r.GRPCStatus >= 0})
}

// Close resets the stream.
func (f *filter) Close(abi.Stream) { f.s.abort() }

// ClearRouteCache has the route chosen anew.
func (f *filter) ClearRouteCache() { f.s.router.clear() }

// AddTrailers adds trailers to a message without any.
func (f *filter) AddTrailers(kind abi.Stream) proxywasm.Headers {
	d := &f.s.request
	if kind == abi.Response {
		d = &f.s.response
	}
	d.added = new(http1.Fields)
	return d.added
}
