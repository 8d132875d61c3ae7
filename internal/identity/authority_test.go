package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A memory is a Keeper that several authorities of one test share.
type memory struct {
	mu       sync.Mutex
	kept     Kept
	serial   int
	saves    int
	err      error // of every call
	watchers []func()
	hurry    func() // called once before the next save: another replica's chance
}

func (m *memory) Load(context.Context) (Kept, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept, m.err
}

func (m *memory) Save(_ context.Context, data []byte, version string) error {
	m.mu.Lock()
	hurry := m.hurry
	m.hurry = nil
	m.mu.Unlock()
	if hurry != nil {
		hurry()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if m.kept.Version != version {
		return ErrConflict
	}
	m.saves++
	m.put(data)
	return nil
}

func (m *memory) put(data []byte) {
	m.serial++
	m.kept = Kept{Data: data, Version: strconv.Itoa(m.serial)}
	for _, changed := range m.watchers {
		changed()
	}
}

func (m *memory) Watch(ctx context.Context, changed func()) error {
	m.mu.Lock()
	m.watchers = append(m.watchers, changed)
	m.mu.Unlock()
	changed()
	<-ctx.Done()
	return nil
}

// replace puts s in place of what is kept, as another replica would.
func (m *memory) replace(t *testing.T, s state) {
	t.Helper()
	data, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(data)
}

func open(t *testing.T, keeper Keeper, lead func() bool) *Authority {
	t.Helper()
	return openWith(t, keeper, lead, testPolicy)
}

func openWith(t *testing.T, keeper Keeper, lead func() bool, policy Policy) *Authority {
	t.Helper()
	a, err := Open(t.Context(), AuthorityConfig{
		Keeper: keeper, Names: []string{"chandler.test", "127.0.0.1"}, Lead: lead, Policy: policy,
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func never() bool { return false }

// start runs a until the test's context ends.
func start(t *testing.T, a *Authority) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// handshake connects a client with those roots, and that certificate if any, to
// a server of a. It returns what the server and the client see of each other.
func handshake(t *testing.T, a *Authority, bundle []byte, pair *tls.Certificate) (client, server *x509.Certificate, err error) {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		t.Fatal("bundle has no certificate")
	}
	config := &tls.Config{RootCAs: roots, ServerName: "chandler.test"}
	if pair != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	c, s := tls.Client(here, config), tls.Server(there, a.ServerTLS())
	served := make(chan error, 1)
	go func() {
		_, err := s.Write([]byte("x")) // after the handshake
		served <- err
	}()
	// A client learns only here what the server thinks of its certificate.
	_, err = c.Read(make([]byte, 1))
	if err != nil {
		here.Close()
	}
	if err = errors.Join(err, <-served); err != nil {
		return nil, nil, err
	}
	if chains := s.ConnectionState().VerifiedChains; len(chains) > 0 {
		client = chains[0][0]
	}
	return client, c.ConnectionState().PeerCertificates[0], nil
}

func issue(t *testing.T, a *Authority, life time.Duration) *tls.Certificate {
	t.Helper()
	certificate, key, err := a.IssueClient("default", "httpbin", life)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

func count(bundle []byte) (n int) {
	return bytes.Count(bundle, []byte("BEGIN CERTIFICATE"))
}

// TestRotation lives through three roots, with a leader and a follower. A client
// that has read the bundle within Publish trusts both at any time, and a client
// certificate is good at both until it ends.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := new(memory)
		policy := Policy{Life: 240 * time.Hour, Overlap: 60 * time.Hour, Publish: 24 * time.Hour}
		leader := openWith(t, keeper, nil, policy)
		follower := openWith(t, keeper, never, policy)
		start(t, leader)
		start(t, follower)
		const every, life = 5 * time.Hour, 25 * time.Hour
		bundles := [][]byte{leader.Bundle(), leader.Bundle(), leader.Bundle()}
		pairs := slices.Repeat([]*tls.Certificate{issue(t, leader, life)}, 4)
		first := leader.Bundle()
		var phases []phase
		for range 120 {
			time.Sleep(every)
			synctest.Wait()
			if s := leader.held(); len(phases) == 0 || phases[len(phases)-1] != s.phase {
				phases = append(phases, s.phase)
			}
			bundles = append(bundles, leader.Bundle())
			pairs = append(pairs, issue(t, leader, life))
			stale, old := bundles[len(bundles)-3], pairs[len(pairs)-5]
			for name, a := range map[string]*Authority{"leader": leader, "follower": follower} {
				client, server, err := handshake(t, a, stale, old)
				if err != nil {
					t.Fatalf("%s in phase %s: %v", name, a.held().phase, err)
				}
				if client == nil || client.URIs[0].String() != "spiffe://cluster.local/ns/default/sa/httpbin" {
					t.Fatalf("%s: client is %v", name, client)
				}
				if left := time.Until(server.NotAfter); left < servingLife/2-every && !server.NotAfter.Equal(leader.held().signer().certificate.NotAfter) {
					t.Fatalf("%s: certificate served has only %v left", name, left)
				}
			}
			if !bytes.Equal(leader.Bundle(), follower.Bundle()) {
				t.Fatal("leader and follower have different roots")
			}
		}
		want := []phase{steady, publishing, retiring, steady, publishing, retiring, steady, publishing, retiring, steady}
		if !slices.Equal(phases, want) {
			t.Errorf("phases = %v, want %v", phases, want)
		}
		if _, _, err := handshake(t, leader, first, nil); err == nil {
			t.Error("the first root is still good for something")
		}
	})
}

func TestServingCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, new(memory), nil)
		serial := func() string {
			_, server, err := handshake(t, a, a.Bundle(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return server.SerialNumber.String()
		}
		first := serial()
		time.Sleep(11 * time.Hour)
		if serial() != first {
			t.Error("certificate replaced before half of its life")
		}
		time.Sleep(time.Hour)
		second := serial()
		if second == first {
			t.Error("certificate not replaced at half of its life")
		}
	})
}

