package relay

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestOutage: a control plane that is away is told of at once, then once a minute, and
// when it is back.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		r := &Relay{}
		o := &r.outage
		o.end(log)
		for _, cause := range []string{"refused", "refused again", "no such host"} {
			o.begin(log, errors.New(cause))
			time.Sleep(30 * time.Second) // of the test's clock
		}
		if err := r.Away(); err == nil || err.Error() != "no such host" {
			t.Errorf("away = %v, want the newest cause", err)
		}
		o.end(log)
		o.end(log)
		o.begin(log, errors.New("EOF"))
		want := `level=WARN msg="control plane is away" reason=refused
level=WARN msg="control plane is away" reason="no such host"
level=INFO msg="control plane is back"
level=WARN msg="control plane is away" reason=EOF
`
		if out.String() != want {
			t.Errorf("log:\n%swant:\n%s", &out, want)
		}
	})
}

// TestControlPlaneAwayIsTold: the log and [Relay.Away] name the cause, until it answers.
func TestControlPlaneAwayIsTold(t *testing.T) {
	var out bytes.Buffer
	above, envoy, r := start(t, Config{Log: slog.New(slog.NewTextHandler(&out, nil))})
	real := r.cfg.Upstream
	nobody := must[*grpc.ClientConn](t)(grpc.NewClient("127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer nobody.Close()
	r.cfg.Upstream = nobody
	s := must[discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient](t)(envoy.DeltaAggregatedResources(context.Background()))
	if _, err := s.Recv(); err == nil {
		t.Fatal("a stream without a control plane")
	}
	if err := r.Away(); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("away = %v, want the refusal", err)
	}
	r.cfg.Upstream = real
	s = must[discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient](t)(envoy.DeltaAggregatedResources(context.Background()))
	if err := (<-above.delta).Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil || r.Away() != nil {
		t.Errorf("%v; away = %v, want nil", err, r.Away())
	}
	if text := out.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "is back") {
		t.Errorf("log:\n%s", text)
	}
}
