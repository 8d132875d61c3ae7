package proxywasm

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/tetratelabs/wazero"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm/meter"
)

// assemble turns WAT into a module. Only for what is too small to be kept as a file.
func assemble(t testing.TB, wat string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "m.wasm")
	cmd := exec.Command("wat2wasm", "-", "-o", out)
	cmd.Stdin = strings.NewReader(wat)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("wat2wasm: %v: %s", err, msg)
	}
	return readFile(t, out)
}

const valid = `(memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
  (func (export "malloc") (param i32) (result i32) (i32.const 0))`

func TestLoadRefuses(t *testing.T) {
	h := newHost(t, Config{})
	for _, tt := range []struct {
		name, wat string
		is        error
		want      string
	}{
		{"no ABI version", `(module (func (export "f")))`, ErrABI, "load module: missing or unknown Proxy-Wasm ABI version"},
		{"unknown ABI version", `(module (func (export "proxy_abi_version_0_3_0")))`, ErrABI, ""},
		{"no allocator", `(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1")))`, ErrMalloc, ""},
		{"no memory", `(module (func (export "proxy_abi_version_0_2_1")) (func (export "malloc") (param i32) (result i32) (i32.const 0)))`, ErrMemory, ""},
		{"foreign function", `(module (import "env" "proxy_redis_init" (func (param i32) (result i32))) ` + valid + `)`, nil,
			"load module: import env.proxy_redis_init: no such function in Proxy-Wasm ABI 0.2.1"},
		{"foreign module", `(module (import "http" "get" (func)) ` + valid + `)`, nil, "load module: import http.get: no such function in Proxy-Wasm ABI 0.2.1"},
		{"function of another version", `(module (import "env" "proxy_continue_request" (func (result i32))) ` + valid + `)`, nil,
			"load module: import env.proxy_continue_request: not in Proxy-Wasm ABI 0.2.1, which the module declares"},
		{"signature of an import", `(module (import "env" "proxy_log" (func (param i32 i64) (result i32))) ` + valid + `)`, nil,
			"load module: import env.proxy_log: it is (i32,i32,i32)->(i32), the module wants (i32,i64)->(i32)"},
		{"signature of an export", `(module (func (export "proxy_on_tick") (result i32) (i32.const 0)) ` + valid + `)`, nil,
			"load module: export proxy_on_tick: it must be (i32)->(), the module has ()->(i32)"},
		{"signature of the allocator", `(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1")) (func (export "malloc")))`, nil,
			"load module: export malloc: it must be (i32)->(i32), the module has ()->()"},
		{"the interrupt", `(module (import "chandler" "interrupt" (func (param i32))) ` + valid + `)`, nil, "load module: import chandler.interrupt: it is ()->(i64), the module wants (i32)->()"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := h.Load(context.Background(), assemble(t, tt.wat))
			if err == nil {
				t.Fatal("loaded")
			}
			if tt.is != nil && !errors.Is(err, tt.is) || tt.want != "" && err.Error() != tt.want {
				t.Errorf("Load = %v, want %v %q", err, tt.is, tt.want)
			}
		})
	}
	for _, garbage := range []string{"", "hello", "\x00asm\x01\x00\x00\x00\x0a\xff", "\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x0a\x04\x01\x02\x00\xff"} {
		if _, err := h.Load(context.Background(), []byte(garbage)); err == nil {
			t.Errorf("loaded %q", garbage)
		}
	}
	var imp *ImportError
	_, err := h.Load(context.Background(), assemble(t, `(module (import "a" "b" (func)) `+valid+`)`))
	if !errors.As(err, &imp) || imp.Module != "a" || imp.Name != "b" {
		t.Errorf("Load = %v, want an ImportError of a.b", err)
	}
}

