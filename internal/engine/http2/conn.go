package http2

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A conn is one connection: a client's to a [Server], or a [Client].
type conn struct {
	server  *Server // nil of a Client
	handle  func(*Stream)
	client  bool
	raw     net.Conn
	r       *bufio.Reader
	buffers *Buffers
	idle    time.Duration // that it is kept without streams; 0 is for ever
	stall   time.Duration // that the peer may take nothing; 0 is for ever

	// Of the goroutine that reads.
	framer    *h2.Framer
	dec       *hpack.Decoder
	head      head
	frames    int      // ever
	empty     int      // of these, those without content in a row
	priority  int      // PRIORITY frames
	updates   int      // WINDOW_UPDATE frames
	unasked   int      // SETTINGS that were not acknowledged
	told      []func() // of streams that the frame ended
	handlers  sync.WaitGroup
	idleTimer *time.Timer

	mu      sync.Mutex
	streams map[uint32]*Stream // that are not closed on both sides
	last    uint32             // the highest stream that was opened
	most    int                // streams that there may be
	running int                // handlers
	opened  int                // streams, ever
	closed  int                // streams that ended, ever
	resets  int                // of these, those that were reset before there was a response
	gone    []uint32           // streams that were reset here lately: frames for them may be on their way
	goneAt  int
	since   time.Time // there are no streams
	err     error     // the connection is over, or is being ended

	window   int // bytes that the peer may send
	unread   int // bytes that it has not been given back
	send     int // bytes that may be sent
	first    int // of a stream, likewise
	blocked  []*Stream
	leaving  bool // it is to end after a request
	draining bool // the client was told that it will end
	limit    uint32
	final    bool // streams above limit are ignored

	out     output
	enc     *hpack.Encoder
	encoded bytes.Buffer // by enc
	renew   time.Time    // when to set the deadline for writing anew
}

func newConn(raw net.Conn, r *bufio.Reader, buffers *Buffers) *conn {
	c := &conn{
		raw: raw, r: r, buffers: buffers, framer: h2.NewFramer(nil, r), streams: map[uint32]*Stream{},
		window: connWindow, send: firstWindow, first: firstWindow, unasked: 1,
	}
	c.framer.SetReuseFrames()
	c.framer.SetMaxReadFrameSize(maxFrame)
	c.dec = hpack.NewDecoder(tableSize, c.head.add)
	c.dec.SetMaxStringLength(maxString)
	c.enc = hpack.NewEncoder(&c.encoded)
	c.out.buffers, c.out.changed.L, c.out.taken.L = buffers, &c.mu, &c.mu
	return c
}

// run serves the connection to its end, and returns why it ended.
func (c *conn) run() error {
	var writing sync.WaitGroup
	writing.Go(c.flush)
	err := c.read()
	c.end(err)
	writing.Wait()
	c.raw.Close()
	return err
}

// read takes frames until the connection ends, and says why it does.
func (c *conn) read() error {
	if c.idle > 0 {
		c.mu.Lock()
		c.since = time.Now()
		c.idleTimer = time.AfterFunc(c.idle, c.idled)
		c.mu.Unlock()
		defer c.idleTimer.Stop()
	}
	if !c.client {
		if err := c.preface(); err != nil {
			return err
		}
	}
	f, err := c.next()
	if err != nil {
		return err
	}
	if s, ok := f.(*h2.SettingsFrame); !ok || s.IsAck() {
		return &ProtocolError{h2.ErrCodeProtocol, "no SETTINGS first"}
	}
	for {
		err := c.frame(f)
		for _, told := range c.told {
			told()
		}
		c.told = c.told[:0]
		if err == nil {
			err = c.keepUp()
		}
		if err != nil {
			return err
		}
		if f, err = c.next(); err != nil {
			return err
		}
	}
}

// preface reads what a client says first.
func (c *conn) preface() error {
	preface := make([]byte, len(h2.ClientPreface))
	if _, err := io.ReadFull(c.r, preface); err != nil {
		return err
	}
	if string(preface) != h2.ClientPreface {
		return &ProtocolError{h2.ErrCodeProtocol, "no preface"}
	}
	return nil
}

