package identity

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

const (
	// DefaultDomain is the SPIFFE trust domain unless another is told, as Istio's.
	DefaultDomain = "cluster.local"

	// servingLife is that of a server's certificate; it is replaced at half of it.
	servingLife = 24 * time.Hour
	// resync is how often the kept state is read though nothing told of a change;
	// a replica that has come to lead notices by then.
	resync = 10 * time.Minute
	// retry is how long after an error the kept state is read again.
	retry = 30 * time.Second
	// attempts is how often a save is tried while others are faster.
	attempts = 5
)

// An AuthorityConfig is what an [Authority] must be told. Keeper and Names are
// required.
type AuthorityConfig struct {
	Keeper Keeper
	Names  []string // DNS names and IP addresses of this server
	Domain string   // SPIFFE trust domain of clients, default [DefaultDomain]
	// Lead says whether this replica is the one that replaces roots; nil means
	// yes. The first root any replica makes, and all take the one that was first.
	Lead   func() bool
	Policy Policy

	Log        *slog.Logger          // default: none
	Registerer prometheus.Registerer // default: metrics are not registered
}

func (c AuthorityConfig) withDefaults() (AuthorityConfig, error) {
	if c.Keeper == nil {
		return c, errors.New("keeper is required")
	}
	if len(c.Names) == 0 {
		return c, errors.New("names of the server are required")
	}
	c.Domain = cmp.Or(c.Domain, DefaultDomain)
	if !validDomain(c.Domain) {
		return c, fmt.Errorf("trust domain %q is not one", c.Domain)
	}
	if c.Lead == nil {
		c.Lead = func() bool { return true }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var err error
	c.Policy, err = c.Policy.withDefaults()
	return c, err
}

// An Authority is the control plane's own CA. Its methods are safe for concurrent
// use.
type Authority struct {
	cfg AuthorityConfig

	mu      sync.Mutex
	state   state
	pool    *x509.CertPool // of the state's roots
	changed chan struct{}  // closed when the state is replaced
	serving *tls.Certificate
	signer  *x509.Certificate // that issued serving
}

// Open loads the CA from its keeper, and makes one if none is kept. The error
// wraps [ErrState] if what is kept is something else.
func Open(ctx context.Context, cfg AuthorityConfig) (*Authority, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a := &Authority{cfg: cfg, changed: make(chan struct{})}
	if err := a.sync(ctx); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if cfg.Registerer != nil {
		// Istio's name: alerts are written for it.
		cfg.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "citadel_server_root_cert_expiry_timestamp",
			Help: "When the root that signs certificates ends, in Unix time.",
		}, func() float64 { return float64(a.held().signer().certificate.NotAfter.Unix()) }))
	}
	return a, nil
}

// Run keeps the CA current until ctx ends: it follows what other replicas have
// done and, if it leads, takes the steps that are due. While the keeper cannot be
// reached, what is known goes on to be used.
func (a *Authority) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.cfg.Keeper.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	g.Go(func() error {
		a.follow(ctx, changed)
		return nil
	})
	return g.Wait()
}

func (a *Authority) follow(ctx context.Context, changed <-chan struct{}) {
	timer := time.NewTimer(a.wait(time.Now()))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
		}
		switch err := a.sync(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.cfg.Log.Warn("certificate authority not current", "error", err, "retry", retry)
			timer.Reset(retry)
		default:
			timer.Reset(a.wait(time.Now()))
		}
	}
}

// wait is how long nothing is due.
func (a *Authority) wait(now time.Time) time.Duration {
	next, at := a.cfg.Policy.due(a.held(), now)
	if next != stepNone { // another replica's business
		return resync
	}
	return min(at.Sub(now), resync)
}

