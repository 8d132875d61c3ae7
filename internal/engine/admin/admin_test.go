package admin

import (
	"io"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
)

// A source has what a test gives it, and notes what it is told.
type source struct {
	Source
	registry *stats.Registry
	dump     *adminv3.ConfigDump
	levels   map[string]string
	told     []Drain
}

func (s *source) State() adminv3.ServerInfo_State          { return adminv3.ServerInfo_LIVE }
func (s *source) Stats() *stats.Registry                   { return s.registry }
func (s *source) ConfigDump() (*adminv3.ConfigDump, error) { return s.dump, nil }
func (s *source) Drain(d Drain)                            { s.told = append(s.told, d) }

func (s *source) Level(name, level string) (map[string]string, error) {
	if s.levels[name] == "" && name != "" {
		return nil, ErrLogger
	}
	for n := range s.levels {
		if level != "" && (name == "" || n == name) {
			s.levels[n] = level
		}
	}
	return s.levels, nil
}

func (s *source) ask(method, path string) (int, string) {
	w := httptest.NewRecorder()
	(&Server{Source: s}).handler().ServeHTTP(w, httptest.NewRequest(method, path, nil))
	body, _ := io.ReadAll(w.Result().Body)
	return w.Code, string(body)
}

func pack(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newSource(t *testing.T) *source {
	key := &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "PRIVATE"}}
	raw := &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte("PRIVATE")}}
	chain := &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "public"}}
	secret := func(name string, key *corev3.DataSource) *anypb.Any {
		return pack(t, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: chain, PrivateKey: key, Password: key}}})
	}
	inline := pack(t, &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: chain, PrivateKey: key}}}})
	l := pack(t, &listenerv3.Listener{Name: "main", FilterChains: []*listenerv3.FilterChain{{
		TransportSocket: &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: inline}}}}})
	s := &source{registry: stats.New(), levels: map[string]string{"wasm": "info", "http": "info"}, dump: &adminv3.ConfigDump{Configs: []*anypb.Any{
		pack(t, &adminv3.ListenersConfigDump{VersionInfo: "1", DynamicListeners: []*adminv3.ListenersConfigDump_DynamicListener{{Name: "main",
			ActiveState: &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: "2", Listener: l}}}}),
		pack(t, &adminv3.RoutesConfigDump{DynamicRouteConfigs: []*adminv3.RoutesConfigDump_DynamicRouteConfig{
			{VersionInfo: "3", RouteConfig: pack(t, &routev3.RouteConfiguration{Name: "one"})}, {VersionInfo: "4", RouteConfig: pack(t, &routev3.RouteConfiguration{Name: "two"})}}}),
		pack(t, &adminv3.SecretsConfigDump{DynamicActiveSecrets: []*adminv3.SecretsConfigDump_DynamicSecret{
			{Name: "a", Secret: secret("a", key)}, {Name: "b", Secret: secret("b", raw)}}}),
		pack(t, &adminv3.EndpointsConfigDump{}),
	}}}
	s.registry.Counter(stats.Scope{Family: "cluster", Name: "a"}, "requests").Add(3)
	s.registry.Gauge(stats.Scope{}, "server.live").Set(1)
	s.registry.Plugins.Metric(abi.Counter, "hello").Add(2)
	s.registry.Plugins.Metric(abi.Histogram, "times").Record(2)
	return s
}

