// Command guest does what the header x-do of a request says, by the Go SDK.
package main

import (
	"strings"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

func main() {}

// A module built as c-shared has no running main: what it serves is said here.
func init() {
	proxywasm.SetPluginContext(func(uint32) types.PluginContext { return &plugin{} })
}

type plugin struct {
	types.DefaultPluginContext
	network bool
}

func (p *plugin) OnPluginStart(int) types.OnPluginStartStatus {
	settings, _ := proxywasm.GetPluginConfiguration()
	p.network = string(settings) == "network"
	_ = proxywasm.SetTickPeriodMilliSeconds(20)
	return types.OnPluginStartStatusOK
}

func (*plugin) OnTick() {
	_ = proxywasm.SetTickPeriodMilliSeconds(0)
	proxywasm.LogWarn("tick = 0")
}

func (*plugin) OnQueueReady(queue uint32) {
	data, err := proxywasm.DequeueSharedQueue(queue)
	proxywasm.LogWarnf("queue is ready = 0 %s %v", data, err)
}

func (p *plugin) NewHttpContext(uint32) types.HttpContext {
	if p.network {
		return nil
	}
	return &stream{}
}

func (*plugin) NewTcpContext(uint32) types.TcpContext { return &connection{} }

type stream struct {
	types.DefaultHttpContext
	deed string
}

func (s *stream) OnHttpRequestHeaders(count int, end bool) types.Action {
	s.deed, _ = proxywasm.GetHttpRequestHeader("x-do")
	proxywasm.LogWarnf("request headers %s %d %t", s.deed, count, end)
	switch s.deed {
	case "headers":
		headers, err := proxywasm.GetHttpRequestHeaders()
		for _, h := range headers {
			if h[0] == "x-request-id" {
				h[1] = "..."
			}
			proxywasm.LogWarnf("%s: %s", h[0], h[1])
		}
		path, err2 := proxywasm.GetProperty([]string{"request", "path"})
		_, err3 := proxywasm.GetHttpRequestHeader("x-nothing")
		proxywasm.LogWarnf("%v %s %v %v", err, path, err2, err3)
		_ = proxywasm.ReplaceHttpRequestHeader("x-mixed", "replaced")
		_ = proxywasm.AddHttpRequestHeader("x-added", "one")
		_ = proxywasm.RemoveHttpRequestHeader("x-gone")
	case "append":
		_ = proxywasm.RemoveHttpRequestHeader("content-length")
	case "shared":
		shared()
	case "metrics":
		counter, gauge := proxywasm.DefineCounterMetric("guest.counter"), proxywasm.DefineGaugeMetric("guest.gauge")
		counter.Increment(3)
		gauge.Add(42)
		proxywasm.LogWarnf("%d %d", counter.Value(), gauge.Value())
	case "local":
		_ = proxywasm.SendHttpResponse(403, [][2]string{{"x-local", "1"}}, []byte("no\n"), -1)
		return types.ActionPause
	case "call", "call nobody":
		to := map[string]string{"call": "backend", "call nobody": "nobody"}[s.deed]
		_, err := proxywasm.DispatchHttpCall(to, [][2]string{{":method", "POST"}, {":path", "/p/called"}, {":authority", "call.example"}},
			[]byte("the body"), nil, 5000, called)
		proxywasm.LogWarnf("call %v", err)
		if err == nil {
			return types.ActionPause
		}
	case "panic":
		panic("as it was told")
	}
	return types.ActionContinue
}

func shared() {
	proxywasm.LogWarnf("set %v", proxywasm.SetSharedData("key", []byte("value"), 0))
	value, cas, err := proxywasm.GetSharedData("key")
	proxywasm.LogWarnf("get %s %v", value, err)
	proxywasm.LogWarnf("cas %v", proxywasm.SetSharedData("key", []byte("other"), cas))
	proxywasm.LogWarnf("old cas %v", proxywasm.SetSharedData("key", []byte("third"), cas))
	queue, err := proxywasm.RegisterSharedQueue("queue")
	again, err2 := proxywasm.ResolveSharedQueue("vm", "queue")
	_, err3 := proxywasm.ResolveSharedQueue("vm", "nothing")
	proxywasm.LogWarnf("queue %v %t %v %v", err, queue == again, err2, err3)
	proxywasm.LogWarnf("enqueue %v", proxywasm.EnqueueSharedQueue(queue, []byte("ready")))
}

func called(headers, size, trailers int) {
	proxywasm.LogWarnf("answer %d %d %d", headers, size, trailers)
	list, err := proxywasm.GetHttpCallResponseHeaders()
	for _, h := range list {
		if h[0] != "x-envoy-upstream-service-time" {
			proxywasm.LogWarnf("%s: %s", h[0], h[1])
		}
	}
	body, err2 := proxywasm.GetHttpCallResponseBody(0, size)
	proxywasm.LogWarnf("%v %s %v", err, strings.ReplaceAll(string(body), "\r\n", "|"), err2)
	_ = proxywasm.AddHttpRequestHeader("x-called", "yes")
	_ = proxywasm.ResumeHttpRequest()
}

func (s *stream) OnHttpRequestBody(size int, end bool) types.Action {
	if !end {
		return types.ActionPause
	}
	body, err := proxywasm.GetHttpRequestBody(0, size)
	proxywasm.LogWarnf("request body %s %v", body, err)
	if s.deed == "append" {
		_ = proxywasm.AppendHttpRequestBody([]byte("[more]"))
	}
	return types.ActionContinue
}

func (s *stream) OnHttpResponseHeaders(count int, end bool) types.Action {
	proxywasm.LogWarnf("response headers %d %t", count, end)
	switch s.deed {
	case "headers":
		_ = proxywasm.ReplaceHttpResponseHeader("x-back", "replaced")
		_ = proxywasm.AddHttpResponseHeader("x-added", "one")
	case "append":
		_ = proxywasm.RemoveHttpResponseHeader("content-length")
	}
	return types.ActionContinue
}

func (s *stream) OnHttpResponseBody(size int, end bool) types.Action {
	if !end {
		return types.ActionPause
	}
	if s.deed == "append" {
		_ = proxywasm.AppendHttpResponseBody([]byte("[more]"))
	}
	return types.ActionContinue
}

func (s *stream) OnHttpStreamDone() {
	code, err := proxywasm.GetProperty([]string{"response", "code"})
	proxywasm.LogWarnf("log %v %v", code, err)
	proxywasm.LogWarn("deleted")
}

type connection struct {
	types.DefaultTcpContext
}

func (*connection) OnNewConnection() types.Action {
	proxywasm.LogWarn("new connection")
	return types.ActionContinue
}

func (*connection) OnDownstreamData(size int, end bool) types.Action {
	data, err := proxywasm.GetDownstreamData(0, size)
	proxywasm.LogWarnf("downstream %s %v %t", data, err, end)
	if size > 0 {
		_ = proxywasm.AppendDownstreamData([]byte("<"))
	}
	return types.ActionContinue
}

func (*connection) OnUpstreamData(size int, end bool) types.Action {
	data, err := proxywasm.GetUpstreamData(0, size)
	proxywasm.LogWarnf("upstream %s %v %t", data, err, end)
	if size > 0 {
		_ = proxywasm.ReplaceUpstreamData([]byte("[all]"))
	}
	return types.ActionContinue
}

func (*connection) OnStreamDone() { proxywasm.LogWarn("deleted") }
