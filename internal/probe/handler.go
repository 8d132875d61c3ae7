package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
)

const (
	// maxBody is how much of an answer's body the kubelet sees, and as much as it
	// reads: 10 KiB.
	maxBody = 10 << 10
	// maxRedirects is after how many the kubelet gives up.
	maxRedirects = 10
)

// A Config is what [Handler] needs to know.
type Config struct {
	Probes Set
	// Pod is the address that the workload is asked at: the pod's, as by the kubelet.
	Pod netip.Addr
	// Source is the address that connections are opened from, so that redirection
	// lets them pass to the workload; see redirect.OwnAddress4. The zero one leaves it
	// to the kernel, as is right without redirection.
	Source netip.Addr
	Log    *slog.Logger
}

// Handler answers the paths of a set with what becomes of their probes: the workload's
// own status and the beginning of its body, 200 for TCP and gRPC that succeed, 500 for
// what fails, and 404 for any other path. The workload gets the request's headers,
// the kubelet's, and those of the probe in place of them.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg: cfg}
	if cfg.Source.IsValid() {
		h.dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(cfg.Source, 0))
	}
	h.client = http.Client{
		Transport: &http.Transport{
			DialContext: h.dialer.DialContext,
			// as the kubelet: a workload's certificate is for its clients, not for its address
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: checkRedirect,
	}
	return h
}

// checkRedirect follows redirects to the same host, as the kubelet does. One that leads
// elsewhere is as good as success.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxRedirects {
		return fmt.Errorf("redirected %d times", maxRedirects)
	}
	return nil
}

type handler struct {
	cfg    Config
	dialer net.Dialer
	client http.Client
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := h.cfg.Probes[r.URL.Path]
	if !ok {
		http.Error(w, "there is no such probe", http.StatusNotFound)
		return
	}
	ctx := r.Context()
	if strings.HasPrefix(r.URL.Path, HealthPrefix) { // an event lasts as long as the kubelet waits
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(cmp.Or(p.TimeoutSeconds, 1))*time.Second)
		defer cancel()
	}
	a, err := h.try(ctx, p, r)
	if err != nil {
		h.cfg.Log.Debug("probe failed", "path", r.URL.Path, "error", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(a.status)
	w.Write(a.body)
}

// An answer is what the kubelet is told.
type answer struct {
	status int
	body   []byte
}

func (h *handler) try(ctx context.Context, p *Probe, r *http.Request) (answer, error) {
	switch {
	case p.HTTPGet != nil:
		return h.get(ctx, p.HTTPGet, r)
	case p.TCPSocket != nil:
		return answer{status: http.StatusOK}, h.connect(ctx, p.TCPSocket.Port.IntValue())
	case p.GRPC != nil:
		return answer{status: http.StatusOK}, h.health(ctx, p.GRPC)
	}
	return answer{}, errors.New("the probe asks for nothing")
}

// at is the workload's address.
func (h *handler) at(port int) string {
	return net.JoinHostPort(h.cfg.Pod.String(), strconv.Itoa(port))
}

func (h *handler) get(ctx context.Context, action *corev1.HTTPGetAction, r *http.Request) (answer, error) {
	req, err := request(ctx, action, h.at(action.Port.IntValue()), r)
	if err != nil {
		return answer{}, err
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return answer{}, withoutURL(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return answer{}, fmt.Errorf("read body: %w", err)
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		// the kubelet would follow it to the agent, so it must not see it
		return answer{status: http.StatusOK, body: body}, nil
	}
	return answer{status: resp.StatusCode, body: body}, nil
}

// withoutURL is the cause alone: an address may have a token in its query.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// request is what the kubelet would have sent to the workload at address; r is what
// it sent to the agent.
func request(ctx context.Context, action *corev1.HTTPGetAction, address string, r *http.Request) (*http.Request, error) {
	u, err := url.Parse(action.Path) // it may bring a query, as with the kubelet
	if err != nil {
		u = &url.URL{Path: action.Path}
	}
	u.Scheme, u.Host = strings.ToLower(string(cmp.Or(action.Scheme, corev1.URISchemeHTTP))), address
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, withoutURL(err)
	}
	for name, values := range r.Header {
		if !ofConnection(name) {
			req.Header[name] = values
		}
	}
	given := http.Header{}
	for _, h := range action.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
			continue
		}
		given.Add(h.Name, h.Value)
	}
	for name, values := range given {
		req.Header[name] = values
	}
	return req, nil
}

// ofConnection says whether a header was for the agent alone.
func ofConnection(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

func (h *handler) connect(ctx context.Context, port int) error {
	c, err := h.dialer.DialContext(ctx, "tcp", h.at(port))
	if err != nil {
		return err
	}
	return c.Close()
}

// health asks gRPC's health service, in plain text as the kubelet does.
func (h *handler) health(ctx context.Context, action *corev1.GRPCAction) error {
	conn, err := grpc.NewClient("passthrough:///"+h.at(int(action.Port)),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithUserAgent("kube-probe"),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return h.dialer.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	var service string
	if action.Service != nil {
		service = *action.Service
	}
	resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: service})
	if err != nil {
		return err
	}
	if s := resp.GetStatus(); s != healthv1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service %q is %s", service, s)
	}
	return nil
}
