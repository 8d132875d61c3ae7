// Package admin serves Envoy's admin interface for the engine: the paths and parameters
// that the agent, its tests and people use, with Envoy's words.
//
// It keeps nothing; what it tells comes from a [Source]. What changes something wants
// POST, as in Envoy; a path or a parameter's value that there is not is refused as Envoy
// refuses it, one that Envoy has and this has not likewise. No private key, nor anything
// else that Envoy's API marks as sensitive, is in what it tells. Start at [Server.Run].
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/operations/admin
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"net"
	"net/http"
	"regexp"
	"regexp/syntax"
	"runtime"
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
	// ConfigDump tells of what was taken, each kind sorted by name. It may have secrets.
	ConfigDump() (*adminv3.ConfigDump, error)
	Clusters() *adminv3.Clusters
	Listeners() *adminv3.Listeners
	Stats() *stats.Registry
	// FailHealth has the proxy tell its clients to go; false undoes it.
	FailHealth(fail bool)
	Drain(Drain)
	// Quit ends the proxy.
	Quit()
	// Level returns the names of the loggers with their levels, after setting the
	// level of name, or of all if it is empty; an empty level sets nothing. Its errors
	// are ErrLogger and ErrLevel.
	Level(name, level string) (map[string]string, error)
}

// Drain says how to stop listening.
type Drain struct {
	Gracefully bool // connections end, too, after their next answer
	SkipExit   bool // connections end, and the sockets stay
	Inbound    bool // only listeners of that direction
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

// A command is one path.
type command struct {
	path, help string
	post       bool // it changes something
	params     []string
	serve      http.HandlerFunc
}

// commands are all there are, in the order of their paths, and in Envoy's words.
func (s *Server) commands() []command {
	const filter, usedOnly = "filter: Regular expression (Google re2) for filtering stats", "usedonly: Only include stats that have been written by system since restart"
	const invert = "invert_filter: Invert the filter regex"
	return []command{
		{path: "/", help: "Admin home page", serve: s.home},
		{path: "/clusters", help: "upstream cluster status", serve: s.clusters, params: []string{
			"filter: Regular expression (Google re2) for filtering clusters by name"}},
		{path: "/config_dump", help: "dump current Envoy configs", serve: s.configDump, params: []string{
			"resource: The resource to dump",
			"mask: The mask to apply. When both resource and mask are specified, the mask is applied to every element in the desired repeated field so that only a subset of fields are returned. The mask is parsed as a Protobuf::FieldMask",
			"name_regex: Dump only the currently loaded configurations whose names match the specified regex. Can be used with both resource and mask query parameters.",
			"include_eds: Dump currently loaded configuration including EDS. See the response definition for more information"}},
		{path: "/drain_listeners", help: "drain listeners", post: true, serve: s.drain, params: []string{
			"graceful: When draining listeners, enter a graceful drain period prior to closing listeners. This behaviour and duration is configurable via server options or CLI",
			"skip_exit: When draining listeners, drain the connections but never stop the listeners. The graceful parameter has no effect when this is set, since the drain period only delays stopping the listeners",
			"inboundonly: Drains all inbound listeners. traffic_direction field in envoy_v3_api_msg_config.listener.v3.Listener is used to determine whether a listener is inbound or outbound."}},
		{path: "/healthcheck/fail", help: "cause the server to fail health checks", post: true, serve: ok(func() { s.Source.FailHealth(true) })},
		{path: "/healthcheck/ok", help: "cause the server to pass health checks", post: true, serve: ok(func() { s.Source.FailHealth(false) })},
		{path: "/help", help: "print out list of admin commands", serve: s.help},
		{path: "/hot_restart_version", help: "print the hot restart compatibility version", serve: func(w http.ResponseWriter, _ *http.Request) { say(w, "disabled") }},
		{path: "/listeners", help: "print listener info", serve: s.listeners, params: []string{"format: File format to use; One of (text, json)"}},
		{path: "/logging", help: "query/change logging levels", post: true, serve: s.logging, params: []string{
			"paths: Change multiple logging levels by setting to <logger_name1>:<desired_level1>,<logger_name2>:<desired_level2>.",
			"level: desired logging level, this will change all loggers's level; One of (, trace, debug, info, warning, error, critical, off)"}},
		{path: "/memory", help: "print current allocation/heap usage", serve: memory},
		{path: "/quitquitquit", help: "exit the server", post: true, serve: s.quit},
		{path: "/ready", help: "print server state, return 200 if LIVE, otherwise return 503", serve: s.ready},
		{path: "/reset_counters", help: "reset all counters to zero", post: true, serve: ok(func() { s.Source.Stats().ResetCounters() })},
		{path: "/server_info", help: "print server version/status information", serve: func(w http.ResponseWriter, _ *http.Request) {
			writeMessage(w, s.Source.ServerInfo(), true) // its state LIVE is the default
		}},
		{path: "/stats", help: "print server stats", serve: s.stats, params: []string{usedOnly, filter, invert,
			"format: Format to use; One of (text, json)",
			"type: Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)"}},
		{path: "/stats/prometheus", help: "print server stats in prometheus format", serve: s.prometheus, params: []string{usedOnly,
			"text_readouts: Render text_readouts as new gaugues with value 0 (increases Prometheus data size)", filter, invert}},
	}
}

func (s *Server) handler() http.Handler {
	commands := map[string]command{}
	for _, c := range s.commands() {
		commands[c.path] = c
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
		w.Header().Set("Cache-Control", "no-cache, max-age=0")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch c, ok := commands[r.URL.Path]; {
		case !ok:
			w.WriteHeader(http.StatusNotFound)
			say(w, "invalid path. ")
			s.help(w, r)
		case c.post && r.Method != http.MethodPost:
			refuse(w, http.StatusMethodNotAllowed, "Method "+r.Method+" not allowed, POST required.")
		default:
			c.serve(w, r)
		}
	})
}

