package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/resource"
)

const (
	fieldManager = "chandler"
	pageSize     = 500 // resources read at once
	batch        = 50  // written before it is asked anew what is most urgent
	tries        = 8   // calls for one write, if others write at the same time

	farthest = 30 * time.Second // between two tries while the API server is away
)

var (
	errBusy    = errors.New("others keep writing it")
	errNotKept = errors.New("the API server took the status and does not keep it")
)

// A term is one run of a Writer and all it knows. Only its goroutine uses it.
type term struct {
	*Writer
	calls   flowcontrol.RateLimiter
	teller  teller
	listed  map[schema.GroupVersionResource]time.Time
	entries map[resource.Key]*entry
	away    int       // calls in a row that the API server did not answer
	back    time.Time // when it is asked again
}

// An entry is what a term knows of one resource.
type entry struct {
	object object
	known  bool           // object is as it was read or written last
	gone   *verdict       // there was no such resource for that verdict
	next   time.Time      // it is not written before
	late   time.Time      // since when it differs; zero if it does not
	left   identity.Plane // that it is left to
	fails  int            // in a row
	told   topic          // of the last event
	notes  flowcontrol.RateLimiter
}

func newTerm(w *Writer) *term {
	return &term{
		Writer:  w,
		calls:   flowcontrol.NewTokenBucketRateLimiter(w.cfg.Rate, w.cfg.Burst),
		teller:  newTeller(),
		listed:  make(map[schema.GroupVersionResource]time.Time),
		entries: make(map[resource.Key]*entry),
	}
}

// round writes a batch of what is due and returns when to be called again.
func (t *term) round(ctx context.Context) time.Time {
	if time.Now().Before(t.back) {
		return t.back
	}
	if err := t.read(ctx); err != nil {
		return t.retreat(err)
	}
	due, next := t.due(time.Now())
	for _, key := range due[:min(batch, len(due))] {
		err := t.write(ctx, key)
		if ctx.Err() != nil {
			return next
		}
		if err := t.settle(key, err); err != nil {
			return t.retreat(fmt.Errorf("%s %s/%s: %w", key.Kind, key.Namespace, key.Name, err))
		}
	}
	if len(due) > 0 {
		return time.Now()
	}
	return next
}

// retreat leaves the API server alone for a while.
func (t *term) retreat(err error) time.Time {
	wait := backoff(500*time.Millisecond, farthest, t.away)
	if s, ok := apierrors.SuggestsClientDelay(err); ok {
		wait = max(wait, time.Duration(s)*time.Second)
	}
	if t.away == 0 {
		t.cfg.Log.Warn("API server away", "reason", err)
	}
	t.away++
	t.back = time.Now().Add(wait)
	return t.back
}

// answered notes that the API server is there.
func (t *term) answered() {
	if t.away > 0 {
		t.cfg.Log.Info("API server back")
	}
	t.away = 0
}

func backoff(base, most time.Duration, times int) time.Duration {
	return min(most, base<<min(times, 16))
}

// isAway reports whether err says more of the API server than of what it was asked.
func isAway(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return !errors.Is(err, errBusy) && !errors.Is(err, errNotKept)
	}
	code := status.Status().Code
	return code >= 500 || code == http.StatusTooManyRequests || code == http.StatusUnauthorized
}

// read lists the kinds that have verdicts and were not listed yet, or a long
// while ago. It returns an error if the API server is away.
func (t *term) read(ctx context.Context) error {
	verdicts := t.newest()
	for key := range verdicts {
		kind, _ := resourceOf(key)
		if at, ok := t.listed[kind]; ok && time.Since(at) < t.cfg.Resync {
			continue
		}
		if err := t.list(ctx, kind, verdicts); err != nil {
			if ctx.Err() != nil || isAway(err) {
				return err
			}
			t.cfg.Log.Warn("resources not listed", "resource", kind.Resource, "reason", err) // they are read one by one
		}
		t.listed[kind] = time.Now()
	}
	return nil
}

