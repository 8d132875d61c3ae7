package plugintest_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/plugintest"
)

var everything = sync.OnceValue(func() *plugintest.Module {
	return plugintest.BuildGo(new(testing.T), "testdata/everything")
})

// A plugin that adds a header to responses, configured and driven.
func Example() {
	t := new(testing.T) // in a test, its own

	m := plugintest.Load(t, "../plugins/testdata/addheader.wasm")
	p := m.Start(t, plugintest.Config{Plugin: `{"value":"hello"}`})

	res := p.Do(plugintest.Request{
		Path: "/books",
		Backend: func(r plugintest.Request) plugintest.Response {
			return plugintest.Response{Status: 404, Body: "no " + r.Path}
		},
	})
	fmt.Println(res.Status, res.Body)
	fmt.Println(res.Headers)
	// Output:
	// 404 no /books
	// [[x-wasm hello]]
}

// A plugin that refuses its configuration.
func ExampleModule_TryStart() {
	t := new(testing.T)

	m := plugintest.Load(t, "../plugins/testdata/refuse-config.wasm")
	p, err := m.TryStart(t, plugintest.Config{Plugin: "anything"})
	fmt.Println(err != nil)
	fmt.Println(p.Logs())
	// Output:
	// true
	// [error: configuration refused: this module refuses all]
}

// A plugin that traps. Without MayFail the test would fail.
func ExamplePlugin_Failures() {
	t := new(testing.T)

	m := plugintest.Load(t, "../plugins/testdata/trap-on-request.wasm")
	p := m.Start(t, plugintest.Config{MayFail: true})
	fmt.Println(p.Do(plugintest.Request{}).Status)
	fmt.Println(p.Failures())
	// Output:
	// 503
	// [proxy_on_request_headers: wasm error: unreachable]
}

// A plugin that asks another service before it lets a request through.
func ExamplePlugin_Begin() {
	t := new(testing.T)

	m := everything() // plugintest.BuildGo(t, "testdata/everything"), which takes a while
	p := m.Start(t, plugintest.Config{})

	s := p.Begin(plugintest.Request{Path: "/call"})
	fmt.Println("held back:", s.Paused())

	call := p.Call("auth")
	fmt.Println("asks", call.Request.Method, call.Request.Path)
	call.Answer(plugintest.Response{Status: 401, Body: "who are you?"})

	fmt.Println(s.Result().Status, s.Result().Body)
	// Output:
	// held back: true
	// asks POST /check
	// 403 denied: who are you?
}

// A plugin that is shown a request piece by piece. It holds back a piece that ends in
// "hold" until its next tick, or until more comes.
func ExamplePlugin_Open() {
	t := new(testing.T)

	m := everything() // plugintest.BuildGo(t, "testdata/everything"), which takes a while
	p := m.Start(t, plugintest.Config{})

	s := p.Open(nil)
	s.Request(plugintest.Request{Method: "POST", Path: "/upload", More: true})
	fmt.Println("the backend has the headers:", s.ToServer().Path)

	s.Send("one, hold")
	fmt.Printf("held back: %v, the backend has %q\n", s.RequestPaused(), s.ToServer().Body)
	p.Tick()
	fmt.Printf("held back: %v, the backend has %q\n", s.RequestPaused(), s.ToServer().Body)

	s.SendLast(", two")
	s.Respond(plugintest.Response{Status: 201, More: true})
	s.Reply("taken")
	fmt.Printf("the client has %d %q so far: %v\n", s.ToClient().Status, s.ToClient().Body, !s.Done())
	s.ReplyTrailers(plugintest.Headers{{"checksum", "1"}})
	fmt.Println(s.Result().Trailers)
	// Output:
	// the backend has the headers: /upload
	// held back: true, the backend has ""
	// held back: false, the backend has "one, hold"
	// the client has 201 "taken" so far: true
	// [[checksum 1] [x-trailer response]]
}

// A plugin that answers by itself when it has seen some of the body.
func ExampleStream_Send() {
	t := new(testing.T)

	m := everything() // plugintest.BuildGo(t, "testdata/everything"), which takes a while
	p := m.Start(t, plugintest.Config{})

	s := p.Open(nil)
	s.Request(plugintest.Request{Method: "POST", More: true})
	s.Send("so far, so good")
	fmt.Println(s.Done())
	s.Send("stop")
	fmt.Println(s.Result().Status, s.Result().Body, "by the plugin:", s.Result().Local)
	fmt.Printf("the backend got %q, and not all\n", s.Result().Upstream.Body)
	// Output:
	// false
	// 403 stopped by the plugin: true
	// the backend got "so far, so good", and not all
}

// A plugin whose ticks come when the test moves the clock.
func ExamplePlugin_Advance() {
	t := new(testing.T)

	m := everything() // plugintest.BuildGo(t, "testdata/everything"), which takes a while
	p := m.Start(t, plugintest.Config{Plugin: "tick", StopClock: true})

	fmt.Println("wants a tick every", p.TickPeriod())
	p.Advance(350 * time.Millisecond)
	fmt.Println(p.Shared("ticks"))
	// Output:
	// wants a tick every 100ms
	// ... true
}

// A plugin that handles connections: it makes what clients send upper case, a line at a
// time.
func ExamplePlugin_Connect() {
	t := new(testing.T)

	m := everything() // plugintest.BuildGo(t, "testdata/everything"), which takes a while
	p := m.Start(t, plugintest.Config{Plugin: "tcp"})

	c := p.Connect(map[string]any{"source.address": "192.0.2.1:5000"})
	c.Send("hel")
	fmt.Printf("%q held back: %v\n", c.ToServer(), c.Paused())
	c.Send("lo\n")
	fmt.Printf("%q held back: %v\n", c.ToServer(), c.Paused())
	c.CloseWrite()
	c.Reply("bye")
	fmt.Printf("%q\n", c.ToClient())
	// Output:
	// "" held back: true
	// "HELLO\n" held back: false
	// "< bye"
}
