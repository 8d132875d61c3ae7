package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	eventsv1client "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/rest"
)

// An api is as much of an API server as this package needs, reached without a
// network: uids, resource versions and generations are as they should be, patches
// of a status change that only, and what is out of date is refused.
type api struct {
	mu      sync.Mutex
	objects map[string]map[string]any // by path
	serial  int
	calls   []string // METHOD PATH, of those that came
	writes  map[string][]time.Time
	refuse  func(method, path string) int // with a code, unless it returns 0
	down    bool
	keep    bool                   // takes patches and keeps what was there
	before  func(path string)      // a patch is applied; may change what is there
	hang    func(path string) bool // until the caller gives up
}

func newAPI() *api {
	return &api{objects: make(map[string]map[string]any), writes: make(map[string][]time.Time)}
}

func (a *api) config() *rest.Config {
	return &rest.Config{Host: "http://api.test", Transport: a, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
}

// put creates or replaces the spec of an object, as users do.
func (a *api) put(path string, spec any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.objects[path]
	if o == nil {
		o = a.create(path, map[string]any{})
	}
	meta := o["metadata"].(map[string]any)
	meta["generation"] = meta["generation"].(int) + 1
	a.touch(o)
	o["spec"] = spec
}

// setStatus replaces the status, as others do.
func (a *api) setStatus(path string, status map[string]any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.objects[path]["status"] = status
	a.touch(a.objects[path])
}

func (a *api) remove(path string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.objects, path)
}

func (a *api) create(path string, o map[string]any) map[string]any {
	parts := strings.Split(strings.Trim(path, "/"), "/") // apis G V namespaces NS KIND NAME
	meta, _ := o["metadata"].(map[string]any)
	if meta == nil {
		meta = make(map[string]any)
	}
	a.serial++
	maps.Copy(meta, map[string]any{"namespace": parts[4], "name": parts[6], "uid": fmt.Sprint("uid-", a.serial), "generation": 0})
	o["metadata"] = meta
	o["apiVersion"] = parts[1] + "/" + parts[2]
	o["kind"] = map[string]string{
		"wasmplugins": "WasmPlugin", "envoyfilters": "EnvoyFilter", "virtualservices": "VirtualService", "leases": "Lease", "events": "Event",
	}[parts[5]]
	a.touch(o)
	a.objects[path] = o
	return o
}

func (a *api) touch(o map[string]any) {
	a.serial++
	o["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(a.serial)
}

// condition is "STATUS REASON" of one.
func (a *api) condition(path, kind string) string {
	c := a.conditionMap(path, kind)
	if c == nil {
		return ""
	}
	return fmt.Sprint(c["status"], " ", c["reason"])
}

func (a *api) conditionMap(path, kind string) map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	status, _ := a.objects[path]["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	for _, c := range conditions {
		if c := c.(map[string]any); c["type"] == kind {
			return c
		}
	}
	return nil
}

// count is how many calls came whose METHOD PATH contains part.
func (a *api) count(part string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, c := range a.calls {
		if strings.Contains(c, part) {
			n++
		}
	}
	return n
}

// all are the objects whose path contains part, sorted by path.
func (a *api) all(part string) []map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []map[string]any
	for _, path := range slices.Sorted(maps.Keys(a.objects)) {
		if strings.Contains(path, part) {
			found = append(found, a.objects[path])
		}
	}
	return found
}

func (a *api) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	body := []byte(nil)
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	a.mu.Lock()
	hang, before := a.hang, a.before
	a.mu.Unlock()
	if hang != nil && hang(r.URL.Path) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if before != nil && r.Method == http.MethodPatch {
		before(strings.TrimSuffix(r.URL.Path, "/status"))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	a.calls = append(a.calls, r.Method+" "+r.URL.Path)
	if a.down {
		return nil, errors.New("connection refused")
	}
	if a.refuse != nil {
		if code := a.refuse(r.Method, r.URL.Path); code != 0 {
			return refusal(code), nil
		}
	}
	return a.answer(r, body), nil
}

