package preflight

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/module"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// TestServe is the process of Command when the tests start themselves as such.
func TestServe(t *testing.T) {
	switch flag.Arg(0) {
	case "serve":
		if counter := flag.Arg(1); counter != "" {
			appendTo(counter)
		}
		if err := Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "die":
		fmt.Fprintln(os.Stderr, "runtime: out of memory\nand more")
		os.Exit(2)
	case "hang":
		_, _ = io.Copy(io.Discard, os.Stdin) // which stays open
	}
}

func appendTo(path string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		panic(err)
	}
}

// itself is a Command.
func itself(args ...string) []string {
	return append([]string{os.Args[0], "-test.run=^TestServe$", "--"}, args...)
}

func newPreflight(t *testing.T, cfg Config) (*Preflight, *bytes.Buffer) {
	t.Helper()
	log := new(bytes.Buffer)
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p, log
}

const plugins = "../../plugins/testdata/"

// basicAuth builds our own plugin.
func basicAuth(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "basic-auth.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "../../plugins/basicauth")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=", "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build basicauth: %v\n%s", err, output)
	}
	return out
}

func TestTry(t *testing.T) {
	built := basicAuth(t)
	notWasm := filepath.Join(t.TempDir(), "page.wasm")
	if err := os.WriteFile(notWasm, []byte("<html>404</html>"), 0o600); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	const good = `{"basic_auth_rules":[{"prefix":"/","request_methods":["GET"],"credentials":["ok:test"]}]}`
	for _, tt := range []struct {
		name     string
		trial    Trial
		want     string // of the error; empty if it passes
		log      string // what is logged
		deadline time.Duration
	}{
		{name: "noop", trial: Trial{Path: plugins + "noop.wasm"}},
		{name: "addheader", trial: Trial{Path: plugins + "addheader.wasm", Configuration: []byte(`{"value":"x"}`)}},
		{name: "a trap that only serving shows", trial: Trial{Path: plugins + "trap-on-request.wasm"}},
		{name: "refuses its configuration", trial: Trial{Path: plugins + "refuse-config.wasm"},
			want: "refused its configuration: configuration refused: this module refuses all"},
		{name: "refuses its VM configuration", trial: Trial{Path: "testdata/refuse-vm.wasm"}, want: "refused its VM configuration"},
		{name: "missing import", trial: Trial{Path: plugins + "missing-import.wasm"},
			want: "missing import env.proxy_no_such_function: no such function in Proxy-Wasm ABI 0.2.1"},
		{name: "no ABI version", trial: Trial{Path: "testdata/no-abi.wasm"},
			want: "no Proxy-Wasm ABI version exported that proxies know (0.1.0, 0.2.0, 0.2.1)"},
		{name: "a callback of the wrong shape", trial: Trial{Path: "testdata/wrong-shape.wasm"},
			want: "export proxy_on_configure: it must be (i32,i32)->(i32), the module has (i32)->(i32)"},
		{name: "not Wasm", trial: Trial{Path: notWasm}, want: "not a Wasm module: it is an HTML page"},
		{name: "traps at its start", trial: Trial{Path: "testdata/trap-at-start.wasm"}, want: "trapped in _initialize: unreachable"},
		{name: "loops", trial: Trial{Path: "testdata/loop.wasm"}, deadline: 30 * time.Millisecond,
			want: "did not finish within 30ms, in proxy_on_configure"},
		{name: "loops at its start", trial: Trial{Path: "testdata/loop-at-start.wasm"}, deadline: 30 * time.Millisecond,
			want: "did not finish within 30ms, in its start function"},
		{name: "allocates", trial: Trial{Path: "testdata/allocate.wasm"}, want: "trapped in proxy_on_configure: unreachable"},
		{name: "does what plugins do", trial: Trial{Path: "testdata/busy.wasm", Name: "busy"}},
		{name: "as a network filter", trial: Trial{Path: "testdata/busy.wasm", Name: "busy", Network: true},
			log: `msg="module is odd".*how="it has no callback for connections"`},
		{name: "wants what only a proxy has", trial: Trial{Path: "testdata/wants-property.wasm"},
			log: `msg="module passes preflight without a verdict".*why="it asked for a property that only a proxy has: path=\\"xds.node.id\\""`},
		{name: "uses expressions", trial: Trial{Path: "testdata/expression.wasm"}},
		{name: "imports its memory", trial: Trial{Path: "testdata/imports-memory.wasm"},
			log: `why="it imports its memory, which only a proxy can give"`},
		{name: "basic-auth", trial: Trial{Path: built, Configuration: []byte(good)}},
		{name: "basic-auth refuses", trial: Trial{Path: built, Configuration: []byte(`{"realm":7}`)},
			want: "refused its configuration: basicauth: refuse configuration: realm: want a string, have a number"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Config{Memory: 64 << 20, Deadline: tt.deadline, CacheDir: cache}
			t.Run("here", func(t *testing.T) { tryOne(t, cfg, tt.trial, tt.want, tt.log) })
			cfg.Command, cfg.Small = itself("serve"), -1
			t.Run("apart", func(t *testing.T) { tryOne(t, cfg, tt.trial, tt.want, tt.log) })
			cfg.Small = 0
			t.Run("here first", func(t *testing.T) { tryOne(t, cfg, tt.trial, tt.want, tt.log) })
		})
	}
}

