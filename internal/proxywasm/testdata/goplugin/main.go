// Command goplugin is a plugin in Go for the tests of proxywasm: it lets through
// requests that have the credentials it is configured with.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

func main() {}

func init() {
	proxywasm.SetVMContext(&vm{})
}

type vm struct{ types.DefaultVMContext }

func (*vm) NewPluginContext(uint32) types.PluginContext { return &plugin{} }

type plugin struct {
	types.DefaultPluginContext
	authorization string
	requests      proxywasm.MetricCounter
}

func (p *plugin) OnPluginStart(int) types.OnPluginStartStatus {
	config, err := proxywasm.GetPluginConfiguration()
	if err != nil || len(config) == 0 {
		proxywasm.LogCriticalf("no configuration: %v", err)
		return types.OnPluginStartStatusFailed
	}
	p.authorization = string(config)
	p.requests = proxywasm.DefineCounterMetric("goplugin_requests")
	fmt.Println("configured", os.Getenv("COLOUR"), len(os.Args))
	return types.OnPluginStartStatusOK
}

func (p *plugin) NewHttpContext(uint32) types.HttpContext { return &stream{plugin: p} }

type stream struct {
	types.DefaultHttpContext
	plugin *plugin
}

func (s *stream) OnHttpRequestHeaders(int, bool) types.Action {
	s.plugin.requests.Increment(1)
	switch path, _ := proxywasm.GetHttpRequestHeader(":path"); path {
	case "/panic":
		panic("as asked")
	case "/loop":
		for {
		}
	case "/sleep":
		time.Sleep(time.Microsecond)
	case "/exit":
		os.Exit(3)
	}
	if got, _ := proxywasm.GetHttpRequestHeader("authorization"); got != s.plugin.authorization {
		_ = proxywasm.SendHttpResponse(401, [][2]string{{"www-authenticate", "Basic"}}, []byte("no"), -1)
		return types.ActionPause
	}
	return types.ActionContinue
}

func (s *stream) OnHttpResponseHeaders(int, bool) types.Action {
	_ = proxywasm.AddHttpResponseHeader("x-go", "yes")
	return types.ActionContinue
}
