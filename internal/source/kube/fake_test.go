package kube_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/source/kube"
)

// A cluster is an API server, as far as a source asks one: discovery, and lists
// and watches of any resource, of all or of one name.
type cluster struct {
	t       *testing.T
	address string
	http    *http.Server
	stopped chan struct{}
	// streams says that a watch can begin with what there is, as newer API
	// servers do instead of a list.
	streams bool
	noUID   bool // as files have none
	decoder *resource.Decoder

	mu      sync.Mutex
	version int
	kinds   map[schema.GroupResource]served
	objects map[schema.GroupResource]map[string]object
	events  []event
	oldest  int            // version from which watches can begin
	denied  map[string]int // status by "VERB RESOURCE"
	asked   map[string]int // requests by "VERB RESOURCE NAMESPACE SELECTOR"
	changed chan struct{}  // closed at every event
	cut     chan struct{}  // closed to end all watches
	open    map[string]int // watches by the same
}

type object = map[string]any

type served struct {
	kind     string
	versions []string
}

type event struct {
	version int
	kind    schema.GroupResource
	name    string
	Type    string
	Object  object
}

// start starts an API server that knows all kinds.
func start(t *testing.T) *cluster {
	c := &cluster{
		t: t, streams: true, decoder: resource.NewDecoder(), version: 100,
		kinds: map[schema.GroupResource]served{
			{Resource: "namespaces"}: {"Namespace", []string{"v1"}}, {Resource: "pods"}: {"Pod", []string{"v1"}},
			{Resource: "services"}: {"Service", []string{"v1"}}, {Resource: "secrets"}: {"Secret", []string{"v1"}},
			{Group: "discovery.k8s.io", Resource: "endpointslices"}: {"EndpointSlice", []string{"v1"}},
		},
		objects: map[schema.GroupResource]map[string]object{}, denied: map[string]int{}, asked: map[string]int{},
		changed: make(chan struct{}), cut: make(chan struct{}), open: map[string]int{},
	}
	for _, k := range []struct{ name, resource string }{
		{"WasmPlugin", "wasmplugins.extensions.istio.io"}, {"TrafficExtension", "trafficextensions.extensions.istio.io"},
		{"EnvoyFilter", "envoyfilters.networking.istio.io"}, {"Gateway", "gateways.networking.istio.io"},
		{"VirtualService", "virtualservices.networking.istio.io"}, {"ServiceEntry", "serviceentries.networking.istio.io"},
		{"DestinationRule", "destinationrules.networking.istio.io"}, {"GatewayClass", "gatewayclasses.gateway.networking.k8s.io"},
		{"Gateway", "gateways.gateway.networking.k8s.io"}, {"HTTPRoute", "httproutes.gateway.networking.k8s.io"},
	} {
		gr := schema.ParseGroupResource(k.resource)
		c.kinds[gr] = served{k.name, map[string][]string{
			"extensions.istio.io": {"v1alpha1"}, "networking.istio.io": {"v1alpha3", "v1beta1", "v1"}, "gateway.networking.k8s.io": {"v1", "v1beta1"},
		}[gr.Group]}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.address = l.Addr().String()
	c.serve(l)
	t.Cleanup(c.stop)
	return c
}

func (c *cluster) serve(l net.Listener) {
	c.http = &http.Server{Handler: c}
	c.stopped = make(chan struct{})
	go func() {
		defer close(c.stopped)
		_ = c.http.Serve(l) // ErrServerClosed
	}()
}

// stop ends the API server and all connections; what it holds stays.
func (c *cluster) stop() {
	c.http.Close()
	<-c.stopped
}

// restart starts it again where it was.
func (c *cluster) restart() {
	l, err := net.Listen("tcp", c.address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.serve(l)
}

func (c *cluster) config() kube.Config {
	return kube.Config{Cluster: &rest.Config{Host: "http://" + c.address, QPS: -1}, Decoder: c.decoder}
}

// Source makes a cluster a sourcetest.Harness.
func (c *cluster) Source() source.Source { return kube.New(c.config()) }

// Put creates or replaces what is in manifest, maybe several documents. As a real
// API server does, it fills in what a kind of Kubernetes itself lacks.
func (c *cluster) Put(t *testing.T, manifest string) {
	t.Helper()
	for _, o := range c.parse(t, manifest) {
		c.put(o)
	}
}

// Delete removes what is in manifest.
func (c *cluster) Delete(t *testing.T, manifest string) {
	t.Helper()
	for _, o := range c.parse(t, manifest) {
		gr, name := c.place(o)
		c.mu.Lock()
		old := c.objects[gr][name]
		if old == nil {
			t.Errorf("delete %s: there is none", name)
		}
		delete(c.objects[gr], name)
		c.record(gr, name, "DELETED", old)
		c.mu.Unlock()
	}
}

func (c *cluster) parse(t *testing.T, manifest string) []object {
	t.Helper()
	var out []object
	for _, document := range strings.Split("\n"+manifest, "\n---") {
		var o object
		if err := yaml.Unmarshal([]byte(document+"\n"), &o); err != nil {
			t.Fatal(err)
		}
		if len(o) == 0 {
			continue
		}
		gr, _ := c.place(o)
		if !strings.Contains(gr.Group, "istio") && !strings.Contains(gr.Group, "gateway") {
			objects, problems := c.decoder.Decode("", []byte(document+"\n"))
			if len(problems) > 0 || len(objects) != 1 {
				t.Fatalf("%v", problems)
			}
			data, err := json.Marshal(objects[0])
			if err != nil {
				t.Fatal(err)
			}
			o = object{}
			if err := json.Unmarshal(data, &o); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, o)
	}
	return out
}

// place is where o belongs.
func (c *cluster) place(o object) (schema.GroupResource, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	gv, _ := schema.ParseGroupVersion(o["apiVersion"].(string))
	for gr, s := range c.kinds {
		if gr.Group == gv.Group && s.kind == o["kind"] {
			m := o["metadata"].(object)
			if m["namespace"] == nil && gr.Resource != "namespaces" && gr.Resource != "gatewayclasses" {
				m["namespace"] = "default"
			}
			namespace, _ := m["namespace"].(string)
			return gr, namespace + "/" + m["name"].(string)
		}
	}
	c.t.Fatalf("no kind %v in %v", o["kind"], gv)
	panic("unreachable")
}

func (c *cluster) put(o object) {
	gr, name := c.place(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	m := o["metadata"].(object)
	old, replaced := c.objects[gr][name]
	generation := 1.0
	if replaced {
		oldMeta := old["metadata"].(object)
		generation = oldMeta["generation"].(float64)
		if fmt.Sprint(old["spec"]) != fmt.Sprint(o["spec"]) {
			generation++
		}
		m["uid"] = oldMeta["uid"]
	} else if !c.noUID {
		m["uid"] = fmt.Sprintf("uid-%d", c.version)
	}
	m["generation"] = generation
	if c.objects[gr] == nil {
		c.objects[gr] = map[string]object{}
	}
	c.objects[gr][name] = o
	c.record(gr, name, map[bool]string{false: "ADDED", true: "MODIFIED"}[replaced], o)
}

// record needs the lock. What is in events is not changed any more.
func (c *cluster) record(gr schema.GroupResource, name, kind string, o object) {
	c.version++
	o = maps.Clone(o)
	o["metadata"] = maps.Clone(o["metadata"].(object))
	o["metadata"].(object)["resourceVersion"] = strconv.Itoa(c.version)
	if kind != "DELETED" {
		c.objects[gr][name] = o
	}
	c.events = append(c.events, event{c.version, gr, name, kind, o})
	close(c.changed)
	c.changed = make(chan struct{})
}

// deny answers requests of verb for resource with a status; 0 allows them again.
// All watches end.
func (c *cluster) deny(verb, resource string, status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.denied[verb+" "+resource] = status
	c.cutLocked()
}

func (c *cluster) cutLocked() {
	close(c.cut)
	c.cut = make(chan struct{})
}

// forget makes all watches end, and none can go on where it was.
func (c *cluster) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version += 10
	c.oldest, c.events = c.version, nil
	c.cutLocked()
}

// undefine takes away the kind of a resource with all objects, and returns it.
func (c *cluster) undefine(name string) served {
	c.mu.Lock()
	defer c.mu.Unlock()
	gr := schema.ParseGroupResource(name)
	old := c.kinds[gr]
	delete(c.kinds, gr)
	delete(c.objects, gr)
	c.cutLocked()
	return old
}

func (c *cluster) define(name string, s served) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds[schema.ParseGroupResource(name)] = s
}

// requests are what was asked, each as "VERB RESOURCE NAMESPACE SELECTOR".
func (c *cluster) requests() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.asked)
}

