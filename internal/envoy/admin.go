package envoy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// maxAdminBody bounds what is read of an answer that is held in memory.
const maxAdminBody = 8 << 20

// adminTimeout is how long an answer may take that is held in memory. Envoy's
// main thread gives it, so it can be late under load.
const adminTimeout = 5 * time.Second

// ErrNoStats says that Envoy does not keep the statistics that were asked for,
// as with a stats_matcher in a bootstrap of the user's own.
var ErrNoStats = errors.New("envoy keeps no such statistics")

// A NotReadyError says that Envoy answers but is not live.
type NotReadyError struct {
	State string // as /ready says it: INITIALIZING, PRE_INITIALIZING, DRAINING
}

func (e *NotReadyError) Error() string {
	return "the proxy is " + strings.ToLower(e.State)
}

// An Admin is a client of one Envoy's admin interface. It may be used from
// several goroutines.
type Admin struct {
	addr string
	http *http.Client
}

// NewAdmin returns a client for the admin interface at addr, a host:port or the
// absolute path of a Unix socket.
func NewAdmin(addr string) *Admin {
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	// A process that is watched dies and comes back: no connection is kept.
	return &Admin{addr: addr, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Addr is the address that the client was made for.
func (a *Admin) Addr() string { return a.addr }

// Ready returns nil if Envoy is live: initialized, and not draining. It returns
// a [*NotReadyError] if Envoy answers otherwise.
func (a *Admin) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	resp, err := a.do(ctx, http.MethodGet, "/ready")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return fmt.Errorf("read envoy's /ready: %w", err)
	}
	if state := strings.TrimSpace(string(body)); resp.StatusCode != http.StatusOK || state != "LIVE" {
		return &NotReadyError{State: state}
	}
	return nil
}

// ServerInfo says which Envoy it is, its state and how it was started.
func (a *Admin) ServerInfo(ctx context.Context) (*adminv3.ServerInfo, error) {
	body, err := a.get(ctx, "/server_info")
	if err != nil {
		return nil, err
	}
	info := new(adminv3.ServerInfo)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, info); err != nil {
		return nil, fmt.Errorf("read envoy's server info: %w", err)
	}
	return info, nil
}

// Listeners lists the listeners that accept connections, with the addresses
// that they got.
func (a *Admin) Listeners(ctx context.Context) ([]*adminv3.ListenerStatus, error) {
	body, err := a.get(ctx, "/listeners?format=json")
	if err != nil {
		return nil, err
	}
	list := new(adminv3.Listeners)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, list); err != nil {
		return nil, fmt.Errorf("read envoy's listeners: %w", err)
	}
	return list.ListenerStatuses, nil
}

// Prometheus streams Envoy's statistics in Prometheus' text format. The query
// is passed on; usedonly and filter are Envoy's. The caller closes the stream
// and bounds it by ctx.
func (a *Admin) Prometheus(ctx context.Context, query string) (io.ReadCloser, error) {
	path := "/stats/prometheus"
	if query != "" {
		path += "?" + query
	}
	resp, err := a.do(ctx, http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("get envoy's statistics: %s", resp.Status)
	}
	return resp.Body, nil
}

// Active counts the clients' connections and their unanswered HTTP requests. It
// returns [ErrNoStats] if Envoy was told not to count them.
func (a *Admin) Active(ctx context.Context) (connections, requests int, err error) {
	body, err := a.get(ctx, "/stats?filter="+url.QueryEscape(`downstream_(cx|rq)_active$`))
	if err != nil {
		return 0, 0, err
	}
	return active(string(body))
}

// active reads the answer of Active. Envoy always has a listener for its admin
// interface; if that is not counted, nothing is. Listeners are counted whole and
// again by worker; internal ones connect Envoy with itself.
func active(stats string) (connections, requests int, err error) {
	known := false
	lines := bufio.NewScanner(strings.NewReader(stats))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), ": ")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0, 0, fmt.Errorf("read envoy's statistics: %s: %w", name, err)
		}
		switch {
		case name == "listener.admin.downstream_cx_active":
			known = true
		case strings.HasPrefix(name, "listener.admin."), strings.HasPrefix(name, "http.admin."),
			strings.HasPrefix(name, "listener.envoy_internal_"), strings.Contains(name, ".worker_"):
		case strings.HasPrefix(name, "listener.") && strings.HasSuffix(name, ".downstream_cx_active"):
			connections += n
		case strings.HasPrefix(name, "http.") && strings.HasSuffix(name, ".downstream_rq_active"):
			requests += n
		}
	}
	if err := lines.Err(); err != nil {
		return 0, 0, fmt.Errorf("read envoy's statistics: %w", err)
	}
	if !known {
		return 0, 0, ErrNoStats
	}
	return connections, requests, nil
}

// FailHealthcheck makes Envoy tell every client to go: /ready and health checks
// fail, HTTP/1 answers carry Connection: close, HTTP/2 connections get GOAWAY. It
// goes on accepting connections.
func (a *Admin) FailHealthcheck(ctx context.Context) error {
	return a.post(ctx, "/healthcheck/fail")
}

// StopListening closes the listening sockets at once. Connections that were
// accepted are served on.
func (a *Admin) StopListening(ctx context.Context) error {
	return a.post(ctx, "/drain_listeners")
}

// Quit ends the process at once, as SIGTERM does.
func (a *Admin) Quit(ctx context.Context) error {
	return a.post(ctx, "/quitquitquit")
}

func (a *Admin) post(ctx context.Context, path string) error {
	_, err := a.read(ctx, http.MethodPost, path)
	return err
}

func (a *Admin) get(ctx context.Context, path string) ([]byte, error) {
	return a.read(ctx, http.MethodGet, path)
}

func (a *Admin) read(ctx context.Context, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	resp, err := a.do(ctx, method, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read envoy's %s: %w", path, err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("ask envoy for %s: %s", path, resp.Status)
	case len(body) > maxAdminBody:
		return nil, fmt.Errorf("read envoy's %s: more than %d bytes", path, maxAdminBody)
	}
	return body, nil
}

func (a *Admin) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask envoy for %s: %w", path, err)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		var detail *url.Error // its text repeats method and address
		if errors.As(err, &detail) {
			err = detail.Err
		}
		return nil, fmt.Errorf("ask envoy for %s: %w", path, err)
	}
	return resp, nil
}
