package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/chandler-proxy/chandler/internal/identity"
	"github.com/chandler-proxy/chandler/internal/resource"
)

// Peers says where the other replicas of a control plane are, whose proxies the
// one that writes status has to count too. Replicas know each other by a
// certificate that only they can make: they share the CA.
type Peers struct {
	Service   string // whose endpoints they are
	Namespace string // of the Service
	Self      string // address of this replica, which is not asked
	Account   string // service account of all of them
}

// askAgain is how long a replica that does not answer is left alone.
const askAgain = 2 * time.Second

// peers follows what the other replicas tell of their proxies.
type peers struct {
	cfg     Peers
	trust   Trust
	written func() []resource.Object
	news    *news  // of this replica, and so of its endpoints
	changed func() // they told something new
	log     *slog.Logger

	mu   sync.Mutex
	told map[string]map[string]delivered // by address
}

// add adds what the others have told to to, each proxy once.
func (p *peers) add(to map[string]delivered) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var told []map[string]delivered
	for _, address := range slices.Sorted(maps.Keys(p.told)) {
		told = append(told, p.told[address])
	}
	merge(to, told)
}

// merge adds what others have told to to, each proxy once.
func merge(to map[string]delivered, told []map[string]delivered) {
	for _, one := range told {
		for name, theirs := range one {
			d := to[name]
			if len(d.versions) == 0 {
				d.versions = theirs.versions
			}
			d.proxies = append(d.proxies[:len(d.proxies):len(d.proxies)], theirs.proxies...)
			to[name] = d
		}
	}
	once(to)
}

// Run asks every other replica that there is, until ctx ends.
func (p *peers) Run(ctx context.Context) error {
	var g errgroup.Group
	asked := make(map[string]context.CancelFunc)
	for ctx.Err() == nil {
		next := p.news.next()
		there := p.addresses()
		for address := range asked {
			if !slices.Contains(there, address) {
				asked[address]()
				delete(asked, address)
			}
		}
		for _, address := range there {
			if asked[address] == nil {
				ctx, cancel := context.WithCancel(ctx)
				asked[address] = cancel
				g.Go(func() error { return p.follow(ctx, address) })
			}
		}
		select {
		case <-next:
		case <-ctx.Done():
		}
	}
	for _, cancel := range asked {
		cancel()
	}
	return g.Wait()
}

// addresses are those of the other replicas that are ready.
func (p *peers) addresses() []string {
	var all []string
	for _, o := range p.written() {
		s, ok := o.(*discoveryv1.EndpointSlice)
		if !ok || s.Namespace != p.cfg.Namespace || s.Labels[discoveryv1.LabelServiceName] != p.cfg.Service {
			continue
		}
		for _, port := range s.Ports {
			if port.Name == nil || *port.Name != SecurePort || port.Port == nil {
				continue
			}
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, ip := range e.Addresses {
					if ip != p.cfg.Self {
						all = append(all, net.JoinHostPort(ip, fmt.Sprint(*port.Port)))
					}
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// SecurePort is the name that the control plane's Service gives its secure port.
const SecurePort = "tls-xds"

// follow keeps what the replica at address tells, until ctx ends.
func (p *peers) follow(ctx context.Context, address string) error {
	defer p.forget(address)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		if err := p.ask(ctx, address); ctx.Err() == nil {
			p.log.Warn("replica does not answer", "address", address, "reason", err)
			p.forget(address)
		}
		pause.Reset(askAgain)
	}
}

// ask takes what the replica at address tells until it stops.
func (p *peers) ask(ctx context.Context, address string) error {
	conn, err := p.dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := statusv3.NewClientStatusDiscoveryServiceClient(conn).StreamClientStatus(ctx)
	if err != nil {
		return err
	}
	pause := time.NewTicker(leastPause)
	defer pause.Stop()
	for {
		if err := s.Send(new(statusv3.ClientStatusRequest)); err != nil {
			return err
		}
		response, err := s.Recv()
		if err != nil {
			return err
		}
		to, err := decodeDeliveries(response)
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.told[address] = to
		p.mu.Unlock()
		p.changed()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// fetchTime is how long replicas may take to tell what is so now.
const fetchTime = 3 * time.Second

// fetch asks all other replicas what is so now, and returns what they tell. missing are
// the addresses of those that do not answer.
func (p *peers) fetch(ctx context.Context) (told []map[string]delivered, missing []string) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	var mu sync.Mutex // of what is returned
	var g errgroup.Group
	for _, address := range p.addresses() {
		g.Go(func() error {
			to, err := p.fetchFrom(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				p.log.Warn("replica does not answer", "address", address, "reason", err)
				missing = append(missing, address)
				return nil
			}
			told = append(told, to)
			return nil
		})
	}
	_ = g.Wait() // none returns an error: who is missing is told
	slices.Sort(missing)
	return told, missing
}

func (p *peers) fetchFrom(ctx context.Context, address string) (map[string]delivered, error) {
	conn, err := p.dial(address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	response, err := statusv3.NewClientStatusDiscoveryServiceClient(conn).FetchClientStatus(ctx, new(statusv3.ClientStatusRequest))
	if err != nil {
		return nil, err
	}
	return decodeDeliveries(response)
}

func (p *peers) forget(address string) {
	p.mu.Lock()
	delete(p.told, address)
	p.mu.Unlock()
	p.changed()
}

// dial connects as the control plane itself.
func (p *peers) dial(address string) (*grpc.ClientConn, error) {
	certificate, key, err := p.trust.Authority.IssueClient(p.cfg.Namespace, p.cfg.Account, identity.MaxAge*2)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.trust.Authority.Bundle())
	return grpc.NewClient(address, grpc.WithNoProxy(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		RootCAs:      roots,
		ServerName:   p.cfg.Service + "." + p.cfg.Namespace + ".svc",
	})), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPeerMessage)))
}

// maxPeerMessage bounds what one replica tells, in bytes: a hundred thousand
// proxies with an extension each.
const maxPeerMessage = 64 << 20