func tryOne(t *testing.T, cfg Config, trial Trial, want, wantLog string) {
	t.Helper()
	p, log := newPreflight(t, cfg)
	err := p.Try(context.Background(), trial)
	switch {
	case want == "":
		if err != nil {
			t.Errorf("Try = %v, want nil", err)
		}
	case err == nil || err.Error() != want || !errors.As(err, new(*Refusal)):
		t.Errorf("Try = %v (%T), want a refusal: %s", err, err, want)
	}
	matches(t, log.String(), wantLog)
}

// matches compares a log with a pattern; an empty one is for an empty log.
func matches(t *testing.T, log, pattern string) {
	t.Helper()
	if pattern == "" && strings.Contains(log, "without a verdict") || !regexp.MustCompile(pattern).MatchString(log) {
		t.Errorf("log is %q, want %s", log, pattern)
	}
}

// digest is one that no other module has.
func digest(b byte) module.Digest { return module.Digest{31: b} }

func copyOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), filepath.Base(path))
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestTryRemembers(t *testing.T) {
	p, _ := newPreflight(t, Config{Remember: 2})
	ctx := context.Background()
	noop, refuse := copyOf(t, plugins+"noop.wasm"), copyOf(t, plugins+"refuse-config.wasm")
	try := func(path string, b byte, config string) error {
		return p.Try(ctx, Trial{Path: path, Digest: digest(b), Configuration: []byte(config)})
	}
	if err := try(noop, 1, ""); err != nil {
		t.Fatal(err)
	}
	if err := try(refuse, 2, ""); err == nil {
		t.Fatal("Try = nil, want a refusal")
	}
	if err := errors.Join(os.Remove(noop), os.Remove(refuse)); err != nil {
		t.Fatal(err)
	}
	if err := try("elsewhere", 1, ""); err != nil {
		t.Errorf("Try of a module that passed = %v, want nil", err)
	}
	if err := try(refuse, 2, ""); !errors.As(err, new(*Refusal)) {
		t.Errorf("Try of a module that was refused = %v, want the refusal", err)
	}
	if err := try(noop, 1, "another"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Try with another configuration = %v, want it tried anew", err)
	}
	if err := try(plugins+"noop.wasm", 3, ""); err != nil {
		t.Fatal(err)
	}
	if err := try(noop, 1, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Try of the oldest = %v, want it forgotten", err)
	}
	if err := try(refuse, 2, ""); !errors.As(err, new(*Refusal)) {
		t.Errorf("Try of the second oldest = %v, want it remembered", err)
	}
}

func TestTryTellsTrialsApart(t *testing.T) {
	all := []Trial{
		{}, {Path: "a"}, {Digest: digest(1)}, {Name: "a"}, {RootID: "a"}, {Configuration: []byte("a")},
		{VMConfiguration: []byte("a")}, {VMID: "a"}, {Env: map[string]string{"a": "b"}}, {Env: map[string]string{"a": "\xff"}}, {Network: true},
	}
	keys := map[string]int{}
	for i, trial := range all {
		if j, ok := keys[trial.key()]; ok {
			t.Errorf("%+v and %+v have one key", trial, all[j])
		}
		keys[trial.key()] = i
	}
	a, b := Trial{Digest: digest(1), Path: "a"}, Trial{Digest: digest(1), Path: "b"}
	if a.key() != b.key() {
		t.Error("the same module at another path has another key")
	}
}