// next reads a frame that is well-formed by itself.
func (c *conn) next() (h2.Frame, error) {
	var f h2.Frame
	h, err := c.framer.ReadFrameHeader()
	if err == nil {
		if h.Length < leastOf(h) {
			return nil, &ProtocolError{h2.ErrCodeFrameSize, "malformed frame"}
		}
		f, err = c.framer.ReadFrameForHeader(h)
	}
	var code h2.ConnectionError
	var stream h2.StreamError
	switch {
	case err == nil:
		return f, c.count(h, f)
	case errors.As(err, &code):
		return nil, &ProtocolError{h2.ErrCode(code), "malformed frame"}
	case errors.As(err, &stream): // as in Envoy
		return nil, &ProtocolError{stream.Code, "malformed frame"}
	case errors.Is(err, h2.ErrFrameTooLarge):
		return nil, &ProtocolError{h2.ErrCodeFrameSize, "frame is too long"}
	}
	return nil, err
}

// leastOf is how long a frame is at least by its flags: of one that is shorter the framer
// says what it says of a connection that ends.
func leastOf(h h2.FrameHeader) (n uint32) {
	if h.Type != h2.FrameHeaders && h.Type != h2.FrameData && h.Type != h2.FramePushPromise {
		return 0
	}
	if h.Flags.Has(h2.FlagDataPadded) {
		n++
	}
	if h.Type == h2.FrameHeaders && h.Flags.Has(h2.FlagHeadersPriority) {
		n += 5
	}
	if h.Type == h2.FramePushPromise {
		n += 4
	}
	return n
}

// count bounds the frames that a peer can send many of at no cost, as Envoy does.
func (c *conn) count(h h2.FrameHeader, f h2.Frame) error {
	content := int(h.Length)
	switch f := f.(type) {
	case *h2.DataFrame:
		content = len(f.Data())
	case *h2.HeadersFrame:
		content = len(f.HeaderBlockFragment())
	case *h2.ContinuationFrame:
		h.Flags = 0 // of others
	default:
		return nil
	}
	if content > 0 || h.Flags.Has(h2.FlagDataEndStream) {
		c.empty = 0
	} else if c.empty++; c.empty > maxEmpty {
		return &ProtocolError{h2.ErrCodeEnhanceYourCalm, "empty frames"}
	}
	return nil
}

// frame takes a frame.
func (c *conn) frame(f h2.Frame) error {
	switch f := f.(type) {
	case *h2.HeadersFrame:
		return c.headers(f)
	case *h2.DataFrame:
		return c.data(f)
	case *h2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *h2.RSTStreamFrame:
		return c.rstStream(f)
	case *h2.SettingsFrame:
		return c.settings(f)
	case *h2.PingFrame:
		return c.ping(f)
	case *h2.PriorityFrame:
		return c.prioritize()
	case *h2.PushPromiseFrame:
		return &ProtocolError{h2.ErrCodeProtocol, "PUSH_PROMISE"}
	case *h2.GoAwayFrame:
		if c.client { // of a client the streams that there are go on
			c.goneAway(f)
		}
	}
	return nil // others are for extensions
}

// prioritize takes a PRIORITY frame, of which nothing comes.
func (c *conn) prioritize() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.priority++; c.priority > 100*(1+c.opened) {
		return &ProtocolError{h2.ErrCodeEnhanceYourCalm, "PRIORITY frames"}
	}
	return nil
}

// headers takes the head of a message, or its trailers.
func (c *conn) headers(f *h2.HeadersFrame) error {
	id, end := f.StreamID, f.StreamEnded()
	if f.HasPriority() && f.Priority.StreamDep == id {
		return &ProtocolError{h2.ErrCodeProtocol, "stream depends on itself"}
	}
	c.mu.Lock()
	s, last := c.streams[id], c.last
	c.mu.Unlock()
	kind := request
	switch {
	case c.client && (s == nil || !s.answered): // which this goroutine alone changes
		kind = response
	case s != nil:
		kind = trailers
	}
	if err := c.block(f, kind); err != nil {
		return err
	}
	switch {
	case s != nil && kind == response:
		return c.respond(s, end)
	case s != nil:
		return c.trailers(s, end)
	case id%2 == 0 || c.client && id > last:
		return &ProtocolError{h2.ErrCodeProtocol, "stream that the peer may not open"}
	case id <= last:
		return c.late(id)
	}
	return c.open(id, end)
}