// watched waits until watches, named as by requests, are open or not.
func (c *cluster) watched(name string, want bool) {
	for {
		c.mu.Lock()
		open, changed := c.open[name] > 0, c.changed
		c.mu.Unlock()
		if open == want {
			return
		}
		<-changed
	}
}

// ServeHTTP answers /apis, /apis/GROUP/VERSION and
// (/api/v1|/apis/GROUP/VERSION)[/namespaces/NAMESPACE]/RESOURCE.
func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(parts) == 1:
		c.groups(w)
	case len(parts) == 3 && parts[0] == "apis":
		c.resources(w, schema.GroupVersion{Group: parts[1], Version: parts[2]})
	case parts[0] == "api":
		c.objectsAt(w, r, schema.GroupVersion{Version: parts[1]}, parts[2:])
	default:
		c.objectsAt(w, r, schema.GroupVersion{Group: parts[1], Version: parts[2]}, parts[3:])
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, message string) {
	reason := map[int]metav1.StatusReason{
		403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound, 410: metav1.StatusReasonExpired,
		422: metav1.StatusReasonInvalid, 500: metav1.StatusReasonInternalError,
	}[status]
	answer(w, status, metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(status), Reason: reason, Message: message,
	})
}

func (c *cluster) groups(w http.ResponseWriter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked["get /apis"]++
	if status := c.denied["get /apis"]; status != 0 {
		refuse(w, status, "apis is refused")
		return
	}
	list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	versions := map[string][]string{}
	for gr, s := range c.kinds {
		versions[gr.Group] = append(versions[gr.Group], s.versions...)
	}
	for group, vs := range versions {
		g := metav1.APIGroup{Name: group}
		slices.Sort(vs)
		for _, v := range slices.Compact(vs) {
			g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: group + "/" + v, Version: v})
		}
		list.Groups = append(list.Groups, g)
	}
	answer(w, 200, list)
}