// Many that want the same trial cause one process.
func TestTryOnce(t *testing.T) {
	counter := filepath.Join(t.TempDir(), "started")
	p, _ := newPreflight(t, Config{Command: itself("serve", counter), Small: -1})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := p.Try(context.Background(), Trial{Path: plugins + "noop.wasm", Digest: digest(1)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got, err := os.ReadFile(counter); string(got) != "x" {
		t.Errorf("processes started: %q, %v, want one", got, err)
	}
}

// A module that passes here needs no process.
func TestTrySmall(t *testing.T) {
	counter := filepath.Join(t.TempDir(), "started")
	p, _ := newPreflight(t, Config{Command: itself("serve", counter)})
	if err := p.Try(context.Background(), Trial{Path: plugins + "noop.wasm"}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(counter); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process was started: %v", err)
	}
}

// Where nothing can be said a module passes.
func TestTryInDoubt(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command []string
		log     string
	}{
		{"no such command", []string{"./no-such-command"}, `why="no process to try it in: .*no-such-command`},
		{"the process dies", itself("die"), `why="the process that tried it ended: exit status 2, .*: runtime: out of memory"`},
		{"the process says nothing", itself(), `why="the process that tried it ended: .*`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, log := newPreflight(t, Config{Command: tt.command, Small: -1})
			if err := p.Try(context.Background(), Trial{Path: plugins + "refuse-config.wasm"}); err != nil {
				t.Errorf("Try = %v, want nil", err)
			}
			matches(t, log.String(), tt.log)
		})
	}
	t.Run("it takes for ever", func(t *testing.T) {
		p, log := newPreflight(t, Config{Command: itself("hang"), Small: -1, Patience: 300 * time.Millisecond})
		if err := p.Try(context.Background(), Trial{Path: plugins + "refuse-config.wasm"}); err != nil {
			t.Errorf("Try = %v, want nil", err)
		}
		matches(t, log.String(), `why="no verdict after 300ms"`)
	})
}

func TestTryGivesUp(t *testing.T) {
	p, _ := newPreflight(t, Config{Command: itself("hang"), Small: -1, Patience: time.Second})
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("superseded")
	cancel(why)
	if err := p.Try(ctx, Trial{Path: plugins + "noop.wasm"}); err != why {
		t.Errorf("Try = %v, want %v", err, why)
	}
}

// A broken cache is no reason to refuse, nor to let pass.
func TestTryBrokenCache(t *testing.T) {
	dir := t.TempDir()
	p, log := newPreflight(t, Config{CacheDir: dir})
	good, bad := Trial{Path: plugins + "noop.wasm"}, Trial{Path: plugins + "refuse-config.wasm"}
	for range 2 {
		if err := p.Try(context.Background(), good); err != nil {
			t.Errorf("Try = %v, want nil", err)
		}
		if err := p.Try(context.Background(), bad); err == nil {
			t.Error("Try = nil, want a refusal")
		}
		n := 0
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				n++
				err = os.WriteFile(path, []byte("garbage"), 0o600)
			}
			return err
		})
		if n != 2 || err != nil {
			t.Fatalf("cache has %d files, %v, want 2", n, err)
		}
	}
	matches(t, log.String(), "")
}

// Nor is one whose place is taken by a file, as if nothing could be written.
func TestTryWithoutCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	p, _ := newPreflight(t, Config{CacheDir: dir})
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := p.Try(context.Background(), Trial{Path: plugins + "noop.wasm"}); err != nil {
		t.Errorf("Try = %v, want nil", err)
	}
	err := p.Try(context.Background(), Trial{Path: plugins + "refuse-config.wasm"})
	if want := "refused its configuration"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Try = %v, want %q", err, want)
	}
}

func TestServeRefusesGarbage(t *testing.T) {
	err := Serve(context.Background(), strings.NewReader("garbage"), new(bytes.Buffer))
	if err == nil || !strings.HasPrefix(err.Error(), "read trial: ") {
		t.Errorf("Serve = %v, want an error", err)
	}
}

