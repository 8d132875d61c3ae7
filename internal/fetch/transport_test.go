package fetch

import (
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestBlocks(t *testing.T) {
	tr := NewTransport(TransportConfig{Blocked: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32")}})
	for addr, want := range map[string]bool{
		"169.254.169.254": true, "169.254.0.1": true, "::ffff:169.254.169.254": true, "64:ff9b::a9fe:a9fe": true,
		"fe80::1": true, "fe80::1%eth0": true, "fd00:ec2::254": true, "fd20:ce::254": true,
		"100.100.100.200": true, "168.63.129.16": true, "192.0.0.192": true,
		"0.0.0.0": true, "::": true, "0.1.2.3": true, "::ffff:0.0.0.0": true,
		"224.0.0.1": true, "ff02::1": true, "255.255.255.255": true,
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "64:ff9b::10.1.2.3": true, "2001:db8::1": true, "2001:db8::1%x": true,
		"10.2.0.1": false, "127.0.0.1": false, "::1": false, "8.8.8.8": false, "2001:db9::1": false, "192.168.1.1": false,
	} {
		if got := tr.blocks(netip.MustParseAddr(addr)); got != want {
			t.Errorf("blocks(%s) = %v, want %v", addr, got, want)
		}
	}
}

func get(t *testing.T, tr *Transport, url string) (*http.Response, error) {
	t.Helper()
	t.Cleanup(tr.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err == nil {
		t.Cleanup(func() { resp.Body.Close() })
	}
	return resp, err
}

func serve(t *testing.T, f http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s
}

// What counts is the address dialled, however it was come by.
func TestTransportDialsNoBlockedAddress(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	})
	port := s.URL[strings.LastIndex(s.URL, ":"):]
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for name, tt := range map[string]struct {
		url     string
		blocked []netip.Prefix
	}{
		"literal":          {"http://169.254.169.254/latest/meta-data", nil},
		"name":             {"http://localhost" + port, loopback},
		"redirect":         {s.URL + "?to=http://169.254.169.254/", nil},
		"mapped redirect":  {s.URL + "?to=http://[::ffff:a9fe:a9fe]/", nil},
		"redirect to name": {s.URL + "?to=http://ip6-localhost.invalid/", nil},
		"decimal literal":  {s.URL + "?to=http://0.0.0.0" + port, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := get(t, NewTransport(TransportConfig{Blocked: tt.blocked}), tt.url)
			if name == "redirect to name" { // the control: another error, as nothing is there
				if _, ok := errors.AsType[*BlockedError](err); ok || err == nil {
					t.Errorf("error is %v", err)
				}
				return
			}
			if _, ok := errors.AsType[*BlockedError](err); !ok {
				t.Fatalf("error is %v, want a BlockedError", err)
			}
			if e := Transient(err); e.Kind != Blocked || e.Retry {
				t.Errorf("classified as %+v", e)
			}
		})
	}
}

// Nobody elsewhere sends us to this machine, by whatever name, nor over a connection
// that was made before.
func TestTransportComesNotBackHere(t *testing.T) {
	elsewhere := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	})
	listener, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	here := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
		}
	})}}
	here.Start()
	t.Cleanup(here.Close)
	tr := NewTransport(TransportConfig{})
	tr.here = []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")} // of which the test has more than one
	for _, tt := range []struct {
		url string
		ok  bool
	}{
		{here.URL, true}, // by request, and for us: there is a connection to it now
		{elsewhere.URL + "?to=" + here.URL, false},
		{elsewhere.URL + "?to=" + strings.Replace(here.URL, "127.0.0.9", "[::ffff:127.0.0.9]", 1), false},
		{elsewhere.URL + "?to=" + elsewhere.URL + "?to=" + here.URL, false},
		{here.URL + "?to=" + here.URL, true},
		{here.URL + "?to=" + elsewhere.URL + "?to=" + here.URL, false},
		{elsewhere.URL + "?to=" + elsewhere.URL + "?to=/", false}, // the control: a loop
	} {
		_, err := get(t, tr, tt.url)
		_, blocked := errors.AsType[*BlockedError](err)
		switch {
		case tt.ok && err != nil:
			t.Errorf("%s: %v", tt.url, err)
		case !tt.ok && strings.HasSuffix(tt.url, "/"):
			if blocked || err == nil {
				t.Errorf("%s: error is %v, want that of a loop", tt.url, err)
			}
		case !tt.ok && !blocked:
			t.Errorf("%s: error is %v, want a BlockedError", tt.url, err)
		}
	}
	// A proxy may be here; what it dials is its own affair.
	proxied := NewTransport(TransportConfig{Proxy: func(*http.Request) (*url.URL, error) { return url.Parse(here.URL) }})
	proxied.here = tr.here
	if _, err := get(t, proxied, "http://elsewhere.test/?to=http://third.test/"); err != nil {
		t.Errorf("over a proxy that is here: %v", err)
	}
}

