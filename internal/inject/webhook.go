package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// maxReview bounds what the webhook reads of one request. An API server takes objects
// of up to 3 MiB, and a review has one and what is around it.
const maxReview = 8 << 20

// A Webhook is what [Handler] needs.
type Webhook struct {
	Options func() Options // those of now, with their defaults; called concurrently
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Handler is the admission webhook: POST /inject takes an AdmissionReview of
// admission.k8s.io/v1 and answers with a JSON patch that adds the sidecar, with
// warnings, or with why there can be none, which denies the pod. GET /ready answers
// 200. It has no effect besides, so a dry run is as any other.
func Handler(w Webhook) http.Handler {
	h := &webhook{Webhook: w, results: map[string]prometheus.Counter{}}
	for result, help := range map[string]string{
		"requests": "Total number of sidecar injection requests.",
		"success":  "Total number of successful sidecar injection requests.",
		"skip":     "Total number of skipped sidecar injection requests.",
		"failure":  "Total number of failed sidecar injection requests.",
	} {
		h.results[result] = prometheus.NewCounter(prometheus.CounterOpts{Name: "sidecar_injection_" + result + "_total", Help: help})
		w.Metrics.MustRegister(h.results[result])
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /inject", h.serve)
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

type webhook struct {
	Webhook
	results map[string]prometheus.Counter // under Istio's names, by their middle
}

func (h *webhook) serve(w http.ResponseWriter, r *http.Request) {
	h.results["requests"].Inc()
	review, code, err := readReview(w, r)
	if err != nil {
		h.results["failure"].Inc()
		h.Log.Warn("admission review cannot be read", "error", err)
		http.Error(w, err.Error(), code)
		return
	}
	resp := h.admit(review.Request)
	resp.UID = review.Request.UID
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: resp}); err != nil {
		h.Log.Debug("admission response cannot be written", "error", err)
	}
}

// readReview reads the one review that r brings; code is the answer's status if there
// is an error.
func readReview(w http.ResponseWriter, r *http.Request) (review admissionv1.AdmissionReview, code int, err error) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return review, http.StatusUnsupportedMediaType, errors.New("the content type is not application/json")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return review, http.StatusRequestEntityTooLarge, err
		}
		return review, http.StatusBadRequest, err
	}
	if err := json.Unmarshal(body, &review); err != nil {
		return review, http.StatusBadRequest, fmt.Errorf("read admission review: %w", err)
	}
	if review.APIVersion != admissionv1.SchemeGroupVersion.String() || review.Kind != "AdmissionReview" {
		return review, http.StatusBadRequest, fmt.Errorf("read admission review: it is a %s %s, not an admission.k8s.io/v1 AdmissionReview", review.APIVersion, review.Kind)
	}
	if review.Request == nil || review.Request.UID == "" {
		return review, http.StatusBadRequest, errors.New("read admission review: it has no request")
	}
	return review, 0, nil
}

// admit answers a request. What is no new pod is none of the webhook's.
func (h *webhook) admit(req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	pods := metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
	if req.Resource != pods || req.SubResource != "" || req.Operation != admissionv1.Create {
		h.results["skip"].Inc()
		return &admissionv1.AdmissionResponse{Allowed: true}
	}
	pod, err := readPod(req.Object.Raw)
	if err != nil {
		return h.deny(req, &pod, fmt.Errorf("read pod: %w", err))
	}
	if why := left(&pod, req.Namespace); why != "" {
		h.results["skip"].Inc()
		h.Log.Debug("no sidecar", "namespace", req.Namespace, "pod", nameOf(&pod), "reason", why)
		return &admissionv1.AdmissionResponse{Allowed: true}
	}
	with, problems, err := Pod(&pod, h.Options())
	if err != nil {
		return h.deny(req, &pod, err)
	}
	ops, err := difference(&pod, with)
	if err != nil {
		return h.deny(req, &pod, err)
	}
	text, err := json.Marshal(ops)
	if err != nil {
		return h.deny(req, &pod, err)
	}
	h.results["success"].Inc()
	h.Log.Info("sidecar added", "namespace", req.Namespace, "pod", nameOf(&pod), "warnings", len(problems))
	resp := &admissionv1.AdmissionResponse{Allowed: true, Patch: text, PatchType: new(admissionv1.PatchTypeJSONPatch)}
	for _, p := range problems {
		resp.Warnings = append(resp.Warnings, "chandler: "+p.String())
	}
	return resp
}

// readPod wants of a pod the parts that a patch adds to.
func readPod(text []byte) (pod corev1.Pod, err error) {
	var parts struct {
		Metadata *struct{} `json:"metadata"`
		Spec     *struct{} `json:"spec"`
	}
	if err := errors.Join(
		kjson.UnmarshalCaseSensitivePreserveInts(text, &parts),
		kjson.UnmarshalCaseSensitivePreserveInts(text, &pod),
	); err != nil {
		return pod, err
	}
	if parts.Metadata == nil || parts.Spec == nil {
		return pod, errors.New("it has no metadata or no spec")
	}
	return pod, nil
}

// deny says why a pod is not created: it would run without what it was meant to have.
func (h *webhook) deny(req *admissionv1.AdmissionRequest, pod *corev1.Pod, err error) *admissionv1.AdmissionResponse {
	h.results["failure"].Inc()
	h.Log.Warn("sidecar cannot be added", "namespace", req.Namespace, "pod", nameOf(pod), "error", err)
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status:  metav1.StatusFailure,
		Reason:  metav1.StatusReasonInvalid,
		Code:    http.StatusUnprocessableEntity,
		Message: "add sidecar: " + err.Error(),
	}}
}

// nameOf is a pod's name, or as much of it as there is before the API server makes
// one.
func nameOf(pod *corev1.Pod) string {
	if pod.Name == "" {
		return pod.GenerateName
	}
	return pod.Name
}