// A process whose asker is gone ends, whatever its module does.
func TestServeAlone(t *testing.T) {
	var in bytes.Buffer
	r := request{Trial: Trial{Path: "testdata/loop.wasm"}, Bounds: bounds{Memory: 1 << 20, Deadline: time.Hour}}
	if err := gob.NewEncoder(&in).Encode(r); err != nil {
		t.Fatal(err)
	}
	args := itself("serve")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = &in
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no one waits for it") {
		t.Errorf("Serve: %v: %s", err, out)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"old", "older", "new"} {
		path := filepath.Join(dir, name)
		when := time.Unix([]int64{2000, 1000, 3000}[i], 0)
		if err := errors.Join(os.WriteFile(path, make([]byte, 10), 0o600), os.Chtimes(path, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		limit int64
		want  string
	}{{30, "new old older"}, {29, "new old"}, {10, "new"}, {0, ""}} {
		if err := prune(dir, tt.limit); err != nil {
			t.Fatal(err)
		}
		var names []string
		files, err := os.ReadDir(dir)
		for _, f := range files {
			names = append(names, f.Name())
		}
		if got := strings.Join(names, " "); got != tt.want || err != nil {
			t.Errorf("after prune to %d bytes: %q, %v, want %q", tt.limit, got, err, tt.want)
		}
	}
	if err := prune(filepath.Join(dir, "none"), 0); err != nil {
		t.Errorf("prune of no folder = %v", err)
	}
}

func TestSpareMemory(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want uint64) {
		t.Helper()
		if got := spareMemory(root); got != want {
			t.Errorf("spareMemory = %d, want %d", got, want)
		}
	}
	expect(1<<64 - 1)
	write("proc/meminfo", "MemTotal:  100 kB\nMemAvailable:       50 kB\n")
	expect(50 << 10)
	write("proc/self/cgroup", "1:name=systemd:/x\n0::/pod/main\n")
	expect(50 << 10)
	write("sys/fs/cgroup/pod/main/memory.max", "max\n")
	write("sys/fs/cgroup/pod/main/memory.current", "9\n")
	expect(50 << 10)
	write("sys/fs/cgroup/pod/memory.max", "10000\n")
	write("sys/fs/cgroup/pod/memory.current", "9000\n")
	expect(1000)
	write("sys/fs/cgroup/pod/memory.stat", "anon 1\nfile 4000\nfile_mapped 1\n")
	expect(5000)
}

func TestLast(t *testing.T) {
	long := strings.Repeat("x", showBytes+1)
	for _, tt := range []struct{ name, log, want string }{
		{"nothing", "", ""},
		{"the last few", "1 2 3 4 5 6 7", "3|4|5|6|7"},
		{"rather errors", "1 2 E3 4 E5 6", "E3|E5"},
		{"a panic of Go", "1 Epanic:_no E E[stack] Emore", "Epanic: no|E[stack]"},
		{"long", long, long[:showBytes] + "…"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := new(watch)
			for _, word := range strings.Fields(tt.log) {
				r := proxywasm.Record{Level: abi.Info, Message: strings.ReplaceAll(word, "_", " ") + "\n"}
				if strings.HasPrefix(word, "E") {
					r.Level, r.Message = abi.Error, r.Message[1:]
				}
				w.Log(r)
			}
			want := strings.ReplaceAll(tt.want, "E", "")
			if got := strings.Join(w.last(), "|"); got != want {
				t.Errorf("last = %q, want %q", got, want)
			}
		})
	}
}

// FuzzTrace looks for calls, of which guests choose names and arguments, that upset it.
func FuzzTrace(f *testing.F) {
	f.Add(`==> env.proxy_get_property(path="node\x00id")`, "<== (NOT_FOUND)")
	f.Add("==> ", "<== ")
	f.Fuzz(func(t *testing.T, call, answer string) {
		w := new(watch)
		w.trace(call)
		w.trace(answer)
		if w.why() != "" && answer != "<== (NOT_FOUND)" {
			t.Errorf("doubts %q although %q was answered %q", w.why(), call, answer)
		}
	})
}
