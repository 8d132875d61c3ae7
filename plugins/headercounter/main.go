// Command headercounter is a Proxy-Wasm plugin that adds headers to responses
// and counts the requests that have a hello header.
//
// Its configuration is the headers, names and values:
//
//	header_1: some_value_1
//	header_2: another_value
//
// Without configuration it only counts. The counter is hello_header_counter,
// one for the whole proxy. A configuration that would make an unsound header is
// refused as a whole. It neither reads bodies nor changes requests.
//
// The headers are read in headers.go, which knows nothing of Wasm; this file
// joins them to the host. Build it with -buildmode=c-shared for wasip1. Start
// at [parse].
package main

import (
	"errors"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

// counterName is the metric's name. Envoy shows it in its Prometheus output as
// it is here, without the prefix that it gives its own.
const counterName = "hello_header_counter"

func main() {}

// A module built as c-shared has no running main: what it serves must be said
// before _initialize returns, which leaves only init.
func init() {
	proxywasm.SetPluginContext(func(uint32) types.PluginContext { return &plugin{} })
}

// A plugin is one configuration.
type plugin struct {
	types.DefaultPluginContext
	headers []header
	hellos  proxywasm.MetricCounter
}

func (p *plugin) OnPluginStart(int) types.OnPluginStartStatus {
	text, err := proxywasm.GetPluginConfiguration()
	if err != nil && !errors.Is(err, types.ErrorStatusNotFound) {
		proxywasm.LogError("headercounter: read configuration: " + err.Error())
		return types.OnPluginStartStatusFailed
	}
	if p.headers, err = parse(text); err != nil {
		proxywasm.LogError("headercounter: refuse configuration: " + err.Error())
		return types.OnPluginStartStatusFailed
	}
	p.hellos = proxywasm.DefineCounterMetric(counterName)
	return types.OnPluginStartStatusOK
}

func (p *plugin) NewHttpContext(uint32) types.HttpContext { return &stream{plugin: p} }

// A stream is one request and its response.
type stream struct {
	types.DefaultHttpContext
	plugin *plugin
}

func (s *stream) OnHttpRequestHeaders(int, bool) types.Action {
	switch _, err := proxywasm.GetHttpRequestHeader("hello"); {
	case err == nil:
		s.plugin.hellos.Increment(1)
	case !errors.Is(err, types.ErrorStatusNotFound):
		proxywasm.LogError("headercounter: read request header: " + err.Error())
	}
	return types.ActionContinue
}

func (s *stream) OnHttpResponseHeaders(int, bool) types.Action {
	for _, h := range s.plugin.headers {
		if err := proxywasm.AddHttpResponseHeader(h.name, h.value); err != nil {
			proxywasm.LogError("headercounter: add response header " + h.name + ": " + err.Error())
		}
	}
	return types.ActionContinue
}