func TestTransportRefusesDowngrade(t *testing.T) {
	plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	t.Cleanup(secure.Close)
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	_, err := get(t, NewTransport(TransportConfig{RootCAs: roots}), secure.URL)
	if !errors.Is(err, errDowngrade) || Transient(err).Retry {
		t.Errorf("error is %v", err)
	}
}

func TestTransportStopsRedirecting(t *testing.T) {
	n := 0
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { n++; http.Redirect(w, r, "/", http.StatusFound) })
	if _, err := get(t, NewTransport(TransportConfig{}), s.URL); err == nil || n != 10 {
		t.Errorf("after %d requests: %v", n, err)
	}
}

func TestTransportKeepsCredentialsAtHome(t *testing.T) {
	var got string
	away := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization") + r.Header.Get("Referer")
	})
	home := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.Replace(away.URL, "127.0.0.1", "localhost", 1), http.StatusFound)
	})
	url := strings.Replace(home.URL, "http://", "http://user:s3cret@", 1)
	if _, err := get(t, NewTransport(TransportConfig{}), url); err != nil || strings.Contains(got, "Basic") || strings.Contains(got, "s3cret") {
		t.Errorf("%v; the other host was told %q", err, got)
	}
}

func TestTransportVerifiesCertificates(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "https://")
	_, err := get(t, NewTransport(TransportConfig{Insecure: Hosts{"other"}}), s.URL)
	if err == nil || Transient(err).Retry {
		t.Errorf("error is %v, want one of the certificate, for good", err)
	}
	if _, err := get(t, NewTransport(TransportConfig{Insecure: Hosts{host}}), s.URL); err != nil {
		t.Errorf("listed as insecure: %v", err)
	}
}

func TestTransientHidesURLs(t *testing.T) {
	_, err := get(t, NewTransport(TransportConfig{}), "http://user:s3cret@127.0.0.1:1/?sig=s3cret")
	if e := Transient(err); strings.Contains(e.Error(), "s3cret") || !e.Retry {
		t.Errorf("error is %v (%+v)", e, e)
	}
}

func TestStatus(t *testing.T) {
	for code, want := range map[int]Error{
		400: {}, 401: {Kind: Denied}, 403: {Kind: Denied}, 404: {Kind: NotFound}, 408: {}, 410: {Kind: NotFound},
		429: {Retry: true, After: 7 * time.Second}, 500: {Retry: true, After: 7 * time.Second}, 503: {Retry: true, After: 7 * time.Second},
	} {
		e := Status(code, http.Header{"Retry-After": {"7"}}, "")
		if e.Kind != want.Kind || e.Retry != want.Retry || e.After != want.After {
			t.Errorf("%d: %+v, want %+v", code, e, want)
		}
	}
	if e := Status(500, nil, strings.Repeat("x", 1000)); len(e.Error()) > 400 {
		t.Errorf("error of %d bytes", len(e.Error()))
	}
}

func TestRetryAfter(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"": 0, "x": 0, "-5": 0, "3": 3 * time.Second, "99999999999": 0, "999999": 24 * time.Hour,
		time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {in}}); got != want && !(in == "99999999999" && got == 24*time.Hour) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
	date := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	if got := retryAfter(http.Header{"Retry-After": {date}}); got < 59*time.Minute || got > time.Hour {
		t.Errorf("date: %v", got)
	}
}
