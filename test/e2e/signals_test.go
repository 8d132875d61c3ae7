//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
)

// slowly has a request under way that is never answered, for which a drain waits.
func slowly(t *testing.T) (option func(*mesh), begin func(m *mesh)) {
	t.Helper()
	begun := make(chan struct{})
	backend := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(begun)
			<-r.Context().Done()
		}
	}))
	t.Cleanup(backend.Close)
	option = func(m *mesh) { m.write("gateway.yaml", gateway(m.Gateway, backend.Listener.Addr().String())) }
	begin = func(m *mesh) {
		c, err := net.Dial("tcp", m.Gateway)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := fmt.Fprintf(c, "GET /slow HTTP/1.1\r\nHost: %s\r\n\r\n", m.Gateway); err != nil {
			t.Fatal(err)
		}
		<-begun
	}
	return option, begin
}

// TestAgentSignals: the end of a terminal drains and stops the proxy as Ctrl-C does, and
// a second signal does not wait for a drain that would take longer than anyone would.
func TestAgentSignals(t *testing.T) {
	for _, tt := range []struct {
		name    string
		signals []syscall.Signal
	}{
		{"hangup", []syscall.Signal{syscall.SIGHUP}},
		{"twice", []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			slow, begin := slowly(t)
			m := start(t, slow, func(m *mesh) {
				if len(tt.signals) > 1 {
					m.AgentEnv = append(m.AgentEnv, "TERMINATION_DRAIN_DURATION_SECONDS=3600")
				}
			})
			begin(m)
			for i, s := range tt.signals {
				if err := m.Agent.Cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
				if i+1 < len(tt.signals) {
					eventually(t, "the drain begins", func() error {
						if out := m.Agent.Output(t); !strings.Contains(out, " draining") {
							return fmt.Errorf("the agent says %s", out)
						}
						return nil
					})
				}
			}
			eventually(t, "the agent ends", func() error {
				select {
				case <-m.Agent.Done:
					return nil
				default:
					return fmt.Errorf("the agent says %s", m.Agent.Output(t))
				}
			})
			if code := m.Agent.Cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if _, err := http.Get("http://" + m.Admin + "/ready"); err == nil {
				t.Error("the proxy goes on without its agent")
			}
		})
	}
}