// TestFirstRoot: of replicas that start at once, all take the CA of one.
func TestFirstRoot(t *testing.T) {
	keeper := new(memory)
	var other *Authority
	keeper.hurry = func() { other = open(t, keeper, never) }
	a := open(t, keeper, never)
	if !bytes.Equal(a.Bundle(), other.Bundle()) {
		t.Error("two replicas have made a CA each")
	}
	if keeper.saves != 1 {
		t.Errorf("%d saves, want 1", keeper.saves)
	}
}

func TestFollowerTakesNoStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lead bool
		var mu sync.Mutex
		keeper := new(memory)
		a := open(t, keeper, func() bool { mu.Lock(); defer mu.Unlock(); return lead })
		start(t, a)
		time.Sleep(950 * time.Hour)
		synctest.Wait()
		if n := count(a.Bundle()); n != 1 || keeper.saves != 1 {
			t.Fatalf("a follower has made a root: %d roots, %d saves", n, keeper.saves)
		}
		mu.Lock()
		lead = true
		mu.Unlock()
		time.Sleep(resync)
		synctest.Wait()
		if n := count(a.Bundle()); n != 2 {
			t.Errorf("%d roots after coming to lead, want 2", n)
		}
	})
}

func TestRemovedIsPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := new(memory)
		a := open(t, keeper, never)
		start(t, a)
		before := a.Bundle()
		keeper.mu.Lock()
		keeper.kept = Kept{}
		changed := keeper.watchers
		keeper.mu.Unlock()
		synctest.Wait()
		for _, f := range changed {
			f()
		}
		time.Sleep(resync)
		synctest.Wait()
		kept, err := keeper.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s, err := decodeState(kept.Data)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.bundle(), before) || !bytes.Equal(a.Bundle(), before) {
			t.Error("another CA was made in place of the one that was removed")
		}
	})
}

