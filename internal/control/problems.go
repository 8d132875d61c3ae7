package control

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// problems are what is wrong with the resources. Each is logged when it appears
// and when it is gone. Safe for concurrent use.
type problems struct {
	log   *slog.Logger
	gauge prometheus.Gauge

	mu  sync.Mutex
	now map[resource.Problem]struct{}
}

func newProblems(log *slog.Logger, reg prometheus.Registerer) *problems {
	p := &problems{
		log: log,
		gauge: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chandler_resource_problems",
			Help: "Number of problems with the resources now.",
		}),
	}
	reg.MustRegister(p.gauge)
	return p
}

// set replaces what is wrong by found, in which a problem may be repeated.
func (p *problems) set(found []resource.Problem) {
	next := make(map[resource.Problem]struct{}, len(found))
	for _, problem := range found {
		next[problem] = struct{}{}
	}
	p.mu.Lock()
	before := p.now
	p.now = next
	p.mu.Unlock()
	p.gauge.Set(float64(len(next)))
	for _, problem := range without(next, before) {
		p.log.Warn("resource has a problem", "problem", problem.String())
	}
	for _, problem := range without(before, next) {
		p.log.Info("problem is gone", "problem", problem.String())
	}
}

func (p *problems) all() []resource.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	return without(p.now, nil)
}

// without are the problems in a that are not in b, sorted.
func without(a, b map[resource.Problem]struct{}) []resource.Problem {
	only := slices.Collect(maps.Keys(a))
	only = slices.DeleteFunc(only, func(problem resource.Problem) bool {
		_, ok := b[problem]
		return ok
	})
	slices.SortFunc(only, func(x, y resource.Problem) int { return cmp.Compare(x.String(), y.String()) })
	return only
}
