//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
)

// A port of the gateway that another process has when the listener comes is served when
// that process is gone and something else has changed. Nothing else is kept from serving.
func TestGatewayPortTaken(t *testing.T) {
	t.Run("incremental", func(t *testing.T) { takenPort(t, nil) })
	if os.Getenv("CHANDLER_E2E_PROXY") != "engine" { // which has no other variant
		t.Run("state of the world", func(t *testing.T) { takenPort(t, []string{"--state-of-the-world"}) })
	}
}

func takenPort(t *testing.T, args []string) {
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", loopback(freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() // again: it is no error that counts
	address := taken.Addr().String()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, func(m *mesh) { m.AgentArgs = args })
	m.write("second.yaml", secondGateway(port, "one.example"))
	eventually(t, "the port that is taken is refused", func() error {
		a, err := get(http.DefaultClient, "http://"+m.Monitoring+"/debug/syncz")
		if err == nil && !strings.Contains(a.body, port) {
			err = fmt.Errorf("proxies: %s", a.body)
		}
		return err
	})
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	m.write("third.yaml", strings.ReplaceAll(secondGateway(fmt.Sprint(freePort(t)), "two.example"), "second", "third"))
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	eventually(t, "the port that was taken is served", func() error {
		a, err := get(c, "http://"+address+"/")
		if err == nil && a.status != http.StatusNotFound { // it has no route
			err = fmt.Errorf("answer %+v", a)
		}
		return err
	})
	m.answers(200, "")
}

// secondGateway is one more port of the gateway, without routes.
func secondGateway(port, host string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: second, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: %s, name: http, protocol: HTTP}, bind: 127.0.0.1, hosts: [%q]}
`, port, host)
}