// late is what becomes of a head for a stream that is over: it is ignored if the peer may
// have sent it before it knew.
func (c *conn) late(id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.gone, id) || c.final && id > c.limit {
		return nil
	}
	return &ProtocolError{h2.ErrCodeStreamClosed, "frame for a stream that is over"}
}

// open begins a stream.
func (c *conn) open(id uint32, end bool) error {
	h := &c.head
	if end && h.length > 0 {
		h.refuse("content-length without content")
	}
	if h.fault != "" && !h.large() {
		return &ProtocolError{h2.ErrCodeProtocol, h.fault}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = id
	c.opened++
	switch {
	case c.err != nil || c.final: // it will try again elsewhere
		return c.err
	case h.large():
		c.reset(id, h2.ErrCodeInternal)
		return nil
	case c.running >= c.most: // also those that were reset
		c.reset(id, h2.ErrCodeRefusedStream)
		return nil
	}
	s := newStream(c, id, h.fields(), end, h.length)
	c.streams[id] = s
	c.running++
	c.handlers.Add(1)
	c.server.workers.do(s)
	return nil
}

// trailers takes the end of a message.
func (c *conn) trailers(s *Stream, end bool) error {
	h := &c.head
	switch {
	case !end:
		return &ProtocolError{h2.ErrCodeProtocol, "trailers are not the end"}
	case h.fault != "" && !h.large() && !c.client:
		return &ProtocolError{h2.ErrCodeProtocol, h.fault}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.ended:
		return &ProtocolError{h2.ErrCodeStreamClosed, "HEADERS after the end"}
	case s.err != nil:
		return nil
	case h.large() && !c.client:
		s.fail(h2.ErrCodeInternal)
		return nil
	case s.left > 0 && !c.client:
		return &ProtocolError{h2.ErrCodeProtocol, "content-length"}
	case h.fault != "" || h.large() || s.left > 0: // other requests are not to suffer
		s.fail(h2.ErrCodeProtocol)
		return nil
	}
	s.trailers = h.fields()
	s.end()
	return nil
}

// data takes some of a body.
func (c *conn) data(f *h2.DataFrame) error {
	size, p := int(f.Length), f.Data()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.window -= size; c.window < 0 {
		return &ProtocolError{h2.ErrCodeFlowControl, "window of the connection"}
	}
	s := c.streams[f.StreamID]
	switch {
	case f.StreamID > c.last:
		return &ProtocolError{h2.ErrCodeProtocol, "DATA for an idle stream"}
	case s == nil, s.err != nil:
		c.giveBack(size)
		return nil
	case s.ended:
		return &ProtocolError{h2.ErrCodeStreamClosed, "DATA after the end"}
	case c.client && !s.answered: // DATA before a head
		c.giveBack(size)
		s.fail(h2.ErrCodeProtocol)
		return nil
	}
	return s.take(p, size, f.StreamEnded())
}

// windowUpdate lets more be sent.
func (c *conn) windowUpdate(f *h2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.updates++; c.updates > 5+2*(c.opened+10*c.out.dataFrames) {
		return &ProtocolError{h2.ErrCodeEnhanceYourCalm, "WINDOW_UPDATE frames"}
	}
	more := int(f.Increment)
	if f.StreamID == 0 {
		if c.send += more; c.send > maxWindow {
			return &ProtocolError{h2.ErrCodeFlowControl, "window of the connection"}
		}
		c.unblock()
		return nil
	}
	s := c.streams[f.StreamID]
	switch {
	case f.StreamID > c.last:
		return &ProtocolError{h2.ErrCodeProtocol, "WINDOW_UPDATE for an idle stream"}
	case s == nil:
		return nil
	}
	if s.send += more; s.send > maxWindow {
		return &ProtocolError{h2.ErrCodeFlowControl, "window of a stream"}
	}
	s.moved.Broadcast()
	return nil
}

// rstStream ends a stream.
func (c *conn) rstStream(f *h2.RSTStreamFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[f.StreamID]
	switch {
	case f.StreamID > c.last:
		return &ProtocolError{h2.ErrCodeProtocol, "RST_STREAM for an idle stream"}
	case s == nil:
		return nil
	}
	if c.client && s.ended { // the response counts, whatever becomes of the rest of the request
		s.complete()
		s.moved.Broadcast()
		return nil
	}
	if !s.answered && time.Since(s.began) <= resetAtOnce {
		c.resets++
	}
	c.tell(s.over(&ResetError{Code: f.ErrCode}))
	if !c.client && c.resets*2 >= max(maxResets, c.closed) {
		return &ProtocolError{h2.ErrCodeEnhanceYourCalm, "streams that are reset at once"}
	}
	return nil
}

// tell has f called when the frame was taken, without the mutex.
func (c *conn) tell(f func()) {
	if f != nil {
		c.told = append(c.told, f)
	}
}

// forget removes a stream that is closed on both sides. c.mu is held.
func (c *conn) forget(s *Stream) {
	if c.streams[s.id] != s {
		return
	}
	delete(c.streams, s.id)
	c.closed++
	if len(c.streams) == 0 {
		c.since = time.Now()
	}
	switch {
	case c.client:
		c.leaveIfDone()
	case c.leaving:
		c.startDrain()
	}
	c.left()
}

// settings takes what the peer wants.
func (c *conn) settings(f *h2.SettingsFrame) error {
	if f.IsAck() {
		if c.unasked--; c.unasked < 0 {
			return &ProtocolError{h2.ErrCodeProtocol, "SETTINGS were acknowledged that were not sent"}
		}
		return nil
	}
	first, table, most := -1, -1, -1
	err := f.ForeachSetting(func(s h2.Setting) error {
		switch s.ID {
		case h2.SettingInitialWindowSize:
			first = int(s.Val)
		case h2.SettingHeaderTableSize:
			table = int(min(s.Val, tableSize))
		case h2.SettingMaxConcurrentStreams:
			most = int(s.Val)
		}
		return s.Valid()
	})
	var code h2.ConnectionError
	if errors.As(err, &code) {
		return &ProtocolError{h2.ErrCode(code), "SETTINGS"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if most >= 0 && c.client {
		c.most = min(most, maxStreams)
	}
	if table >= 0 {
		c.enc.SetMaxDynamicTableSize(uint32(table))
	}
	if first >= 0 {
		if err := c.resize(first); err != nil {
			return err
		}
	}
	c.control(c.out.settingsAck)
	return nil
}

// resize changes the first window of streams, and that of those there are. It may make
// a window negative.
func (c *conn) resize(first int) error {
	more := first - c.first
	c.first = first
	for _, s := range c.streams {
		if s.send += more; s.send > maxWindow {
			return &ProtocolError{h2.ErrCodeFlowControl, "window of a stream"}
		}
		s.moved.Broadcast()
	}
	return nil
}

func (c *conn) ping(f *h2.PingFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.IsAck() {
		c.control(func() { c.out.ping(true, f.Data) })
	} else if string(f.Data[:]) == goodbye {
		c.finalGoAway()
	}
	return nil
}

// control writes a frame that the peer caused. c.mu is held.
func (c *conn) control(write func()) {
	c.out.control++
	write()
	c.out.wake()
}

// keepUp looks after the frames that the peer caused, every now and then: if there are
// too many that it has not taken it has a second to do so.
func (c *conn) keepUp() error {
	if c.frames++; c.frames%(maxControl/2) != 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	late := false
	for c.out.control > maxControl && !c.out.closing {
		if late {
			return &ProtocolError{h2.ErrCodeEnhanceYourCalm, "answers are not read"}
		}
		t := time.AfterFunc(farewell, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			late = true
			c.out.taken.Broadcast()
		})
		c.out.taken.Wait()
		t.Stop()
	}
	return nil
}

// reset ends a stream of which there may be nothing else. c.mu is held.
func (c *conn) reset(id uint32, code h2.ErrCode) {
	if len(c.gone) < maxGone {
		c.gone = append(c.gone, id)
	} else {
		c.gone[c.goneAt] = id
		c.goneAt = (c.goneAt + 1) % len(c.gone)
	}
	c.control(func() { c.out.rst(id, code) })
}

// unblock lets the stream go on that has waited longest for the connection's window.
// c.mu is held.
func (c *conn) unblock() {
	if len(c.blocked) > 0 && c.send > 0 {
		c.blocked[0].moved.Broadcast()
	}
}

// giveBack gives the peer back what was read of bodies. c.mu is held.
func (c *conn) giveBack(n int) {
	c.unread += n
	if c.unread < connWindow/4 || c.err != nil {
		return
	}
	c.out.windowUpdate(0, c.unread)
	c.out.wake()
	c.window += c.unread
	c.unread = 0
}

// goodbye is the content of the PING that follows the first GOAWAY: its answer tells
// that the client has seen that.
const goodbye = "goodbye\x00"

// drain tells the client that there will be no more streams, but takes those that are
// on their way.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startDrain()
}

func (c *conn) startDrain() {
	if c.draining || c.err != nil {
		return
	}
	c.draining = true
	c.out.goAway(maxWindow, h2.ErrCodeNo, "")
	c.out.ping(false, [8]byte([]byte(goodbye)))
	c.out.wake()
	time.AfterFunc(lastCall, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.finalGoAway()
	})
}

