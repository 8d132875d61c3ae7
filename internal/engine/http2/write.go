package http2

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
)

// enough is how many bytes may wait to be written before streams wait to add to them.
const enough = 32 << 10

// An output is what waits to be written to a connection. All of it is guarded by the
// connection's mutex.
type output struct {
	buffers    *Buffers
	buf        *[]byte   // nil if nothing waits
	changed    sync.Cond // there is something to be written, or no more will come
	control    int       // frames that the peer caused and has not taken
	taken      sync.Cond // some of what waited was written
	dataFrames int       // ever
	closing    bool      // no more is to come
	crowd      []*Stream // that wait until less waits
}

func (o *output) len() int {
	if o.buf == nil {
		return 0
	}
	return len(*o.buf)
}

func (o *output) wake() { o.changed.Signal() }

// frame adds the header of a frame, whose content is to follow.
func (o *output) frame(t h2.FrameType, flags h2.Flags, id uint32, length int) {
	o.take()
	*o.buf = append(*o.buf, byte(length>>16), byte(length>>8), byte(length), byte(t), byte(flags),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// preface adds what a client says first.
func (o *output) preface() {
	o.take()
	*o.buf = append(*o.buf, h2.ClientPreface...)
}

// take sees to it that there is a buffer.
func (o *output) take() {
	if o.buf != nil {
		return
	}
	buf, ok := o.buffers.out.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	o.buf = buf
}

func (o *output) uint32(n uint32) { *o.buf = binary.BigEndian.AppendUint32(*o.buf, n) }

func (o *output) settings(list ...h2.Setting) {
	o.frame(h2.FrameSettings, 0, 0, 6*len(list))
	for _, s := range list {
		*o.buf = binary.BigEndian.AppendUint16(*o.buf, uint16(s.ID))
		o.uint32(s.Val)
	}
}

func (o *output) settingsAck() { o.frame(h2.FrameSettings, h2.FlagSettingsAck, 0, 0) }

func (o *output) ping(ack bool, data [8]byte) {
	flags := h2.Flags(0)
	if ack {
		flags = h2.FlagPingAck
	}
	o.frame(h2.FramePing, flags, 0, len(data))
	*o.buf = append(*o.buf, data[:]...)
}

func (o *output) windowUpdate(id uint32, more int) {
	o.frame(h2.FrameWindowUpdate, 0, id, 4)
	o.uint32(uint32(more))
}

func (o *output) rst(id uint32, code h2.ErrCode) {
	o.frame(h2.FrameRSTStream, 0, id, 4)
	o.uint32(uint32(code))
}

func (o *output) goAway(last uint32, code h2.ErrCode, reason string) {
	o.frame(h2.FrameGoAway, 0, 0, 8+len(reason))
	o.uint32(last)
	o.uint32(uint32(code))
	*o.buf = append(*o.buf, reason...)
}

func (o *output) data(id uint32, p []byte, end bool) {
	flags := h2.Flags(0)
	if end {
		flags = h2.FlagDataEndStream
	}
	o.dataFrames++
	o.frame(h2.FrameData, flags, id, len(p))
	*o.buf = append(*o.buf, p...)
}

// headers adds a header block.
func (o *output) headers(id uint32, block []byte, end bool) {
	kind, flags := h2.FrameHeaders, h2.Flags(0)
	if end {
		flags = h2.FlagHeadersEndStream
	}
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= h2.FlagHeadersEndHeaders
		}
		o.frame(kind, flags, id, n)
		*o.buf = append(*o.buf, block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return
		}
		kind, flags = h2.FrameContinuation, 0
	}
}

// encode adds a head, or trailers, which have no status. What cannot be in a field is
// left out: a plugin may have set anything. c.mu is held: blocks must go out in the
// order in which they are encoded.
func (c *conn) encode(id uint32, f *http1.Fields, end bool) {
	c.encoded.Reset()
	for _, p := range f.Pairs() {
		if !validName(p.Key) && !c.pseudo(p.Key) || c.client && hopByHop(p.Key) {
			continue
		}
		_ = c.enc.WriteField(hpack.HeaderField{Name: p.Key, Value: clean(p.Value)}) // into memory
	}
	c.out.headers(id, c.encoded.Bytes(), end)
	if c.encoded.Cap() > enough {
		c.encoded = bytes.Buffer{} // at the address that the encoder knows
	}
}

// pseudo reports whether a head may have that pseudo-header.
func (c *conn) pseudo(name string) bool {
	if !c.client {
		return name == ":status"
	}
	return name == ":method" || name == ":scheme" || name == ":authority" || name == ":path"
}

// hopByHop reports whether a field is HTTP/1.1's alone.
func hopByHop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

// clean leaves out of a value what would end it in HTTP/1.1.
func clean(s string) string {
	for i := range len(s) {
		if c := s[i]; c == '\r' || c == '\n' || c == 0 {
			kept := make([]byte, 0, len(s))
			for _, c := range []byte(s) {
				if c != '\r' && c != '\n' && c != 0 {
					kept = append(kept, c)
				}
			}
			return string(kept)
		}
	}
	return s
}

// flush writes what waits until the connection ends. Whatever else is ready to run has
// its turn first, and may add to it.
func (c *conn) flush() {
	o := &c.out
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for o.buf == nil && !o.closing {
			o.changed.Wait()
		}
		if o.buf == nil {
			break
		}
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
		buf, control := o.buf, o.control
		o.buf = nil
		c.admit()
		c.extend()
		c.mu.Unlock()
		_, err := c.raw.Write(*buf)
		c.mu.Lock()
		o.control -= control
		o.taken.Broadcast()
		*buf = (*buf)[:0]
		if cap(*buf) <= 4*enough {
			o.buffers.out.Put(buf)
		}
		if err != nil {
			o.buf = nil
			o.closing = true
			c.hangUp()
			return
		}
	}
	if w, ok := c.raw.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite() // it is closed soon
	}
}

// extend has the peer take what is written next within the time it has. c.mu is held.
func (c *conn) extend() {
	if c.stall == 0 || c.out.closing {
		return
	}
	if now := time.Now(); now.After(c.renew) {
		_ = c.raw.SetWriteDeadline(now.Add(c.stall)) // writing fails, too
		c.renew = now.Add(c.stall / 4)
	}
}

// hangUp has the goroutine that reads end the connection.
func (c *conn) hangUp() { _ = c.raw.SetReadDeadline(time.Unix(1, 0)) }

// close has flush end when all is written. c.mu is held.
func (c *conn) close() {
	if c.out.closing {
		return
	}
	c.out.closing = true
	_ = c.raw.SetWriteDeadline(time.Now().Add(farewell)) // the last word has its time
	c.out.wake()
}

// admit lets the stream add to what waits that has waited longest to. c.mu is held.
func (c *conn) admit() {
	if len(c.out.crowd) > 0 && c.out.len() < enough {
		c.out.crowd[0].moved.Broadcast()
	}
}
