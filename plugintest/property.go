package plugintest

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// encode makes of a property what a plugin reads. A value of another type fails the
// test.
func (p *Plugin) encode(path string, value any) []byte {
	p.t.Helper()
	switch v := value.(type) {
	case string:
		return []byte(v)
	case []byte:
		return v
	case bool:
		return abi.AppendBool(nil, v)
	case int:
		return abi.AppendInt(nil, int64(v))
	case int64:
		return abi.AppendInt(nil, v)
	case uint64:
		return abi.AppendUint(nil, v)
	case float64:
		return abi.AppendDouble(nil, v)
	case time.Time:
		return abi.AppendTime(nil, v)
	case time.Duration:
		return abi.AppendDuration(nil, v)
	case []string:
		return abi.AppendList(nil, v)
	case map[string]string:
		return abi.AppendMap(nil, sortedPairs(v))
	}
	p.t.Fatalf("property %s: a %T is none", path, value)
	return nil
}

func sortedPairs(m map[string]string) []abi.Pair {
	var list []abi.Pair
	for _, key := range slices.Sorted(maps.Keys(m)) {
		list = append(list, abi.Pair{Key: key, Value: m[key]})
	}
	return list
}

// A propertySource is where properties are looked up: the first that has it.
type propertySource map[string]any

// find returns the property at a path with dots, or what it has in a map there.
func (s propertySource) find(path string) (any, bool) {
	if v, ok := s[path]; ok {
		return v, true
	}
	for i := len(path) - 1; i > 0; i-- {
		if path[i] != '.' {
			continue
		}
		if m, ok := s[path[:i]].(map[string]string); ok {
			v, ok := m[path[i+1:]]
			return v, ok
		}
	}
	return nil, false
}

func dotted(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path, "\x00"), "\x00", ".")
}

// rootProperties are those outside of a stream.
type rootProperties struct{ p *Plugin }

func (r rootProperties) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	return r.p.appendProperty(dst, path, r.p.cfg.Properties)
}

func (rootProperties) SetProperty(string, string) abi.Status { return abi.NotFound }

func (p *Plugin) appendProperty(dst []byte, path string, sources ...propertySource) ([]byte, abi.Status) {
	for _, s := range sources {
		if v, ok := s.find(dotted(path)); ok {
			return append(dst, p.encode(path, v)...), abi.OK
		}
	}
	return dst, abi.NotFound
}

// AppendProperty answers the plugin.
func (h streamHost) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	s := h.s
	return s.p.appendProperty(dst, path, s.set, s.sent.Properties, s.properties, s.p.cfg.Properties, s.derived(dotted(path)))
}

// SetProperty keeps what the plugin sets.
func (h streamHost) SetProperty(path, value string) abi.Status {
	h.s.set[dotted(path)] = value
	return abi.OK
}

// derived are the properties that follow from the messages.
func (s *Stream) derived(path string) propertySource {
	all := propertySource{}
	switch of, _, _ := strings.Cut(path, "."); of {
	case "request":
		s.requestProperties(all)
	case "response":
		s.responseProperties(all)
	}
	return all
}

func (s *Stream) requestProperties(all propertySource) {
	h := s.request.headers
	if h == nil {
		return
	}
	for property, name := range map[string]string{
		"request.path": ":path", "request.host": ":authority", "request.scheme": ":scheme", "request.method": ":method",
		"request.id": "x-request-id", "request.referer": "referer", "request.useragent": "user-agent",
	} {
		if value, ok := h.Get(name); ok {
			all[property] = value
		}
	}
	path, _ := h.Get(":path")
	path, query, _ := strings.Cut(path, "?")
	all["request.url_path"], all["request.query"] = path, query
	all["request.protocol"], all["request.size"] = "HTTP/1.1", len(s.request.body)
	all["request.headers"] = fieldMap(h)
}

func (s *Stream) responseProperties(all propertySource) {
	h := s.response.headers
	if h == nil {
		return
	}
	text, _ := h.Get(":status")
	if code, err := strconv.Atoi(text); err == nil {
		all["response.code"] = code
	}
	all["response.headers"], all["response.size"] = fieldMap(h), len(s.response.body)
	if s.response.trailers != nil {
		all["response.trailers"] = fieldMap(s.response.trailers)
	}
	if s.local != nil {
		all["response.code_details"] = s.local.Details
	}
}

// fieldMap joins fields of the same name, as Envoy does.
func fieldMap(f *proxywasm.Fields) map[string]string {
	m := map[string]string{}
	for _, p := range f.Pairs() {
		if before, ok := m[p.Key]; ok {
			p.Value = before + "," + p.Value
		}
		m[p.Key] = p.Value
	}
	return m
}
