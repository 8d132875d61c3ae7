package translate

import (
	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// Problems are those of resources that are for Envoy and for no proxy that there
// is: a mistake in an EnvoyFilter is told before a proxy meets it.
func Problems(w *mesh.World) []resource.Problem {
	var out []resource.Problem
	for _, f := range envoyFilters(w) {
		out = append(out, f.problems...)
	}
	return out
}
