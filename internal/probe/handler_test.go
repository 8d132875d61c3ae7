package probe

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const livez = "/app-health/app/livez"

// agent answers for one probe of a workload on this machine.
func agent(t *testing.T, p *Probe) http.Handler {
	t.Helper()
	return Handler(Config{
		Probes: Set{livez: p, Path("app", PreStop): p},
		Pod:    netip.MustParseAddr("127.0.0.1"),
		Source: netip.MustParseAddr("127.0.0.6"),
		Log:    slog.New(slog.DiscardHandler),
	})
}

// kubelet asks as the kubelet does, with its context.
func kubelet(ctx context.Context, h http.Handler, path string) (status int, body string) {
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://10.0.0.5:15020"+path, nil)
	r.Header.Set("User-Agent", "kube-probe/1.36")
	r.Header.Set("Accept", "*/*")
	r.Header.Set("Connection", "close")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func port(t *testing.T, address string) intstr.IntOrString {
	t.Helper()
	a, err := netip.ParseAddrPort(strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return intstr.FromInt32(int32(a.Port()))
}

// workload is a server with answers as HTTP probes meet them.
func workload() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "fine") })
	mux.HandleFunc("/sick", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "sick", http.StatusServiceUnavailable) })
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 3*maxBody)) })
	mux.HandleFunc("/seen", func(w http.ResponseWriter, r *http.Request) {
		from, _ := netip.ParseAddrPort(r.RemoteAddr)
		io.WriteString(w, strings.Join([]string{r.Host, r.URL.RawQuery, r.Header.Get("User-Agent"),
			strings.Join(r.Header["X-Twice"], "+"), r.Header.Get("Accept"), from.Addr().String()}, " "))
	})
	mux.Handle("/moved", http.RedirectHandler("/ok", http.StatusFound))
	mux.Handle("/away", http.RedirectHandler("http://example.test/", http.StatusFound))
	mux.Handle("/round", http.RedirectHandler("/round", http.StatusFound))
	mux.HandleFunc("/nowhere", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) })
	return mux
}

func TestHTTP(t *testing.T) {
	plain := httptest.NewServer(workload())
	defer plain.Close()
	secure := httptest.NewUnstartedServer(workload())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	secure.StartTLS()
	defer secure.Close()
	closed := httptest.NewServer(nil)
	closed.Close()

	for name, tt := range map[string]struct {
		get    corev1.HTTPGetAction
		status int
		body   string // what it contains; of a failure, the cause
	}{
		"ok":              {corev1.HTTPGetAction{Path: "/ok", Port: port(t, plain.URL)}, 200, "fine"},
		"no slash":        {corev1.HTTPGetAction{Path: "ok", Port: port(t, plain.URL)}, 200, "fine"},
		"https":           {corev1.HTTPGetAction{Path: "/ok", Port: port(t, secure.URL), Scheme: corev1.URISchemeHTTPS}, 200, "fine"},
		"http to https":   {corev1.HTTPGetAction{Path: "/ok", Port: port(t, secure.URL)}, 400, "HTTPS server"},
		"sick":            {corev1.HTTPGetAction{Path: "/sick", Port: port(t, plain.URL)}, 503, "sick"},
		"not found":       {corev1.HTTPGetAction{Path: "/other", Port: port(t, plain.URL)}, 404, "not found"},
		"redirected":      {corev1.HTTPGetAction{Path: "/moved", Port: port(t, plain.URL)}, 200, "fine"},
		"redirected away": {corev1.HTTPGetAction{Path: "/away", Port: port(t, plain.URL)}, 200, ""},
		"redirected on":   {corev1.HTTPGetAction{Path: "/round", Port: port(t, plain.URL)}, 500, "redirected 10 times"},
		"300s alone":      {corev1.HTTPGetAction{Path: "/nowhere", Port: port(t, plain.URL)}, 200, ""},
		"refused":         {corev1.HTTPGetAction{Path: "/ok?token=secret", Port: port(t, closed.URL)}, 500, "connection refused"},
		"headers": {corev1.HTTPGetAction{Path: "/seen?a=b", Port: port(t, plain.URL), HTTPHeaders: []corev1.HTTPHeader{
			{Name: "host", Value: "example.test"}, {Name: "x-twice", Value: "1"}, {Name: "X-Twice", Value: "2"}, {Name: "accept", Value: "text/plain"},
		}}, 200, "example.test a=b kube-probe/1.36 1+2 text/plain 127.0.0.6"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := kubelet(t.Context(), agent(t, &Probe{HTTPGet: &tt.get, TimeoutSeconds: 60}), livez)
			if status != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("status %d, %q, want %d, %q", status, body, tt.status, tt.body)
			}
			if strings.Contains(body, "secret") {
				t.Errorf("%q has the query of the probe", body)
			}
		})
	}

	t.Run("body", func(t *testing.T) {
		get := &corev1.HTTPGetAction{Path: "/big", Port: port(t, plain.URL)}
		status, body := kubelet(t.Context(), agent(t, &Probe{HTTPGet: get, TimeoutSeconds: 60}), livez)
		if status != 200 || len(body) != maxBody {
			t.Errorf("status %d, %d bytes, want 200, %d bytes", status, len(body), maxBody)
		}
	})
}

