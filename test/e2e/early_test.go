//go:build e2e

package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The head of a response reaches the client before there is anything of its body:
// clients of streams wait for it. Over each version of HTTP, on either side.
func TestGatewayPassesHeadsOn(t *testing.T) {
	for _, protocol := range []string{"http", "grpc"} { // how the backend's port is named: HTTP/1.1, HTTP/2
		t.Run("backend "+protocol, func(t *testing.T) {
			seen := make(chan struct{})
			backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/" { // asks whether the gateway serves
					return
				}
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush() // the client tells
				select {
				case <-seen:
					_, _ = io.WriteString(w, "body")
				case <-r.Context().Done():
				}
			}))
			backend.Config.Protocols = protocols(true, true)
			backend.Start()
			t.Cleanup(backend.Close)
			m := start(t, func(m *mesh) {
				text := gateway(m.Gateway, backend.Listener.Addr().String())
				text = strings.ReplaceAll(text, "{name: http, port: 80,", "{name: "+protocol+", port: 80,")
				m.write("gateway.yaml", strings.ReplaceAll(text, "ports: [{name: http, port", "ports: [{name: "+protocol+", port"))
			})
			for name, p := range map[string]*http.Protocols{"HTTP/1.1": protocols(true, false), "HTTP/2": protocols(false, true)} {
				c := &http.Client{Transport: &http.Transport{Protocols: p, DisableKeepAlives: true}, Timeout: patience}
				res, err := c.Get("http://" + m.Gateway + "/late")
				if err != nil {
					t.Fatalf("client of %s: %v", name, err)
				}
				seen <- struct{}{}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != http.StatusOK || string(body) != "body" {
					t.Errorf("client of %s: %s %q, %v", name, res.Status, body, err)
				}
			}
		})
	}
}

func protocols(one, two bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(one)
	p.SetUnencryptedHTTP2(two)
	return p
}
