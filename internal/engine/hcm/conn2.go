package hcm

import (
	"context"
	"net"
	"runtime"
	"sync"
	"time"
)

// farewell is how long what is left to write may take once a connection is being
// closed; as long as package net/http waits after it has said that it goes.
const farewell = time.Second

// A conn2 is a connection in the hands of package net/http, which writes every frame
// on its own. What it writes waits here, 16 KB at most, until the other goroutines had
// their turn, and goes out with what they wrote meanwhile.
type conn2 struct {
	*Conn
	ctx     context.Context
	buffers *sync.Pool // of *[16 << 10]byte
	done    chan struct{}
	once    func()

	mu      sync.Mutex
	moved   *sync.Cond // what follows changed
	buffer  *[16 << 10]byte
	waiting int   // bytes in buffer, which is nil if there are none
	sending bool  // bytes are being written, by one at a time
	closing bool  // no more is to come
	err     error // of writing
}

func newConn2(ctx context.Context, c *Conn, buffers *sync.Pool) *conn2 {
	c2 := &conn2{Conn: c, ctx: ctx, buffers: buffers, done: make(chan struct{})}
	c2.moved = sync.NewCond(&c2.mu)
	c2.once = sync.OnceFunc(func() { close(c2.done) })
	return c2
}

// over says that package net/http is done with the connection.
func (c *conn2) over() { c.once() }

func (c *conn2) Read(p []byte) (int, error) { return c.R.Read(p) }

// Write puts p with what waits to be sent. It blocks while there is no room. An error
// is that of an earlier write, or [net.ErrClosed].
func (c *conn2) Write(p []byte) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n < len(p) {
		for c.waiting == len(c.buffer) && c.err == nil && !c.closing {
			c.moved.Wait()
		}
		switch {
		case c.err != nil:
			return n, c.err
		case c.closing:
			return n, net.ErrClosed
		case c.waiting == 0 && !c.sending && len(p)-n >= len(c.buffer): // nothing to gain
			c.send(p[n:])
			return len(p), c.err
		}
		n += c.add(p[n:])
	}
	return n, nil
}

// add copies what there is room for. c.mu is held.
func (c *conn2) add(p []byte) int {
	if c.waiting == 0 {
		c.buffer = c.buffers.Get().(*[16 << 10]byte)
		c.moved.Broadcast()
	}
	n := copy(c.buffer[c.waiting:], p)
	c.waiting += n
	return n
}

// send writes p. c.mu is held, but not meanwhile.
func (c *conn2) send(p []byte) {
	c.sending = true
	c.mu.Unlock()
	_, err := c.Conn.Write(p)
	if err != nil {
		c.Conn.Close() // ends reading, too: what was taken is lost
	}
	c.mu.Lock()
	c.sending = false
	if err != nil && c.err == nil {
		c.err = err
	}
	c.moved.Broadcast()
}

// flush sends what waits, until the connection is closed.
func (c *conn2) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for (c.waiting == 0 || c.err != nil) && !c.closing || c.sending {
			c.moved.Wait()
		}
		if c.waiting == 0 || c.err != nil {
			break
		}
		c.mu.Unlock()
		runtime.Gosched() // others may have more to write
		c.mu.Lock()
		buffer, n := c.buffer, c.waiting
		c.buffer, c.waiting = nil, 0
		c.send(buffer[:n])
		c.buffers.Put(buffer)
	}
	c.Conn.Close()
}

// Close closes the connection once what waits was sent, or could not be for a second.
func (c *conn2) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil
	}
	c.closing = true
	c.moved.Broadcast()
	if c.err == nil && (c.sending || c.waiting > 0) {
		return c.SetWriteDeadline(time.Now().Add(farewell)) // flush closes
	}
	return c.Conn.Close()
}