func (a *api) answer(r *http.Request, body []byte) *http.Response {
	path, status := strings.CutSuffix(r.URL.Path, "/status")
	var sent map[string]any
	if len(body) > 0 {
		if err := json.Unmarshal(body, &sent); err != nil {
			return refusal(http.StatusBadRequest)
		}
	}
	o := a.objects[path]
	switch {
	case r.Method == http.MethodGet && strings.Count(path, "/") == 4:
		return a.list(path, r.URL.Query().Get("limit"), r.URL.Query().Get("continue"))
	case r.Method == http.MethodPost:
		name := sent["metadata"].(map[string]any)["name"].(string)
		path += "/" + name
		if a.objects[path] != nil {
			return refusal(http.StatusConflict, metav1.StatusReasonAlreadyExists)
		}
		return reply(a.create(path, sent))
	case o == nil:
		return refusal(http.StatusNotFound)
	case r.Method == http.MethodGet:
		return reply(o)
	}
	meta, _ := sent["metadata"].(map[string]any)
	had := o["metadata"].(map[string]any)
	for _, key := range []string{"uid", "resourceVersion"} {
		if meta[key] != nil && meta[key] != had[key] {
			return refusal(http.StatusConflict)
		}
	}
	if sent["note"] != nil && r.Method == http.MethodPatch {
		return refusal(http.StatusUnprocessableEntity) // of an event, only the series may change
	}
	a.writes[path] = append(a.writes[path], time.Now())
	switch {
	case a.keep:
	case r.Method == http.MethodPatch && status:
		merged, _ := merge(o["status"], sent["status"]).(map[string]any)
		o["status"] = merged
		a.touch(o)
	case r.Method == http.MethodPatch:
		delete(sent, "metadata")
		merge(o, sent)
		a.touch(o)
	default:
		sent["metadata"] = had
		a.objects[path] = sent
		o = sent
		a.touch(o)
	}
	return reply(o)
}

// list is of all namespaces: /apis/G/V/KIND.
func (a *api) list(path, limit, after string) *http.Response {
	parts := strings.Split(path, "/")
	items := []any{}
	next := ""
	most, _ := strconv.Atoi(limit)
	for _, at := range slices.Sorted(maps.Keys(a.objects)) {
		if !strings.HasPrefix(at, strings.Join(parts[:4], "/")+"/namespaces/") || !strings.Contains(at, "/"+parts[4]+"/") || at <= after {
			continue
		}
		if most > 0 && len(items) == most {
			break
		}
		items = append(items, a.objects[at])
		next = at
	}
	if most == 0 || len(items) < most {
		next = ""
	}
	return reply(map[string]any{
		"apiVersion": parts[2] + "/" + parts[3], "kind": "SomeList",
		"metadata": map[string]any{"continue": next, "resourceVersion": strconv.Itoa(a.serial)}, "items": items,
	})
}

// merge is RFC 7396.
func merge(old, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	o, _ := old.(map[string]any)
	if o == nil {
		o = make(map[string]any)
	}
	for k, v := range p {
		if v == nil {
			delete(o, k)
		} else {
			o[k] = merge(o[k], v)
		}
	}
	return o
}

func reply(v any) *http.Response {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b)),
	}
}

func refusal(code int, reasons ...metav1.StatusReason) *http.Response {
	reason := map[int]metav1.StatusReason{
		http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusConflict: metav1.StatusReasonConflict,
		http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusInternalServerError: metav1.StatusReasonInternalError,
	}[code]
	if len(reasons) > 0 {
		reason = reasons[0]
	}
	r := reply(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Reason: reason, Code: int32(code), Message: fmt.Sprint("refused with ", code),
	})
	r.StatusCode = code
	return r
}

// A road is a client's own way to an API server, which may be cut.
type road struct {
	to  *api
	cut atomic.Bool // calls hang until the caller gives up
}

func (r *road) RoundTrip(req *http.Request) (*http.Response, error) {
	if r.cut.Load() {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	return r.to.RoundTrip(req)
}

func (r *road) config() *rest.Config {
	c := r.to.config()
	c.Transport = r
	return c
}

func objects(t *testing.T, cfg *rest.Config) dynamic.Interface {
	t.Helper()
	c, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func eventsOf(t *testing.T, cfg *rest.Config) eventsv1client.EventsGetter {
	t.Helper()
	c, err := eventsv1client.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func leases(t *testing.T, cfg *rest.Config) coordinationv1client.LeasesGetter {
	t.Helper()
	c, err := coordinationv1client.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