// TestOutage: without its keeper an authority goes on, and catches up after it.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := new(memory)
		a := open(t, keeper, nil)
		start(t, a)
		keeper.mu.Lock()
		keeper.err = errors.New("no answer")
		keeper.mu.Unlock()
		time.Sleep(950 * time.Hour)
		synctest.Wait()
		if _, _, err := handshake(t, a, a.Bundle(), nil); err != nil {
			t.Errorf("during the outage: %v", err)
		}
		keeper.mu.Lock()
		keeper.err = nil
		keeper.mu.Unlock()
		time.Sleep(retry)
		synctest.Wait()
		if n := count(a.Bundle()); n != 2 {
			t.Errorf("%d roots after the outage, want 2", n)
		}
	})
}

func TestMalformedIsNotOverwritten(t *testing.T) {
	keeper := &memory{kept: Kept{Data: []byte("{}"), Version: "0"}}
	_, err := Open(t.Context(), AuthorityConfig{Keeper: keeper, Names: []string{"x"}})
	if !errors.Is(err, ErrState) {
		t.Errorf("error = %v, want ErrState", err)
	}
	if string(keeper.kept.Data) != "{}" {
		t.Error("what was kept is overwritten")
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := new(memory)
		a := open(t, keeper, nil)
		start(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		var told []int
		done := make(chan error, 1)
		go func() { done <- a.Follow(ctx, func(bundle []byte) { told = append(told, count(bundle)) }) }()
		time.Sleep(1005 * time.Hour)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 2, 1}; !slices.Equal(told, want) {
			t.Errorf("told of %v roots, want %v", told, want)
		}
	})
}

func TestIssueClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := open(t, new(memory), nil)
		if _, server, err := handshake(t, a, a.Bundle(), nil); err != nil || len(server.URIs) != 0 {
			t.Fatalf("without certificate: %v", err)
		}
		pair := issue(t, a, 10_000*time.Hour)
		if end := a.held().signer().certificate.NotAfter; !pair.Leaf.NotAfter.Equal(end) {
			t.Errorf("certificate ends at %v, its root at %v", pair.Leaf.NotAfter, end)
		}
		short := issue(t, a, time.Hour)
		time.Sleep(2 * time.Hour)
		if _, _, err := handshake(t, a, a.Bundle(), short); err == nil {
			t.Error("an expired client certificate is taken")
		}
		other := open(t, new(memory), nil)
		if _, _, err := handshake(t, a, a.Bundle(), issue(t, other, time.Hour)); err == nil {
			t.Error("a client certificate of another CA is taken")
		}
		// A server's certificate is no client's.
		if _, _, err := handshake(t, a, a.Bundle(), a.serving); err == nil {
			t.Error("a serving certificate is taken as a client's")
		}
		for _, bad := range [][2]string{{"", "x"}, {"x", ""}, {"a/b", "x"}, {"x", "a/b"}, {"A", "x"}} {
			if _, _, err := a.IssueClient(bad[0], bad[1], time.Hour); err == nil {
				t.Errorf("issued for %q", bad)
			}
		}
		if _, _, err := a.IssueClient("x", "x", 0); err == nil {
			t.Error("issued for no time at all")
		}
	})
}

func TestExpiryMetric(t *testing.T) {
	metrics := prometheus.NewRegistry()
	a, err := Open(t.Context(), AuthorityConfig{Keeper: new(memory), Names: []string{"x"}, Registerer: metrics})
	if err != nil {
		t.Fatal(err)
	}
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(a.Bundle())
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if got := families[0].GetMetric()[0].GetGauge().GetValue(); got != float64(certificate.NotAfter.Unix()) {
		t.Errorf("metric = %v, want %v", got, certificate.NotAfter.Unix())
	}
}

func TestAuthorityConfig(t *testing.T) {
	for _, tt := range []struct {
		cfg  AuthorityConfig
		says string
	}{
		{AuthorityConfig{Names: []string{"x"}}, "keeper"},
		{AuthorityConfig{Keeper: new(memory)}, "names"},
		{AuthorityConfig{Keeper: new(memory), Names: []string{"x"}, Domain: "A b"}, "trust domain"},
		{AuthorityConfig{Keeper: new(memory), Names: []string{"x"}, Policy: Policy{Life: 1, Overlap: 1}}, "successor"},
	} {
		if _, err := Open(t.Context(), tt.cfg); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("error = %v, want one that says %q", err, tt.says)
		}
	}
}
