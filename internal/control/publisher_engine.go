package control

import (
	"fmt"
	"sync"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// trials remembers which listeners the embedded engine would refuse, of each class of
// such proxies, so that each is tried once. The zero value is ready for use. Safe for
// concurrent use.
type trials struct {
	mu      sync.Mutex
	classes map[string]map[*xds.Resource]string // reasons, empty if it is good
}

// try is what the embedded engine would refuse of the listeners that a class is given:
// those in snap, which were made of built.
func (t *trials) try(class string, snap *xds.Snapshot, built []*listenerv3.Listener) []resource.Problem {
	t.mu.Lock()
	before := t.classes[class]
	t.mu.Unlock()
	messages := make(map[string]*listenerv3.Listener, len(built))
	for _, m := range built {
		if messages[m.GetName()] == nil { // the first is used
			messages[m.GetName()] = m
		}
	}
	var problems []resource.Problem
	tried := make(map[*xds.Resource]string)
	for _, r := range snap.Resources(xds.ListenerType) {
		reason, known := before[r]
		if !known {
			if _, err := config.DecodeListener(messages[r.Name]); err != nil {
				reason = err.Error()
			}
		}
		tried[r] = reason
		if reason != "" {
			problems = append(problems, resource.Problem{
				Message: fmt.Sprintf("listener %s: the embedded engine cannot do this: %s", r.Name, reason),
				Mend:    "run these proxies with Envoy, or take it out",
			})
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.classes == nil {
		t.classes = make(map[string]map[*xds.Resource]string)
	}
	t.classes[class] = tried
	return problems
}

// keep forgets classes that are not there any more.
func (t *trials) keep(there []xds.Class) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := make(map[string]map[*xds.Resource]string, len(t.classes))
	for _, c := range there {
		if tried, ok := t.classes[c.Key]; ok {
			next[c.Key] = tried
		}
	}
	t.classes = next
}