// However many load a module at once, it is compiled once, and freed with its last holder.
func TestLoadOnce(t *testing.T) {
	h := newHost(t, Config{})
	wasm := wasmFile(t, "addheader.wasm")
	var wg sync.WaitGroup
	modules := make([]*Module, 16)
	for i := range modules {
		wg.Go(func() { modules[i] = load(t, h, wasm) })
	}
	wg.Wait()
	for _, m := range modules {
		if m != modules[0] {
			t.Fatal("compiled more than once")
		}
	}
	if len(h.modules) != 1 {
		t.Fatalf("%d modules, want 1", len(h.modules))
	}
	for _, m := range modules {
		if err := m.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if len(h.modules) != 0 {
		t.Errorf("%d modules left", len(h.modules))
	}
	if again := load(t, h, wasm); again == modules[0] {
		t.Error("a freed module came back")
	}
}

// A caller that gives up does not take the others along.
func TestLoadCanceled(t *testing.T) {
	h := newHost(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.Load(ctx, wasmFile(t, "addheader.wasm")); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Load = %v", err)
	}
	load(t, h, wasmFile(t, "addheader.wasm"))
}

func TestCompilationCache(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	for range 2 {
		cache, err := wazero.NewCompilationCacheWithDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		h, err := NewHost(ctx, Config{Cache: cache})
		if err != nil {
			t.Fatal(err)
		}
		load(t, h, wasmFile(t, "addheader.wasm"))
		if err := errors.Join(h.Close(ctx), cache.Close(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	if found, _ := filepath.Glob(dir + "/*/*"); len(found) == 0 {
		t.Error("nothing in the cache's folder")
	}
}

// TestCompilationCacheFails: what cannot be kept is compiled all the same, and that is
// told once.
func TestCompilationCacheFails(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := filepath.Glob(dir + "/*")
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	for _, sub := range entries { // a file in the place of its folder
		if err := errors.Join(os.RemoveAll(sub), os.WriteFile(sub, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	h := newHost(t, Config{Cache: cache, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, name := range []string{"addheader.wasm", "scripted.wasm"} {
		p, err := h.Open(ctx, PluginConfig{VM: VMConfig{Module: load(t, h, wasmFile(t, name)), Workers: 1}})
		if err != nil && !errors.Is(err, ErrVMStart) { // what scripted.wasm says where there is no script
			t.Fatal(err)
		}
		if err == nil && p.NewHTTP(&fakeHTTP{}).OnRequestHeaders(request(), true) != Continue {
			t.Errorf("%s does not run", name)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "not a directory") {
		t.Errorf("log = %s, want one warning", &log)
	}
}

// recorder is a Logger that keeps messages.
type recorder struct {
	mu       sync.Mutex
	messages []string
}

func (r *recorder) Log(rec Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, rec.Message)
}

func (r *recorder) Level() abi.LogLevel { return abi.Trace }

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.messages...)
}

func TestStart(t *testing.T) {
	for _, tt := range []struct {
		file string
		want []string
	}{
		{"command.wasm", []string{"start"}},
		{"reactor.wasm", []string{"start function", "_initialize", "main"}},
	} {
		h := newHost(t, Config{})
		log := &recorder{}
		_, err := h.Open(context.Background(), PluginConfig{VM: VMConfig{Module: load(t, h, wasmFile(t, tt.file)), Workers: 1, Services: Services{Log: log}}})
		if diff := cmp.Diff(tt.want, log.all()); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.file, err, diff)
		}
	}
}

func TestStartFails(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"restricted.wasm", "restricted_callback: env.proxy_get_property cannot be called while the module is starting"},
		{"exits.wasm", "module exited with code 3"},
	} {
		h := newHost(t, Config{})
		_, err := h.Open(context.Background(), PluginConfig{Name: "p", VM: VMConfig{Module: load(t, h, wasmFile(t, tt.file)), Workers: 1}})
		if err == nil || !strings.HasPrefix(err.Error(), "open plugin p: start module: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Open = %v, want %q", tt.file, err, tt.want)
		}
	}
}

// The order of a plugin's start, and what it can read then.
func TestOpen(t *testing.T) {
	var got []string
	newHarness(t, abi.V021, func(h *harness, _ *PluginConfig) {
		note := func() uint32 {
			got = append(got, h.trace[len(h.trace)-1], h.do("proxy_get_buffer_bytes", 6, 0, 100), h.do("proxy_get_buffer_bytes", 7, 0, 100))
			return 1
		}
		h.on["proxy_on_context_create"], h.on["proxy_on_vm_start"], h.on["proxy_on_configure"] = note, note, note
	})
	vm, plugin := `(value="vm configuration",OK)`, `(value="plugin configuration",OK)`
	want := []string{
		"--> proxy_on_context_create(context=1,parent=0)", vm, plugin,
		"--> proxy_on_vm_start(context=1,size=16)", vm, "(NOT_FOUND)",
		"--> proxy_on_configure(context=1,size=20)", vm, plugin,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("start (-want +got):\n%s", diff)
	}
}

func TestOpenRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		cb   string
		want error
	}{
		{"by vm start", "proxy_on_vm_start", ErrVMStart},
		{"by configure", "proxy_on_configure", ErrConfigure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, abi.V021)
			was := h.on[tt.cb]
			h.on[tt.cb] = returns(0)
			cfg := h.plugin.cfg
			cfg.Name = "second"
			_, err := h.host.Open(context.Background(), cfg)
			if !errors.Is(err, tt.want) {
				t.Errorf("Open = %v, want %v", err, tt.want)
			}
			h.on[tt.cb] = was
			// The plugin that was there first has noticed nothing.
			if err := h.in.Failed(); err != nil || len(h.in.roots) != 1 || len(h.in.contexts) != 1 {
				t.Errorf("first plugin's instance: %v, %d plugins, %d contexts", err, len(h.in.roots), len(h.in.contexts))
			}
			if len(h.host.vms) != 1 {
				t.Errorf("%d VMs, want 1", len(h.host.vms))
			}
		})
	}
}

