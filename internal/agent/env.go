package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/probe"
)

// ConfigFromEnv returns base with what the environment says under the names of
// Istio's agent. A variable that is empty is as good as not set, and so is a
// zero, as in Istio; one that cannot be read is an error that names it. All are
// tried, so that the user sees every mistake at once.
func ConfigFromEnv(lookup func(string) (string, bool), base Config) (Config, error) {
	var errs []error
	read := func(name string, set func(string) error) {
		value, ok := lookup(name)
		if value = strings.TrimSpace(value); !ok || value == "" {
			return
		}
		if err := set(value); err != nil {
			errs = append(errs, fmt.Errorf("%s=%s: %w", name, value, err))
		}
	}
	cfg := base
	read("WASM_INSECURE_REGISTRIES", hosts(&cfg.InsecureRegistries))
	read("BLOCKED_CIDRS_IN_WASM_FETCH", prefixes(&cfg.BlockedCIDRs))
	read("WASM_MODULE_EXPIRY", duration(&cfg.ModuleExpiry))
	read("WASM_PURGE_INTERVAL", duration(&cfg.PurgeInterval))
	read("WASM_HTTP_REQUEST_TIMEOUT", duration(&cfg.FetchTimeout))
	read("WASM_HTTP_REQUEST_MAX_RETRIES", count(&cfg.FetchTries))
	read("ISTIO_WASM_MAX_BINARY_SIZE_BYTES", count(&cfg.MaxModule))
	read("TERMINATION_DRAIN_DURATION_SECONDS", seconds(&cfg.Drain))
	read("MINIMUM_DRAIN_DURATION", duration(&cfg.MinDrain))
	read("ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION", func(v string) error {
		convert, err := strconv.ParseBool(v)
		if err != nil {
			return errors.New("neither true nor false")
		}
		cfg.PassECDS = !convert
		return nil
	})
	read(probe.Variable, func(v string) (err error) {
		cfg.Probes, err = probe.ParseSet(v)
		return err
	})
	if err := errors.Join(errs...); err != nil {
		return base, err
	}
	return cfg, nil
}

// list splits at commas and leaves blanks and empty items out.
func list(v string) []string {
	var items []string
	for item := range strings.SplitSeq(v, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// hosts reads hosts, with or without a port; a URL would match none.
func hosts(to *[]string) func(string) error {
	return func(v string) error {
		found := list(v)
		for _, item := range found {
			if strings.Contains(item, "/") {
				return fmt.Errorf("%s is not a host such as localhost:5000", item)
			}
		}
		*to = found
		return nil
	}
}

func duration(to *time.Duration) func(string) error {
	return func(v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return errors.New("not a duration such as 15s or 24h")
		}
		if d > 0 {
			*to = d
		}
		return nil
	}
}

func seconds(to *time.Duration) func(string) error {
	return func(v string) error {
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			return errors.New("not a whole number of seconds")
		}
		if n > 0 {
			*to = time.Duration(n) * time.Second
		}
		return nil
	}
}

func count[N int | int64](to *N) func(string) error {
	return func(v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 || int64(N(n)) != n {
			return errors.New("not a whole number")
		}
		if n > 0 {
			*to = N(n)
		}
		return nil
	}
}

// prefixes reads networks; what Istio logs and forgets is an error here, for the
// network would not be blocked.
func prefixes(to *[]netip.Prefix) func(string) error {
	return func(v string) error {
		var found []netip.Prefix
		for _, item := range list(v) {
			p, err := netip.ParsePrefix(item)
			if err != nil {
				return fmt.Errorf("%s is not a network such as 10.0.0.0/8", item)
			}
			found = append(found, p.Masked())
		}
		*to = found
		return nil
	}
}
