package agent

import (
	"github.com/chandler-proxy/chandler/internal/fetch/all"
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
	fetcher, _ := all.New(all.Config{
		Insecure:  cfg.InsecureRegistries,
		Blocked:   cfg.BlockedCIDRs,
		MaxModule: cfg.MaxModule,
		Tries:     cfg.FetchTries,
		Timeout:   cfg.FetchTimeout,
	})
	return modcache.New(modcache.Config{
		Store:   files,
		Fetcher: fetcher,
		Metrics: cfg.Metrics,
		Log:     cfg.Log,
		Expiry:  cfg.ModuleExpiry,
		Purge:   cfg.PurgeInterval,
	}), nil
}
