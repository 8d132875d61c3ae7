// Command everything is a plugin for the tests of plugintest: what it does with a
// request its path says.
package main

import (
	"bytes"
	"os"
	"strings"
	"unsafe"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

func main() {}

func init() { proxywasm.SetVMContext(&vm{}) }

type vm struct{ types.DefaultVMContext }

func (*vm) OnVMStart(int) types.OnVMStartStatus {
	config, _ := proxywasm.GetVMConfiguration()
	proxywasm.LogInfo("VM configuration " + string(config))
	return types.OnVMStartStatusOK
}

func (*vm) NewPluginContext(id uint32) types.PluginContext {
	root = &plugin{id: id, paused: map[uint32]func() error{}}
	return root
}

var root *plugin

type plugin struct {
	types.DefaultPluginContext
	id       uint32
	requests proxywasm.MetricCounter
	open     proxywasm.MetricGauge
	sizes    proxywasm.MetricHistogram
	jobs     uint32
	others   uint32
	paused   map[uint32]func() error // streams until the next tick, with what they go on by
	tcp      bool                    // the SDK takes a stream for one or the other
}

func (p *plugin) OnPluginStart(int) types.OnPluginStartStatus {
	config, _ := proxywasm.GetPluginConfiguration()
	switch string(config) {
	case "refuse":
		proxywasm.LogError("refused as told")
		return types.OnPluginStartStatusFailed
	case "panic":
		panic("as told")
	case "tcp":
		p.tcp = true
	case "tick":
		_ = proxywasm.SetTickPeriodMilliSeconds(100)
	case "greet":
		_, _ = proxywasm.DispatchHttpCall("greeter", headers("/hello"), nil, nil, 1000, func(int, int, int) {
			body, _ := proxywasm.GetHttpCallResponseBody(0, 100)
			proxywasm.LogInfo("greeted with " + string(body))
		})
	}
	p.requests = proxywasm.DefineCounterMetric("requests")
	p.open = proxywasm.DefineGaugeMetric("open")
	p.sizes = proxywasm.DefineHistogramMetric("sizes")
	p.jobs, _ = proxywasm.RegisterSharedQueue("jobs")
	p.others, _ = proxywasm.ResolveSharedQueue("", "others")
	proxywasm.LogDebug("colour " + os.Getenv("COLOUR"))
	return types.OnPluginStartStatusOK
}

func (p *plugin) OnQueueReady(queue uint32) {
	job, err := proxywasm.DequeueSharedQueue(queue)
	if err != nil {
		proxywasm.LogWarn("no job: " + err.Error())
		return
	}
	proxywasm.LogInfo("job " + string(job))
	if p.others != 0 {
		_ = proxywasm.EnqueueSharedQueue(p.others, append(job, '!'))
	}
}

func (p *plugin) OnTick() {
	value, cas, _ := proxywasm.GetSharedData("ticks")
	_ = proxywasm.SetSharedData("ticks", append(value, '.'), cas)
	for id, goOn := range p.paused {
		delete(p.paused, id)
		_ = proxywasm.SetEffectiveContext(id)
		_ = goOn()
	}
}

func (p *plugin) NewHttpContext(id uint32) types.HttpContext {
	if p.tcp {
		return nil
	}
	return &stream{plugin: p, id: id}
}

func (p *plugin) NewTcpContext(id uint32) types.TcpContext {
	if !p.tcp {
		return nil
	}
	return &conn{plugin: p, id: id}
}

func headers(path string) [][2]string {
	return [][2]string{{":method", "POST"}, {":path", path}, {":authority", "auth.local"}, {"x-from", "everything"}}
}

type stream struct {
	types.DefaultHttpContext
	plugin *plugin
	id     uint32
	path   string
	hold   string // what is held back until the next tick: a message's headers or trailers
	size   int
}

// held holds back a part of a message if the request wants it so.
func (s *stream) held(part string, goOn func() error) types.Action {
	if s.hold != part {
		return types.ActionContinue
	}
	s.plugin.paused[s.id] = goOn
	return types.ActionPause
}

// piece is what becomes of a piece of a body that says so itself.
func (s *stream) piece(data []byte, goOn func() error) types.Action {
	switch {
	case bytes.HasSuffix(data, []byte("hold")):
		s.plugin.paused[s.id] = goOn
		return types.ActionPause
	case bytes.HasSuffix(data, []byte("stop")):
		_ = proxywasm.SendHttpResponse(403, [][2]string{{"x-local", "yes"}}, []byte("stopped"), -1)
		return types.ActionPause
	case bytes.HasSuffix(data, []byte("reset")):
		closeStream(0)
		return types.ActionPause
	}
	return types.ActionContinue
}

func (s *stream) OnHttpRequestHeaders(int, bool) types.Action {
	s.plugin.requests.Increment(1)
	s.plugin.open.Add(1)
	s.path, _ = proxywasm.GetHttpRequestHeader(":path")
	switch s.path {
	case "/local":
		_ = proxywasm.SendHttpResponse(418, [][2]string{{"x-local", "yes"}}, []byte("teapot"), 7)
		return types.ActionPause
	case "/call":
		_, err := proxywasm.DispatchHttpCall("auth", headers("/check"), []byte("who?"), [][2]string{{"t", "1"}}, 1000, s.allowed)
		if err != nil {
			_ = proxywasm.SendHttpResponse(500, nil, []byte(err.Error()), -1)
		}
		return types.ActionPause
	case "/panic":
		panic("as asked")
	case "/loop":
		for {
		}
	case "/reset":
		closeStream(0)
		return types.ActionPause
	case "/properties":
		all, _ := proxywasm.GetHttpRequestHeader("x-paths")
		for path := range strings.SplitSeq(all, ",") {
			value, err := proxywasm.GetProperty(strings.Split(path, "."))
			if err != nil {
				value = []byte(err.Error())
			}
			proxywasm.LogInfo(path + "=" + string(value))
		}
		_ = proxywasm.SetProperty([]string{"my", "own"}, []byte("value"))
		mine, _ := proxywasm.GetProperty([]string{"my", "own"})
		proxywasm.LogInfo("my.own=" + string(mine))
	case "/foreign":
		for _, name := range []string{"echo", "broken", "unknown", "compress"} {
			result, err := proxywasm.CallForeignFunction(name, []byte("hello"))
			if err != nil {
				result = []byte(err.Error())
			}
			proxywasm.LogInfo(name + ": " + string(result[:min(len(result), 20)]))
		}
	case "/grpc", "/grpc-stream":
		s.grpc()
	}
	_ = proxywasm.AddHttpRequestHeader("x-seen", s.path)
	s.hold, _ = proxywasm.GetHttpRequestHeader("x-hold")
	return s.held("request headers", proxywasm.ResumeHttpRequest)
}

func (s *stream) allowed(_, size, _ int) {
	body, _ := proxywasm.GetHttpCallResponseBody(0, size)
	all, _ := proxywasm.GetHttpCallResponseHeaders()
	_ = proxywasm.SetEffectiveContext(s.id)
	if len(all) > 0 && all[0] == [2]string{":status", "200"} {
		_ = proxywasm.ResumeHttpRequest()
		return
	}
	_ = proxywasm.SendHttpResponse(403, nil, append([]byte("denied: "), body...), -1)
}

func (s *stream) OnHttpRequestBody(size int, end bool) types.Action {
	if s.path != "/body" {
		data, _ := proxywasm.GetHttpRequestBody(0, size)
		return s.piece(data, proxywasm.ResumeHttpRequest)
	}
	if !end {
		return types.ActionPause
	}
	body, _ := proxywasm.GetHttpRequestBody(0, size)
	_ = proxywasm.ReplaceHttpRequestBody(bytes.ToUpper(body))
	return types.ActionContinue
}

func (s *stream) OnHttpRequestTrailers(int) types.Action {
	_ = proxywasm.AddHttpRequestTrailer("x-trailer", "request")
	return s.held("request trailers", proxywasm.ResumeHttpRequest)
}

func (s *stream) OnHttpResponseHeaders(int, bool) types.Action {
	_ = proxywasm.AddHttpResponseHeader("x-everything", s.path)
	switch s.path {
	case "/late":
		s.plugin.paused[s.id] = proxywasm.ResumeHttpResponse
		return types.ActionPause
	case "/replace":
		_ = proxywasm.SendHttpResponse(502, nil, []byte("replaced"), -1)
		return types.ActionPause
	case "/panic-late":
		panic("as asked")
	}
	return s.held("response headers", proxywasm.ResumeHttpResponse)
}

func (s *stream) OnHttpResponseBody(size int, end bool) types.Action {
	s.size += size
	if s.path == "/body" {
		_ = proxywasm.AppendHttpResponseBody([]byte("|"))
	}
	data, _ := proxywasm.GetHttpResponseBody(0, size)
	return s.piece(data, proxywasm.ResumeHttpResponse)
}

func (s *stream) OnHttpResponseTrailers(int) types.Action {
	_ = proxywasm.AddHttpResponseTrailer("x-trailer", "response")
	return s.held("response trailers", proxywasm.ResumeHttpResponse)
}

func (s *stream) OnHttpStreamDone() {
	s.plugin.open.Add(-1)
	s.plugin.sizes.Record(uint64(s.size))
}

// A conn makes what clients send upper case, a line at a time.
type conn struct {
	types.DefaultTcpContext
	plugin *plugin
	id     uint32
}

func (c *conn) OnNewConnection() types.Action {
	if gate, _ := proxywasm.GetProperty([]string{"gate"}); string(gate) == "shut" {
		c.plugin.paused[c.id] = proxywasm.ContinueTcpStream
		return types.ActionPause
	}
	_ = proxywasm.SetProperty([]string{"greeted"}, []byte("yes"))
	return types.ActionContinue
}

func (c *conn) OnDownstreamData(size int, end bool) types.Action {
	data, _ := proxywasm.GetDownstreamData(0, size)
	switch {
	case bytes.HasPrefix(data, []byte("quit")):
		_ = proxywasm.CloseDownstream()
		return types.ActionPause
	case bytes.HasPrefix(data, []byte("wait")):
		c.plugin.paused[c.id] = proxywasm.ContinueTcpStream
		return types.ActionPause
	case !end && !bytes.HasSuffix(data, []byte("\n")):
		return types.ActionPause
	}
	_ = proxywasm.ReplaceDownstreamData(bytes.ToUpper(data))
	return types.ActionContinue
}

func (c *conn) OnUpstreamData(size int, end bool) types.Action {
	if size > 0 {
		_ = proxywasm.PrependUpstreamData([]byte("< "))
	}
	return types.ActionContinue
}

func (c *conn) OnDownstreamClose(types.PeerType) { proxywasm.LogInfo("client gone") }
func (c *conn) OnUpstreamClose(types.PeerType)   { proxywasm.LogInfo("server gone") }

// What the SDK lacks: gRPC, closing HTTP streams, and being called by name.

//go:wasmimport env proxy_close_stream
func closeStream(stream uint32) uint32

//go:wasmimport env proxy_grpc_call
func grpcCall(upstream unsafe.Pointer, upstreamSize uint32, service unsafe.Pointer, serviceSize uint32, method unsafe.Pointer, methodSize uint32,
	metadata unsafe.Pointer, metadataSize uint32, message unsafe.Pointer, messageSize, timeout uint32, call unsafe.Pointer) uint32

//go:wasmimport env proxy_grpc_stream
func grpcStream(upstream unsafe.Pointer, upstreamSize uint32, service unsafe.Pointer, serviceSize uint32, method unsafe.Pointer, methodSize uint32,
	metadata unsafe.Pointer, metadataSize uint32, call unsafe.Pointer) uint32

//go:wasmimport env proxy_grpc_send
func grpcSend(call uint32, message unsafe.Pointer, size, end uint32) uint32

//go:wasmimport env proxy_grpc_cancel
func grpcCancel(call uint32) uint32

var stream1 uint32 // the gRPC stream

func (s *stream) grpc() {
	text := []byte("svcpkg.Smethodhello")
	at := func(i int) unsafe.Pointer { return unsafe.Pointer(&text[i]) }
	metadata := []byte("\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00k\x00v\x00")
	m, size := unsafe.Pointer(&metadata[0]), uint32(len(metadata))
	var id uint32
	if s.path == "/grpc" {
		grpcCall(at(0), 3, at(3), 5, at(8), 6, m, size, at(14), 5, 250, unsafe.Pointer(&id))
		return
	}
	grpcStream(at(0), 3, at(3), 5, at(8), 6, m, size, unsafe.Pointer(&stream1))
	grpcSend(stream1, at(14), 5, 0)
	grpcSend(stream1, at(14), 4, 1)
}

//go:wasmexport proxy_on_grpc_receive_initial_metadata
func onGRPCInitial(_, _, elements uint32) { proxywasm.LogInfof("grpc initial %d", elements) }

//go:wasmexport proxy_on_grpc_receive
func onGRPCReceive(_, _, size uint32) {
	proxywasm.LogInfof("grpc message of %d", size)
	if size == 6 { // cancel
		grpcCancel(stream1)
	}
}

//go:wasmexport proxy_on_grpc_receive_trailing_metadata
func onGRPCTrailing(_, _, elements uint32) { proxywasm.LogInfof("grpc trailing %d", elements) }

//go:wasmexport proxy_on_grpc_close
func onGRPCClose(_, _, status uint32) { proxywasm.LogInfof("grpc close %d", status) }

//go:wasmexport proxy_on_foreign_function
func onForeignFunction(_, function, size uint32) {
	proxywasm.LogInfof("called %d with %d", function, size)
}