// sync takes over what is kept and does what is due.
func (a *Authority) sync(ctx context.Context) error {
	for range attempts {
		err := a.trySync(ctx)
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return ErrConflict
}

func (a *Authority) trySync(ctx context.Context) error {
	kept, err := a.cfg.Keeper.Load(ctx)
	if err != nil {
		return err
	}
	var current state
	if len(kept.Data) > 0 {
		if current, err = decodeState(kept.Data); err != nil {
			return err
		}
		a.adopt(current)
	} else {
		// If it was removed, proxies still trust what it was: it is put back.
		current = a.held()
	}
	next, done, err := a.advance(current, time.Now())
	if err != nil || len(kept.Data) > 0 && len(done) == 0 {
		return err
	}
	data, err := next.encode()
	if err != nil {
		return err
	}
	if err := a.cfg.Keeper.Save(ctx, data, kept.Version); err != nil {
		return err
	}
	a.adopt(next)
	if len(done) == 0 {
		a.cfg.Log.Warn("certificate authority was removed and is put back")
		return nil
	}
	a.cfg.Log.Info("certificate authority changed", "steps", done, "phase", next.phase,
		"roots", len(next.roots), "ends", next.signer().certificate.NotAfter)
	return nil
}

// advance takes the steps that are due and this replica's to take.
func (a *Authority) advance(s state, now time.Time) (state, []step, error) {
	var done []step
	for s.empty() || a.cfg.Lead() {
		next, _ := a.cfg.Policy.due(s, now)
		if next == stepNone {
			break
		}
		var err error
		if s, err = a.cfg.Policy.take(s, next, now); err != nil {
			return state{}, nil, err
		}
		done = append(done, next)
	}
	return s, done, nil
}

// adopt makes s the state, and tells of it if it is another.
func (a *Authority) adopt(s state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	same := slices.EqualFunc(a.state.roots, s.roots, func(a, b root) bool { return a.certificate.Equal(b.certificate) })
	a.state = s
	if same {
		return
	}
	a.pool = s.pool()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Authority) held() state {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

// Bundle is the roots to trust now, as PEM: one, or two while one replaces the other.
func (a *Authority) Bundle() []byte { return a.held().bundle() }

// Follow calls deliver with the bundle, and with the new one whenever it has
// changed, never concurrently, until ctx ends; then it returns nil.
func (a *Authority) Follow(ctx context.Context, deliver func(bundle []byte)) error {
	for ctx.Err() == nil {
		a.mu.Lock()
		s, changed := a.state, a.changed
		a.mu.Unlock()
		deliver(s.bundle())
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	return nil
}

// ServerTLS is the configuration of a server with a certificate of this CA, which
// is always a current one. Clients need not have a certificate; one that they
// have must be of this CA. It serves HTTP/2 and HTTP/1.1.
func (a *Authority) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			certificate, roots, err := a.current(time.Now())
			if err != nil {
				a.cfg.Log.Error("no certificate to serve", "error", err)
				return nil, err
			}
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				NextProtos:   []string{"h2", "http/1.1"},
				Certificates: []tls.Certificate{*certificate},
				ClientAuth:   tls.VerifyClientCertIfGiven,
				ClientCAs:    roots,
				// A resumed session would be judged by the roots of its beginning.
				SessionTicketsDisabled: true,
			}, nil
		},
	}
}

// current is the certificate to serve and the roots to trust. A certificate is
// replaced at half of its life, and at once when another root signs.
func (a *Authority) current(now time.Time) (*tls.Certificate, *x509.CertPool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	signer := a.state.signer()
	if a.serving != nil && signer.certificate.Equal(a.signer) && now.Before(halfLife(a.serving.Leaf)) {
		return a.serving, a.pool, nil
	}
	der, key, err := signer.issue(now, servingLife, servingTemplate(a.cfg.Names))
	if err != nil {
		return nil, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	a.serving = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	a.signer = signer.certificate
	return a.serving, a.pool, nil
}

func halfLife(c *x509.Certificate) time.Time {
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 2)
}

// IssueClient makes a key and a certificate by which a client proves to be that
// service account of the namespace, both as PEM. It is valid for life from now on,
// or until the signing root ends if that is earlier.
func (a *Authority) IssueClient(namespace, serviceAccount string, life time.Duration) (certificate, key []byte, err error) {
	id := ID{Domain: a.cfg.Domain, Namespace: namespace, ServiceAccount: serviceAccount}
	if err := id.check(); err != nil {
		return nil, nil, fmt.Errorf("issue client certificate: %w", err)
	}
	if life <= 0 {
		return nil, nil, fmt.Errorf("issue client certificate: life %v is over before it begins", life)
	}
	der, private, err := a.held().signer().issue(time.Now(), life, &x509.Certificate{
		URIs:        []*url.URL{id.url()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("issue client certificate: %w", err)
	}
	if key, err = keyPEM(private); err != nil {
		return nil, nil, fmt.Errorf("issue client certificate: %w", err)
	}
	return certificatePEM(der), key, nil
}
