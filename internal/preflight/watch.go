package preflight

import (
	"strings"
	"sync"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A watch looks on while a module is tried: what it logs, where it is, and whether it
// asks for something that only a proxy has. It is safe for concurrent use.
type watch struct {
	mu       sync.Mutex
	begun    time.Duration // processor time when it was compiled; 0 before
	callback string        // where it is
	called   string        // the host function it is in
	doubt    string
	lines    []line // logged; the last few
}

type line struct {
	level abi.LogLevel
	text  string
}

// Limits on what a module logs, in a refusal.
const (
	keepLines = 64
	showLines = 5
	showBytes = 300 // of a line
)

// begin says that the module is compiled.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun = max(processorTime(), 1)
}

// took is how much processor time the process spent since begin.
func (w *watch) took() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun == 0 {
		return 0
	}
	return processorTime() - w.begun
}

// Log keeps what the module logs.
func (w *watch) Log(r proxywasm.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.HasPrefix(r.Message, "Wasm VM failed ") { // the host's, not the module's
		return
	}
	for text := range strings.Lines(r.Message) {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		if len(w.lines) == keepLines {
			w.lines = append(w.lines[:0], w.lines[1:]...)
		}
		w.lines = append(w.lines, line{r.Level, clip(text)})
	}
}

// Level is Envoy's default for plugins.
func (w *watch) Level() abi.LogLevel { return abi.Info }

func clip(text string) string {
	if len(text) > showBytes {
		return strings.ToValidUTF8(text[:showBytes], "") + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// last is what explains a failure best: the head of a panic, or the last warnings and
// errors, or the last lines of any kind.
func (w *watch) last() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all, bad []string
	for i, l := range w.lines {
		if isPanic(l.text) {
			return texts(w.lines[i:min(i+2, len(w.lines))])
		}
		all = append(all, l.text)
		if l.level >= abi.Warn {
			bad = append(bad, l.text)
		}
	}
	if len(bad) > 0 {
		all = bad
	}
	return all[max(0, len(all)-showLines):]
}

// isPanic says that a line begins what the runtimes of Go and Rust print.
func isPanic(text string) bool {
	return strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ") ||
		strings.HasPrefix(text, "thread '") || strings.HasPrefix(text, "panicked at ")
}

func texts(lines []line) []string {
	var list []string
	for _, l := range lines {
		list = append(list, l.text)
	}
	return list
}

// trace follows the calls to and from the module.
func (w *watch) trace(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case strings.HasPrefix(text, "--> "):
		w.callback, _, _ = strings.Cut(text[4:], "(")
	case strings.HasPrefix(text, "==> "):
		w.called = text[4:]
	case strings.HasPrefix(text, "<== ") && w.doubt == "":
		w.doubt = doubt(w.called, text[4:])
	}
}

// doubt says why the plugin could fare better in a proxy, having been answered so.
func doubt(call, answer string) string {
	if answer != "(NOT_FOUND)" {
		return ""
	}
	name, arguments, _ := strings.Cut(call, "(")
	arguments, _, _ = strings.Cut(strings.TrimSuffix(arguments, ")"), ",arguments=")
	switch name {
	case "env.proxy_get_property":
		return "it asked for a property that only a proxy has: " + strings.ReplaceAll(arguments, `\x00`, ".")
	case "env.proxy_call_foreign_function":
		return "it called a function that only a proxy may have: " + arguments
	case "env.proxy_resolve_shared_queue":
		return "it asked for a queue that another plugin may have: " + arguments
	}
	return ""
}

func (w *watch) why() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.doubt
}

// where is the callback that the module is in.
func (w *watch) where() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.callback == "" {
		return "its start function"
	}
	return w.callback
}