// say writes; who asked may be gone.
func say(w http.ResponseWriter, text string) { _, _ = w.Write([]byte(text)) }

func refuse(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	say(w, text)
}

func ok(f func()) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		f()
		say(w, "OK\n")
	}
}

func (s *Server) help(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	b.WriteString("admin commands are:\n")
	for _, c := range s.commands() {
		b.WriteString("  " + c.path)
		if c.post {
			b.WriteString(" (POST)")
		}
		b.WriteString(": " + c.help + "\n")
		for _, p := range c.params {
			b.WriteString("      " + p + "\n")
		}
	}
	say(w, b.String())
}

// home links to what can be looked at.
func (s *Server) home(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html lang='en'>\n<head><title>Envoy Admin</title></head>\n<body>\n<table>\n")
	for _, c := range s.commands() {
		name := html.EscapeString(strings.TrimPrefix(c.path, "/"))
		if !c.post && name != "" {
			name = "<a href='" + name + "'>" + name + "</a>"
		}
		fmt.Fprintf(&b, "<tr><td>%s</td><td>%s</td></tr>\n", name, html.EscapeString(c.help))
	}
	say(w, b.String()+"</table>\n</body>\n</html>\n")
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	state := s.Source.State()
	if state != adminv3.ServerInfo_LIVE {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	say(w, state.String()+"\n")
}

func (s *Server) quit(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "3") // complete when flushed: the server ends with what follows
	say(w, "OK\n")
	_ = http.NewResponseController(w).Flush() // who asked may be gone; told is told
	s.Source.Quit()
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s.Source.Drain(Drain{Gracefully: q.Has("graceful"), SkipExit: q.Has("skip_exit"), Inbound: q.Has("inboundonly")})
	say(w, "OK\n")
}

// memory is what Go's runtime tells, as far as it has the like.
func memory(w http.ResponseWriter, _ *http.Request) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	writeMessage(w, &adminv3.Memory{
		Allocated: m.HeapAlloc, HeapSize: m.HeapSys, PageheapUnmapped: m.HeapReleased, PageheapFree: m.HeapIdle - m.HeapReleased,
		TotalPhysicalBytes: m.Sys - m.HeapReleased,
	}, true)
}

func (s *Server) clusters(w http.ResponseWriter, r *http.Request) {
	list := s.Source.Clusters()
	if f := r.URL.Query().Get("filter"); f != "" {
		re, err := regexp.Compile(f)
		if err != nil {
			refuse(w, http.StatusBadRequest, "Invalid re2 regex")
			return
		}
		var matching []*adminv3.ClusterStatus
		for _, c := range list.GetClusterStatuses() {
			if re.MatchString(c.GetName()) {
				matching = append(matching, c)
			}
		}
		list = &adminv3.Clusters{ClusterStatuses: matching}
	}
	if r.URL.Query().Get("format") == "json" {
		writeMessage(w, list, false)
		return
	}
	var b strings.Builder
	for _, c := range list.GetClusterStatuses() {
		writeCluster(&b, c)
	}
	say(w, b.String())
}

func writeCluster(b *strings.Builder, c *adminv3.ClusterStatus) {
	line := func(parts ...any) {
		b.WriteString(c.GetName())
		for _, p := range parts {
			fmt.Fprintf(b, "::%v", p)
		}
		b.WriteByte('\n')
	}
	line("observability_name", c.GetObservabilityName())
	for _, t := range c.GetCircuitBreakers().GetThresholds() {
		priority := strings.ToLower(t.GetPriority().String()) + "_priority"
		line(priority, "max_connections", t.GetMaxConnections().GetValue())
		line(priority, "max_pending_requests", t.GetMaxPendingRequests().GetValue())
		line(priority, "max_requests", t.GetMaxRequests().GetValue())
		line(priority, "max_retries", t.GetMaxRetries().GetValue())
	}
	line("added_via_api", c.GetAddedViaApi())
	if name := c.GetEdsServiceName(); name != "" {
		line("eds_service_name", name)
	}
	for _, h := range c.GetHostStatuses() {
		at := address(h)
		for _, st := range h.GetStats() {
			line(at, st.GetName(), st.GetValue())
		}
		flags := "healthy"
		if h.GetHealthStatus().GetFailedOutlierCheck() {
			flags = "/failed_outlier_check"
		}
		line(at, "hostname", h.GetHostname())
		line(at, "health_flags", flags)
		line(at, "weight", h.GetWeight())
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
		writeMessage(w, list, false)
		return
	}
	for _, l := range list.GetListenerStatuses() {
		a := l.GetLocalAddress().GetSocketAddress()
		say(w, l.GetName()+"::"+net.JoinHostPort(a.GetAddress(), fmt.Sprint(a.GetPortValue()))+"\n")
	}
}

// writeMessage writes a message as Envoy does, with the fields that have their default,
// too, if that is wanted.
func writeMessage(w http.ResponseWriter, m proto.Message, defaults bool) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: defaults, Resolver: envoytypes.Types()}.Marshal(m)
	var b, indented bytes.Buffer
	if err == nil {
		err = json.Compact(&b, raw) // protojson spaces by chance
	}
	if err == nil {
		err = json.Indent(&indented, b.Bytes(), "", " ")
	}
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	say(w, indented.String()+"\n")
}

// regexError is what is wrong with a regular expression, much as RE2 words it.
func regexError(err error) string {
	if e, ok := err.(*syntax.Error); ok {
		return strings.Replace(e.Code.String(), "missing closing ", "missing ", 1) + ": " + e.Expr
	}
	return err.Error()
}
