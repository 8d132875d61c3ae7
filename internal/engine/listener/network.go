package listener

import (
	"context"
	"io"
	"net"
	"sync"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/config"
	"github.com/chandler-proxy/chandler/internal/engine/extension"
	"github.com/chandler-proxy/chandler/internal/engine/hcm"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// readAhead is how much of what filters let through waits to be read.
const readAhead = 64 << 10

// A filtered connection is one whose bytes pass network filters, both ways: what
// is read in their order, what is written in the reverse one.
type filtered struct {
	net.Conn
	conn    *hcm.Conn
	chain   *Chain
	env     *hcm.Env
	plugins []*plugin
	pump    sync.WaitGroup

	read  sync.Mutex // orders what is read
	write sync.Mutex // orders what is written

	mu      sync.Mutex
	moved   *sync.Cond
	ready   []byte // let through
	ended   bool   // and the end, too
	err     error
	resumed uint64
	closed  bool
	left    bool // the client closed the connection
	state   *proxywasm.FilterState
}

// A plugin is one filter of a connection.
type plugin struct {
	f     *filtered
	index int
	ext   *extension.Extension
	tcp   *proxywasm.TCP
	end   bool // has seen the end of what is read
}

// filtered starts the network filters. RBAC decides when the connection opens,
// which Envoy puts off until the first byte. It returns false if the connection is refused.
func (ch *Chain) filtered(ctx context.Context, c *hcm.Conn) (*filtered, bool) {
	f := &filtered{Conn: c.Conn, conn: c, chain: ch, env: ch.env.HTTP, state: hcm.ConnectionState(ctx)}
	f.moved = sync.NewCond(&f.mu)
	ok := true
	for _, filter := range ch.network {
		e := filter.Slot.Acquire()
		if e == nil {
			ok = false
			break
		}
		p := &plugin{f: f, index: len(f.plugins), ext: e}
		f.plugins = append(f.plugins, p)
		if e.RBAC != nil && !e.RBAC.Allows(&config.Peer{Port: uint32(c.Dst.Port()), Direct: c.Remote.Addr(), Remote: c.Remote.Addr()}) {
			ok = false
			break
		}
		if e.Plugin != nil {
			p.tcp = e.Plugin.NewTCP(p)
		}
	}
	if !ok {
		f.end()
		return nil, false
	}
	source := io.Reader(c.Conn)
	if c.R != nil {
		source = c.R
	}
	f.pump.Go(func() { f.run(source) })
	return f, true
}

// run reads what the client sends and shows it to the filters.
func (f *filtered) run(source io.Reader) {
	for _, p := range f.plugins {
		if p.tcp != nil && !f.proceeds(p, p.tcp.OnNewConnection()) {
			f.fail(net.ErrClosed)
			return
		}
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := source.Read(buf)
		end := err == io.EOF
		if err != nil && (!end || f.chain.http != nil) { // the end of what is said is the end of an HTTP connection
			f.gone()
		}
		if err != nil && !end {
			f.fail(err)
			return
		}
		f.read.Lock()
		ok := f.show(0, buf[:n], end)
		f.read.Unlock()
		if !ok {
			f.fail(net.ErrClosed)
			return
		}
		if end {
			return
		}
		f.mu.Lock()
		for len(f.ready) > readAhead && !f.closed {
			f.moved.Wait()
		}
		f.mu.Unlock()
	}
}

// proceeds waits until the filter goes on, if it does not at once.
func (f *filtered) proceeds(p *plugin, act proxywasm.Action) bool {
	if act != proxywasm.Pause {
		return act == proxywasm.Continue
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.resumed&(1<<p.index) == 0 && !f.closed {
		f.moved.Wait()
	}
	f.resumed &^= 1 << p.index
	return !f.closed
}

// show shows bytes to the filters from the i-th on, and lets the rest through. f.read is held.
func (f *filtered) show(i int, b []byte, end bool) bool {
	for ; i < len(f.plugins); i++ {
		p := f.plugins[i]
		if p.tcp == nil {
			continue
		}
		p.end = p.end || end
		out, act := p.tcp.OnDownstreamData(b, end)
		switch act {
		case proxywasm.Continue:
			b = out
		case proxywasm.Pause:
			return true
		default:
			return false
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed { // by a filter: no one is to see what it was shown
		return false
	}
	f.ready = append(f.ready, b...)
	f.ended = f.ended || end
	f.moved.Broadcast()
	return true
}

// gone notes that it is the client who closed the connection, if it is.
func (f *filtered) gone() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = f.left || !f.closed
}

func (f *filtered) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	f.moved.Broadcast()
}

// Read reads what the filters let through.
func (f *filtered) Read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.ready) == 0 {
		switch {
		case f.err != nil:
			return 0, f.err
		case f.closed:
			return 0, net.ErrClosed
		case f.ended:
			return 0, io.EOF
		}
		f.moved.Wait()
	}
	n := copy(b, f.ready)
	f.ready = f.ready[n:]
	if len(f.ready) == 0 {
		f.ready = nil
	}
	f.moved.Broadcast()
	return n, nil
}