// Plugins of the same VM share its instances, each with a root context of its own.
func TestOpenShared(t *testing.T) {
	h := newHarness(t, abi.V021)
	cfg := h.plugin.cfg
	cfg.Name, cfg.RootID = "second", "other"
	second, err := h.host.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if second.Instances()[0] != h.in {
		t.Error("not the same instance")
	}
	h.trace = nil
	s := second.NewHTTP(&fakeHTTP{})
	h.within("proxy_on_request_headers", func() uint32 {
		h.doAll(call1("proxy_get_property", `(value="other",OK)`, "plugin_root_id"))
		return 0
	}, func() { s.OnRequestHeaders(request(), true) })
	if h.trace[0] != "--> proxy_on_context_create(context=3,parent=2)" {
		t.Errorf("trace begins with %s", h.trace[0])
	}
	s.Close()
	cfg.VM.ID = "another vm"
	third, err := h.host.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if third.Instances()[0] == h.in {
		t.Error("the same instance although the VM's id differs")
	}
	for _, p := range []*Plugin{h.plugin, second, third} {
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if len(h.host.vms) != 0 {
		t.Errorf("%d VMs left", len(h.host.vms))
	}
	if err := h.in.Failed(); !errors.Is(err, ErrClosed) {
		t.Errorf("instance: %v, want closed", err)
	}
}

// What a vm_id shares goes with its last VM.
func TestSharedEndsWithTheVM(t *testing.T) {
	h := newHarness(t, abi.V021)
	shared := h.plugin.cfg.VM.Shared
	h.inTick(func() {
		h.do("proxy_set_shared_data", "k", "v", 0)
		h.do("proxy_register_shared_queue", "q")
	})
	if _, _, status := shared.Get("vm", "k"); status != abi.OK {
		t.Errorf("while open: %v", status)
	}
	if err := h.plugin.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, _, status := shared.Get("vm", "k"); status != abi.NotFound {
		t.Errorf("data after close: %v", status)
	}
	if _, status := shared.Resolve("vm", "q"); status != abi.NotFound {
		t.Errorf("queue after close: %v", status)
	}
	if status := shared.Enqueue(1, "x"); status != abi.NotFound {
		t.Errorf("enqueue after close: %v", status)
	}
}

// A plugin that is closed keeps its streams.
func TestCloseDrains(t *testing.T) {
	h := newHarness(t, abi.V021)
	first, second := h.plugin.NewHTTP(&fakeHTTP{}), h.plugin.NewTCP(&fakeTCP{})
	first.OnRequestHeaders(request(), true)
	second.OnNewConnection()
	closed := make(chan error, 1)
	go func() { closed <- h.plugin.Close(context.Background()) }()
	if act := first.OnResponseHeaders(NewFields(), true); act != Continue {
		t.Errorf("action = %v", act)
	}
	first.Close()
	h.trace = nil
	second.Close()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	h.expectTrace(
		"--> proxy_on_done(context=3)", "<-- (1)", "--> proxy_on_log(context=3)", "<-- ()", "--> proxy_on_delete(context=3)", "<-- ()",
		"--> proxy_on_done(context=1)", "<-- (1)", "--> proxy_on_delete(context=1)", "<-- ()",
	)
}

func TestDone(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() { h.doAll(call1("proxy_done", "(NOT_FOUND)")) })
	h.on["proxy_on_done"] = returns(0)
	h.inTick(func() { h.doAll(call1("proxy_set_tick_period_milliseconds", "(OK)", 100)) })
	h.trace = nil
	in := h.in
	closed := make(chan error, 1)
	asked := make(chan struct{})
	h.on["proxy_on_done"] = func() uint32 { close(asked); return 0 }
	go func() { closed <- h.plugin.Close(context.Background()) }()
	<-asked
	in.lock() // until that callback is over
	in.unlock()
	h.inTick(func() { h.doAll(call1("proxy_done", "(OK)"), call1("proxy_done", "(NOT_FOUND)")) })
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if last := h.trace[len(h.trace)-2]; last != "--> proxy_on_delete(context=1)" {
		t.Errorf("last callback %s, want proxy_on_delete", last)
	}
}

