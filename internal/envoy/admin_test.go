package envoy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// answers serves fixed bodies by path; a path it does not know is 404.
func answers(t *testing.T, bodies map[string]string) *Admin {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := bodies[r.Method+" "+r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if strings.HasSuffix(body, "ING\n") { // as Envoy does when it is not live
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		io.WriteString(w, body)
	}))
	t.Cleanup(srv.Close)
	return NewAdmin(srv.Listener.Addr().String())
}

func TestReady(t *testing.T) {
	for _, tt := range []struct{ body, state string }{
		{"LIVE\n", ""},
		{"DRAINING\n", "DRAINING"},
		{"PRE_INITIALIZING\n", "PRE_INITIALIZING"},
		{"who are you", "who are you"},
	} {
		err := answers(t, map[string]string{"GET /ready": tt.body}).Ready(t.Context())
		var not *NotReadyError
		switch {
		case tt.state == "" && err != nil:
			t.Errorf("%q: %v", tt.body, err)
		case tt.state != "" && (!errors.As(err, &not) || not.State != tt.state):
			t.Errorf("%q: error %v, want a NotReadyError of state %q", tt.body, err, tt.state)
		}
	}
}

func TestAdminAnswers(t *testing.T) {
	a := answers(t, map[string]string{
		"GET /server_info": `{"version":"v","state":"LIVE","no_such_field":1}`,
		"GET /listeners":   `{"listener_statuses":[{"name":"http","local_address":{"socket_address":{"address":"127.0.0.1","port_value":8080}}}]}`,
		"GET /stats":       "listener.admin.downstream_cx_active: 1\nlistener.x.downstream_cx_active: 2\n",
	})
	info, err := a.ServerInfo(t.Context())
	if err != nil || info.Version != "v" {
		t.Errorf("ServerInfo = %v, %v", info, err)
	}
	list, err := a.Listeners(t.Context())
	if err != nil || len(list) != 1 || list[0].GetLocalAddress().GetSocketAddress().GetPortValue() != 8080 {
		t.Errorf("Listeners = %v, %v", list, err)
	}
	if n, _, err := a.Active(t.Context()); err != nil || n != 2 {
		t.Errorf("Active = %d, %v; want 2 connections", n, err)
	}
	if err := a.Quit(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("Quit error = %v, want the status", err)
	}
	if _, err := a.Prometheus(t.Context(), ""); err == nil {
		t.Error("Prometheus took a 404 for an answer")
	}
}

func TestAdminBounds(t *testing.T) {
	a := answers(t, map[string]string{"GET /server_info": strings.Repeat(" ", maxAdminBody+1)})
	if _, err := a.ServerInfo(t.Context()); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("error = %v, want one that names the bound", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Ready(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want %v", err, context.Canceled)
	}
}

func TestAdminOnSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "LIVE\n") })}}
	srv.Start()
	defer srv.Close()
	if err := NewAdmin(path).Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestActive(t *testing.T) {
	for _, tt := range []struct {
		name, stats           string
		connections, requests int
		err                   error
	}{
		{"nothing kept", "", 0, 0, ErrNoStats},
		{"idle", "listener.admin.downstream_cx_active: 1\n", 0, 0, nil},
		{"busy", `http.admin.downstream_rq_active: 1
http.in.downstream_cx_active: 3
http.in.downstream_rq_active: 2
listener.0.0.0.0_8080.downstream_cx_active: 3
listener.0.0.0.0_8080.worker_0.downstream_cx_active: 2
listener.0.0.0.0_8080.worker_1.downstream_cx_active: 1
listener.[__1]_9000.downstream_cx_active: 4
listener.admin.downstream_cx_active: 1
listener.admin.main_thread.downstream_cx_active: 1
listener.envoy_internal_x.downstream_cx_active: 9
`, 7, 2, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, r, err := active(tt.stats)
			if c != tt.connections || r != tt.requests || !errors.Is(err, tt.err) {
				t.Errorf("active = %d, %d, %v; want %d, %d, %v", c, r, err, tt.connections, tt.requests, tt.err)
			}
		})
	}
	if _, _, err := active("listener.admin.downstream_cx_active: many\n"); err == nil {
		t.Error("a count that is no number was accepted")
	}
}

func FuzzActive(f *testing.F) {
	f.Add("listener.admin.downstream_cx_active: 1\nhttp.in.downstream_rq_active: 2\n")
	f.Fuzz(func(t *testing.T, stats string) {
		if c, r, err := active(stats); err != nil && c+r != 0 {
			t.Errorf("active = %d, %d with %v", c, r, err)
		}
	})
}
