package dev

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// A style is how a line looks on a terminal, as the number of an ANSI sequence.
//
// https://man7.org/linux/man-pages/man4/console_codes.4.html
type style string

const (
	plain   style = ""
	good    style = "32"
	warning style = "33"
	bad     style = "31"
	faint   style = "2"
	strong  style = "1"
)

// A screen prints what happens, a block of lines at a time. It is safe for concurrent
// use. What it cannot write is lost.
type screen struct {
	w     io.Writer
	color bool

	mu      sync.Mutex
	pending []string // trace of a call that is not over, outside of requests
	depth   int
}

// Write passes on what a compiler says.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// say prints a line of this program's own.
func (s *screen) say(as style, format string, args ...any) {
	s.print(s.paint(as, "dev: "+fmt.Sprintf(format, args...)) + "\n")
}

func (s *screen) print(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = io.WriteString(s.w, text)
}

// paint gives every line of the text its style.
func (s *screen) paint(as style, text string) string {
	if !s.color || as == plain {
		return text
	}
	return "\x1b[" + string(as) + "m" + strings.ReplaceAll(text, "\n", "\x1b[m\n\x1b["+string(as)+"m") + "\x1b[m"
}

// access prints a request that is over, and what the plugin did to it.
func (s *screen) access(a hcm.Access) {
	status, as := fmt.Sprint(a.Status), strong
	switch {
	case a.Status == 0:
		status, as = "reset", bad
	case a.Status >= 500:
		as = bad
	}
	line := fmt.Sprintf("%s %s %s %s", printable(a.Method), printable(a.Path), status, a.Took.Round(10*time.Microsecond))
	if a.Details != "" && a.Details != "via_upstream" {
		line += " (" + printable(a.Details) + ")"
	}
	s.print(s.paint(as, line) + "\n" + s.calls(a.Trace))
}

// calls is a trace, indented.
func (s *screen) calls(trace []string) string {
	var b strings.Builder
	for _, line := range tidy(trace) {
		b.WriteString(s.paint(faint, "    "+line) + "\n")
	}
	return b.String()
}

// trace takes calls outside of requests: a plugin that starts, or has a tick. They are
// printed when the outermost one is over.
func (s *screen) trace(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, line)
	switch {
	case strings.HasPrefix(line, "-->"), strings.HasPrefix(line, "==>"):
		s.depth++
	default:
		s.depth--
	}
	if s.depth <= 0 {
		_, _ = io.WriteString(s.w, s.calls(s.pending))
		s.pending, s.depth = nil, 0
	}
}

// logs is where the engine logs to, until ctx ends: what plugins log is printed, and
// what goes wrong.
func (s *screen) logs(ctx context.Context) slog.Handler { return logHandler{s, ctx.Done(), ""} }

type logHandler struct {
	s     *screen
	over  <-chan struct{}
	attrs string
}

// Enabled is [slog.Handler]'s, as are the following.
func (h logHandler) Enabled(context.Context, slog.Level) bool { return true }

// Handle prints a record.
func (h logHandler) Handle(_ context.Context, r slog.Record) error {
	as := plain
	switch {
	case r.Level >= slog.LevelError:
		as = bad
	case r.Level >= slog.LevelWarn:
		as = warning
	}
	if text, ok := strings.CutPrefix(r.Message, "wasm log"); ok {
		_, text, _ = strings.Cut(text, ": ") // without the plugin's name: there is one
		h.s.print(h.s.paint(as, "plugin "+strings.ToLower(r.Level.String())+": "+lines(text)) + "\n")
		return nil
	}
	select {
	case <-h.over: // connections break when everything ends
		return nil
	default:
	}
	if r.Level >= slog.LevelWarn && !refusal(r) {
		line := "engine: " + r.Message + h.attrs
		r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
		h.s.print(h.s.paint(as, line) + "\n")
	}
	return nil
}

// refusal reports whether the record is of an extension that was refused, which the
// session tells of.
func refusal(r slog.Record) bool {
	found := false
	r.Attrs(func(a slog.Attr) bool {
		found = a.Value.String() == xds.ExtensionType
		return !found
	})
	return found
}

// lines are those of a text, safe for a terminal and indented but for the first.
func lines(text string) string {
	all := strings.Split(text, "\n")
	for i := range all {
		all[i] = printable(all[i])
	}
	return strings.Join(all, "\n    ")
}

// WithAttrs adds attributes to all records.
func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		h.attrs += " " + a.String()
	}
	return h
}

// WithGroup does nothing: the engine groups nothing.
func (h logHandler) WithGroup(string) slog.Handler { return h }