// A plugin that is never done is not waited for longer than ctx allows.
func TestDoneNever(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.on["proxy_on_done"] = returns(0)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h.trace = nil
	if err := h.plugin.Close(ctx); err != nil {
		t.Fatal(err)
	}
	h.expectTrace("--> proxy_on_done(context=1)", "<-- (0)", "--> proxy_on_delete(context=1)", "<-- ()")
}

// trap makes the guest trap in the next callback.
func (h *harness) trap() { h.in.mem.WriteUint32Le(24, 1) }

func TestTrap(t *testing.T) {
	for _, tt := range []struct {
		policy FailPolicy
		act    Action
		body   string
		events []string
		next   Verdict // of a stream that comes later
	}{
		{FailClosed, Stop, "", []string{`respond 503 "wasm_fail_stream" "" [] grpc=14`}, Deny},
		{FailReload, Stop, "", []string{`respond 503 "wasm_fail_stream" "" [] grpc=14`}, Deny},
		{FailOpen, Stop, "", []string{`respond 503 "wasm_fail_stream" "" [] grpc=14`}, Skip},
		{FailIgnore, Continue, "abc", nil, Skip},
	} {
		h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) { cfg.Policy = tt.policy })
		host, otherHost := &fakeHTTP{}, &fakeHTTP{}
		s, other := h.plugin.NewHTTP(host), h.plugin.NewHTTP(otherHost)
		if act := other.OnRequestHeaders(request(), false); act != Continue {
			t.Fatal(act)
		}
		h.trap()
		if act := s.OnRequestHeaders(request(), false); act != tt.act {
			t.Errorf("%v: headers: %v, want %v", tt.policy, act, tt.act)
		}
		host.expect(t, tt.events...)
		if out, act := s.OnRequestBody([]byte("abc"), true); string(out) != tt.body || act != tt.act {
			t.Errorf("%v: body: %q, %v, want %q, %v", tt.policy, out, act, tt.body, tt.act)
		}
		if act := s.OnResponseHeaders(NewFields(), true); act != Continue {
			t.Errorf("%v: its answer: %v, want continue", tt.policy, act)
		}
		host.expect(t) // answered once
		// Another stream in the same instance meets it with its next callback.
		if out, act := other.OnRequestBody([]byte("abc"), true); string(out) != tt.body || act != tt.act {
			t.Errorf("%v: other stream: %q, %v, want %q, %v", tt.policy, out, act, tt.body, tt.act)
		}
		otherHost.expect(t, tt.events...)
		late := h.plugin.NewHTTP(&fakeHTTP{})
		if late.verdict != tt.next {
			t.Errorf("%v: later stream: %v, want %v", tt.policy, late.verdict, tt.next)
		}
		s.OnLog(nil, nil, nil)
		for _, s := range []*HTTP{s, other, late} {
			s.Close()
		}
		if err := h.in.Failed(); err == nil || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("failed = %v", err)
		}
		if len(h.logs) != 1 || !strings.Contains(h.logs[0], "proxy_on_context_create: wasm error: unreachable") {
			t.Errorf("log = %v", h.logs)
		}
	}
}