// No private key is told, wherever it is.
func TestRedacted(t *testing.T) {
	s := newSource(t)
	for _, path := range []string{"/config_dump", "/config_dump?include_eds", "/config_dump?resource=dynamic_active_secrets", "/config_dump?resource=dynamic_active_secrets&mask=secret", "/config_dump?resource=dynamic_listeners", "/config_dump?mask=dynamic_active_secrets"} {
		status, body := s.ask("GET", path)
		if status != 200 || strings.Contains(body, "PRIVATE") || strings.Contains(body, "UFJJVkFURQ") { // in base64
			t.Errorf("%s: %d\n%s", path, status, body)
		}
		if strings.Contains(path, "secret") && (strings.Count(body, `"inline_string": "[redacted]"`) != 2 || strings.Count(body, `"inline_bytes": "W3JlZGFjdGVkXQ=="`) != 2 || strings.Count(body, `"public"`) != 2) {
			t.Errorf("%s:\n%s", path, body)
		}
	}
	if raw, _ := proto.Marshal(s.dump); !strings.Contains(string(raw), "PRIVATE") {
		t.Error("what the proxy runs was redacted")
	}
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"GET", "/ready", 200, "LIVE\n"},
		{"GET", "/quitquitquit", 405, "Method GET not allowed, POST required."},
		{"GET", "/stats", 200, "cluster.a.requests: 3\nserver.live: 1\nwasmcustom.hello: 2\n"},
		{"GET", "/stats?filter=server", 200, "server.live: 1\n"},
		{"GET", "/stats?filter=server&invert_filter", 200, "cluster.a.requests: 3\nwasmcustom.hello: 2\n"},
		{"GET", "/stats?type=Gauges", 200, "server.live: 1\n"},
		{"GET", "/stats?type=counters", 200, "cluster.a.requests: 3\nwasmcustom.hello: 2\n"},
		{"GET", "/stats?type=Histograms", 200, ""},
		{"GET", "/stats?type=x", 400, "invalid &type= param"},
		{"GET", "/stats?hidden=only", 200, ""},
		{"GET", "/stats?histogram_buckets=x", 400, "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n\n"},
		{"GET", "/stats?format=html", 400, "usage: /stats?format=(json|prometheus|text)\n\n"},
		{"GET", "/stats?format=json&filter=live", 200, `{"stats":[{"name":"server.live","value":1}]}`},
		{"GET", "/stats?filter=(", 400, "Invalid re2 regex: missing ): ("},
		{"GET", "/stats/prometheus?filter=(", 400, "Invalid re2 regex: missing ): ("},
		{"GET", "/stats/prometheus?filter=live", 200, "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n"},
		{"GET", "/stats?format=prometheus&filter=^(server|wasmcustom.times)&invert_filter", 200, "# TYPE envoy_cluster_requests counter\nenvoy_cluster_requests{envoy_cluster_name=\"a\"} 3\n# TYPE hello counter\nhello{} 2\n"},
		{"GET", "/stats/prometheus?filter=.&invert_filter", 200, ""},
		{"GET", "/config_dump?resource=nosuch", 404, "nosuch not found in config dump"},
		{"GET", "/config_dump?resource=version_info", 400, "version_info is not a repeated field. Use ?mask=version_info to get only this field"},
		{"GET", "/config_dump?resource=dynamic_endpoint_configs", 404, "dynamic_endpoint_configs not found in config dump"},
		{"GET", "/config_dump?resource=dynamic_endpoint_configs&include_eds", 200, "{}\n"},
		{"GET", "/config_dump?mask=nosuch", 400, "FieldMask nosuch could not be successfully applied to any configs."},
		{"GET", "/config_dump?mask=version_info", 200, "{\n \"configs\": [\n  {\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.ListenersConfigDump\",\n   \"version_info\": \"1\"\n  }\n ]\n}\n"},
		{"GET", "/config_dump?resource=dynamic_route_configs&mask=route_config.name&name_regex=on.", 200, "{\n \"configs\": [\n  {\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.RoutesConfigDump.DynamicRouteConfig\",\n   \"route_config\": {\n    \"@type\": \"type.googleapis.com/envoy.config.route.v3.RouteConfiguration\",\n    \"name\": \"one\"\n   }\n  }\n ]\n}\n"},
		{"GET", "/config_dump?resource=dynamic_route_configs&name_regex=o", 200, "{}\n"},
		{"GET", "/config_dump?resource=dynamic_listeners&mask=active_state.listener.name", 400, "FieldMask active_state.listener.name could not be successfully used."},
		{"GET", "/config_dump?resource=dynamic_listeners&mask=name,active_state.version_info", 200, "{\n \"configs\": [\n  {\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.ListenersConfigDump.DynamicListener\",\n   \"name\": \"main\",\n   \"active_state\": {\n    \"version_info\": \"2\"\n   }\n  }\n ]\n}\n"},
		{"GET", "/config_dump?name_regex=(", 400, "INVALID_ARGUMENT: Error while parsing name_regex from (: missing ): ("},
		{"POST", "/logging?wasm=debug", 200, "active loggers:\n  http: info\n  wasm: debug\n\n"},
		{"POST", "/logging?level=off", 200, "active loggers:\n  http: off\n  wasm: off\n\n"},
		{"POST", "/logging?paths=wasm:error,http:trace", 200, "active loggers:\n  http: trace\n  wasm: error\n\n"},
		{"POST", "/reset_counters", 200, "OK\n"},
	} {
		s := newSource(t)
		status, body := s.ask(tt.method, tt.path)
		if diff := cmp.Diff(tt.want, body); diff != "" || status != tt.status {
			t.Errorf("%s %s: %d, want %d (-want +got):\n%s", tt.method, tt.path, status, tt.status, diff)
		}
	}
}