// finalGoAway says which streams are answered, and ends the connection when they are.
// c.mu is held.
func (c *conn) finalGoAway() {
	if !c.draining || c.final || c.err != nil {
		return
	}
	c.final, c.limit = true, c.last
	c.out.goAway(c.last, h2.ErrCodeNo, "")
	c.out.wake()
	c.left()
}

// left ends the connection if it is to end and has no streams. c.mu is held.
func (c *conn) left() {
	if c.final && len(c.streams) == 0 && c.err == nil {
		c.err = net.ErrClosed
		c.close()
		_ = c.raw.SetReadDeadline(time.Now().Add(farewell)) // the client closes it before, or it ends so
	}
}

// idled has a connection end that had no stream for long.
func (c *conn) idled() {
	c.mu.Lock()
	defer c.mu.Unlock()
	idle := c.idle
	if c.err != nil {
		return
	}
	if len(c.streams) == 0 {
		if idle -= time.Since(c.since); idle <= 0 {
			if c.client {
				c.leave()
			} else {
				c.startDrain()
			}
			return
		}
	}
	c.idleTimer.Reset(idle)
}

// errLost is why a stream ended whose connection did. It is no [io.EOF]: what was read of
// the stream is not all.
var errLost = errors.New("connection lost")

// end ends all streams, and the connection once the peer was told why.
func (c *conn) end(err error) {
	c.mu.Lock()
	var fault *ProtocolError
	if errors.As(err, &fault) {
		last := c.last
		if c.client { // none is the peer's
			last = 0
		}
		c.out.goAway(last, fault.Code, fault.Reason)
	}
	if c.err == nil {
		c.err = err
	}
	lost := error(fault)
	if fault == nil {
		lost = errLost
	}
	for _, s := range c.streams {
		c.tell(s.over(lost))
	}
	for _, s := range c.out.crowd { // those that are not begun
		s.moved.Broadcast()
	}
	c.close()
	c.mu.Unlock()
	for _, told := range c.told {
		told()
	}
	if fault != nil {
		c.linger()
	}
}

// linger reads what the peer goes on sending, so that it hears why the connection
// ends: closing a connection with something unread takes back what was written.
func (c *conn) linger() {
	_ = c.raw.SetReadDeadline(time.Now().Add(farewell))
	_, _ = io.Copy(io.Discard, c.r)
}

// room is room for some of a body, of which there are n bytes now.
func (c *conn) room(n int) []byte {
	const small = 2 << 10
	if n <= small {
		return make([]byte, 0, small)
	}
	b, ok := c.buffers.blocks.Get().(*[maxFrame]byte)
	if !ok {
		b = new([maxFrame]byte)
	}
	return b[:0]
}

// free takes back what room gave.
func (c *conn) free(b []byte) {
	if cap(b) == maxFrame {
		c.buffers.blocks.Put((*[maxFrame]byte)(b[:maxFrame]))
	}
}