// TestTrapGivesBackWhatIsHeld: what a guest that failed had held back of a stream that
// goes on without it goes on, too.
func TestTrapGivesBackWhatIsHeld(t *testing.T) {
	h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) { cfg.Policy = FailIgnore })
	h.on["proxy_on_request_body"], h.on["proxy_on_downstream_data"] = one, one
	held, asked, tcp := h.plugin.NewHTTP(&fakeHTTP{}), h.plugin.NewHTTP(&fakeHTTP{}), h.plugin.NewTCP(&fakeTCP{})
	held.OnRequestHeaders(request(), false)
	tcp.OnNewConnection()
	if out, act := held.OnRequestBody([]byte("abc"), false); out != nil || act != Pause {
		t.Errorf("body: %q, %v, want nothing, pause", out, act)
	}
	if out, act := tcp.OnDownstreamData([]byte("abc"), false); out != nil || act != Pause {
		t.Errorf("data: %q, %v, want nothing, pause", out, act)
	}
	h.on["proxy_on_request_headers"] = one
	if act := asked.OnRequestHeaders(request(), false); act != Pause {
		t.Errorf("headers: %v, want pause", act)
	}
	asked.OnRequestBody([]byte("xyz"), false)
	h.trap()
	h.plugin.NewHTTP(&fakeHTTP{}).OnRequestHeaders(request(), true)
	for name, got := range map[string]func() ([]byte, Action){
		"abcdef": func() ([]byte, Action) { return held.OnRequestBody([]byte("def"), true) },
		"xyz":    func() ([]byte, Action) { return asked.OnRequestTrailers(NewFields()) },
		"abcd":   func() ([]byte, Action) { return tcp.OnDownstreamData([]byte("d"), true) },
	} {
		if out, act := got(); string(out) != name || act != Continue {
			t.Errorf("%q, %v, want %q, continue", out, act, name)
		}
	}
}

func TestTrapInTCP(t *testing.T) {
	h := newHarness(t, abi.V021)
	host := &fakeTCP{}
	s := h.plugin.NewTCP(host)
	s.OnNewConnection()
	h.trap()
	if out, act := s.OnDownstreamData([]byte("x"), false); out != nil || act != Stop {
		t.Errorf("data: %q, %v", out, act)
	}
	s.OnUpstreamData([]byte("x"), false)
	s.OnDownstreamClose(abi.PeerRemote)
	host.expect(t, "close downstream", "close upstream")
	late := &fakeTCP{}
	if act := h.plugin.NewTCP(late).OnNewConnection(); act != Stop {
		t.Errorf("later connection: %v", act)
	}
	late.expect(t, "close downstream", "close upstream")
}

// A guest whose allocator traps dies in the midst of a host function.
func TestTrapInAllocator(t *testing.T) {
	h := newHarness(t, abi.V021)
	h.inTick(func() {
		h.in.mem.WriteUint32Le(20, 2)
		h.do("proxy_get_property", "plugin_name")
	})
	if err := h.in.Failed(); err == nil || !strings.Contains(err.Error(), "allocate 4 bytes") {
		t.Errorf("failed = %v", err)
	}
}

// A tally is a [Counter].
type tally int

func (n *tally) Inc() { *n++ }

func TestReload(t *testing.T) {
	var backoff, failure, success tally
	h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) {
		cfg.Policy = FailReload
		cfg.VM.Reloads = func(plugin string) Reloads {
			if plugin != "plug" {
				t.Errorf("reloads of %q are counted", plugin)
			}
			return Reloads{&backoff, &failure, &success}
		}
	})
	first := h.in
	h.trap()
	h.plugin.NewHTTP(&fakeHTTP{}).OnRequestHeaders(request(), true)
	h.now = h.now.Add(999 * time.Millisecond)
	if s := h.plugin.NewHTTP(&fakeHTTP{}); s.verdict != Deny {
		t.Errorf("before the backoff is over: %v, want deny", s.verdict)
	}
	h.now = h.now.Add(time.Millisecond)
	h.on["proxy_on_configure"] = returns(0)
	if s := h.plugin.NewHTTP(&fakeHTTP{}); s.verdict != Deny {
		t.Errorf("reload that fails: %v, want deny", s.verdict)
	}
	h.on["proxy_on_configure"] = one
	if s := h.plugin.NewHTTP(&fakeHTTP{}); s.verdict != Deny {
		t.Errorf("at once after a reload that failed: %v, want deny", s.verdict)
	}
	h.now = h.now.Add(time.Second)
	s := h.plugin.NewHTTP(&fakeHTTP{})
	if act := s.OnRequestHeaders(request(), true); s.verdict != Run || act != Continue {
		t.Errorf("reloaded: %v, %v, want run, continue", s.verdict, act)
	}
	if now := h.plugin.Instances()[0]; now == first || now.Failed() != nil {
		t.Error("no new instance")
	}
	if backoff != 2 || failure != 1 || success != 1 {
		t.Errorf("%d streams in backoff, %d failures, %d successes; want 2, 1, 1", backoff, failure, success)
	}
}

