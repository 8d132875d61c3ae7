package config

import (
	"strings"
	"testing"
	"time"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/envoytypes"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// accessLogOf decodes an access log, whose further fields are YAML.
func accessLogOf(t *testing.T, kind, fields string) (*AccessLog, error) {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(`
stat_prefix: x
route_config: {}
access_log:
- name: log
  typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.` + kind + `, ` + fields + `}
http_filters:
- name: router
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}`))
	m := new(hcmv3.HttpConnectionManager)
	if err == nil {
		err = (protojson.UnmarshalOptions{Resolver: envoytypes.Types()}).Unmarshal(raw, m)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := new(decoder)
	if !d.start("", m) {
		return nil, d.err
	}
	h := d.http("", m)
	if d.err != nil {
		return nil, d.err
	}
	return h.AccessLogs[0], nil
}

func TestAccessLogLine(t *testing.T) {
	e := &Entry{
		Request:  proxywasm.NewFields(abi.Pair{Key: ":method", Value: "GET"}, abi.Pair{Key: ":path", Value: "/long"}, abi.Pair{Key: "q", Value: `a "b"`}),
		Protocol: "HTTP/1.1", Code: 503, Flags: "UF", Start: time.Unix(0, 5e6), Duration: 7 * time.Millisecond, Received: 1, Sent: 2, Local: "[::1]:80",
	}
	for format, want := range map[string]string{
		`%REQ(:METHOD)% %REQ(nothing?:path):3%`:                                       "GET /lo",
		`%RESP(x)% %TRAILER(x)% %UPSTREAM_HOST%`:                                      "- - -",
		`[%START_TIME%] %DURATION% %BYTES_RECEIVED%/%BYTES_SENT%`:                     "[1970-01-01T00:00:00.005Z] 7 1/2",
		`100%% %RESPONSE_CODE% %RESPONSE_FLAGS%`:                                      "100% 503 UF",
		`%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %REQ(q)%`: `[::1]:80 ::1 a "b"`,
	} {
		l, err := accessLogOf(t, "stream.v3.StdoutAccessLog", `log_format: {text_format_source: {inline_string: '`+format+`'}}`)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		if got := string(l.Line(e)); got != want {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
	l, err := accessLogOf(t, "file.v3.FileAccessLog", `path: /x, log_format: {json_format: {code: "%RESPONSE_CODE%", none: "%RESP(x)%", in: {q: "%REQ(q)%", cut: "%REQ(q):1%"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(l.Line(e)), `{"code":503,"in":{"cut":"a","q":"a \"b\""},"none":null}`+"\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAccessLogRefused(t *testing.T) {
	for fields, want := range map[string]string{
		`path: /x, log_format: {text_format_source: {inline_string: "%NOTHING%"}}`:        "%NOTHING% is not supported",
		`path: /x, log_format: {text_format_source: {inline_string: "%START_TIME(%s)%"}}`: "is not supported",
		`path: /x, log_format: {text_format_source: {inline_string: "%REQ(x"}}`:           "is not supported",
		`path: /x, log_format: {text_format_source: {inline_string: "%REQ(x):y%"}}`:       "is not supported",
		`path: /x, log_format: {text_format_source: {filename: /y}}`:                      "give the format inline",
		`path: /x, log_format: {json_format: {a: 1}}`:                                     "only strings and objects",
		`path: /x, log_format: {content_type: x, text_format_source: {inline_string: x}}`: "content_type: not supported",
	} {
		if _, err := accessLogOf(t, "file.v3.FileAccessLog", fields); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", fields, err, want)
		}
	}
}

func TestShadowHost(t *testing.T) {
	for in, want := range map[string]string{"a.example": "a.example-shadow", "a.example:80": "a.example-shadow:80", "[::1]": "[::1]-shadow"} {
		if got := ShadowHost(in); got != want {
			t.Errorf("ShadowHost(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestShare(t *testing.T) {
	for _, tt := range []struct {
		share Share
		least int // of 10,000
		most  int
	}{{Share{0, 100}, 0, 0}, {Share{100, 100}, 10_000, 10_000}, {Share{200, 100}, 10_000, 10_000}, {Share{50, 100}, 4500, 5500}} {
		n := 0
		for range 10_000 {
			if tt.share.Falls() {
				n++
			}
		}
		if n < tt.least || n > tt.most {
			t.Errorf("%v: %d of 10000", tt.share, n)
		}
	}
}
