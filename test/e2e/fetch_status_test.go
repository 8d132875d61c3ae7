//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// in is m for a subtest: what goes wrong fails t, and ends with it.
func (m *mesh) in(t testing.TB) *mesh {
	c := *m
	c.t = t
	return &c
}

// agentEnv sets variables of the agent's environment.
func agentEnv(env ...string) func(*mesh) {
	return func(m *mesh) { m.AgentEnv = append(m.AgentEnv, env...) }
}

// resources puts a file in place before the mesh starts.
func resources(name, content string) func(*mesh) {
	return func(m *mesh) { m.write(name, content) }
}

// The series that tests look at.
const (
	rejects = `pilot_total_xds_rejects{type="type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"}`
	entries = "istio_agent_wasm_cache_entries"
	timed   = "istio_agent_wasm_config_conversion_duration_count"
	missed  = `istio_agent_wasm_cache_lookup_count{hit="false"}`
	hit     = `istio_agent_wasm_cache_lookup_count{hit="true"}`
)

func fetches(result string) string {
	return fmt.Sprintf("istio_agent_wasm_remote_fetch_count{result=%q}", result)
}

func conversions(result string) string {
	return fmt.Sprintf("istio_agent_wasm_config_conversion_count{result=%q}", result)
}

// counts are the counters that a failure moves.
type counts struct{ rejects, fetches, conversions float64 }

// counts reads the counters of nacks, of fetches with result, and of
// conversions that failed because of the fetch.
func (m *mesh) counts(result string) counts {
	m.t.Helper()
	return counts{
		rejects:     m.metric(m.Monitoring, rejects),
		fetches:     m.metric(m.AgentHTTP, fetches(result)),
		conversions: m.metric(m.AgentHTTP, conversions("fetch_failure")),
	}
}

// moved fails the test unless every counter is higher than before.
func (m *mesh) moved(result string, before counts) {
	m.t.Helper()
	now := m.counts(result)
	if now.rejects <= before.rejects || now.fetches <= before.fetches || now.conversions <= before.conversions {
		m.t.Errorf("counters of rejects, %s and fetch_failure went from %v to %v, want all higher", result, before, now)
	}
}

// refused waits until the status of a WasmPlugin says that the proxy refuses its
// newest version, for a reason that has all of these in it.
func (m *mesh) refused(name string, reason ...string) {
	m.t.Helper()
	m.refusal("/istio-system."+name, reason...)
}

// accepted waits until the status of a WasmPlugin says that the proxy runs its newest version.
func (m *mesh) accepted(name string) {
	m.t.Helper()
	m.runs("/istio-system." + name)
}

// hasProblem waits until the control plane tells of a problem with a field.
func (m *mesh) hasProblem(field, message string) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("problem of %s: %s", field, message), func() error {
		all := m.problems()
		for _, p := range all {
			if p.Field == field && strings.Contains(p.Message, message) && p.Mend != "" {
				return nil
			}
		}
		return fmt.Errorf("problems are %+v", all)
	})
}

// page is what a server of the mesh's says.
func (m *mesh) page(addr, path string) string {
	m.t.Helper()
	a := page("http://" + addr + path)
	if a.status != http.StatusOK {
		m.t.Fatalf("%s%s: %+v", addr, path, a)
	}
	return a.body
}

// loads waits until Envoy's own configuration names the file of that module.
func (m *mesh) loads(module []byte) {
	m.t.Helper()
	want := hexDigest(module)
	eventually(m.t, "Envoy loads "+want, func() error {
		if dump := m.page(m.Admin, "/config_dump?resource=ecds_filters"); !strings.Contains(dump, want) {
			return fmt.Errorf("its configuration is %s", dump)
		}
		return nil
	})
}

// hides fails the test if one of the secrets is in anything that the mesh
// prints, serves or stores.
func (m *mesh) hides(secrets ...string) {
	m.t.Helper()
	seen := map[string]string{
		"log of the agent and Envoy":   m.Agent.Output(m.t),
		"log of the control plane":     m.Control.Output(m.t),
		"configuration of Envoy":       m.page(m.Admin, "/config_dump?include_eds"),
		"clusters of Envoy":            m.page(m.Admin, "/clusters"),
		"stats of Envoy":               m.page(m.Admin, "/stats"),
		"metrics of the agent":         m.page(m.AgentHTTP, "/metrics"),
		"metrics of the control plane": m.page(m.Monitoring, "/metrics"),
	}
	for _, path := range []string{"/debug/syncz", "/debug/extensionz", "/debug/problems", "/debug/worldz"} {
		seen[path] = m.page(m.Monitoring, path)
	}
	var proxies []struct{ Proxy string }
	if err := json.Unmarshal([]byte(seen["/debug/syncz"]), &proxies); err != nil || len(proxies) != 1 {
		m.t.Fatalf("syncz tells of %d proxies, %v", len(proxies), err)
	}
	dump := "/debug/config_dump?proxyID=" + url.QueryEscape(proxies[0].Proxy)
	seen[dump] = m.page(m.Monitoring, dump)
	m.files(m.Data, seen)
	for where, text := range seen {
		for _, secret := range secrets {
			if i := strings.Index(text, secret); i >= 0 {
				m.t.Errorf("%s: the secret %s is in it: …%.300s", where, secret, text[max(0, i-100):])
			}
		}
	}
}

// files adds what is in the files below dir.
func (m *mesh) files(dir string, to map[string]string) {
	m.t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		n++
		content, err := os.ReadFile(path)
		to["file "+path] = string(content)
		return err
	})
	if err != nil || n == 0 {
		m.t.Errorf("read %d files below the agent's folder: %v", n, err)
	}
}
