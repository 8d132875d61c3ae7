package kube

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// follow keeps s as the API server has it until ctx ends. It lists once and then
// watches, from where it was when a watch ended; what has not changed is not
// decoded again even if everything had to be listed anew.
func (s *set) follow(ctx context.Context, from *cache.ListWatch) {
	noted := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			list, err := from.ListWithContextFunc(ctx, opts)
			s.answered(ctx, "list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			w, err := from.WatchFuncWithContext(ctx, opts)
			s.answered(ctx, "watch", err)
			return w, err
		},
	}
	// What a reflector would log is noted above, and may show whole objects.
	silent := logr.Discard()
	cache.NewReflectorWithOptions(noted, nil, s, cache.ReflectorOptions{
		Name:            "chandler",
		TypeDescription: s.GroupResource.String(),
		Logger:          &silent,
		Clock:           newImpatient(ctx),
		Backoff:         &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 5 * time.Second},
	}).RunWithContext(klog.NewContext(ctx, silent))
}

// answered takes down what became of a request. Where nothing is found the kind
// may be gone, which is for the catalog to find out.
func (s *set) answered(ctx context.Context, verb string, err error) {
	s.note(ctx, &s.access, s.GroupResource.String(), verb, err)
	if apierrors.IsNotFound(err) {
		signal(s.missing)
	}
}

// impatient is the clock of a reflector, which would sleep on between two tries
// though its context has ended.
type impatient struct {
	clock.RealClock
	after func(time.Duration) <-chan time.Time
}

func newImpatient(ctx context.Context) impatient {
	return impatient{after: func(d time.Duration) <-chan time.Time {
		woken := make(chan time.Time, 2)
		forget := context.AfterFunc(ctx, func() { woken <- time.Now() })
		time.AfterFunc(d, func() {
			forget()
			woken <- time.Now()
		})
		return woken
	}}
}

// After sends the time after d, or when the context ends.
func (c impatient) After(d time.Duration) <-chan time.Time { return c.after(d) }
