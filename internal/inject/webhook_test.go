package inject

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	kjson "sigs.k8s.io/json"
)

func webhookHandler(t testing.TB) (http.Handler, *prometheus.Registry) {
	o := options(t, image)
	metrics := prometheus.NewRegistry()
	return Handler(Webhook{Options: func() Options { return o }, Metrics: metrics, Log: slog.New(slog.DiscardHandler)}), metrics
}

// review is what an API server asks about a new pod in the namespace shop.
func review(pod string) string {
	return `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
"uid": "1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "resource": {"group": "", "version": "v1", "resource": "pods"},
"namespace": "shop", "operation": "CREATE", "dryRun": true, "object": ` + pod + `}}`
}

func ask(h http.Handler, contentType, body string) (int, []byte) {
	r := httptest.NewRequest(http.MethodPost, "/inject?timeout=10s", strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.Bytes()
}

// answered reads an answer, which has to be one to the request.
func answered(t testing.TB, status int, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	var r admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &r); status != http.StatusOK || err != nil {
		t.Fatalf("status %d, %v\n%s", status, err, body)
	}
	if r.APIVersion != "admission.k8s.io/v1" || r.Kind != "AdmissionReview" || r.Request != nil || r.Response == nil || r.Response.UID != "1" {
		t.Fatalf("not the answer to the request: %s", body)
	}
	return r.Response
}

// A pod as an API server sends it, with nulls, and a field that is newer than we are.
const sentPod = `{"kind": "Pod", "apiVersion": "v1", "metadata": {"generateName": "app-", "creationTimestamp": null, "labels": null,
 "annotations": {"proxy.istio.io/config": "concurrency: 2"}},
"spec": {"newer": {"a": 12345678901234567}, "volumes": [{"name": "own", "newer": 1, "emptyDir": {}}],
 "containers": [{"name": "istio-proxy", "image": "auto"}, {"name": "app", "image": "app", "newer": [1], "resources": {}, "livenessProbe": {"tcpSocket": {"port": 80}, "newer": 1}}]},
"status": {}}`

func TestWebhook(t *testing.T) {
	h, metrics := webhookHandler(t)
	status, body := ask(h, "application/json; charset=utf-8", review(sentPod))
	resp := answered(t, status, body)
	if !resp.Allowed || resp.PatchType == nil || *resp.PatchType != "JSONPatch" {
		t.Fatalf("response %s", body)
	}
	if diff := cmp.Diff([]string{"chandler: metadata.annotations[proxy.istio.io/config]: is not honoured"}, resp.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	var ops []operation
	if err := kjson.UnmarshalCaseSensitivePreserveInts(resp.Patch, &ops); err != nil {
		t.Fatal(err)
	}
	var document any
	if err := kjson.UnmarshalCaseSensitivePreserveInts([]byte(sentPod), &document); err != nil {
		t.Fatal(err)
	}
	document, err := patch(document, ops)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	e := json.NewEncoder(&got)
	e.SetIndent("", "  ")
	if err := e.Encode(document); err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("testdata", "webhook.out.json"), got.Bytes())

	// what the webhook made is not changed again
	status, body = ask(h, "application/json", review(got.String()))
	if resp := answered(t, status, body); !resp.Allowed || resp.Patch != nil {
		t.Errorf("again: %s", body)
	}
	for name, want := range map[string]float64{"requests": 2, "success": 1, "skip": 1, "failure": 0} {
		if n := gathered(t, metrics, "sidecar_injection_"+name+"_total"); n != want {
			t.Errorf("%s: %v, want %v", name, n, want)
		}
	}
}

func gathered(t *testing.T, metrics *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

func TestWebhookMetrics(t *testing.T) {
	_, metrics := webhookHandler(t)
	problems, err := testutil.GatherAndLint(metrics)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", err, problems)
	}
}

func TestWebhookDenies(t *testing.T) {
	h, metrics := webhookHandler(t)
	for name, tt := range map[string]struct{ pod, want string }{
		"annotation": {`{"metadata": {"annotations": {"sidecar.istio.io/proxyCPU": "lots"}}, "spec": {"containers": [{"name": "a"}]}}`,
			`add sidecar: metadata.annotations[sidecar.istio.io/proxyCPU]: "lots" is not an amount of cpu; write one such as 100m`},
		"no spec": {`{"metadata": {}}`, "add sidecar: read pod: it has no metadata or no spec"},
		"no pod":  {`[]`, "add sidecar: read pod: json: cannot unmarshal array"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := ask(h, "application/json", review(tt.pod))
			resp := answered(t, status, body)
			if resp.Allowed || resp.Patch != nil || resp.Result == nil || resp.Result.Code != 422 || !strings.HasPrefix(resp.Result.Message, tt.want) {
				t.Errorf("response %s, want %s", body, tt.want)
			}
		})
	}
	if n := gathered(t, metrics, "sidecar_injection_failure_total"); n != 3 {
		t.Errorf("%v failures are counted, want 3", n)
	}
}

