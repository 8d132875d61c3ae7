package listener

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/engine/stats"
	"github.com/chandler-proxy/chandler/internal/engine/upstream"
)

// A tcpProxy copies bytes to a cluster and back.
type tcpProxy struct {
	cfg                  *config.TCP
	env                  *hcm.Env
	total                uint64
	cxTotal, noRoute     *stats.Value
	received, sent, idle *stats.Value
}

func newTCP(cfg *config.TCP, env *hcm.Env) *tcpProxy {
	scope := stats.Scope{Family: "tcp", Name: cfg.StatPrefix}
	t := &tcpProxy{
		cfg: cfg, env: env,
		cxTotal: env.Stats.Counter(scope, "downstream_cx_total"), noRoute: env.Stats.Counter(scope, "downstream_cx_no_route"),
		received: env.Stats.Counter(scope, "downstream_cx_rx_bytes_total"), sent: env.Stats.Counter(scope, "downstream_cx_tx_bytes_total"),
		idle: env.Stats.Counter(scope, "idle_timeout"),
	}
	for _, w := range cfg.Clusters {
		t.total += uint64(w.Weight)
	}
	return t
}

func (t *tcpProxy) pick() string {
	n := rand.Uint64N(max(t.total, 1))
	for _, w := range t.cfg.Clusters {
		if n < uint64(w.Weight) {
			return w.Cluster
		}
		n -= uint64(w.Weight)
	}
	return ""
}

// serve copies until both sides have ended, one failed, or nothing moved too long. It notes
// in the connection's entry what is to be logged.
func (t *tcpProxy) serve(ctx context.Context, c *hcm.Conn) {
	t.cxTotal.Inc()
	e := c.Entry
	if e == nil {
		e = new(config.Entry)
	}
	cluster := t.env.Cluster(t.pick())
	if cluster == nil {
		t.noRoute.Inc()
		e.Flags = "NC"
		return
	}
	e.Cluster = cluster.Config.StatName
	host, up := t.connect(ctx, cluster, c, e)
	if up == nil {
		return
	}
	host.Report(200)
	defer up.Close()
	e.UpstreamLocal = up.LocalAddr().String()
	stop := context.AfterFunc(ctx, func() { up.Close() })
	defer stop()
	moved := t.watch(c, up)
	var both sync.WaitGroup
	both.Go(func() { e.Received = t.copy(up, c.R, moved, t.received, c, up) })
	e.Sent = t.copy(c.Conn, up, moved, t.sent, c, up)
	both.Wait()
	moved(0)
}

// connect returns a connection to a host of the cluster, nil if there is none to be had.
func (t *tcpProxy) connect(ctx context.Context, cluster *upstream.Cluster, c *hcm.Conn, e *config.Entry) (*upstream.Host, net.Conn) {
	want := upstream.Wanted{Dst: c.Dst}
	want.Hash, want.Hashed = t.cfg.Hash.Hash(&config.Hashed{Remote: c.Remote.Addr()})
	host := cluster.Choose(want)
	if host == nil {
		cluster.Stats.NoneHealthy.Inc()
		e.Flags = "UH"
		return nil, nil
	}
	e.Attempts, e.UpstreamHost = 1, host.Address
	up, err := host.Dial(ctx)
	if err != nil {
		e.Flags, e.UpstreamFailure = "UF,URX", upstream.TransportFailure(err)
		if errors.Is(err, upstream.ErrOverflow) {
			e.Flags = "UO"
		} else {
			host.Report(503)
		}
		return nil, nil
	}
	return host, up
}

// watch closes both sides when nothing moves for too long. The function it returns
// says that something did, or with 0 that it is over.
func (t *tcpProxy) watch(a, b io.Closer) func(n int) {
	if t.cfg.Idle == 0 {
		return func(int) {}
	}
	timer := time.AfterFunc(t.cfg.Idle, func() {
		t.idle.Inc()
		a.Close()
		b.Close()
	})
	return func(n int) {
		if n == 0 {
			timer.Stop()
		} else {
			timer.Reset(t.cfg.Idle)
		}
	}
}

// copy copies one way, and then says that it ended. If it fails both sides are closed. It
// returns how many bytes there were.
func (t *tcpProxy) copy(to net.Conn, from io.Reader, moved func(int), count *stats.Value, sides ...io.Closer) (total int64) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			moved(n)
			count.Add(int64(n))
			total += int64(n)
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if w, ok := to.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
				return total
			}
			fallthrough
		default:
			for _, s := range sides {
				s.Close()
			}
			return total
		}
	}
}
