package control

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// newMonitoring is the pages of the monitoring port. Paths that Istio has are
// Istio's; all debug pages are JSON.
func newMonitoring(p *Plane, metrics *prometheus.Registry, profiles bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /ready", p.ready)
	debug := http.NewServeMux()
	mux.Handle("GET /debug/", local(debug))
	debug.HandleFunc("GET /debug/syncz", page(func() any { return syncz(p.xds.Proxies()) }))
	debug.HandleFunc("GET /debug/extensionz", p.extensionPage)
	debug.HandleFunc("GET /debug/problems", page(func() any { return problemz(p.Problems()) }))
	debug.HandleFunc("GET /debug/worldz", page(func() any { return p.worldz() }))
	debug.HandleFunc("GET /debug/config_dump", p.configDump)
	if profiles {
		debug.HandleFunc("GET /debug/pprof/", pprof.Index)
		debug.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		debug.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		debug.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		debug.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// local serves requests from this machine only, as one that kubectl port-forward
// passes on: what configuration proxies have is not for everybody in a cluster.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "debug pages are for the machine of the control plane: use kubectl port-forward", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func page(content func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, content()) }
}

func writeJSON(w http.ResponseWriter, content any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(content) // fails only if the client has gone
}

// ready says whether proxies that connect now are served.
func (p *Plane) ready(w http.ResponseWriter, _ *http.Request) {
	if p.publisher.generation() == nil {
		http.Error(w, "the source has not delivered yet", http.StatusServiceUnavailable)
	}
}

// A syncStatus is Istio's summary of a proxy, for the tools that read it, and
// below it what more there is to say.
type syncStatus struct {
	ProxyType            string `json:"proxy_type"`
	ClusterSent          string `json:"cluster_sent,omitempty"`
	ClusterAcked         string `json:"cluster_acked,omitempty"`
	ListenerSent         string `json:"listener_sent,omitempty"`
	ListenerAcked        string `json:"listener_acked,omitempty"`
	RouteSent            string `json:"route_sent,omitempty"`
	RouteAcked           string `json:"route_acked,omitempty"`
	EndpointSent         string `json:"endpoint_sent,omitempty"`
	EndpointAcked        string `json:"endpoint_acked,omitempty"`
	ExtensionConfigSent  string `json:"extensionconfig_sent,omitempty"`
	ExtensionConfigAcked string `json:"extensionconfig_acked,omitempty"`

	xds.Proxy
}

func syncz(proxies []xds.Proxy) []syncStatus {
	all := make([]syncStatus, 0, len(proxies))
	for _, p := range proxies {
		s := syncStatus{Proxy: p}
		s.ProxyType, _, _ = strings.Cut(p.ID, "~")
		s.ClusterSent, s.ClusterAcked = sentAcked(p, xds.ClusterType)
		s.ListenerSent, s.ListenerAcked = sentAcked(p, xds.ListenerType)
		s.RouteSent, s.RouteAcked = sentAcked(p, xds.RouteType)
		s.EndpointSent, s.EndpointAcked = sentAcked(p, xds.EndpointType)
		s.ExtensionConfigSent, s.ExtensionConfigAcked = sentAcked(p, xds.ExtensionType)
		all = append(all, s)
	}
	return all
}

func sentAcked(p xds.Proxy, typeURL string) (sent, acked string) {
	t := p.Types[typeURL]
	return t.Sent, t.Acked
}

// A problemPage is a resource.Problem as JSON.
type problemPage struct {
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Field     string `json:"field,omitempty"`
	Message   string `json:"message"`
	Mend      string `json:"mend,omitempty"`
}

func problemz(problems []resource.Problem) []problemPage {
	all := make([]problemPage, 0, len(problems))
	for _, p := range problems {
		all = append(all, problemPage(p))
	}
	return all
}

// A worldPage sums up what is served.
type worldPage struct {
	Generation int            `json:"generation"` // 0: the source has not delivered yet
	Built      time.Time      `json:"built,omitzero"`
	Resources  map[string]int `json:"resources"` // by kind
	Problems   int            `json:"problems"`
	Classes    []classPage    `json:"classes"`
}

type classPage struct {
	Class   string         `json:"class"`
	Proxies int            `json:"proxies"`
	Envoy   map[string]int `json:"envoy"` // resources by type URL
}

func (p *Plane) worldz() worldPage {
	page := worldPage{Problems: len(p.Problems()), Classes: []classPage{}}
	if gen := p.publisher.generation(); gen != nil {
		page.Generation, page.Built, page.Resources = gen.number, gen.built, gen.objects
	}
	for _, c := range p.xds.Classes() {
		class := classPage{Class: c.Key, Proxies: c.Proxies, Envoy: make(map[string]int)}
		for _, typeURL := range xds.Types() {
			if n := len(c.Snapshot.Resources(typeURL)); n > 0 {
				class.Envoy[typeURL] = n
			}
		}
		page.Classes = append(page.Classes, class)
	}
	return page
}
