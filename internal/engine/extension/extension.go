// Package extension runs what filters are configured to do: a Proxy-Wasm plugin,
// RBAC, or nothing. An [Extension] is one configuration of a filter; a [Slot] is
// where a filter finds the one of now, so that a new one takes effect for the
// streams that come, while those that are under way keep theirs.
//
// It decides nothing about a request itself. It refuses a module that does not
// load and a plugin that does not take its configuration: [Opener.Open] fails and
// nothing changes.
//
// Start at [Opener.Open].
package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"

	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// closeWithin is how long a plugin may take to say that it is done.
const closeWithin = 10 * time.Second

// An Extension is a running configuration of a filter: one of its fields is set, or,
// for a filter that does what routes say, none.
type Extension struct {
	Kind   config.Kind
	Plugin *proxywasm.Plugin
	RBAC   *config.RBAC
	Fault  *config.Fault

	refs    atomic.Int64
	release func()
}

// Release gives back what [Slot.Acquire] or [Opener.Open] gave. The last one out
// closes the plugin.
func (e *Extension) Release() {
	if e.refs.Add(-1) == 0 && e.release != nil {
		e.release()
	}
}

// acquire takes a reference unless there are none any more.
func (e *Extension) acquire() bool {
	for {
		n := e.refs.Load()
		if n == 0 {
			return false
		}
		if e.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// A Slot has the extension that a filter runs now. The zero value has none.
type Slot struct {
	current atomic.Pointer[Extension]
}

// Acquire returns the extension, to be released, or nil.
func (s *Slot) Acquire() *Extension {
	for {
		e := s.current.Load()
		if e == nil || e.acquire() {
			return e
		}
	}
}

// Put replaces the extension by e, whose reference it takes; nil takes it away.
func (s *Slot) Put(e *Extension) {
	if old := s.current.Swap(e); old != nil {
		old.Release()
	}
}

// An Opener makes extensions. It is safe for concurrent use.
type Opener struct {
	Host       *proxywasm.Host
	Services   proxywasm.Services
	Properties proxywasm.Properties // what a plugin can know outside of streams
	Getenv     func(string) (string, bool)
	Workers    int // instances of each VM

	closing sync.WaitGroup
}

// Wait waits until the plugins that were released are closed.
func (o *Opener) Wait() { o.closing.Wait() }

// Open makes an extension of its configuration, with one reference. ctx is for
// opening only.
func (o *Opener) Open(ctx context.Context, c config.Extension) (*Extension, error) {
	e := new(Extension)
	e.refs.Store(1)
	switch c := c.(type) {
	case config.Cors:
	case *config.Fault:
		e.Fault = c
	case *config.RBAC:
		e.Kind, e.RBAC = c.Kind, c
	case *config.Wasm:
		p, err := o.plugin(ctx, c)
		if err != nil {
			return nil, err
		}
		e.Kind, e.Plugin = c.Kind, p
		e.release = func() {
			o.closing.Go(func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
				defer cancel()
				_ = p.Close(ctx) // a plugin that does not end in time is ended
			})
		}
	default:
		return nil, fmt.Errorf("%T cannot be discovered", c)
	}
	return e, nil
}

func (o *Opener) plugin(ctx context.Context, c *config.Wasm) (*proxywasm.Plugin, error) {
	module, err := o.module(ctx, c.Code)
	if err != nil {
		return nil, err
	}
	p, err := o.Host.Open(ctx, proxywasm.PluginConfig{
		Name: c.Name, RootID: c.RootID, Configuration: c.Configuration,
		VM: proxywasm.VMConfig{
			Module: module, ID: c.VMID, Configuration: c.VMConfiguration, Env: o.env(c),
			Workers: o.Workers, Services: o.Services,
		},
		Properties: o.Properties,
		Policy:     policy(c),
		Backoff:    c.Backoff,
	})
	// The plugin holds the module itself.
	return p, errors.Join(err, module.Close(ctx))
}

func (o *Opener) module(ctx context.Context, code config.Data) (*proxywasm.Module, error) {
	if code.File != "" {
		return o.Host.LoadFile(ctx, code.File)
	}
	return o.Host.Load(ctx, code.Bytes)
}

// env is the environment of a VM, in the order of names.
func (o *Opener) env(c *config.Wasm) []string {
	var list []string
	for k, v := range c.Env {
		list = append(list, k+"="+v)
	}
	for _, k := range c.HostEnv {
		if v, ok := o.Getenv(k); ok {
			list = append(list, k+"="+v)
		}
	}
	slices.Sort(list)
	return list
}

func policy(c *config.Wasm) proxywasm.FailPolicy {
	switch c.Policy {
	case wasmv3.FailurePolicy_FAIL_OPEN:
		if c.FailOpen {
			return proxywasm.FailIgnore
		}
		return proxywasm.FailOpen
	case wasmv3.FailurePolicy_FAIL_RELOAD:
		return proxywasm.FailReload
	}
	return proxywasm.FailClosed
}
