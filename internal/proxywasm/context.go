package proxywasm

import (
	"time"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A Context is what a guest knows by a number: a plugin (its root context) or one stream.
type Context struct {
	id      uint32
	in      *Instance
	root    *root // nil for the VM's own context
	created bool  // the guest knows it
	http    *HTTP // if it is an HTTP stream
	tcp     *TCP  // if it is a TCP stream

	state    *FilterState     // nil unless the host does not keep it
	declared map[string]Value // properties
}

// A root is the context of a plugin in one instance.
type root struct {
	Context
	plugin      *Plugin
	configuring bool // PLUGIN_CONFIGURATION can be read
	pending     bool // said in proxy_on_done that it is not done yet
	deleted     chan struct{}

	tick  tick
	calls map[uint32]*call

	// What proxy_on_http_call_response, proxy_on_grpc_* can read, during them.
	callHeaders, callTrailers Headers
	callBody                  string
	inCall                    bool
	grpcInitial, grpcTrailing Headers
	grpcMessage               string
	status                    uint32
	statusMessage             string

	data map[any]any // of foreign functions
}

// PluginName is the name of the plugin that the context belongs to.
func (c *Context) PluginName() string {
	if c.root == nil {
		return ""
	}
	return c.root.plugin.cfg.Name
}

// ClearRouteCache has the stream's route chosen anew; for foreign functions.
func (c *Context) ClearRouteCache() {
	if c.http != nil {
		c.http.host.ClearRouteCache()
	}
}

// SetProperty is proxy_set_property; for foreign functions.
func (c *Context) SetProperty(path, value string) abi.Status { return c.setProperty(path, value) }

// AppendProperty is proxy_get_property; for foreign functions.
func (c *Context) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	return c.appendProperty(dst, path)
}

// Current is the context whose callback runs. A foreign function is given the effective
// one; some of Envoy's look at this instead.
func (c *Context) Current() *Context {
	if c.in.current != nil {
		return c.in.current
	}
	return c
}

// IsStream reports whether the context is a stream's, not a plugin's own.
func (c *Context) IsStream() bool { return c.stream() != nil }

// Deadline is how long a call into the guest may take, less than zero for ever: a
// foreign function should not take longer.
func (c *Context) Deadline() time.Duration { return c.in.vm.host.deadline }

// Data returns what foreign functions keep for the plugin in this instance, as long as
// it lives: make makes it when it is first asked for. The key is of a type of the
// caller's own. nil if the context is of no plugin.
func (c *Context) Data(key any, make func() any) any {
	if c.root == nil {
		return nil
	}
	if v, ok := c.root.data[key]; ok {
		return v
	}
	if c.root.data == nil {
		c.root.data = map[any]any{}
	}
	v := make()
	c.root.data[key] = v
	return v
}

// stream is the properties of the stream, nil for a root context.
func (c *Context) stream() Properties {
	switch {
	case c.http != nil:
		return c.http.host
	case c.tcp != nil:
		return c.tcp.host
	}
	return nil
}

// enter gives a new context its number.
func (in *Instance) enter(c *Context) {
	for in.contexts[in.nextID] != nil || in.nextID == 0 {
		in.nextID++
	}
	c.id, c.in = in.nextID, in
	in.contexts[c.id] = c
	in.nextID++
}

// create tells the guest of the context, once.
func (c *Context) create() {
	if c.created || c.in.failed.Load() != nil {
		return
	}
	c.created = true
	c.in.call(c, onContextCreate, c.id, c.root.id)
}

// remove is the context's end.
func (c *Context) remove() {
	if c.created {
		c.in.call(c, onDelete, c.id)
	}
	delete(c.in.contexts, c.id)
}

func contextFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_set_effective_context", setEffectiveContext, param{"context", number}),
		proxy("proxy_done", done),
	}
}

// setEffectiveContext is proxy_set_effective_context: until the callback returns, or
// the guest says otherwise, it acts on behalf of another context.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_set_effective_context
func setEffectiveContext(in *Instance, stack []uint64) abi.Status {
	c := in.contexts[u32(stack, 0)]
	if c == nil {
		if u32(stack, 0) != 0 {
			return abi.BadArgument
		}
		c = in.current // Envoy: the VM's own context, which resets it
	}
	in.effective = c
	return abi.OK
}

// done is proxy_done: the plugin, which said in proxy_on_done that it was not done,
// now is. Envoy looks only at plugins: a stream is gone when proxy_on_done has
// returned, whatever it returned.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_done
func done(in *Instance, _ []uint64) abi.Status {
	r := in.effective.root
	if r == nil || !r.pending {
		return abi.NotFound
	}
	r.pending = false
	in.later(action{kind: actRun, run: func() {
		in.lock()
		r.finish()
		in.unlock()
	}})
	return abi.OK
}

// newRoot starts the plugin in the instance as Envoy does: each root context is
// created, has the VM started, then is configured. In an instance that failed already
// it does nothing: that is for the policy to deal with, and not the plugin's fault.
func (in *Instance) newRoot(p *Plugin) error {
	in.lock()
	defer in.unlock()
	if in.err() != nil {
		return nil
	}
	r := &root{plugin: p, deleted: make(chan struct{}), calls: map[uint32]*call{}}
	r.Context.root = r
	in.enter(&r.Context)
	in.roots[p] = r
	if err := r.start(); err != nil {
		delete(in.roots, p)
		delete(in.contexts, r.id)
		return err
	}
	return nil
}

func (r *root) start() error {
	in := r.in
	r.configuring, r.created = true, true
	in.call(&r.Context, onContextCreate, r.id, 0)
	r.configuring = false
	if in.has(onVMStart) && in.call(&r.Context, onVMStart, r.id, uint32(len(in.vm.cfg.Configuration))) == 0 {
		return orFailed(in, ErrVMStart)
	}
	r.configuring = true
	defer func() { r.configuring = false }()
	if in.has(onConfigure) && in.call(&r.Context, onConfigure, r.id, uint32(len(r.plugin.cfg.Configuration))) == 0 {
		return orFailed(in, ErrConfigure)
	}
	return in.err()
}

// orFailed is the instance's failure, if it failed, else err.
func orFailed(in *Instance, err error) error {
	if failed := in.err(); failed != nil {
		return failed
	}
	return err
}

// leave asks the plugin whether it is done, and ends it if it is.
func (in *Instance) leave(p *Plugin) *root {
	in.lock()
	defer in.unlock()
	r := in.roots[p]
	if r == nil {
		return nil
	}
	r.setTick(0)
	if in.has(onDone) && in.call(&r.Context, onDone, r.id) == 0 && in.err() == nil {
		r.pending = true
		return r
	}
	r.finish()
	return r
}

// finish ends the plugin in the instance.
func (r *root) finish() {
	if r.in.roots[r.plugin] != r {
		return
	}
	r.setTick(0)
	r.cancelCalls()
	r.remove()
	delete(r.in.roots, r.plugin)
	close(r.deleted)
}