func TestWebhookLeaves(t *testing.T) {
	h, _ := webhookHandler(t)
	pod := `{"metadata": {}, "spec": {"containers": [{"name": "a"}]}}`
	for name, body := range map[string]string{
		"declined":     review(`{"metadata": {"annotations": {"sidecar.istio.io/inject": "false"}}, "spec": {"containers": [{"name": "a"}]}}`),
		"host network": review(`{"metadata": {}, "spec": {"hostNetwork": true, "containers": [{"name": "a"}]}}`),
		"kube-system":  strings.Replace(review(pod), `"shop"`, `"kube-system"`, 1),
		"update":       strings.Replace(review(pod), "CREATE", "UPDATE", 1),
		"subresource":  strings.Replace(review(pod), `"operation"`, `"subResource": "ephemeralcontainers", "operation"`, 1),
		"another kind": strings.Replace(review(pod), `"resource": "pods"`, `"resource": "services"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			status, answer := ask(h, "application/json", body)
			if resp := answered(t, status, answer); !resp.Allowed || resp.Patch != nil || len(resp.Warnings) > 0 {
				t.Errorf("response %s", answer)
			}
		})
	}
}

func TestWebhookMisused(t *testing.T) {
	h, _ := webhookHandler(t)
	for name, tt := range map[string]struct {
		contentType, body string
		status            int
		want              string
	}{
		"content type": {"text/plain", review(`{}`), http.StatusUnsupportedMediaType, "not application/json"},
		"no JSON":      {"application/json", "{", http.StatusBadRequest, "read admission review: unexpected end of JSON input"},
		"no review":    {"application/json", `{"apiVersion": "v1", "kind": "Pod"}`, http.StatusBadRequest, "it is a v1 Pod, not an admission.k8s.io/v1 AdmissionReview"},
		"old review":   {"application/json", strings.Replace(review(`{}`), "k8s.io/v1", "k8s.io/v1beta1", 1), http.StatusBadRequest, "not an admission.k8s.io/v1 AdmissionReview"},
		"no request":   {"application/json", `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}`, http.StatusBadRequest, "has no request"},
		"too long":     {"application/json", review(`"` + strings.Repeat("x", maxReview) + `"`), http.StatusRequestEntityTooLarge, "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := ask(h, tt.contentType, tt.body)
			if status != tt.status || !strings.Contains(string(body), tt.want) {
				t.Errorf("status %d, %q, want %d, %q", status, body, tt.status, tt.want)
			}
		})
	}
	s := httptest.NewServer(h)
	defer s.Close()
	for path, want := range map[string]int{"/ready": 200, "/inject": 405, "/": 404} {
		resp, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: status %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// FuzzWebhook: every body gets an answer; where there is a patch, it applies to the
// pod that was sent, and makes one that is left alone.
func FuzzWebhook(f *testing.F) {
	f.Add([]byte(review(sentPod)))
	f.Add([]byte(review(`{}`)))
	f.Add([]byte(review(`{"metadata": null, "spec": null}`)))
	if text, err := os.ReadFile(filepath.Join("testdata", "webhook.out.json")); err == nil {
		f.Add([]byte(review(string(text))))
	}
	h, _ := webhookHandler(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		status, answer := ask(h, "application/json", string(body))
		if status != http.StatusOK {
			return
		}
		var sent, got admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &sent); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(answer, &got); err != nil || got.Response.UID != sent.Request.UID {
			t.Fatalf("%v\n%s", err, answer)
		}
		if got.Response.Patch == nil {
			return
		}
		var ops []operation
		if err := kjson.UnmarshalCaseSensitivePreserveInts(got.Response.Patch, &ops); err != nil {
			t.Fatal(err)
		}
		var document any
		if err := kjson.UnmarshalCaseSensitivePreserveInts(sent.Request.Object.Raw, &document); err != nil {
			t.Fatal(err)
		}
		document, err := patch(document, ops)
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, sent.Request.Object.Raw, got.Response.Patch)
		}
		sent.Request.Object.Raw, err = json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		status, answer = ask(h, "application/json", string(again))
		var second admissionv1.AdmissionReview
		if err := json.Unmarshal(answer, &second); err != nil || !second.Response.Allowed || second.Response.Patch != nil {
			t.Fatalf("again: status %d, %v\n%s", status, err, answer)
		}
	})
}
