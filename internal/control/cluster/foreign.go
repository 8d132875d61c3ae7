package cluster

import (
	"context"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	eventsv1client "k8s.io/client-go/kubernetes/typed/events/v1"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// foreign tells of what is left to other control planes of the cluster: a gauge
// counts it; a line of the log and an event come with the first of each kind and
// control plane, since a second one may have thousands.
type foreign struct {
	events   eventsv1client.EventsGetter
	instance string
	log      *slog.Logger
	gauge    *prometheus.GaugeVec

	news chan identity.Foreign // for events; what has no room is in the log

	mu   sync.Mutex
	held map[place]identity.Plane
	told map[topic]bool
}

// A place is an object of a kind.
type place struct {
	resource string
	types.NamespacedName
}

// A topic is what is told once.
type topic struct {
	resource string
	owner    identity.Plane
}

func newForeign(events eventsv1client.EventsGetter, instance string, log *slog.Logger, reg prometheus.Registerer) *foreign {
	f := &foreign{
		events: events, instance: instance, log: log, news: make(chan identity.Foreign, 16),
		held: make(map[place]identity.Plane), told: make(map[topic]bool),
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "chandler_foreign_objects",
			Help: "Number of objects that are left alone since another control plane of the cluster writes them, by resource.",
		}, []string{"resource"}),
	}
	reg.MustRegister(f.gauge)
	return f
}

// found takes down that an object is another's, or is not any more. It does not block.
func (f *foreign) found(o identity.Foreign) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := place{o.Resource, types.NamespacedName{Namespace: o.Namespace, Name: o.Name}}
	_, was := f.held[at]
	if o.Owner == (identity.Plane{}) {
		if was {
			delete(f.held, at)
			f.gauge.WithLabelValues(o.Resource).Dec()
		}
		return
	}
	if f.held[at] = o.Owner; !was {
		f.gauge.WithLabelValues(o.Resource).Inc()
	}
	about := topic{o.Resource, o.Owner}
	if f.told[about] {
		return
	}
	f.told[about] = true
	f.log.Warn("left to another control plane", "resource", o.Resource, "namespace", o.Namespace, "name", o.Name,
		"owner", o.Owner.String(), "mend", mend)
	select {
	case f.news <- o:
	default:
	}
}

// forget is for when another replica leads: what it writes, or leaves, is its to find.
func (f *foreign) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for at := range f.held {
		if at.resource != configurations {
			delete(f.held, at)
			f.gauge.WithLabelValues(at.resource).Dec()
		}
	}
	maps.DeleteFunc(f.told, func(about topic, _ bool) bool { return about.resource != configurations })
}

// mend is what to do about two control planes that want the same objects.
const mend = "give each a --revision and label namespaces istio.io/rev, or remove one of them and what it has written"

// Run makes the events until ctx ends.
func (f *foreign) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-f.news:
			_, err := f.events.Events(eventNamespace(o)).Create(ctx, f.event(o), metav1.CreateOptions{FieldManager: Service})
			if err != nil && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
				f.log.Warn("event not made", "resource", o.Resource, "namespace", o.Namespace, "name", o.Name, "reason", err)
			}
		}
	}
}

// eventNamespace is where events about an object are; those of objects that are in
// none are in default.
func eventNamespace(o identity.Foreign) string {
	if o.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return o.Namespace
}

// event is one whose name is made of what it says, so that it is there once.
func (f *foreign) event(o identity.Foreign) *eventsv1.Event {
	hash := fnv.New64a()
	fmt.Fprint(hash, o.UID, "/", o.Owner)
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: eventNamespace(o), Name: Service + "-foreign." + hex.EncodeToString(hash.Sum(nil))},
		EventTime:           metav1.NowMicro(),
		ReportingController: "chandler.io/control-plane",
		ReportingInstance:   f.instance[:min(len(f.instance), 128)],
		Action:              "Leave",
		Type:                corev1.EventTypeWarning,
		Reason:              "OtherControlPlane",
		Note:                fmt.Sprintf("control plane %s writes this; %s leaves it, and all like it: %s", o.Owner, f.instance, mend),
		Regarding: corev1.ObjectReference{
			APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, UID: types.UID(o.UID),
		},
	}
}
