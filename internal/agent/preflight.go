package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/chandler-proxy/chandler/internal/ecds"
	"github.com/chandler-proxy/chandler/internal/preflight"
	"github.com/chandler-proxy/chandler/internal/store"
)

// preflightDir, in the data directory, keeps compiled modules.
const preflightDir = "preflight"

// A Try tries the module of an extension with its configuration. An error says
// why it does not work; one that could not be tried passes.
type Try func(context.Context, *ecds.Extension, *store.Lease) error

// OpenPreflight returns what tries modules, nil if cfg does not want that. Of cfg
// only Preflight, DataDir and Log matter.
func OpenPreflight(cfg Config) (Try, error) {
	if len(cfg.Preflight) == 0 {
		return nil, nil
	}
	p, err := preflight.New(preflight.Config{
		Command:  cfg.Preflight,
		CacheDir: filepath.Join(cfg.DataDir, preflightDir),
		Log:      cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, e *ecds.Extension, lease *store.Lease) error {
		trial, err := preflight.FromPlugin(e.Plugin(), os.LookupEnv)
		if err != nil {
			return err
		}
		trial.Path, trial.Digest, trial.Network = lease.Path, lease.Digest, e.Network
		err = p.Try(ctx, trial)
		if err == nil || errors.As(err, new(*preflight.Refusal)) {
			return err
		}
		if ctx.Err() == nil {
			cfg.Log.Warn("module not tried", "extension", e.Name, "err", err)
		}
		return nil
	}, nil
}