// list reads all resources of a kind, those that are to be expected by verdicts.
func (t *term) list(ctx context.Context, kind schema.GroupVersionResource, verdicts map[resource.Key]verdict) error {
	found := make(map[types.NamespacedName]object)
	opts := metav1.ListOptions{Limit: pageSize}
	for {
		if err := t.calls.Wait(ctx); err != nil {
			return err
		}
		page, err := t.page(ctx, kind, opts)
		if apierrors.IsNotFound(err) { // there is no such kind
			break
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", kind.Resource, err)
		}
		t.answered()
		for i := range page.Items {
			u := &page.Items[i]
			found[types.NamespacedName{Namespace: u.GetNamespace(), Name: u.GetName()}] = newObject(u, isExtension(kind.Group))
		}
		if opts.Continue = page.GetContinue(); opts.Continue == "" {
			break
		}
	}
	for key, v := range verdicts {
		if of, _ := resourceOf(key); of != kind {
			continue
		}
		if o, ok := found[types.NamespacedName{Namespace: key.Namespace, Name: key.Name}]; ok {
			t.entry(key).take(o)
		} else {
			t.entry(key).miss(v)
		}
	}
	return nil
}

func (t *term) page(ctx context.Context, kind schema.GroupVersionResource, opts metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	return t.cfg.Objects.Resource(kind).List(ctx, opts)
}

func (t *term) entry(key resource.Key) *entry {
	e := t.entries[key]
	if e == nil {
		e = &entry{notes: newNotes()}
		t.entries[key] = e
	}
	return e
}

// take notes o as what the API server has.
func (e *entry) take(o object) {
	if e.object.uid != o.uid { // told of before, if o says what there is to tell
		n, _ := newsOf(o.ours, o.digest)
		e.told = n.topic
	}
	e.object, e.known, e.gone = o, true, nil
}

// miss notes that there is no resource that v could be about.
func (e *entry) miss(v verdict) { e.known, e.gone = false, &v }

// missed reports whether that is so of v, too.
func (e *entry) missed(v verdict) bool {
	return e.gone != nil && e.gone.uid == v.uid && e.gone.generation == v.generation
}

// due are the resources that may be written now, what turns and what waits longest
// first, and when there may be others.
func (t *term) due(now time.Time) ([]resource.Key, time.Time) {
	verdicts := t.newest()
	for key, e := range t.entries {
		if _, ok := verdicts[key]; !ok {
			t.leave(key, e, identity.Plane{})
			delete(t.entries, key)
		}
	}
	type candidate struct {
		key resource.Key
		change
		late time.Time
	}
	var due []candidate
	next := now.Add(t.cfg.Resync)
	for key, v := range verdicts {
		e := t.entry(key)
		found := t.change(key, e, v)
		if found == same {
			e.late = time.Time{}
			continue
		}
		if e.late.IsZero() {
			e.late = now
		}
		if e.next.After(now) {
			next = earlier(next, e.next)
			continue
		}
		due = append(due, candidate{key, found, e.late})
	}
	slices.SortFunc(due, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.change, a.change), a.late.Compare(b.late), cmp.Compare(a.key.Name, b.key.Name))
	})
	keys := make([]resource.Key, len(due))
	for i, c := range due {
		keys[i] = c.key
	}
	return keys, next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// change is how much there is to write. What is not known may be most urgent; what
// another control plane writes is nothing.
func (t *term) change(key resource.Key, e *entry, v verdict) change {
	switch {
	case e.missed(v):
		return same
	case !e.known || e.object.stale(v):
		return turn
	}
	if owner := e.object.plane; v.extension && v.plane != (identity.Plane{}) && !v.plane.May(owner, v.revision) && t.cfg.There(owner.Namespace) {
		t.leave(key, e, owner)
		return same
	}
	t.leave(key, e, identity.Plane{})
	return e.object.compare(v)
}

