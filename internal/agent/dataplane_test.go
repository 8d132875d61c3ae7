package agent

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// An engine that is told to quit at its admin interface ends, as an Envoy does,
// and the agent does not wait for it.
func TestEngineQuits(t *testing.T) {
	e, err := openEngine(t.Context(), Config{
		DataDir: t.TempDir(),
		Log:     slog.New(slog.DiscardHandler),
		Proxy:   mesh.Proxy{Role: mesh.Router, Name: "gw", Namespace: "istio-system"},
		Admin:   netip.MustParseAddrPort("127.0.0.1:0"),
	})
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error)
	go func() { ran <- e.Run(t.Context()) }()
	if err := e.admin.Quit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ran; err != nil {
		t.Errorf("Run = %v", err)
	}
}
