package config

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// An AccessLog says where a line for each request goes, and what is in it.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/access_log/usage
type AccessLog struct {
	Path string // of a file; /dev/stdout and /dev/stderr are the process's own

	wants func(*Entry) bool // nil for all
	text  []logPart
	json  map[string]any // of []logPart or such maps
	empty string         // what is written in place of a value that there is not
	omit  bool
}

// An Entry is what a line can tell of a request, or of a connection.
type Entry struct {
	Request, Response, Trailers Headers // Response and Trailers may be nil
	Protocol                    string
	Code                        int // 0 if there was no response
	CodeDetails, Flags          string
	Start                       time.Time
	Duration                    time.Duration
	Received, Sent              int64 // bytes of the bodies
	Attempts                    int
	Cluster, Route              string
	Chain                       string
	UpstreamHost, UpstreamLocal string
	UpstreamFailure             string
	Remote, Direct, Local       string // addresses with port
	ServerName                  string
	Connection                  uint64
}

// A logPart is text, or else a value; false is none.
type logPart struct {
	text  string
	value func(*Entry) (any, bool)
	most  int // characters; 0 for no limit
}

const defaultLog = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" ` +
	`"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"` + "\n"

func (d *decoder) accessLogs(path string, list []*accesslogv3.AccessLog) []*AccessLog {
	var out []*AccessLog
	for i, m := range list {
		out = append(out, d.accessLog(at(path, i), m))
	}
	return out
}

func (d *decoder) accessLog(path string, m *accesslogv3.AccessLog) *AccessLog {
	l := &AccessLog{empty: "-"}
	if m.GetFilter() != nil {
		l.wants = d.logFilter(in(path, "filter"), m.GetFilter())
	}
	path = in(path, "typed_config")
	var format *corev3.SubstitutionFormatString
	switch typeOf(m.GetTypedConfig()) {
	case "envoy.extensions.access_loggers.file.v3.FileAccessLog":
		f := new(filelogv3.FileAccessLog)
		d.unpack(path, m.GetTypedConfig(), f)
		l.Path, format = f.GetPath(), f.GetLogFormat()
		//lint:ignore SA1019 istiod writes it still
		if text := f.GetFormat(); text != "" {
			l.text = d.logFormat(in(path, "format"), text)
		}
	case "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog":
		f := new(streamlogv3.StdoutAccessLog)
		d.unpack(path, m.GetTypedConfig(), f)
		l.Path, format = "/dev/stdout", f.GetLogFormat()
	case "envoy.extensions.access_loggers.stream.v3.StderrAccessLog":
		f := new(streamlogv3.StderrAccessLog)
		d.unpack(path, m.GetTypedConfig(), f)
		l.Path, format = "/dev/stderr", f.GetLogFormat()
	default:
		d.fail(path, "access log %s is not supported by the engine", orName(typeOf(m.GetTypedConfig()), m.GetName()))
	}
	d.lineFormat(in(path, "log_format"), format, l)
	return l
}

func (d *decoder) lineFormat(path string, m *corev3.SubstitutionFormatString, l *AccessLog) {
	if l.omit = m.GetOmitEmptyValues(); l.omit {
		l.empty = ""
	}
	switch f := m.GetFormat().(type) {
	case *corev3.SubstitutionFormatString_TextFormatSource:
		data := d.data(in(path, "text_format_source"), f.TextFormatSource)
		if data.File != "" {
			d.fail(in(path, "text_format_source.filename"), "not supported by the engine: give the format inline")
		}
		l.text = d.logFormat(in(path, "text_format_source"), string(data.Bytes))
	case *corev3.SubstitutionFormatString_JsonFormat:
		l.json = d.jsonFormat(in(path, "json_format"), f.JsonFormat)
	case nil:
		if l.text == nil {
			l.text = d.logFormat(path, defaultLog)
		}
	default:
		d.fail(path, "only text_format_source and json_format are supported")
	}
}

func (d *decoder) jsonFormat(path string, m *structpb.Struct) map[string]any {
	out := map[string]any{}
	for name, v := range m.GetFields() {
		p := in(path, name)
		switch k := v.GetKind().(type) {
		case *structpb.Value_StringValue:
			out[name] = d.logFormat(p, k.StringValue)
		case *structpb.Value_StructValue:
			out[name] = d.jsonFormat(p, k.StructValue)
		default:
			d.fail(p, "only strings and objects are supported")
		}
	}
	return out
}

// logFormat reads a line's format: as format, with more commands, each of which may be
// cut, as in %REQ(x):10%.
func (d *decoder) logFormat(path, s string) []logPart {
	parts := []logPart{}
	for s != "" {
		text, rest, found := strings.Cut(s, "%")
		if text != "" {
			parts = append(parts, logPart{text: text})
		}
		if !found {
			break
		}
		if strings.HasPrefix(rest, "%") {
			parts, s = append(parts, logPart{text: "%"}), rest[1:]
			continue
		}
		command, after, closed := cutCommand(rest)
		part, ok := logCommand(command)
		if !closed || !ok {
			d.fail(path, "%%%s%% is not supported by the engine in an access log", command)
			return nil
		}
		parts, s = append(parts, part), after
	}
	return parts
}

func logCommand(command string) (logPart, bool) {
	var p logPart
	if i := strings.LastIndexByte(command, ':'); i >= 0 && i > strings.IndexByte(command, ')') {
		n, err := strconv.ParseUint(command[i+1:], 10, 16)
		if err != nil {
			return p, false
		}
		command, p.most = command[:i], int(n)
	}
	name, argument, _ := strings.Cut(strings.TrimSuffix(command, ")"), "(")
	switch {
	case name == command:
		p.value = logValues()[name]
	case name == "REQ":
		p.value = logHeader(argument, func(e *Entry) Headers { return e.Request })
	case name == "RESP":
		p.value = logHeader(argument, func(e *Entry) Headers { return e.Response })
	case name == "TRAILER":
		p.value = logHeader(argument, func(e *Entry) Headers { return e.Trailers })
	}
	return p, p.value != nil
}

