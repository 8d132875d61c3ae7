// Package proxywasm hosts Proxy-Wasm modules on wazero: ABI 0.1.0, 0.2.0 and 0.2.1, as
// the specification has them and as Envoy 1.40 behaves where the two differ (each
// function says so).
//
// It opens no socket and proxies nothing. What a guest asks of the world (header maps,
// properties, calls, metrics, the log) comes from whoever embeds it, through small
// interfaces. It refuses, at [Host.Load], what it could not run: an unknown ABI
// version, a function it does not have, an export of the wrong shape.
//
// An [Instance] is a running guest. Never are two goroutines inside the same one; a
// guest that traps, exits, or runs past its deadline takes its own instance with it
// and nothing else, and [Decide] says what its streams see from then on. No module,
// however broken, can crash or wedge the process.
//
// The way in: [NewHost], [Host.Load], [Host.Open], then [Plugin.NewHTTP] or
// [Plugin.NewTCP] for every stream. One file has one group of ABI functions.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1
package proxywasm

import (
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// Headers is a header map as a guest sees it: ordered, with pseudo-headers, names in
// lower case. The embedder implements it over what it has, or uses [Fields].
//
// Names given to Get and Remove are valid only during the call. It is used by one
// goroutine at a time, while a call into the guest runs.
type Headers interface {
	// Len is the number of fields.
	Len() int
	// Get returns the first value of the field.
	Get(name string) (value string, ok bool)
	// Add adds a field after all others.
	Add(name, value string)
	// Set removes all fields of that name, then adds one.
	Set(name, value string)
	// Remove removes all fields of that name.
	Remove(name string)
	// Each calls yield for each field in order until it returns false. The map does
	// not change meanwhile.
	Each(yield func(name, value string) bool)
}

// Properties answers what a guest asks with proxy_get_property.
type Properties interface {
	// AppendProperty appends the value of the property at path, encoded as package abi
	// says, to dst. The path's segments are joined by zero bytes, see [abi.CutPath];
	// it is valid only during the call. A status other than OK reaches the guest;
	// NotFound is the usual one.
	AppendProperty(dst []byte, path string) ([]byte, abi.Status)
	// SetProperty is proxy_set_property: it creates or changes a property that later
	// lookups of the same stream, by any plugin, find at path. See [Stateful].
	SetProperty(path, value string) abi.Status
}

// An HTTPHost is what an HTTP stream does for the plugins in it. Continue,
// SendLocalResponse and Close are called after the call into the guest that asked for
// them, in its order, by whichever goroutine made that call, possibly while another is
// in a method of [HTTP]; they must not block. The others are called during it, and
// must not call the stream back.
type HTTPHost interface {
	Properties
	// Continue says that the direction goes on: [HTTP.Resume] has what was held back.
	// It is called only for a direction that is paused.
	Continue(abi.Stream)
	// SendLocalResponse answers the request, unless response headers are sent already.
	// As in Envoy, the answer passes through OnResponseHeaders and so on.
	SendLocalResponse(LocalResponse)
	// Close resets the stream.
	Close(abi.Stream)
	// ClearRouteCache has the route chosen anew. It is called whenever request headers
	// change, and when the guest asks for it.
	ClearRouteCache()
	// AddTrailers adds trailers to a message that has none: it is called when the
	// guest sets one at the end of the body. It may return nil to refuse.
	AddTrailers(abi.Stream) Headers
}

// A Tracer is an [HTTPHost] or [TCPHost] that takes the trace of its own stream: what
// [Services] would otherwise give to Trace. It is called by one goroutine at a time for
// one instance, and must not call the stream back.
type Tracer interface {
	Trace(line string)
}

// A LocalResponse is an answer that a plugin gives instead of the upstream.
type LocalResponse struct {
	Status     uint32 // the HTTP status code, unchecked
	Details    string // for the access log, spaces made underscores
	Body       string
	Headers    []abi.Pair // names in lower case
	GRPCStatus int32      // 0 to 16, or -1 for none
	Failure    bool       // not the guest's will: it failed, and its policy is to fail closed
}

// A TCPHost is what a connection does for the plugins in it. Continue and Close are
// called as those of [HTTPHost] are.
type TCPHost interface {
	Properties
	// Continue says that downstream data goes on: [TCP.Resume] has what was held back.
	Continue(abi.Stream)
	// Close closes the connection, after flushing what was written.
	Close(abi.Stream)
}

// A Logger takes what guests log. It is used by many goroutines.
type Logger interface {
	Log(Record)
	// Level is the lowest level that is not discarded.
	Level() abi.LogLevel
}

// A Record is one entry of a guest's log.
type Record struct {
	Level   abi.LogLevel
	Plugin  string // name of the plugin; empty for what a root context or the VM logs, as in Envoy
	RootID  string
	VMID    string
	Message string
}

// Prefix is what Envoy writes between "wasm log" and the colon before the message: the
// parts that are not empty, each after a space.
func (r Record) Prefix() string {
	var s string
	for _, part := range []string{r.Plugin, r.RootID, r.VMID} {
		if part != "" {
			s += " " + part
		}
	}
	return s
}

// Metrics creates or finds metrics. Two that define the same name and type share one
// metric, also across plugins. It is used by many goroutines.
type Metrics interface {
	Metric(t abi.Metric, name string) Metric
}

// A Metric is a counter, a gauge or a histogram. It is used by many goroutines.
type Metric interface {
	// Add changes a counter or gauge by delta; a counter's is positive.
	Add(delta int64)
	// Record sets a gauge, or records one value of a histogram.
	Record(value uint64)
	// Value is that of a counter or gauge.
	Value() uint64
}

// A Timer can be stopped; see [time.Timer].
type Timer interface{ Stop() bool }

// A ForeignFunc is a function that guests call by name. What it returns reaches the
// guest when the status is OK. The arguments are valid only during the call.
type ForeignFunc func(c *Context, arguments []byte) (results []byte, status abi.Status)

// Services is what a VM needs of the world. The zero value is complete: nothing is
// logged, metrics are kept in memory, calls are refused.
type Services struct {
	Log     Logger
	Metrics Metrics
	Calls   Caller
	Shared  *Shared
	Foreign map[string]ForeignFunc
	// Messages appends what is at path in an encoded message, for properties that were
	// declared to be one; nil knows no message, and nothing is there. See package expr.
	Messages func(dst []byte, typeURL, message, path string) ([]byte, abi.Status)

	// Reloads returns what counts the reloads of a plugin, when it is opened.
	Reloads func(plugin string) Reloads

	// Now is the clock; default time.Now.
	Now func() time.Time
	// AfterFunc runs ticks; default time.AfterFunc.
	AfterFunc func(time.Duration, func()) Timer
	// Go runs what is due to an instance while no one is in it: answers to its calls
	// and queue items. Default: a goroutine, which closing the instance waits for.
	Go func(func())
	// Trace, if set, is called with one line for each call to and from a guest, by one
	// goroutine at a time for one instance, unless the stream's host is a [Tracer]. It
	// costs much.
	Trace func(line string)
}

// Reloads counts what becomes of streams that find their plugin's guest failed, where
// the policy is FailReload.
type Reloads struct {
	Backoff Counter // denied: it is not time yet
	Failure Counter // the new guest failed, too
	Success Counter
}

// A Counter counts. It is used by many goroutines.
type Counter interface{ Inc() }

type uncounted struct{}

func (uncounted) Inc() {}

func (s Services) withDefaults() Services {
	if s.Log == nil {
		s.Log = discard{}
	}
	if s.Metrics == nil {
		s.Metrics = NewStats()
	}
	if s.Calls == nil {
		s.Calls = noCalls{}
	}
	if s.Shared == nil {
		s.Shared = NewShared()
	}
	if s.Reloads == nil {
		s.Reloads = func(string) Reloads { return Reloads{uncounted{}, uncounted{}, uncounted{}} }
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.AfterFunc == nil {
		s.AfterFunc = func(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
	}
	if s.Go == nil {
		s.Go = func(f func()) { go f() } // Instance.close waits
	}
	return s
}

type discard struct{}

func (discard) Log(Record)          {}
func (discard) Level() abi.LogLevel { return abi.Critical }
