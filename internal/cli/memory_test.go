package cli

import (
	"errors"
	"testing"

	"github.com/chandler-proxy/chandler/internal/inject/agentpod"
)

func TestMemoryTarget(t *testing.T) {
	for name, tt := range map[string]struct {
		limit, own string
		want       int64
		misuse     bool
	}{
		"none":             {},
		"a limit":          {limit: "1073741824", want: 966367641},
		"the user's own":   {limit: "1073741824", own: "100MiB"},
		"a whole node":     {limit: "8796093022208", want: 7916483719987},
		"more than can be": {limit: "9223372036854775807", want: 922337203685477580},
		"no number":        {limit: "1Gi", misuse: true},
		"nothing":          {limit: "0", misuse: true},
		"negative":         {limit: "-1", misuse: true},
	} {
		t.Run(name, func(t *testing.T) {
			variables := map[string]string{agentpod.MemoryVariable: tt.limit, "GOMEMLIMIT": tt.own}
			got, err := memoryTarget(func(name string) (string, bool) { return variables[name], variables[name] != "" })
			if got != tt.want || errors.As(err, new(misuse)) != tt.misuse {
				t.Errorf("memoryTarget = %d, %v; want %d, misuse %v", got, err, tt.want, tt.misuse)
			}
		})
	}
}
