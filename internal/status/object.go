package status

import (
	"math"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// ownField is where a status has what only Chandler tells. Istio's schema lets
// fields be that it does not know.
const ownField = "chandler"

// An object is what a writer must know of a resource as the API server has it.
type object struct {
	uid        types.UID
	version    string // resourceVersion
	generation int64
	ours       []metav1.Condition // of .status.conditions
	others     []any              // conditions of other owners, as they are
	observed   int64              // .status.observedGeneration
	proxies    string             // .status.chandler.proxies
	digest     string             // .status.chandler.digest
	plane      identity.Plane     // .status.chandler.controlPlane
}

// newObject takes what it needs of u, whose status others may have written.
func newObject(u *unstructured.Unstructured, extension bool) object {
	o := object{uid: u.GetUID(), version: u.GetResourceVersion(), generation: u.GetGeneration()}
	status, _ := u.Object["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	for _, written := range conditions {
		if c := readCondition(written); c.Type == Accepted || extension && (c.Type == Resolved || c.Type == Programmed) {
			o.ours = append(o.ours, c)
		} else {
			o.others = append(o.others, written)
		}
	}
	o.observed = integer(status["observedGeneration"])
	own, _ := status[ownField].(map[string]any)
	o.proxies, _ = own["proxies"].(string)
	o.digest, _ = own["digest"].(string)
	plane, _ := own["controlPlane"].(string)
	o.plane = identity.ParsePlane(plane)
	return o
}

// readCondition reads one, as far as it is one.
func readCondition(written any) metav1.Condition {
	fields, _ := written.(map[string]any)
	text := func(key string) string { s, _ := fields[key].(string); return s }
	at, _ := time.Parse(time.RFC3339, text("lastTransitionTime")) // zero if there is none
	return metav1.Condition{
		Type:               text("type"),
		Status:             metav1.ConditionStatus(text("status")),
		Reason:             text("reason"),
		Message:            text("message"),
		ObservedGeneration: integer(fields["observedGeneration"]),
		LastTransitionTime: metav1.NewTime(at.UTC()),
	}
}

// integer reads a field that Istio's schema allows to be a number or a string.
func integer(v any) int64 {
	switch v := v.(type) {
	case int64:
		return v
	case float64:
		if math.Abs(v) < 1<<53 {
			return int64(v)
		}
	case string:
		n, _ := strconv.ParseInt(v, 10, 64)
		return n
	}
	return 0
}

// A change is how much a status differs from what it should be.
type change int

const (
	same   change = iota
	detail        // counts, words
	turn          // a condition has another status, or is of another generation
)

// stale reports whether o is older than what v is about, or of the same name only.
func (o object) stale(v verdict) bool {
	return v.uid != "" && v.uid != o.uid || v.generation > o.generation
}

// compare says how much the status of o differs from v. A verdict of a generation
// older than one that was told is no reason to write. Nor is that a resource of a
// kind other than extensions is valid, as long as it was not told otherwise: of
// thousands of routes that are as they should be, none needs a write.
func (o object) compare(v verdict) change {
	found := same
	generation := o.generationOf(v)
	for _, want := range v.conditions {
		i := slices.IndexFunc(o.ours, func(c metav1.Condition) bool { return c.Type == want.Type })
		if i < 0 {
			if !v.extension && want.Status == metav1.ConditionTrue {
				return same
			}
			found = turn
			continue
		}
		has := o.ours[i]
		switch {
		case has.ObservedGeneration > generation && has.ObservedGeneration <= o.generation:
			return same
		case has.Status != want.Status || has.ObservedGeneration != generation:
			found = turn
		case has.Reason != want.Reason || has.Message != want.Message:
			found = max(found, detail)
		}
	}
	if o.observed != generation || v.extension && (o.proxies != v.proxies || o.digest != v.digest || o.plane != v.plane) {
		found = max(found, detail)
	}
	return found
}

func (o object) generationOf(v verdict) int64 {
	if v.generation == 0 {
		return o.generation
	}
	return v.generation
}

// status is that of o with what v says, as a JSON merge patch.
// Conditions of other owners come first, as they were.
func (o object) status(v verdict, now time.Time) map[string]any {
	conditions := slices.Clone(o.others)
	for _, c := range v.conditions {
		conditions = append(conditions, map[string]any{
			"type":               c.Type,
			"status":             string(c.Status),
			"reason":             c.Reason,
			"message":            c.Message,
			"observedGeneration": o.generationOf(v),
			"lastTransitionTime": since(c, o.ours, now).UTC().Format(time.RFC3339),
		})
	}
	status := map[string]any{"conditions": conditions, "observedGeneration": o.generationOf(v)}
	if v.extension {
		own := map[string]any{"proxies": v.proxies, "digest": nil, "controlPlane": nil} // nil takes away what was there
		if v.digest != "" {
			own["digest"] = v.digest
		}
		if v.plane != (identity.Plane{}) {
			own["controlPlane"] = v.plane.String()
		}
		status[ownField] = own
	}
	return status
}
