package dev

import (
	"slices"
	"strings"
	"unicode"
)

// maxLine is how long a line of a trace is at most, in runes.
const maxLine = 200

// tidy makes a trace, as proxywasm.Services has it, shorter to read: each call is one
// line with its result, indented below the callback that made it. Left out are callbacks
// that every request has and in which nothing was done, and how a language's runtime starts.
func tidy(trace []string) []string {
	var calls []call
	var open []int // calls that have not returned
	for _, line := range trace {
		mark, rest, _ := strings.Cut(line, " ")
		switch mark {
		case "-->", "==>":
			c := call{text: strings.TrimPrefix(rest, "env."), depth: len(open)}
			if c.depth > 0 {
				c.in = calls[open[0]].name()
			}
			calls = append(calls, c)
			open = append(open, len(calls)-1)
		case "<--", "<==":
			if n := len(open); n > 0 {
				calls[open[n-1]].result = result(rest)
				open = open[:n-1]
			}
		default:
			calls = append(calls, call{text: line, depth: len(open)})
		}
	}
	calls = slices.DeleteFunc(calls, call.startsRuntime)
	var lines []string
	for i, c := range calls {
		if made := i+1 < len(calls) && calls[i+1].depth > c.depth; made || !c.idle() {
			lines = append(lines, strings.Repeat("  ", c.depth)+short(printable(c.text+c.result)))
		}
	}
	return lines
}

// A call is one between plugin and host.
type call struct {
	text, result string
	in           string // the outermost call's name
	depth        int
}

func (c call) name() string {
	name, _, _ := strings.Cut(c.text, "(")
	return name
}

// startsRuntime reports whether the call is of WASI, in a function that starts a module.
func (c call) startsRuntime() bool {
	return strings.HasPrefix(c.text, "wasi_") && (c.in == "_initialize" || c.in == "_start")
}

// idle reports whether the call says nothing if nothing is done in it.
func (c call) idle() bool {
	switch c.name() {
	case "_initialize", "_start", "proxy_on_context_create", "proxy_on_done", "proxy_on_log", "proxy_on_delete":
		return !strings.HasPrefix(c.result, " failed")
	}
	return false
}

// result is what a call returned: " = OK" for (OK), nothing for ().
func result(text string) string {
	inner, ok := strings.CutPrefix(text, "(")
	if !ok {
		return " " + text // it failed
	}
	if inner = strings.TrimSuffix(inner, ")"); inner == "" {
		return ""
	}
	return " = " + inner
}

// short cuts a line that is too long.
func short(line string) string {
	if runes := []rune(line); len(runes) > maxLine {
		return string(runes[:maxLine-1]) + "…"
	}
	return line
}

// printable makes what others wrote safe for a terminal, on one line.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '·'
	}, text)
}
