//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
)

// A shelf serves modules over HTTP, and knows how often each was taken.
type shelf struct {
	server *httptest.Server

	mu      sync.Mutex
	modules map[string][]byte
	asked   map[string]int           // requests, by name
	gone    map[string]int           // of these, those that were given up while they waited
	gates   map[string]chan struct{} // requests for a name wait until it is closed
}

func startShelf(t testing.TB) *shelf {
	t.Helper()
	s := &shelf{
		modules: make(map[string][]byte),
		asked:   make(map[string]int),
		gone:    make(map[string]int),
		gates:   make(map[string]chan struct{}),
	}
	s.server = httptest.NewServer(s)
	t.Cleanup(s.server.Close)
	return s
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	s.mu.Lock()
	s.asked[name]++
	module, gate := s.modules[name], s.gates[name]
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			s.mu.Lock()
			s.gone[name]++
			s.mu.Unlock()
			return
		}
	}
	if module == nil {
		http.NotFound(w, r)
		return
	}
	w.Write(module) //nolint:errcheck // who gives up is no concern of the shelf's
}

// put offers a module, and returns its URL.
func (s *shelf) put(name string, module []byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.modules[name] = module
	return s.url(name)
}

func (s *shelf) url(name string) string { return s.server.URL + "/" + name }

// hold lets requests for a name wait until the function that it returns is called.
func (s *shelf) hold(name string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gate := make(chan struct{})
	s.gates[name] = gate
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.gates, name)
		close(gate)
	})
}

// count is how often a module was asked for, and how many of these requests
// were given up.
func (s *shelf) count(name string) (asked, gone int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name], s.gone[name]
}

// fetches is how many modules m's agent has fetched since it was started.
func (m *mesh) fetches() float64 {
	m.t.Helper()
	return m.metric(m.AgentHTTP, `istio_agent_wasm_remote_fetch_count{result="success"}`)
}

// conversions is how many extension configs m's agent has made local.
func (m *mesh) conversions() float64 {
	m.t.Helper()
	return m.metric(m.AgentHTTP, `istio_agent_wasm_config_conversion_count{result="success"}`)
}

// page is what a URL answers; an empty one if nothing does.
func page(url string) answer {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	a, err := get(c, url)
	if err != nil {
		return answer{err: err.Error()}
	}
	return a
}

// ready waits until the agent says that its proxy can be sent traffic.
func (m *mesh) ready() {
	m.t.Helper()
	eventually(m.t, "agent is ready", func() error {
		if a := page("http://" + m.AgentHTTP + "/healthz/ready"); a.status != http.StatusOK {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
}

// stats are Envoy's statistics whose name matches a regular expression.
func (m *mesh) stats(filter string) map[string]string {
	m.t.Helper()
	a := page("http://" + m.Admin + "/stats?filter=" + filter)
	if a.status != http.StatusOK {
		m.t.Fatalf("stats: %+v", a)
	}
	found := make(map[string]string)
	for line := range strings.Lines(a.body) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			found[name] = value
		}
	}
	return found
}

// configChanges counts what Envoy has added, changed or removed of its configuration.
func (m *mesh) configChanges() map[string]string {
	m.t.Helper()
	return m.stats(`(listener_manager.listener_(added|modified|removed|in_place_updated)|cluster_manager.cluster_(added|modified|removed)|config_reload)$`)
}

// runs waits until the control plane is told that a proxy runs the newest
// version of an extension.
func (m *mesh) runs(extension string) {
	m.t.Helper()
	eventually(m.t, "proxy runs "+extension, func() error {
		e := m.extension(extension)
		running, _ := e["running"].(map[string]any)
		if len(running) == 0 || e["pending"] != 0.0 || e["refused"] != nil {
			return fmt.Errorf("status %v", e)
		}
		return nil
	})
}

// refusal waits until an extension is refused for a reason that says all of
// these, and returns the reason.
func (m *mesh) refusal(extension string, says ...string) string {
	m.t.Helper()
	reason := ""
	eventually(m.t, "refusal of "+extension, func() error {
		refused, _ := m.extension(extension)["refused"].([]any)
		if len(refused) == 0 {
			return errors.New("none")
		}
		first, _ := refused[0].(map[string]any)
		reason, _ = first["reason"].(string)
		for _, s := range says {
			if !strings.Contains(reason, s) {
				return fmt.Errorf("reason %q does not say %q", reason, s)
			}
		}
		return nil
	})
	return reason
}

// A problem is one at the control plane's /debug/problems.
type problem struct {
	File, Kind, Namespace, Name, Field, Message, Mend string
	Line                                              int
}

func (m *mesh) problems() []problem {
	m.t.Helper()
	a := page("http://" + m.Monitoring + "/debug/problems")
	var all []problem
	if err := json.Unmarshal([]byte(a.body), &all); err != nil {
		m.t.Fatalf("problems: %v in %+v", err, a)
	}
	return all
}

// check ends the load and fails the test if an answer is not allowed.
func (l *load) check(allowed func(answer) bool) {
	l.t.Helper()
	l.stop()
	l.wg.Wait()
	if l.total() == 0 {
		l.t.Error("no answers under load")
	}
	for a, n := range l.seen {
		if !allowed(a) {
			l.t.Errorf("%d of %d requests were answered %+v", n, l.total(), a)
		}
	}
}
