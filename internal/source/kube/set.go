package kube

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

// A set is what the API server holds of one kind, or the one Secret that it is
// for. It is the store of a reflector: one goroutine writes, and nothing is kept
// but what was made of each object.
type set struct {
	*held
	kind
	one types.NamespacedName // the only object; zero for all of the kind

	// items is written by the reflector only, with the lock of held.
	items map[types.NamespacedName]item
	access
	gone bool // no part of held any more
}

// An item is what became of one object.
type item struct {
	from     origin
	object   resource.Object // last valid form; nil if there is none
	problems []resource.Problem
	refused  source.Refused // what problems are about; zero if there are none
}

// An origin tells one state of an object at the API server from another.
type origin struct {
	uid        types.UID
	version    string
	generation int64
	deleted    bool
}

func originOf(o metav1.Object) origin {
	return origin{o.GetUID(), o.GetResourceVersion(), o.GetGeneration(), o.GetDeletionTimestamp() != nil}
}

// same reports whether nobody can tell a snapshot with a from one with b.
func (a item) same(b item) bool {
	return a.object == b.object && a.refused == b.refused && slices.Equal(a.problems, b.problems)
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// Add takes an object that is new. Like all that a reflector calls it returns no
// error: what is wrong with an object is a Problem.
func (s *set) Add(o any) error {
	s.metrics.events.WithLabelValues(s.GroupResource.String()).Inc()
	s.put(o.(metav1.Object))
	return nil
}

// Update takes an object that changed.
func (s *set) Update(o any) error { return s.Add(o) }

// Delete takes an object that is gone.
func (s *set) Delete(o any) error {
	s.metrics.events.WithLabelValues(s.GroupResource.String()).Inc()
	name := nameOf(o.(metav1.Object))
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, held := s.items[name]; held {
		delete(s.items, name)
		s.changedLocked(!i.same(item{}))
	}
	return nil
}

// Replace takes all objects that there are. Those that did not change stay as
// they were made.
func (s *set) Replace(list []any, _ string) error {
	next := make(map[types.NamespacedName]item, len(list))
	for _, o := range list {
		o := o.(metav1.Object)
		next[nameOf(o)] = s.make(o)
	}
	s.metrics.events.WithLabelValues(s.GroupResource.String()).Add(float64(len(list)))
	s.mu.Lock()
	defer s.mu.Unlock()
	allowed := s.record("list", nil, time.Now()) // a watch may begin with what there is, without a list
	changed := allowed || !s.read || !maps.EqualFunc(s.items, next, item.same)
	s.items, s.read = next, true
	s.changedLocked(changed)
	return nil
}

// Resync has nothing to do: who takes snapshots sees every change.
func (s *set) Resync() error { return nil }

// Transformer drops what is not needed of an object before a reflector gathers it.
func (s *set) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		s.reduce(o.(metav1.Object))
		return o, nil
	}
}

// reduce may be called again with the same object.
func (s *set) reduce(o metav1.Object) {
	strip(o)
	if s.builtIn() {
		s.trim(o)
	}
}

func (s *set) put(o metav1.Object) {
	next := s.make(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.items[nameOf(o)]
	s.items[nameOf(o)] = next
	s.changedLocked(!old.same(next))
}

// changedLocked tells that there is something to deliver.
func (s *set) changedLocked(changed bool) {
	if changed && !s.gone {
		signal(s.changed)
	}
}

// make returns what becomes of o: what there is already, if nothing changed that
// anybody here reads.
func (s *set) make(o metav1.Object) item {
	old, from := s.items[nameOf(o)], originOf(o)
	if old.from == from {
		return old
	}
	s.reduce(o)
	next := item{from: from}
	if s.builtIn() {
		next.object = s.complete(o.(resource.Object), old.object)
	} else {
		next.object, next.problems = s.decoded(o.(*unstructured.Unstructured), old)
	}
	if len(next.problems) > 0 {
		next.refused = source.Refused{
			Key: resource.Key{Group: s.Group, Kind: s.name, Namespace: o.GetNamespace(), Name: o.GetName()},
			UID: from.uid, Generation: from.generation,
		}
	}
	return next
}

// complete gives o, of a kind of Kubernetes itself, its type. It is valid and has
// its defaults, by the API server that stored it. If all that is left of it is
// as in old, it is old. A Pod that has ended is nil.
func (s *set) complete(o, old resource.Object) resource.Object {
	if ended(o) {
		return nil
	}
	o.GetObjectKind().SetGroupVersionKind(s.gvk(s.versions[0]))
	if old == nil {
		return o
	}
	version := o.GetResourceVersion()
	o.SetResourceVersion(old.GetResourceVersion())
	if equality.Semantic.DeepEqual(o, old) {
		return old
	}
	o.SetResourceVersion(version)
	return o
}

// decoded is the object that o is, by the decoder that files go through, or old
// and what is wrong with o. Its resource version is the decoder's, which does not
// change with the status; who writes that needs the UID and generation.
func (s *set) decoded(o *unstructured.Unstructured, old item) (resource.Object, []resource.Problem) {
	if old.object != nil && len(old.problems) == 0 && onlyStatus(o, old) {
		return old.object, nil
	}
	data, err := json.Marshal(o.Object)
	if err != nil {
		return old.object, []resource.Problem{s.problem(o, err.Error())}
	}
	objects, problems := s.decoder.Decode("", data)
	for i := range problems {
		p := s.problem(o, problems[i].Message) // the decoder may not have come to the name
		p.Field, p.Mend = problems[i].Field, problems[i].Mend
		problems[i] = p
		if old.object != nil {
			problems[i].Mend = join(problems[i].Mend, "until then it stays in force as it was before")
		}
	}
	if len(problems) > 0 || len(objects) != 1 {
		return old.object, problems
	}
	next := objects[0]
	if was := old.object; was != nil && was.GetResourceVersion() == next.GetResourceVersion() && was.GetUID() == o.GetUID() && was.GetGeneration() == o.GetGeneration() {
		return was, nil
	}
	next.SetUID(o.GetUID())
	next.SetGeneration(o.GetGeneration())
	return next, nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// onlyStatus reports whether o differs from what old was made of in nothing that
// the decoder reads. The generation changes with everything but metadata and
// status.
func onlyStatus(o *unstructured.Unstructured, old item) bool {
	from := originOf(o)
	from.version = old.from.version
	return from == old.from && from.generation != 0 &&
		maps.Equal(o.GetLabels(), old.object.GetLabels()) && maps.Equal(o.GetAnnotations(), old.object.GetAnnotations())
}

// problem is that o is not taken.
func (s *set) problem(o metav1.Object, message string) resource.Problem {
	return resource.Problem{Kind: s.name, Namespace: o.GetNamespace(), Name: o.GetName(), Message: message}
}