// logHeader is a header, or else another, as in REQ(first?second).
func logHeader(names string, of func(*Entry) Headers) func(*Entry) (any, bool) {
	first, second, _ := strings.Cut(strings.ToLower(names), "?")
	return func(e *Entry) (any, bool) {
		h := of(e)
		if h == nil {
			return nil, false
		}
		v, ok := h.Get(first)
		if !ok && second != "" {
			v, ok = h.Get(second)
		}
		return v, ok
	}
}

// logValues are the commands without arguments.
func logValues() map[string]func(*Entry) (any, bool) {
	text := func(of func(*Entry) string) func(*Entry) (any, bool) {
		return func(e *Entry) (any, bool) { s := of(e); return s, s != "" }
	}
	number := func(of func(*Entry) int64) func(*Entry) (any, bool) {
		return func(e *Entry) (any, bool) { return of(e), true }
	}
	host := func(addr string) string {
		if i := strings.LastIndexByte(addr, ':'); i >= 0 {
			return strings.Trim(addr[:i], "[]")
		}
		return addr
	}
	return map[string]func(*Entry) (any, bool){
		"START_TIME":                                    text(func(e *Entry) string { return e.Start.UTC().Format("2006-01-02T15:04:05.000Z") }),
		"PROTOCOL":                                      text(func(e *Entry) string { return e.Protocol }),
		"RESPONSE_CODE":                                 number(func(e *Entry) int64 { return int64(e.Code) }),
		"RESPONSE_CODE_DETAILS":                         text(func(e *Entry) string { return e.CodeDetails }),
		"RESPONSE_FLAGS":                                text(func(e *Entry) string { return e.Flags }),
		"CONNECTION_TERMINATION_DETAILS":                text(func(*Entry) string { return "" }), // of connections that the proxy ends, which have no requests
		"BYTES_RECEIVED":                                number(func(e *Entry) int64 { return e.Received }),
		"BYTES_SENT":                                    number(func(e *Entry) int64 { return e.Sent }),
		"DURATION":                                      number(func(e *Entry) int64 { return e.Duration.Milliseconds() }),
		"UPSTREAM_REQUEST_ATTEMPT_COUNT":                number(func(e *Entry) int64 { return int64(e.Attempts) }),
		"UPSTREAM_HOST":                                 text(func(e *Entry) string { return e.UpstreamHost }),
		"UPSTREAM_CLUSTER":                              text(func(e *Entry) string { return e.Cluster }),
		"UPSTREAM_CLUSTER_RAW":                          text(func(e *Entry) string { return e.Cluster }),
		"UPSTREAM_LOCAL_ADDRESS":                        text(func(e *Entry) string { return e.UpstreamLocal }),
		"UPSTREAM_TRANSPORT_FAILURE_REASON":             text(func(e *Entry) string { return strings.ReplaceAll(e.UpstreamFailure, " ", "_") }),
		"ROUTE_NAME":                                    text(func(e *Entry) string { return e.Route }),
		"FILTER_CHAIN_NAME":                             text(func(e *Entry) string { return e.Chain }),
		"REQUESTED_SERVER_NAME":                         text(func(e *Entry) string { return e.ServerName }),
		"CONNECTION_ID":                                 number(func(e *Entry) int64 { return int64(e.Connection) }),
		"DOWNSTREAM_REMOTE_ADDRESS":                     text(func(e *Entry) string { return e.Remote }),
		"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        text(func(e *Entry) string { return host(e.Remote) }),
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              text(func(e *Entry) string { return e.Direct }),
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": text(func(e *Entry) string { return host(e.Direct) }),
		"DOWNSTREAM_LOCAL_ADDRESS":                      text(func(e *Entry) string { return e.Local }),
		"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         text(func(e *Entry) string { return host(e.Local) }),
	}
}

// Wants reports whether the log has a line for that request.
func (l *AccessLog) Wants(e *Entry) bool { return l.wants == nil || l.wants(e) }

// Line is the line for a request, with its end.
func (l *AccessLog) Line(e *Entry) []byte {
	if l.json == nil {
		return []byte(l.expand(l.text, e))
	}
	raw, err := json.Marshal(l.object(l.json, e))
	if err != nil {
		return nil // strings and numbers can be encoded
	}
	return append(raw, '\n')
}

func (l *AccessLog) expand(parts []logPart, e *Entry) string {
	var b strings.Builder
	for _, p := range parts {
		if p.value == nil {
			b.WriteString(p.text)
			continue
		}
		text := l.empty
		switch v, ok := p.value(e); v := v.(type) {
		case int64:
			if ok {
				text = strconv.FormatInt(v, 10)
			}
		case string:
			if ok {
				text = v
			}
		}
		if p.most > 0 && len(text) > p.most {
			text = text[:p.most]
		}
		b.WriteString(text)
	}
	return b.String()
}

// object is a JSON object. A value that is one command keeps its type, and is null if
// there is none.
func (l *AccessLog) object(format map[string]any, e *Entry) map[string]any {
	out := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(format)) {
		switch f := format[name].(type) {
		case map[string]any:
			out[name] = l.object(f, e)
		case []logPart:
			if len(f) != 1 || f[0].value == nil || f[0].most > 0 {
				out[name] = l.expand(f, e)
				continue
			}
			v, ok := f[0].value(e)
			switch {
			case ok:
				out[name] = v
			case !l.omit:
				out[name] = nil
			}
		}
	}
	return out
}
