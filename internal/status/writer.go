package status

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/dynamic"
	eventsv1client "k8s.io/client-go/kubernetes/typed/events/v1"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// A Config is what a Writer must be told. Only Objects is required.
type Config struct {
	// Objects lists, gets and patches the resources. Its own client should not
	// hold calls back (rest.Config.QPS -1): the Writer does.
	Objects dynamic.Interface
	// Events makes events of what turns. Nil makes none.
	Events eventsv1client.EventsGetter
	// Plane is the control plane that writes. Extensions whose status another has
	// written are left alone, as [identity.Plane.May] has it, while There says that
	// the other's namespace is there. Zero marks nothing.
	Plane identity.Plane
	There func(namespace string) bool // default: always
	// Found is told of each extension that is left to another, and when it is not any
	// more. It must not block. Default: nobody.
	Found func(identity.Foreign)
	// Instance is who writes, such as the name of the pod; events name it. Default chandler.
	Instance string

	Interval time.Duration // least time between two writes of one resource, default 1s
	Rate     float32       // most calls a second to the API server, default 100, as Istio's
	Burst    int           // calls that may come at once, default 500, as Istio's
	Timeout  time.Duration // of one call, default 10s
	Resync   time.Duration // between two readings of what is written, default 10m

	Log        *slog.Logger          // default: none
	Registerer prometheus.Registerer // default: metrics are not registered
}

func (c Config) withDefaults() (Config, error) {
	if c.Objects == nil {
		return c, errors.New("objects is required")
	}
	c.Instance = cmp.Or(c.Instance, "chandler")
	if c.There == nil {
		c.There = func(string) bool { return true }
	}
	if c.Found == nil {
		c.Found = func(identity.Foreign) {}
	}
	c.Interval = cmp.Or(c.Interval, time.Second)
	c.Rate = cmp.Or(c.Rate, 100)
	c.Burst = cmp.Or(c.Burst, 500)
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	c.Resync = cmp.Or(c.Resync, 10*time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// A Writer keeps the status of resources as the newest Facts have it.
type Writer struct {
	cfg     Config
	metrics *metrics
	changed chan struct{} // verdicts is another; holds one

	mu       sync.Mutex
	verdicts map[resource.Key]verdict // replaced as a whole, not changed
}

// New returns a Writer that writes nothing until it runs.
func New(cfg Config) (*Writer, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Writer{cfg: cfg, metrics: newMetrics(cfg.Registerer), changed: make(chan struct{}, 1)}, nil
}

// Update takes what is known now of all resources, each once, with and without
// problems; it replaces what it was given before, written or not. Resources that
// are not among facts any more are left as they are. Facts of kinds whose status
// is not written here are passed over. Update does not wait for a write and keeps
// nothing of facts. Safe for concurrent use, also while the Writer does not run.
func (w *Writer) Update(facts []Fact) {
	verdicts := make(map[resource.Key]verdict, len(facts))
	for _, f := range facts {
		if _, ok := resourceOf(f.Key); ok {
			v := judge(f)
			v.plane = w.cfg.Plane
			verdicts[f.Key] = v
		}
	}
	w.mu.Lock()
	w.verdicts = verdicts
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// newest are the verdicts of the newest Facts, not to be changed.
func (w *Writer) newest() map[resource.Key]verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.verdicts
}

// Run writes until ctx ends; it then returns nil. It first reads what is written:
// nothing is taken over from a run before. So it may run again, but not twice at once.
//
// What the API server does not take is tried again, later and later; when it is
// away nothing else is tried meanwhile.
func (w *Writer) Run(ctx context.Context) error {
	t := newTerm(w)
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
		case <-next.C:
		}
		next.Reset(time.Until(t.round(ctx)))
	}
}

// metrics count calls that matter to the API server.
type metrics struct {
	writes *prometheus.CounterVec
	events *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_status_writes_total",
			Help: "Number of writes of a resource's status, by what became of them.",
		}, []string{"result"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_status_events_total",
			Help: "Number of events on resources, by what became of them.",
		}, []string{"result"}),
	}
	if reg != nil {
		reg.MustRegister(m.writes, m.events)
	}
	return m
}