// leave notes whom the resource is left to, and reports it.
func (t *term) leave(key resource.Key, e *entry, owner identity.Plane) {
	if e.left == owner {
		return
	}
	e.left = owner
	kind, _ := resourceOf(key)
	t.cfg.Found(identity.Foreign{
		APIVersion: kind.GroupVersion().String(), Kind: key.Kind, Resource: kind.Resource,
		Namespace: key.Namespace, Name: key.Name, UID: string(e.object.uid), Owner: owner,
	})
}

// write brings the status of a resource to the newest verdict.
func (t *term) write(ctx context.Context, key resource.Key) error {
	e := t.entry(key)
	for range tries {
		if _, ok := t.todo(key, e); !ok {
			return nil
		}
		if err := t.calls.Wait(ctx); err != nil {
			return err
		}
		v, ok := t.todo(key, e) // there may be newer
		if !ok {
			return nil
		}
		step := t.patch
		if !e.known || e.object.stale(v) {
			step = t.get
		}
		if err := step(ctx, key, e, v); err != nil {
			return err
		}
		t.answered()
	}
	return errBusy
}

// todo is the newest verdict of a resource, and whether it is still to be written.
func (t *term) todo(key resource.Key, e *entry) (verdict, bool) {
	v, ok := t.newest()[key]
	return v, ok && t.change(key, e, v) != same
}

// settle notes when a resource may be written again. It returns err if the API
// server is away.
func (t *term) settle(key resource.Key, err error) error {
	e := t.entry(key)
	if err == nil {
		e.fails, e.next = 0, time.Now().Add(t.cfg.Interval)
		return nil
	}
	t.metrics.writes.WithLabelValues("failed").Inc()
	away, most := isAway(err), 5*time.Minute
	if away { // or it fails because of this resource: let others come first
		most = farthest
	}
	e.next = time.Now().Add(max(t.cfg.Interval, backoff(time.Second, most, e.fails)))
	e.fails++
	if away {
		return err
	}
	if e.fails == 1 {
		t.cfg.Log.Warn("status not written", "kind", key.Kind, "namespace", key.Namespace, "name", key.Name, "reason", err)
	}
	return nil
}

// get reads a resource that v is about.
func (t *term) get(ctx context.Context, key resource.Key, e *entry, v verdict) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	u, err := t.at(key).Get(ctx, key.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		e.miss(v)
		return nil
	case err != nil:
		return fmt.Errorf("get: %w", err)
	}
	e.take(newObject(u, isExtension(key.Group)))
	if e.object.stale(v) {
		e.miss(v)
	}
	return nil
}

// patch writes v over what e has. If others have written since, it is read again.
func (t *term) patch(ctx context.Context, key resource.Key, e *entry, v verdict) error {
	status := e.object.status(v, time.Now())
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": e.object.uid, "resourceVersion": e.object.version},
		"status":   status,
	})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, t.cfg.Timeout)
	defer cancel()
	u, err := t.at(key).Patch(limited, key.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	switch {
	case apierrors.IsConflict(err):
		t.metrics.writes.WithLabelValues("conflict").Inc()
		e.known = false
		return nil
	case apierrors.IsNotFound(err):
		t.metrics.writes.WithLabelValues("gone").Inc()
		e.miss(v)
		return nil
	case err != nil:
		e.known = false // it may have been written all the same
		return fmt.Errorf("write: %w", err)
	}
	t.metrics.writes.WithLabelValues("written").Inc()
	e.object = newObject(u, isExtension(key.Group))
	if e.object.compare(v) != same {
		return errNotKept
	}
	t.tell(ctx, key, e)
	return nil
}

func (t *term) at(key resource.Key) dynamic.ResourceInterface {
	kind, _ := resourceOf(key)
	return t.cfg.Objects.Resource(kind).Namespace(key.Namespace)
}
