package agent

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// dial returns a connection to the ADS server at addr, made when it is first
// used and made anew, with backoff and jitter, whenever it breaks.
func dial(addr string, id identity.Client) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	proved := id != (identity.Client{})
	if proved {
		if err := id.Check(); err != nil { // told at once, rather than at every attempt
			return nil, err
		}
		options = id.DialOptions()
	}
	conn, err := grpc.NewClient(addr, append(options,
		grpc.WithNoProxy(), // the control plane is a neighbour
		grpc.WithDefaultCallOptions(
			// What Envoy is sent, it must be able to have: no limit of our own.
			grpc.MaxCallRecvMsgSize(math.MaxInt32),
		),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(pings(proved)),
	)...)
	if err != nil {
		return nil, fmt.Errorf("connect to control plane %s: %w", addr, err)
	}
	return conn, nil
}

// pings notice a control plane that is gone without a word, as where a node or its
// network dies. Where the agent proves who it is there is Chandler's, which takes a
// ping every 10 s, gRPC's least: it is noticed in 15 s. Of any other as much is
// asked as Istio's agent asks, 40 s: a server that takes fewer pings hangs up on
// whoever sends more.
func pings(proved bool) keepalive.ClientParameters {
	if !proved {
		return keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}
	}
	return keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}
}
