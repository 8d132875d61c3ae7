package agent

import (
	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/httpget"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
	"github.com/chandler-proxy/chandler/internal/modcache"
	"github.com/chandler-proxy/chandler/internal/store"
)

// OpenModules opens the store that cfg names, and puts the ways to fetch a
// module before it. Of cfg only what is about modules matters, Metrics and Log.
func OpenModules(cfg Config) (*modcache.Cache, error) {
	cfg = cfg.withModuleDefaults()
	files, err := store.Open(cfg.ModuleDir, cfg.MaxModule)
	if err != nil {
		return nil, err
	}
	insecure := fetch.Hosts(cfg.InsecureRegistries)
	transport := fetch.NewTransport(fetch.TransportConfig{Blocked: cfg.BlockedCIDRs, Insecure: insecure})
	registries := oci.New(oci.Config{
		Transport: transport,
		Insecure:  insecure,
		Keychain:  authn.DefaultKeychain,
		MaxModule: cfg.MaxModule,
	})
	servers := httpget.New(httpget.Config{Transport: transport, MaxModule: cfg.MaxModule})
	return modcache.New(modcache.Config{
		Store: files,
		Fetcher: fetch.Retry{
			Fetcher: fetch.Schemes{
				"oci":   registries,
				"http":  servers,
				"https": servers,
				"file":  fetch.Local{MaxModule: cfg.MaxModule},
			},
			Tries: cfg.FetchTries,
			Try:   cfg.FetchTimeout,
		},
		Metrics: cfg.Metrics,
		Log:     cfg.Log,
		Expiry:  cfg.ModuleExpiry,
		Purge:   cfg.PurgeInterval,
	}), nil
}
