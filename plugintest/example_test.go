package plugintest_test

import (
	"fmt"
	"testing"

	"github.com/chandler-proxy/chandler/plugintest"
)

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

	m := plugintest.BuildGo(t, "testdata/everything")
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

// A plugin that handles connections: it makes what clients send upper case, a line at a
// time.
func ExamplePlugin_Connect() {
	t := new(testing.T)

	m := plugintest.BuildGo(t, "testdata/everything")
	p := m.Start(t, plugintest.Config{Plugin: "tcp"})

	c := p.Connect(map[string]any{"source.address": "192.0.2.1:5000"})
	c.Send("hel")
	fmt.Printf("%q\n", c.ToServer()) // ""
	c.Send("lo\n")
	fmt.Printf("%q\n", c.ToServer()) // "HELLO\n"
}