func (c *cluster) resources(w http.ResponseWriter, gv schema.GroupVersion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String()}
	for gr, s := range c.kinds {
		if gr.Group == gv.Group && slices.Contains(s.versions, gv.Version) {
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: gr.Resource, Kind: s.kind})
		}
	}
	if list.APIResources == nil {
		http.Error(w, "404 page not found", 404)
		return
	}
	answer(w, 200, list)
}

// objectsAt lists or watches.
func (c *cluster) objectsAt(w http.ResponseWriter, r *http.Request, gv schema.GroupVersion, path []string) {
	namespace := ""
	if len(path) == 3 {
		namespace, path = path[1], path[2:]
	}
	gr, query := schema.GroupResource{Group: gv.Group, Resource: path[0]}, r.URL.Query()
	verb := "list"
	if query.Get("watch") != "" {
		verb = "watch"
	}
	name := strings.TrimPrefix(query.Get("fieldSelector"), "metadata.name=")
	request := strings.Join([]string{verb, gr.String(), namespace, name}, " ")

	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[request]++
	s, known := c.kinds[gr]
	from, _ := strconv.Atoi(query.Get("resourceVersion"))
	status := c.denied[verb+" "+gr.String()]
	switch {
	case !known || !slices.Contains(s.versions, gv.Version):
		http.Error(w, "404 page not found", 404)
		return
	case status != 0:
		refuse(w, status, fmt.Sprintf("%s is forbidden: User \"chandler\" cannot %s resource %q", gr, verb, gr.Resource))
		return
	case query.Get("sendInitialEvents") != "" && !c.streams:
		refuse(w, 422, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
		return
	case verb == "watch" && query.Get("sendInitialEvents") == "" && from < c.oldest:
		refuse(w, 410, "too old resource version")
		return
	}
	chosen := func(at string) bool {
		ns, n, _ := strings.Cut(at, "/")
		return (namespace == "" || ns == namespace) && (name == "" || n == name)
	}
	write := func(o object) object {
		o = maps.Clone(o)
		o["apiVersion"], o["kind"] = gv.String(), s.kind
		return o
	}
	if verb == "list" {
		items := []object{}
		for at, o := range c.objects[gr] {
			if chosen(at) {
				items = append(items, write(o))
			}
		}
		answer(w, 200, object{
			"kind": s.kind + "List", "apiVersion": gv.String(), "items": items,
			"metadata": object{"resourceVersion": strconv.Itoa(c.version)},
		})
		return
	}
	c.open[request]++
	close(c.changed)
	c.changed = make(chan struct{})
	defer func() {
		c.open[request]--
		close(c.changed)
		c.changed = make(chan struct{})
	}()
	w.Header().Set("Content-Type", "application/json")
	out, cut := json.NewEncoder(w), c.cut
	if query.Get("sendInitialEvents") != "" {
		for at, o := range c.objects[gr] {
			if chosen(at) {
				_ = out.Encode(object{"type": "ADDED", "object": write(o)})
			}
		}
		from = c.version
		_ = out.Encode(object{"type": "BOOKMARK", "object": object{
			"apiVersion": gv.String(), "kind": s.kind, "metadata": object{
				"resourceVersion": strconv.Itoa(from), "annotations": object{metav1.InitialEventsAnnotationKey: "true"},
			},
		}})
	}
	for {
		for _, e := range c.events {
			if e.version > from && e.kind == gr && chosen(e.name) {
				_ = out.Encode(object{"type": e.Type, "object": write(e.Object)})
			}
		}
		from = max(from, c.version)
		w.(http.Flusher).Flush()
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-cut:
		case <-r.Context().Done():
		}
		c.mu.Lock()
		if cut != c.cut || r.Context().Err() != nil {
			return
		}
	}
}
