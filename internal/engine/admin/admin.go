// Package admin serves Envoy's admin interface for the engine: the paths that the
// agent, its tests and people use, with Envoy's words.
//
// It keeps nothing; what it tells comes from a [Source]. What changes something
// wants POST, as in Envoy. Start at [Server.Run].
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/operations/admin
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/chandler-proxy/chandler/internal/engine/stats"
	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

// A Source is what the interface tells of, and can change.
type Source interface {
	State() adminv3.ServerInfo_State
	ServerInfo() *adminv3.ServerInfo
	ConfigDump() (*adminv3.ConfigDump, error)
	Clusters() *adminv3.Clusters
	Listeners() *adminv3.Listeners
	Stats() *stats.Registry
	// FailHealth has the proxy tell its clients to go; false undoes it.
	FailHealth(fail bool)
	// StopListening closes the listening sockets; gracefully has connections end, too.
	StopListening(gracefully bool)
	// Quit ends the proxy.
	Quit()
	// Level returns the names of the loggers with their levels, after setting the
	// level of name, or of all if it is empty; an empty level sets nothing.
	Level(name, level string) (map[string]string, error)
}

// A Server serves the interface.
type Server struct {
	Source Source
}

// Run serves on l until ctx ends.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		srv.Close()
		close(stopped)
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve admin on %s: %w", l.Addr(), err)
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, f http.HandlerFunc) { mux.HandleFunc(path, f) }
	post := func(path string, f http.HandlerFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
				return
			}
			f(w, r)
		})
	}
	ok := func(f func(r *http.Request)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			f(r)
			_, _ = w.Write([]byte("OK\n"))
		}
	}
	get("/ready", s.ready)
	get("/stats", s.stats)
	get("/stats/prometheus", s.prometheus)
	get("/config_dump", func(w http.ResponseWriter, _ *http.Request) {
		dump, err := s.Source.ConfigDump()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeJSON(w, dump)
	})
	get("/clusters", s.clusters)
	get("/listeners", s.listeners)
	get("/server_info", func(w http.ResponseWriter, _ *http.Request) {
		writeMessage(w, s.Source.ServerInfo(), true) // its state LIVE is the default
	})
	post("/logging", s.logging)
	post("/quitquitquit", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "3") // complete when flushed: the server ends with what follows
		_, _ = w.Write([]byte("OK\n"))
		_ = http.NewResponseController(w).Flush() // who asked may be gone; told is told
		s.Source.Quit()
	})
	post("/healthcheck/fail", ok(func(*http.Request) { s.Source.FailHealth(true) }))
	post("/healthcheck/ok", ok(func(*http.Request) { s.Source.FailHealth(false) }))
	post("/drain_listeners", ok(func(r *http.Request) { s.Source.StopListening(r.URL.Query().Has("graceful")) }))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, "invalid path. admin commands are:\n%s", paths)
	})
	return mux
}

const paths = `  /clusters
  /config_dump
  /drain_listeners (POST)
  /healthcheck/fail (POST)
  /healthcheck/ok (POST)
  /listeners
  /logging (POST)
  /quitquitquit (POST)
  /ready
  /server_info
  /stats
  /stats/prometheus
`

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	state := s.Source.State()
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	if state != adminv3.ServerInfo_LIVE {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, state)
}

func query(q url.Values) (stats.Query, error) {
	out := stats.Query{UsedOnly: q.Has("usedonly")}
	if f := q.Get("filter"); f != "" {
		re, err := regexp.Compile(f)
		if err != nil {
			return out, err
		}
		out.Filter = re
	}
	return out, nil
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("format") == "prometheus" {
		s.prometheus(w, r)
		return
	}
	q, err := query(r.URL.Query())
	if err != nil {
		http.Error(w, "Invalid regex: "+err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	_ = s.Source.Stats().WriteText(w, q) // the client is gone
}

func (s *Server) prometheus(w http.ResponseWriter, r *http.Request) {
	q, err := query(r.URL.Query())
	if err != nil {
		http.Error(w, "Invalid regex: "+err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_ = s.Source.Stats().WritePrometheus(w, q) // the client is gone
}

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	name, level := "", ""
	for k, v := range r.URL.Query() {
		if k != "level" {
			name = k
		}
		level = v[0]
	}
	loggers, err := s.Source.Level(name, level)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, "active loggers:")
	for name, level := range loggers {
		fmt.Fprintf(w, "  %s: %s\n", name, level)
	}
}

func (s *Server) clusters(w http.ResponseWriter, r *http.Request) {
	list := s.Source.Clusters()
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, list)
		return
	}
	for _, c := range list.GetClusterStatuses() {
		name := c.GetName()
		fmt.Fprintf(w, "%s::observability_name::%s\n%s::added_via_api::%t\n", name, name, name, c.GetAddedViaApi())
		for _, h := range c.GetHostStatuses() {
			at := name + "::" + address(h)
			for _, st := range h.GetStats() {
				fmt.Fprintf(w, "%s::%s::%d\n", at, st.GetName(), st.GetValue())
			}
			fmt.Fprintf(w, "%s::health_flags::healthy\n%s::weight::%d\n", at, at, h.GetWeight())
		}
	}
}

func address(h *adminv3.HostStatus) string {
	if p := h.GetAddress().GetPipe(); p != nil {
		return p.GetPath()
	}
	a := h.GetAddress().GetSocketAddress()
	return net.JoinHostPort(a.GetAddress(), fmt.Sprint(a.GetPortValue()))
}

func (s *Server) listeners(w http.ResponseWriter, r *http.Request) {
	list := s.Source.Listeners()
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, list)
		return
	}
	for _, l := range list.GetListenerStatuses() {
		a := l.GetLocalAddress().GetSocketAddress()
		fmt.Fprintf(w, "%s::%s\n", l.GetName(), net.JoinHostPort(a.GetAddress(), fmt.Sprint(a.GetPortValue())))
	}
}

func writeJSON(w http.ResponseWriter, m proto.Message) { writeMessage(w, m, false) }

func writeMessage(w http.ResponseWriter, m proto.Message, defaults bool) {
	raw, err := protojson.MarshalOptions{
		Multiline: true, Indent: " ", UseProtoNames: true, EmitDefaultValues: defaults, Resolver: envoytypes.Types(),
	}.Marshal(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(raw, '\n')) // the client is gone
}

// ErrLogger says that there is no logger of that name, or no such level.
var ErrLogger = errors.New("error: unknown logger name or level")

// Levels are the names of Envoy's levels, the lowest first.
func Levels() []string { return strings.Fields("trace debug info warning error critical") }