// TestTimeout: a workload that does not answer fails its probe after the probe's own
// time; an event of its life lasts until the kubelet gives up.
func TestTimeout(t *testing.T) {
	asked := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer s.Close()
	h := agent(t, &Probe{HTTPGet: &corev1.HTTPGetAction{Port: port(t, s.URL)}, TimeoutSeconds: 1})

	type told struct {
		status int
		body   string
	}
	done := make(chan told, 1)
	ask := func(ctx context.Context, path string) {
		status, body := kubelet(ctx, h, path)
		done <- told{status, body}
	}
	go ask(t.Context(), livez)
	<-asked
	if got := <-done; got.status != 500 || !strings.Contains(got.body, "deadline exceeded") {
		t.Errorf("status %d, %q, want 500 for the deadline", got.status, got.body)
	}

	ctx, cancel := context.WithCancel(t.Context())
	go ask(ctx, Path("app", PreStop))
	<-asked
	cancel()
	if got := <-done; got.status != 500 || !strings.Contains(got.body, "canceled") {
		t.Errorf("status %d, %q, want 500 because the kubelet gave up", got.status, got.body)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := agent(t, &Probe{TCPSocket: &corev1.TCPSocketAction{Port: port(t, l.Addr().String())}, TimeoutSeconds: 60})
	if status, body := kubelet(t.Context(), h, livez); status != 200 {
		t.Errorf("status %d, %q of a port that is open", status, body)
	}
	l.Close()
	if status, body := kubelet(t.Context(), h, livez); status != 500 || !strings.Contains(body, "connection refused") {
		t.Errorf("status %d, %q of a port that is closed", status, body)
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	checks := health.NewServer()
	checks.SetServingStatus("well", healthv1.HealthCheckResponse_SERVING)
	checks.SetServingStatus("ill", healthv1.HealthCheckResponse_NOT_SERVING)
	s := grpc.NewServer()
	healthv1.RegisterHealthServer(s, checks)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	named := func(s string) *string { return &s }
	for name, tt := range map[string]struct {
		service *string
		status  int
		body    string
	}{
		"whole":   {nil, 200, ""},
		"well":    {named("well"), 200, ""},
		"ill":     {named("ill"), 500, `service "ill" is NOT_SERVING`},
		"unknown": {named("other"), 500, "unknown service"},
	} {
		t.Run(name, func(t *testing.T) {
			h := agent(t, &Probe{GRPC: &corev1.GRPCAction{Port: port(t, l.Addr().String()).IntVal, Service: tt.service}, TimeoutSeconds: 60})
			if status, body := kubelet(t.Context(), h, livez); status != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("status %d, %q, want %d, %q", status, body, tt.status, tt.body)
			}
		})
	}
}

func TestUnknownPath(t *testing.T) {
	h := agent(t, &Probe{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}})
	for _, path := range []string{"/app-health/app/readyz", "/app-health/", "/", "/app-health/app/livez/"} {
		if status, body := kubelet(t.Context(), h, path); status != 404 {
			t.Errorf("%s: status %d, %q, want 404", path, status, body)
		}
	}
}