// TestOpenAfterTrap: who comes to a VM after its guest failed gets a guest that works,
// and who was there before keeps what its policy says.
func TestOpenAfterTrap(t *testing.T) {
	for _, tt := range []struct {
		policy FailPolicy
		old    Verdict
	}{{FailClosed, Deny}, {FailOpen, Skip}, {FailReload, Deny}} {
		h := newHarness(t, abi.V021, func(_ *harness, cfg *PluginConfig) { cfg.Policy = tt.policy })
		ctx := context.Background()
		h.trap()
		trapped := h.plugin.NewHTTP(&fakeHTTP{})
		trapped.OnRequestHeaders(request(), true)
		trapped.Close()
		cfg := h.plugin.cfg
		cfg.Configuration = []byte("another configuration")
		open := func() *Plugin {
			p, err := h.host.Open(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			s := p.NewHTTP(&fakeHTTP{})
			if act := s.OnRequestHeaders(request(), true); s.verdict != Run || act != Continue {
				t.Errorf("%v: a plugin that came later: %v, %v, want run, continue", tt.policy, s.verdict, act)
			}
			s.Close()
			return p
		}
		first, second := open(), open()
		if first.Instances()[0] != second.Instances()[0] {
			t.Errorf("%v: those that came later do not share an instance", tt.policy)
		}
		if s := h.plugin.NewHTTP(&fakeHTTP{}); s.verdict != tt.old || h.plugin.Instances()[0] != h.in {
			t.Errorf("%v: the plugin that was there: %v, want %v", tt.policy, s.verdict, tt.old)
		}
		if tt.policy == FailReload {
			h.now = h.now.Add(time.Second)
			if s := h.plugin.NewHTTP(&fakeHTTP{}); s.verdict != Run || h.plugin.Instances()[0] != first.Instances()[0] {
				t.Errorf("reloaded: %v, want run, where the others are", s.verdict)
			} else {
				s.Close()
			}
		}
		for _, p := range []*Plugin{h.plugin, first} {
			if err := p.Close(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := second.Instances()[0].Failed(); err != nil {
			t.Errorf("%v: the last plugin's instance: %v", tt.policy, err)
		}
		if err := second.Close(ctx); err != nil || len(h.host.vms) != 0 {
			t.Errorf("%v: %v, %d VMs left", tt.policy, err, len(h.host.vms))
		}
		if err := second.Instances()[0].Failed(); !errors.Is(err, ErrClosed) {
			t.Errorf("%v: instance: %v, want closed", tt.policy, err)
		}
	}
}

// setBack returns t with its wall clock, and that alone, set back by an hour.
func setBack(t *testing.T, now time.Time) time.Time {
	t.Helper()
	const seconds, after = 30, 3600 // package time: wall, its first field, has seconds above 30 bits
	back := now
	*(*uint64)(unsafe.Pointer(&back)) -= after << seconds
	if now.Sub(back) != 0 || now.UnixNano()-back.UnixNano() != int64(time.Hour) {
		t.Fatalf("%v is not %v with its wall clock set back", back, now)
	}
	return back
}

// TestReloadOfTheMonotonicClock: a wall clock that is set back does not put a reload off.
func TestReloadOfTheMonotonicClock(t *testing.T) {
	h := newHarness(t, abi.V021, func(h *harness, cfg *PluginConfig) {
		h.now = time.Now()
		cfg.Policy = FailReload
	})
	h.trap()
	h.plugin.NewHTTP(&fakeHTTP{}).OnRequestHeaders(request(), true)
	h.now = setBack(t, h.now.Add(time.Second))
	if s := h.plugin.NewHTTP(&fakeHTTP{}); s.verdict != Run {
		t.Errorf("a second later: %v, want run", s.verdict)
	}
}

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		policy FailPolicy
		failed bool
		age    time.Duration
		want   Verdict
	}{
		{FailClosed, false, 0, Run},
		{FailOpen, false, 0, Run},
		{FailReload, false, 0, Run},
		{FailClosed, true, time.Hour, Deny},
		{FailOpen, true, time.Hour, Skip},
		{FailReload, true, time.Second - 1, Deny},
		{FailReload, true, time.Second, Reload},
	} {
		if got := Decide(tt.policy, tt.failed, tt.age, time.Second); got != tt.want {
			t.Errorf("Decide(%v, %v, %v) = %v, want %v", tt.policy, tt.failed, tt.age, got, tt.want)
		}
	}
}

// Whatever a guest does, its instance is all that it harms.
func TestHostile(t *testing.T) {
	h := newHost(t, Config{Memory: 100 << 20, Deadline: 20 * time.Millisecond})
	m := load(t, h, wasmFile(t, "hostile.wasm"))
	for harm, want := range []string{
		"unreachable", "deadline exceeded", "stack overflow or deadline exceeded", "deadline exceeded", "deadline exceeded",
		"deadline exceeded", "deadline exceeded", "deadline exceeded", "",
	} {
		p, err := h.Open(context.Background(), PluginConfig{VM: VMConfig{Module: m, Workers: 1}})
		if err != nil {
			t.Fatal(err)
		}
		s := p.NewHTTP(noHost{})
		act := s.OnRequestHeaders(NewFields(make([]abi.Pair, harm)...), true)
		s.Close()
		err = p.Instances()[0].Failed()
		ok := want == "" && err == nil && act == Continue
		for _, one := range strings.Split(want, " or ") {
			ok = ok || err != nil && act == Stop && one != "" && strings.Contains(err.Error(), one)
		}
		if !ok {
			t.Errorf("harm %d: %v, %v, want %q", harm, act, err, want)
		}
		if strings.Contains(want, "deadline") && strings.Contains(err.Error(), "deadline") && !errors.Is(err, ErrDeadline) {
			t.Errorf("harm %d: %v is not ErrDeadline", harm, err)
		}
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func TestHostileTables(t *testing.T) {
	h := newHost(t, Config{})
	wasm := assemble(t, `(module (table 100000000 funcref) `+valid+`)`)
	if _, err := h.Load(context.Background(), wasm); err == nil || !errors.Is(err, meter.ErrTooLarge) {
		t.Errorf("Load = %v, want ErrTooLarge", err)
	}
}

func TestGoPlugin(t *testing.T) {
	wasm, err := goModule()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	h := newHost(t, Config{Deadline: 200 * time.Millisecond})
	log, stats := &recorder{}, NewStats()
	cfg := PluginConfig{
		Name: "go", Configuration: []byte(basic), Policy: FailReload, Backoff: 1,
		VM: VMConfig{Module: load(t, h, wasm), Env: []string{"COLOUR=blue"}, Workers: 1, Services: Services{Log: log, Metrics: stats}},
	}
	p, err := h.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"configured blue 0"}, log.all()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	for _, tt := range []struct {
		path, authorization string
		act                 Action
		events              []string
		failed              string
	}{
		{"/", basic, Continue, nil, ""},
		{"/", "nobody", Stop, []string{`respond 401 "" "no" [{www-authenticate Basic}] grpc=-1`}, ""},
		{"/sleep", basic, Continue, nil, ""},
		{"/panic", basic, Stop, []string{`respond 503 "wasm_fail_stream" "" [] grpc=14`}, "wasm error: unreachable"},
		{"/", basic, Continue, nil, ""},
		{"/exit", basic, Continue, nil, ""}, // proc_exit returns, as in Envoy
		{"/loop", basic, Stop, []string{`respond 503 "wasm_fail_stream" "" [] grpc=14`}, "deadline exceeded"},
		{"/", basic, Continue, nil, ""},
	} {
		host := &fakeHTTP{}
		s := p.NewHTTP(host)
		in := p.Instances()[0]
		act := s.OnRequestHeaders(NewFields(abi.Pair{Key: ":path", Value: tt.path}, abi.Pair{Key: "authorization", Value: tt.authorization}), true)
		if act != tt.act {
			t.Errorf("%s: %v, want %v", tt.path, act, tt.act)
		}
		host.expect(t, tt.events...)
		if err := in.Failed(); (err != nil) != (tt.failed != "") || err != nil && !strings.Contains(err.Error(), tt.failed) {
			t.Errorf("%s: failed = %v, want %q", tt.path, err, tt.failed)
		}
		if act == Continue {
			resp := NewFields()
			s.OnResponseHeaders(resp, true)
			if got := pairsOf(resp); got != "x-go=yes" {
				t.Errorf("%s: response = %s", tt.path, got)
			}
		}
		s.OnLog(nil, nil, nil)
		s.Close()
	}
	if n := stats.Metric(abi.Counter, "goplugin_requests").Value(); n != 8 {
		t.Errorf("counter = %d, want 8", n)
	}
	panicked := ""
	for _, m := range log.all() {
		if strings.HasPrefix(m, "panic: as asked") {
			panicked = m
		}
	}
	if panicked != "panic: as asked" {
		t.Errorf("log of the panic = %q", panicked)
	}
	cfg.Configuration = nil
	if _, err := h.Open(ctx, cfg); !errors.Is(err, ErrConfigure) {
		t.Errorf("Open without configuration = %v, want ErrConfigure", err)
	}
}

// Streams of many goroutines, through instances that fail and are reloaded, while
// plugins come and go. Its worth is in the race detector.
func TestHammer(t *testing.T) {
	ctx := context.Background()
	h := newHost(t, Config{})
	m := load(t, h, wasmFile(t, "hostile.wasm"))
	a := load(t, h, wasmFile(t, "addheader.wasm"))
	cfg := PluginConfig{Policy: FailReload, Backoff: 1, VM: VMConfig{Module: m, Workers: 3}}
	hostile, err := h.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	adder, err := h.Open(ctx, PluginConfig{VM: VMConfig{Module: a, Workers: 3}})
	if err != nil {
		t.Fatal(err)
	}
	var ran atomic.Int32
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				harm := 8
				if i%50 == g {
					harm = 0 // trap
				}
				s := hostile.NewHTTP(noHost{})
				if s.OnRequestHeaders(NewFields(make([]abi.Pair, harm)...), true) == Continue {
					ran.Add(1)
				}
				s.Close()
				s = adder.NewHTTP(noHost{})
				f := NewFields()
				s.OnRequestHeaders(f, true)
				if got := pairsOf(f); got != "x-added=yes" {
					t.Errorf("headers = %s", got)
				}
				s.Close()
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 20 {
				p, err := h.Open(ctx, cfg)
				if err != nil {
					t.Error(err)
					return
				}
				if err := p.Close(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if ran.Load() < 800 {
		t.Errorf("%d of 1600 streams ran", ran.Load())
	}
}

func FuzzModule(f *testing.F) {
	for _, name := range []string{"addheader", "scripted", "scripted010", "hostile", "command", "reactor", "restricted", "exits"} {
		f.Add(wasmFile(f, name+".wasm"))
	}
	ctx := context.Background()
	f.Fuzz(func(t *testing.T, wasm []byte) {
		h, err := NewHost(ctx, Config{Memory: 4 << 20, Deadline: 5 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close(ctx)
		m, err := h.Load(ctx, wasm)
		if err != nil {
			return
		}
		p, err := h.Open(ctx, PluginConfig{Policy: FailReload, VM: VMConfig{Module: m, Workers: 1}})
		if err != nil {
			return
		}
		for range 2 {
			s := p.NewHTTP(&fakeHTTP{})
			s.OnRequestHeaders(request(), false)
			s.OnRequestBody(bytes.Repeat([]byte("x"), 100), true)
			s.OnRequestTrailers(trailers())
			s.Resume(abi.Request)
			s.OnResponseHeaders(request(), false)
			s.OnResponseBody([]byte("y"), true)
			s.OnLog(request(), nil, nil)
			s.Close()
			c := p.NewTCP(&fakeTCP{})
			c.OnNewConnection()
			c.OnDownstreamData([]byte("z"), true)
			c.OnUpstreamData([]byte("z"), true)
			c.OnDownstreamClose(abi.PeerLocal)
		}
		for _, in := range p.Instances() {
			in.Tick(p)
		}
	})
}
