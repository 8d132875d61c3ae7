package status

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// controllerName is who reports events.
const controllerName = "chandler.io/status"

// A topic is what makes one event another. How many proxies it is about is not
// part of it.
type topic struct {
	reason     string
	generation int64
	digest     string // shortened
}

// A news is what a status has to tell, if it tells more than that something is
// under way.
type news struct {
	topic
	kind string // corev1.EventTypeNormal or Warning
	note string
}

// newsOf is the news in conditions, of which those of other types tell nothing:
// the first thing that went wrong on the way, or else that all proxies run it.
func newsOf(conditions []metav1.Condition, digest string) (news, bool) {
	byType := make(map[string]metav1.Condition)
	for _, c := range conditions {
		byType[c.Type] = c
	}
	about := func(c metav1.Condition, kind string) (news, bool) {
		return news{topic{c.Reason, c.ObservedGeneration, digest}, kind, c.Message}, true
	}
	for _, name := range []string{Accepted, Resolved, Programmed} {
		c := byType[name]
		if c.Status == metav1.ConditionFalse && c.Reason != ReasonNoProxySelected {
			return about(c, corev1.EventTypeWarning)
		}
	}
	last, extension := byType[Programmed]
	if !extension {
		last = byType[Accepted]
	}
	if last.Status == metav1.ConditionTrue {
		return about(last, corev1.EventTypeNormal)
	}
	return news{}, false
}

// A teller bounds the events of a term. What is too much is not told: the status
// says it all the same.
type teller struct {
	warnings, rest flowcontrol.RateLimiter
	failed         bool // the last event
}

func newTeller() teller {
	return teller{
		warnings: flowcontrol.NewTokenBucketRateLimiter(5, 100),
		rest:     flowcontrol.NewTokenBucketRateLimiter(2, 50),
	}
}

// newNotes bounds the events of one resource, which may turn to and fro.
func newNotes() flowcontrol.RateLimiter { return flowcontrol.NewTokenBucketRateLimiter(1./30, 6) }

func (t teller) allows(n news, e *entry) bool {
	all := t.rest
	if n.kind == corev1.EventTypeWarning {
		all = t.warnings
	}
	return e.notes.TryAccept() && all.TryAccept()
}

// tell makes an event if what was just written tells something that the last event
// of the resource did not. An event that is not taken is not tried again.
func (t *term) tell(ctx context.Context, key resource.Key, e *entry) {
	n, ok := newsOf(e.object.ours, e.object.digest)
	if !ok || n.topic == e.told {
		return
	}
	e.told = n.topic
	if t.cfg.Events == nil {
		return
	}
	if !t.teller.allows(n, e) {
		t.metrics.events.WithLabelValues("dropped").Inc()
		return
	}
	err := t.report(ctx, t.event(key, e.object.uid, n))
	if ctx.Err() != nil {
		return
	}
	result := "made"
	if err != nil {
		result = "failed"
		if !t.teller.failed {
			t.cfg.Log.Warn("event not made", "kind", key.Kind, "namespace", key.Namespace, "name", key.Name, "reason", err)
		}
	}
	t.teller.failed = err != nil
	t.metrics.events.WithLabelValues(result).Inc()
}

// event is that of n. Its name is made of what it is about, so that whoever tells
// the same again finds it.
func (t *term) event(key resource.Key, uid types.UID, n news) *eventsv1.Event {
	kind, _ := resourceOf(key)
	hash := fnv.New64a()
	fmt.Fprint(hash, uid, "/", n.kind, "/", n.topic)
	suffix := "." + hex.EncodeToString(hash.Sum(nil))
	name := key.Name[:min(len(key.Name), 253-len(suffix))]
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: key.Namespace, Name: name + suffix},
		EventTime:           metav1.NowMicro(),
		ReportingController: controllerName,
		ReportingInstance:   clip(t.cfg.Instance, 128),
		Action:              "Deliver",
		Type:                n.kind,
		Reason:              n.reason,
		Note:                n.note,
		Regarding: corev1.ObjectReference{
			APIVersion: kind.GroupVersion().String(), Kind: key.Kind,
			Namespace: key.Namespace, Name: key.Name, UID: uid,
		},
	}
}

// report creates the event, or counts it once more if it was made before. Its note
// stays the first: the API server lets only the series change.
func (t *term) report(ctx context.Context, event *eventsv1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	if err := t.calls.Wait(ctx); err != nil {
		return err
	}
	client := t.cfg.Events.Events(event.Namespace)
	_, err := client.Create(ctx, event, metav1.CreateOptions{FieldManager: fieldManager})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	if err := t.calls.Wait(ctx); err != nil {
		return err
	}
	before, err := client.Get(ctx, event.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	series := eventsv1.EventSeries{Count: 2, LastObservedTime: event.EventTime}
	if before.Series != nil {
		series.Count = before.Series.Count + 1
	}
	patch, err := json.Marshal(map[string]any{"series": series})
	if err != nil {
		return err
	}
	if err := t.calls.Wait(ctx); err != nil {
		return err
	}
	_, err = client.Patch(ctx, event.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}
