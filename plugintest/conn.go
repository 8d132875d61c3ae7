package plugintest

import (
	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A Conn is a connection of a client to a server, through the plugin, step by step. Each
// side sends what it likes until it closes; what either sends after the connection is
// closed is dropped.
type Conn struct {
	p          *Plugin
	tcp        *proxywasm.TCP
	properties propertySource
	set        propertySource

	toServer, toClient []byte
	held               []byte // what came before the plugin took the connection
	heldEnd            bool
	opened             bool // the plugin took the connection
	paused             bool // it holds back what the client sent
	resumed            bool
	closing            bool // the plugin said so
	clientEnd          bool // the client sends no more
	serverEnd          bool // the server sends no more
	closed             bool
}

// Connect has a client connect, with properties besides those of the Config.
func (p *Plugin) Connect(properties map[string]any) *Conn {
	p.t.Helper()
	p.started()
	for path, value := range properties {
		p.encode(path, value)
	}
	c := &Conn{p: p, properties: properties, set: propertySource{}}
	c.tcp = p.plugin.NewTCP(connHost{c})
	p.conns = append(p.conns, c)
	c.opened = c.tcp.OnNewConnection() == proxywasm.Continue
	p.settle()
	return c
}

// Send is the client sending data. Until the plugin takes the connection it waits.
func (c *Conn) Send(data string) {
	c.p.t.Helper()
	if c.clientEnd && !c.closed {
		c.p.t.Fatal("the client has closed its side")
	}
	c.fromClient([]byte(data), false)
	c.p.settle()
}

// Reply is the server sending data.
func (c *Conn) Reply(data string) {
	c.p.t.Helper()
	if c.serverEnd && !c.closed {
		c.p.t.Fatal("the server has closed its side")
	}
	c.fromServer([]byte(data), false)
	c.p.settle()
}

func (c *Conn) fromClient(data []byte, end bool) {
	switch {
	case c.closed:
	case !c.opened:
		c.held, c.heldEnd = append(c.held, data...), end
	default:
		out, act := c.tcp.OnDownstreamData(data, end)
		c.toServer = append(c.toServer, out...)
		c.paused = act == proxywasm.Pause
	}
}

func (c *Conn) fromServer(data []byte, end bool) {
	if !c.closed {
		out, _ := c.tcp.OnUpstreamData(data, end)
		c.toClient = append(c.toClient, out...)
	}
}

// CloseWrite is the client closing its side alone: what the server sends still comes.
// The connection is closed once the server has closed its side, too.
func (c *Conn) CloseWrite() {
	c.p.t.Helper()
	c.endClient()
	if c.serverEnd {
		c.close(abi.PeerRemote)
	}
}

// CloseClient is the client closing the connection.
func (c *Conn) CloseClient() {
	c.p.t.Helper()
	c.endClient()
	c.close(abi.PeerRemote)
}

// endClient has the client send no more.
func (c *Conn) endClient() {
	c.p.t.Helper()
	if !c.clientEnd {
		c.clientEnd = true
		c.fromClient(nil, true)
		c.p.settle()
	}
}

// CloseServer is the server closing its side. If the client has closed its own, the
// connection is closed.
func (c *Conn) CloseServer() {
	c.p.t.Helper()
	if !c.serverEnd {
		c.serverEnd = true
		c.fromServer(nil, true)
		c.p.settle()
	}
	if c.clientEnd {
		c.close(abi.PeerLocal)
	}
}

// close is the end of the connection, as the plugin is told who closed it.
func (c *Conn) close(peer abi.Peer) {
	c.p.t.Helper()
	if !c.closed {
		c.closed = true
		c.tcp.OnDownstreamClose(peer)
		c.p.settle()
	}
}

// Paused reports whether the plugin holds back the connection, or what the client sent.
func (c *Conn) Paused() bool { return !c.closed && (!c.opened || c.paused) }

// ToServer is all that went on to the server so far.
func (c *Conn) ToServer() string { return string(c.toServer) }

// ToClient is all that went on to the client so far.
func (c *Conn) ToClient() string { return string(c.toClient) }

// Closed reports whether the connection is closed: by the plugin, the client, or both
// sides one after the other.
func (c *Conn) Closed() bool { return c.closed }

// Property returns what the plugin set as a property of the connection.
func (c *Conn) Property(path string) (value string, ok bool) {
	value, ok = c.set[path].(string)
	return value, ok
}

// advance does what is due, and reports whether anything was.
func (c *Conn) advance() bool {
	switch {
	case c.closed:
		return false
	case c.closing:
		c.closed = true
		c.tcp.OnDownstreamClose(abi.PeerLocal)
		return true
	case !c.resumed:
		return false
	}
	c.resumed, c.paused = false, false
	c.toServer = append(c.toServer, c.tcp.Resume()...)
	if !c.opened {
		c.opened = true
		held, end := c.held, c.heldEnd
		c.held, c.heldEnd = nil, false
		if len(held) > 0 || end {
			c.fromClient(held, end)
		}
	}
	return true
}

// A connHost is what the plugin asks of a connection.
type connHost struct{ c *Conn }

func (h connHost) AppendProperty(dst []byte, path string) ([]byte, abi.Status) {
	c := h.c
	return c.p.appendProperty(dst, path, c.set, c.properties, c.p.cfg.Properties)
}

func (h connHost) SetProperty(path, value string) abi.Status {
	h.c.set[dotted(path)] = value
	return abi.OK
}

func (h connHost) Continue(abi.Stream) { h.c.resumed = true }

func (h connHost) Close(abi.Stream) { h.c.closing = true }