// What is wrong with a part sets nothing.
func TestLevels(t *testing.T) {
	for _, tt := range []struct{ query, want string }{
		{"level=x", ErrLevel.Error()}, {"nosuch=info", ErrLogger.Error()}, {"a=b&c=d", errParameters.Error()}, {"paths=wasm:debug,nosuch:info", ErrLogger.Error()},
		{"paths=wasm:debug,http:x", ErrLevel.Error()}, {"paths=wasm:debug,http", errEmptyLogger.Error()}, {"group=wasm:debug", errGroup.Error()},
	} {
		s := newSource(t)
		status, body := s.ask("POST", "/logging?"+tt.query)
		if status != 400 || !strings.HasPrefix(body, tt.want+"\n\nusage: /logging") || !strings.HasSuffix(body, "active loggers:\n  http: info\n  wasm: info\n") {
			t.Errorf("%s: %d\n%s", tt.query, status, body)
		}
	}
}

func TestDrain(t *testing.T) {
	s := newSource(t)
	for _, q := range []string{"", "?graceful", "?skip_exit", "?inboundonly&graceful"} {
		if status, body := s.ask("POST", "/drain_listeners"+q); status != 200 || body != "OK\n" {
			t.Errorf("%q: %d %q", q, status, body)
		}
	}
	if diff := cmp.Diff([]Drain{{}, {Gracefully: true}, {SkipExit: true}, {Gracefully: true, Inbound: true}}, s.told); diff != "" {
		t.Error(diff)
	}
}

// Counters are 0 after they are reset, gauges are not.
func TestReset(t *testing.T) {
	s := newSource(t)
	s.ask("POST", "/reset_counters")
	if _, body := s.ask("GET", "/stats"); body != "cluster.a.requests: 0\nserver.live: 1\nwasmcustom.hello: 0\n" {
		t.Error(body)
	}
}

// Every command is told of, and is there.
func TestHelp(t *testing.T) {
	s := newSource(t)
	_, help := s.ask("GET", "/help")
	status, nothing := s.ask("GET", "/nothing")
	if status != 404 || nothing != "invalid path. "+help {
		t.Errorf("%d\n%s", status, nothing)
	}
	_, home := s.ask("GET", "/")
	for _, c := range (&Server{}).commands() {
		post := ""
		if c.post {
			post = " (POST)"
		}
		if !strings.Contains(help, "\n  "+c.path+post+": "+c.help+"\n") {
			t.Errorf("%s is not in\n%s", c.path, help)
		}
		if !c.post && c.path != "/" && !strings.Contains(home, "<a href='"+c.path[1:]+"'>") {
			t.Errorf("%s is not in\n%s", c.path, home)
		}
	}
}

// No query makes the interface panic.
func FuzzQuery(f *testing.F) {
	for _, q := range []string{"resource=dynamic_listeners&mask=active_state.listener.name,name", "mask=dynamic_listeners", "name_regex=a*&include_eds", "filter=(a|b)&invert_filter", "paths=a:b,c:d"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		s := newSource(t)
		for _, path := range []string{"/config_dump", "/stats", "/stats/prometheus"} {
			if status, body := s.ask("GET", path+"?"+q.Encode()); status >= 500 || strings.Contains(body, "PRIVATE") {
				t.Errorf("%s?%s: %d %s", path, q.Encode(), status, body)
			}
		}
		s.ask("POST", "/logging?"+q.Encode())
	})
}