// Write shows what goes to the client to the filters.
func (f *filtered) Write(b []byte) (int, error) {
	if err := f.send(b, false); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (f *filtered) send(b []byte, end bool) error {
	f.write.Lock()
	defer f.write.Unlock()
	for i := len(f.plugins) - 1; i >= 0; i-- {
		p := f.plugins[i]
		if p.tcp == nil {
			continue
		}
		out, act := p.tcp.OnUpstreamData(b, end)
		switch act {
		case proxywasm.Continue:
			b = out
		case proxywasm.Pause:
			return nil
		default:
			return net.ErrClosed
		}
	}
	if len(b) == 0 {
		return nil
	}
	_, err := f.Conn.Write(b)
	return err
}

// CloseWrite says that the upstream has ended.
func (f *filtered) CloseWrite() error {
	if err := f.send(nil, true); err != nil {
		return err
	}
	if w, ok := f.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return f.Conn.Close()
}

// Close closes the connection.
func (f *filtered) Close() error {
	f.mu.Lock()
	f.closed = true
	f.moved.Broadcast()
	f.mu.Unlock()
	return f.Conn.Close()
}

// end tells the filters that it is over.
func (f *filtered) end() {
	f.Close()
	f.pump.Wait()
	by := abi.PeerLocal
	if f.left {
		by = abi.PeerRemote
	}
	for _, p := range f.plugins {
		if p.tcp != nil {
			p.tcp.OnDownstreamClose(by)
			p.tcp.Close()
		}
		p.ext.Release()
	}
}

// Continue is [proxywasm.TCPHost]'s, as are the following: downstream data goes on.
func (p *plugin) Continue(abi.Stream) {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resumed |= 1 << p.index
	f.moved.Broadcast()
	if !f.closed {
		f.pump.Go(func() { p.release() })
	}
}

// release lets through what the filter held back.
func (p *plugin) release() {
	p.f.read.Lock()
	defer p.f.read.Unlock()
	out := p.tcp.Resume()
	if len(out) > 0 || p.end {
		p.f.show(p.index+1, out, p.end)
	}
}

// Close closes the connection.
func (p *plugin) Close(abi.Stream) { p.f.Close() }

// AppendProperty answers with Envoy's attributes.
func (p *plugin) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	if out, ok := p.f.conn.Attribute(dst, path); ok {
		return out, abi.OK
	}
	if out, ok := p.f.chain.attribute(dst, path); ok {
		return out, abi.OK
	}
	if hcm.OpaqueRoot(path) {
		return dst, abi.SerializationFailure
	}
	return dst, abi.NotFound
}

// attribute is what is known of the chain, its listener and the node.
func (ch *Chain) attribute(dst []byte, path string) ([]byte, bool) {
	root, rest := abi.CutPath(path)
	name, rest := abi.CutPath(rest)
	if root == "xds" {
		switch name {
		case "filter_chain_name":
			return append(dst, ch.cfg.Name...), true
		case "listener_direction":
			return abi.AppendInt(dst, ch.direction), true
		case "listener_metadata":
			return hcm.AppendMetadata(dst, ch.metadata, rest)
		}
	}
	return ch.env.HTTP.Facts(dst, path)
}

// FilterState is what plugins have set on the connection, also for the requests on it:
// [proxywasm.Stateful].
func (p *plugin) FilterState() *proxywasm.FilterState { return p.f.state }

// SetProperty is not called: see [plugin.FilterState].
func (p *plugin) SetProperty(string, string) abi.Status { return abi.Unimplemented }
