// Package all puts the ways to fetch a module together: registries, web servers and
// files, over one transport with one set of rules, tried again where that may help.
//
// Agents fetch with it, and so do authors who push and pull: what one can reach, the
// other can. It keeps nothing and decides nothing about modules. Credentials of the
// machine are those that docker and podman keep; see [oci.Keychain]. Start at [New].
package all

import (
	"net/netip"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/httpget"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
	"github.com/chandler-proxy/chandler/internal/module"
)

// Config says how to reach registries and servers. The zero value works.
type Config struct {
	Insecure  fetch.Hosts    // may be asked in plain text, or with a certificate nobody knows
	Blocked   []netip.Prefix // never dialled, besides link-local and cloud metadata addresses
	Keychain  authn.Keychain // default oci.Keychain of this process's environment
	MaxModule int64          // bytes; default fetch.DefaultMaxModule
	Tries     int            // of whatever may succeed later; default that of fetch.Retry
	Timeout   time.Duration  // of one try; default that of fetch.Retry
	// Waiting is told before a try that failed is repeated; nil for nobody.
	Waiting func(failed error, wait time.Duration)
}

// New returns a fetcher for every scheme, and the one of them that is for registries,
// which knows the way for pushes, too.
func New(cfg Config) (fetch.Retry, *oci.Fetcher) {
	if cfg.Keychain == nil {
		cfg.Keychain = oci.Keychain("", os.LookupEnv)
	}
	transport := fetch.NewTransport(fetch.TransportConfig{Blocked: cfg.Blocked, Insecure: cfg.Insecure})
	registries := oci.New(oci.Config{Transport: transport, Insecure: cfg.Insecure, Keychain: cfg.Keychain, MaxModule: cfg.MaxModule})
	servers := httpget.New(httpget.Config{Transport: transport, MaxModule: cfg.MaxModule})
	return fetch.Retry{
		Fetcher: fetch.Schemes{
			module.OCI:   registries,
			module.HTTP:  servers,
			module.HTTPS: servers,
			module.File:  fetch.Local{MaxModule: cfg.MaxModule},
		},
		Tries:   cfg.Tries,
		Try:     cfg.Timeout,
		Waiting: cfg.Waiting,
	}, registries
}
