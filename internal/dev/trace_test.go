package dev

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/xds"
)

func TestTidy(t *testing.T) {
	for _, tt := range []struct {
		name     string
		in, want []string
	}{
		{"nothing", nil, nil},
		{"a callback with calls in it",
			[]string{
				"--> proxy_on_request_headers(context=2,headers=3,end=1)",
				`==> env.proxy_get_header_map_value(map=0,key="a")`, `<== (value="b",OK)`,
				`==> env.proxy_remove_header_map_value(map=0,key="c")`, `<== (OK)`,
				"<-- (1)",
			},
			[]string{
				"proxy_on_request_headers(context=2,headers=3,end=1) = 1",
				`  proxy_get_header_map_value(map=0,key="a") = value="b",OK`,
				`  proxy_remove_header_map_value(map=0,key="c") = OK`,
			}},
		{"idle callbacks", []string{"--> proxy_on_context_create(context=2,parent=1)", "<-- ()", "--> proxy_on_log(context=2)", "<-- ()"}, nil},
		{"a callback that is idle mostly",
			[]string{"--> proxy_on_log(context=2)", `==> env.proxy_log(level=2,message="x")`, "<== (OK)", "<-- ()"},
			[]string{"proxy_on_log(context=2)", `  proxy_log(level=2,message="x") = OK`}},
		{"an idle callback that fails",
			[]string{"--> proxy_on_done(context=2)", "<-- failed: unreachable"}, []string{"proxy_on_done(context=2) failed: unreachable"}},
		{"a runtime that starts",
			[]string{"--> _initialize()", "==> wasi_snapshot_preview1.random_get(buf=1,buf_len=2)", "<== (errno=0)", "<-- ()"}, nil},
		{"WASI in a request",
			[]string{"--> proxy_on_tick(context=1)", "==> wasi_snapshot_preview1.random_get(buf=1,buf_len=2)", "<== (errno=0)", "<-- ()"},
			[]string{"proxy_on_tick(context=1)", "  wasi_snapshot_preview1.random_get(buf=1,buf_len=2) = errno=0"}},
		{"a call for a stream from another's callback",
			[]string{"==> env.proxy_continue_stream(stream=0)", "<== (OK)"}, []string{"proxy_continue_stream(stream=0) = OK"}},
		{"what does not fit together", []string{"<-- (0)", "--> proxy_on_tick(context=1)", "... 5 more"}, []string{"proxy_on_tick(context=1)", "  ... 5 more"}},
		{"what a terminal would take as a command", []string{"--> \x1b[2Jproxy(\u202e)", "<-- ()"}, []string{"·[2Jproxy(·)"}},
		{"what is too long", []string{"--> " + strings.Repeat("ä", 300)}, []string{strings.Repeat("ä", maxLine-1) + "…"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tidy(tt.in)); diff != "" {
				t.Errorf("tidy (-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever a plugin does, no line is longer than a line, or a command to a terminal.
func FuzzTidy(f *testing.F) {
	f.Add("--> a(b)\n==> env.c(d)\n<== (OK)\n<-- (0)")
	f.Add("<-- \n--> \n\x1b")
	f.Fuzz(func(t *testing.T, text string) {
		in := strings.Split(text, "\n")
		for _, line := range tidy(in) {
			if line = strings.TrimLeft(line, " "); len([]rune(line)) > maxLine || strings.ContainsAny(line, "\x1b\n\r") {
				t.Errorf("line %q", line)
			}
		}
	})
}

func TestScreen(t *testing.T) {
	var b strings.Builder
	s := &screen{w: &b}
	expect := func(want string) {
		t.Helper()
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Errorf("printed (-want +got):\n%s", diff)
		}
		b.Reset()
	}
	s.access(hcm.Access{Method: "GET", Path: "/a\x1b", Status: 200, Took: 1234567, Details: "via_upstream", Trace: []string{"--> proxy_on_tick()", "<-- ()"}})
	expect("GET /a· 200 1.23ms\n    proxy_on_tick()\n")
	s.access(hcm.Access{Method: "GET", Path: "/", Took: time.Second, Details: "why"})
	expect("GET / reset 1s (why)\n")

	// outside of requests: when the outermost call is over
	s.trace("--> proxy_on_tick(context=1)")
	s.trace("==> env.proxy_done()")
	s.trace("<== (OK)")
	expect("")
	s.trace("<-- ()")
	expect("    proxy_on_tick(context=1)\n      proxy_done() = OK\n")

	s.color = true
	s.say(good, "a %d", 1)
	expect("\x1b[32mdev: a 1\x1b[m\n")
	s.say(bad, "two\nlines")
	expect("\x1b[31mdev: two\x1b[m\n\x1b[31mlines\x1b[m\n")
	s.say(plain, "b")
	expect("dev: b\n")
}

func TestLogs(t *testing.T) {
	var b strings.Builder
	ctx, end := context.WithCancel(context.Background())
	log := slog.New((&screen{w: &b}).logs(ctx)).With("part", "x")
	log.Info("wasm log ns.hello: one\ntwo: \x1b")
	log.Warn("wasm log: from the root")
	log.Debug("live")
	log.Info("live")
	log.Warn("trouble", "with", "this")
	log.Warn("refuse configuration", "type", xds.ExtensionType)
	end()
	log.Error("connection lost")
	log.Error("wasm log: last words")
	const want = "plugin info: one\n    two: ·\nplugin warn: from the root\nengine: trouble part=x with=this\nplugin error: last words\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("printed (-want +got):\n%s", diff)
	}
}
