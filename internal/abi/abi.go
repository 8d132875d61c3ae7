// Package abi has the numbers and encodings of Proxy-Wasm: the three published ABI
// versions, their enumerations, and how maps, lists and property values are laid out
// in guest memory.
//
// It is pure: it calls no guest and knows no host. What decodes bytes that a guest
// wrote is bounded and never panics; a malformed map is no map at all, as in Envoy.
// Numbers follow the specification (github.com/proxy-wasm/spec, abi-versions);
// property encodings follow Envoy 1.40, which the specification leaves to the host.
// Start at [Version], [Status] and [AppendPairs].
package abi

import "fmt"

// A Version is a Proxy-Wasm ABI version. A module says which one it speaks by
// exporting a function whose name carries it.
type Version uint8

const (
	V010 Version = iota + 1 // 0.1.0
	V020                    // 0.2.0
	V021                    // 0.2.1
)

const versionPrefix = "proxy_abi_version_"

// VersionOf returns the version that an export of that name declares, and whether it
// declares a known one.
func VersionOf(export string) (Version, bool) {
	switch export {
	case versionPrefix + "0_1_0":
		return V010, true
	case versionPrefix + "0_2_0":
		return V020, true
	case versionPrefix + "0_2_1":
		return V021, true
	}
	return 0, false
}

// String is the version as it is written, such as 0.2.1.
func (v Version) String() string {
	switch v {
	case V010:
		return "0.1.0"
	case V020:
		return "0.2.0"
	case V021:
		return "0.2.1"
	}
	return fmt.Sprintf("Version(%d)", uint8(v))
}

// A Status is what every host function returns to the guest (proxy_status_t). The
// numbers that are missing were used by drafts and are never returned.
type Status uint32

const (
	OK                   Status = 0
	NotFound             Status = 1
	BadArgument          Status = 2
	SerializationFailure Status = 3
	ParseFailure         Status = 4
	InvalidMemoryAccess  Status = 6
	Empty                Status = 7
	CASMismatch          Status = 8
	InternalFailure      Status = 10
	BrokenConnection     Status = 11 // Envoy only: the status of an HTTP call that failed
	Unimplemented        Status = 12
)

// String is the status as the specification writes it, such as NOT_FOUND.
func (s Status) String() string {
	switch s {
	case OK:
		return "OK"
	case NotFound:
		return "NOT_FOUND"
	case BadArgument:
		return "BAD_ARGUMENT"
	case SerializationFailure:
		return "SERIALIZATION_FAILURE"
	case ParseFailure:
		return "PARSE_FAILURE"
	case InvalidMemoryAccess:
		return "INVALID_MEMORY_ACCESS"
	case Empty:
		return "EMPTY"
	case CASMismatch:
		return "CAS_MISMATCH"
	case InternalFailure:
		return "INTERNAL_FAILURE"
	case BrokenConnection:
		return "BROKEN_CONNECTION"
	case Unimplemented:
		return "UNIMPLEMENTED"
	}
	return fmt.Sprintf("Status(%d)", uint32(s))
}

// A LogLevel is proxy_log_level_t.
type LogLevel uint32

const (
	Trace LogLevel = iota
	Debug
	Info
	Warn
	Error
	Critical
)

// String is the level as Envoy's log shows it, such as warning.
func (l LogLevel) String() string {
	switch l {
	case Trace:
		return "trace"
	case Debug:
		return "debug"
	case Info:
		return "info"
	case Warn:
		return "warning"
	case Error:
		return "error"
	case Critical:
		return "critical"
	}
	return fmt.Sprintf("LogLevel(%d)", uint32(l))
}

// Valid reports whether the specification has the level.
func (l LogLevel) Valid() bool { return l <= Critical }

// A Buffer is proxy_buffer_type_t: which bytes a guest means.
type Buffer uint32

const (
	HTTPRequestBody Buffer = iota
	HTTPResponseBody
	DownstreamData
	UpstreamData
	HTTPCallResponseBody
	GRPCCallMessage
	VMConfiguration
	PluginConfiguration
	ForeignFunctionArguments // Envoy's CallData
)

// Valid reports whether the specification has the buffer.
func (b Buffer) Valid() bool { return b <= ForeignFunctionArguments }

// A Map is proxy_map_type_t: which header map a guest means.
type Map uint32

const (
	HTTPRequestHeaders Map = iota
	HTTPRequestTrailers
	HTTPResponseHeaders
	HTTPResponseTrailers
	GRPCCallInitialMetadata
	GRPCCallTrailingMetadata
	HTTPCallResponseHeaders
	HTTPCallResponseTrailers
)

// Valid reports whether the specification has the map.
func (m Map) Valid() bool { return m <= HTTPCallResponseTrailers }

// A Stream is proxy_stream_type_t: which direction of which kind of stream.
type Stream uint32

const (
	Request    Stream = iota // of an HTTP stream, towards the upstream
	Response                 // of an HTTP stream, towards the downstream
	Downstream               // of a TCP stream
	Upstream                 // of a TCP stream
)

// Valid reports whether the specification has the stream.
func (s Stream) Valid() bool { return s <= Upstream }

// String is the stream in words.
func (s Stream) String() string {
	switch s {
	case Request:
		return "request"
	case Response:
		return "response"
	case Downstream:
		return "downstream"
	case Upstream:
		return "upstream"
	}
	return fmt.Sprintf("Stream(%d)", uint32(s))
}

// A Metric is proxy_metric_type_t.
type Metric uint32

const (
	Counter Metric = iota
	Gauge
	Histogram
)

// Valid reports whether the specification has the metric type.
func (m Metric) Valid() bool { return m <= Histogram }

// String is the metric type in words.
func (m Metric) String() string {
	switch m {
	case Counter:
		return "counter"
	case Gauge:
		return "gauge"
	case Histogram:
		return "histogram"
	}
	return fmt.Sprintf("Metric(%d)", uint32(m))
}

// A Peer is proxy_peer_type_t: who closed a connection.
type Peer uint32

const (
	PeerUnknown Peer = iota
	PeerLocal
	PeerRemote
)

// A HeadersStatus is what proxy_on_request_headers and proxy_on_response_headers
// return. The specification has only the first two (proxy_action_t); Envoy has all
// four.
type HeadersStatus uint32

const (
	HeadersContinue            HeadersStatus = 0
	HeadersStop                HeadersStatus = 1 // Envoy: as StopAllAndWatermark, unless allow_on_headers_stop_iteration is set
	HeadersStopAllAndBuffer    HeadersStatus = 2
	HeadersStopAllAndWatermark HeadersStatus = 3
)

// A DataStatus is what proxy_on_request_body and proxy_on_response_body return. The
// specification has only the first two; Envoy has all four.
type DataStatus uint32

const (
	DataContinue         DataStatus = 0
	DataStopAndBuffer    DataStatus = 1 // the next call sees this chunk and those before
	DataStopAndWatermark DataStatus = 2 // held back as well, but the next call sees only its own chunk
	DataStopNoBuffer     DataStatus = 3 // the chunk is gone
)

// An Errno is a WASI preview 1 error number.
type Errno uint32

const (
	ErrnoSuccess Errno = 0
	ErrnoBadF    Errno = 8
	ErrnoFault   Errno = 21
	ErrnoInval   Errno = 28
	ErrnoNoEnt   Errno = 44
	ErrnoNoSys   Errno = 52
	ErrnoNotDir  Errno = 54
	ErrnoNotSup  Errno = 58
)

// GRPCStatusNone is the gRPC status that C++ and Rust plugins give a local response to
// say that it has none.
const GRPCStatusNone = ^uint32(0)
