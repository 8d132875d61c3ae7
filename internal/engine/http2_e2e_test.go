//go:build e2e

package engine

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// A client2 is an HTTP/2 connection, frame by frame.
type client2 struct {
	*http2.Framer
	conn  net.Conn
	block bytes.Buffer
	enc   *hpack.Encoder
}

// dial2 connects, and says what every client says first.
func dial2(t *testing.T, port int) *client2 {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	f := &client2{Framer: http2.NewFramer(c, c), conn: c}
	f.AllowIllegalWrites = true
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.enc = hpack.NewEncoder(&f.block)
	_, _ = c.Write([]byte(http2.ClientPreface)) // reading tells
	_ = f.WriteSettings()
	return f
}

// encode is a block of fields: NAME VALUE, one after the other.
func (f *client2) encode(pairs ...string) []byte {
	f.block.Reset()
	for i := 0; i+1 < len(pairs); i += 2 {
		_ = f.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(f.block.Bytes())
}

func (f *client2) head(id uint32, end bool, pairs ...string) {
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.encode(pairs...), EndStream: end, EndHeaders: true})
}

// heard is what comes until the connection ends or nothing does.
func (f *client2) heard(patience time.Duration) string {
	var out []string
	for {
		_ = f.conn.SetReadDeadline(time.Now().Add(patience))
		frame, err := f.ReadFrame()
		if err != nil {
			if n, ok := err.(net.Error); ok && n.Timeout() {
				break
			}
			if _, ok := err.(http2.StreamError); ok {
				out = append(out, err.Error())
				continue
			}
			out = append(out, "closed")
			break
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			s := fmt.Sprintf("%d:%s", frame.StreamID, frame.PseudoValue("status"))
			if frame.PseudoValue("status") == "" {
				s = fmt.Sprintf("%d:trailers", frame.StreamID)
			}
			if frame.StreamEnded() {
				s += "$"
			}
			out = append(out, s)
		case *http2.DataFrame:
			if frame.StreamEnded() {
				out = append(out, fmt.Sprintf("%d:data$", frame.StreamID))
			}
		case *http2.RSTStreamFrame:
			out = append(out, fmt.Sprintf("%d:rst %s", frame.StreamID, frame.ErrCode))
		case *http2.GoAwayFrame:
			out = append(out, fmt.Sprintf("goaway %s %d %q", frame.ErrCode, frame.LastStreamID, frame.DebugData()))
		case *http2.PingFrame:
			out = append(out, "ping")
		}
	}
	return strings.Join(out, ", ")
}

var plain2 = []string{":method", "GET", ":scheme", "http", ":path", "/p/x", ":authority", "h"}
var post2 = []string{":method", "POST", ":scheme", "http", ":path", "/p/x", ":authority", "h"}

func with2(base []string, more ...string) []string {
	return append(append([]string{}, base...), more...)
}

// hostile2 are connections that do what one must not, or what is rare.
func hostile2() map[string]func(f *client2) {
	all := map[string]func(f *client2){
		"get": func(f *client2) { f.head(1, true, plain2...) },
		"direct post": func(f *client2) {
			f.head(1, false, ":method", "POST", ":scheme", "http", ":path", "/direct", ":authority", "h")
		},
		"post": func(f *client2) { f.head(1, false, post2...); _ = f.WriteData(1, true, []byte("abc")) },
		"padded": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteDataPadded(1, true, []byte("abc"), make([]byte, 9))
		},
		"pad beyond": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteRawFrame(http2.FrameData, 8|1, 1, []byte("\x09abc"))
		},
		"pad without length": func(f *client2) { f.head(1, false, post2...); _ = f.WriteRawFrame(http2.FrameData, 8|1, 1, nil) },
		"trailers": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteData(1, false, []byte("abc"))
			f.head(1, true, "t", "1")
		},
		"trailers without end": func(f *client2) { f.head(1, false, post2...); f.head(1, false, "t", "1") },
		"pseudo trailers":      func(f *client2) { f.head(1, false, post2...); f.head(1, true, ":path", "/q") },
		"upper-case trailers":  func(f *client2) { f.head(1, false, post2...); f.head(1, true, "T", "1") },
		"even id":              func(f *client2) { f.head(2, true, plain2...) },
		"id zero":              func(f *client2) { f.head(0, true, plain2...) },
		"ids fall":             func(f *client2) { f.head(5, true, plain2...); f.head(3, true, plain2...) },
		"id again":             func(f *client2) { f.head(1, true, plain2...); f.head(1, true, plain2...) },
		"data for idle":        func(f *client2) { _ = f.WriteData(1, true, []byte("abc")) },
		"data after end": func(f *client2) {
			f.head(1, true, ":method", "GET", ":scheme", "http", ":path", "/silent", ":authority", "h")
			_ = f.WriteData(1, true, []byte("abc"))
		},
		"data after rst": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteRSTStream(1, http2.ErrCodeCancel)
			_ = f.WriteData(1, true, []byte("abc"))
			f.head(3, true, plain2...)
		},
		"headers after rst": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteRSTStream(1, http2.ErrCodeCancel)
			f.head(1, true, plain2...)
			f.head(3, true, plain2...)
		},
		"rst for idle": func(f *client2) { _ = f.WriteRSTStream(1, http2.ErrCodeCancel) },
		"rst twice": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteRSTStream(1, http2.ErrCodeCancel)
			_ = f.WriteRSTStream(1, http2.ErrCodeCancel)
			f.head(3, true, plain2...)
		},
		"window for idle":             func(f *client2) { _ = f.WriteWindowUpdate(1, 1) },
		"window of zero":              func(f *client2) { f.head(1, false, post2...); _ = f.WriteWindowUpdate(1, 0) },
		"window of zero, connection":  func(f *client2) { _ = f.WriteWindowUpdate(0, 0) },
		"window overflow":             func(f *client2) { f.head(1, false, post2...); _ = f.WriteWindowUpdate(1, 1<<31-1) },
		"window overflow, connection": func(f *client2) { _ = f.WriteWindowUpdate(0, 1<<31-1) },
		"settings window overflow": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteWindowUpdate(1, 1<<30)
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		},
		"settings window too large": func(f *client2) { _ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) },
		"settings frame size":       func(f *client2) { _ = f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100}) },
		"settings push":             func(f *client2) { _ = f.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) },
		"settings unknown":          func(f *client2) { _ = f.WriteSettings(http2.Setting{ID: 99, Val: 2}); f.head(1, true, plain2...) },
		"settings ack with payload": func(f *client2) { _ = f.WriteRawFrame(http2.FrameSettings, 1, 0, make([]byte, 6)) },
		"settings of a stream":      func(f *client2) { _ = f.WriteRawFrame(http2.FrameSettings, 0, 1, nil) },
		"settings length":           func(f *client2) { _ = f.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 3)) },
		"settings ack unasked":      func(f *client2) { _ = f.WriteSettingsAck(); _ = f.WriteSettingsAck(); f.head(1, true, plain2...) },
		"ping":                      func(f *client2) { _ = f.WritePing(false, [8]byte{1}) },
		"ping length":               func(f *client2) { _ = f.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 3)) },
		"ping of a stream":          func(f *client2) { _ = f.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)) },
		"push promise": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: f.encode(plain2...), EndHeaders: true})
		},
		"unknown frame": func(f *client2) { _ = f.WriteRawFrame(99, 0, 0, make([]byte, 8)); f.head(1, true, plain2...) },
		"frame too large": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 16385))
		},
		"goaway": func(f *client2) {
			_ = f.WriteGoAway(0, 0, nil)
			f.head(1, true, plain2...)
		},
		"continuation": func(f *client2) {
			b := f.encode(plain2...)
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], EndStream: true})
			_ = f.WriteContinuation(1, true, b[3:])
		},
		"continuation of another": func(f *client2) {
			b := f.encode(plain2...)
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], EndStream: true})
			_ = f.WriteContinuation(3, true, b[3:])
		},
		"continuation alone": func(f *client2) { _ = f.WriteContinuation(1, true, f.encode(plain2...)) },
		"continuation broken": func(f *client2) {
			b := f.encode(plain2...)
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], EndStream: true})
			_ = f.WritePing(false, [8]byte{})
		},
		"continuation flood": func(f *client2) {
			b := f.encode(plain2...)
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b, EndStream: true})
			for range 3000 {
				_ = f.WriteContinuation(1, false, nil)
			}
			_ = f.WriteContinuation(1, true, nil)
		},
		"continuation flood, large": func(f *client2) {
			b := f.encode(plain2...)
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b, EndStream: true})
			for range 100 {
				_ = f.WriteContinuation(1, false, f.encode("a", strings.Repeat("~", 9000)))
			}
			_ = f.WriteContinuation(1, true, nil)
		},
		"hpack index": func(f *client2) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0x80, 0x01}, EndStream: true, EndHeaders: true})
		},
		"hpack cut": func(f *client2) {
			b := f.encode(with2(plain2, "a", "bcd")...)
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:len(b)-1], EndStream: true, EndHeaders: true})
		},
		"hpack table": func(f *client2) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: append([]byte{0x3f, 0xff, 0xff, 0x03}, f.encode(plain2...)...), EndStream: true, EndHeaders: true})
		},
		"empty headers": func(f *client2) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true})
		},
		"depends on itself": func(f *client2) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.encode(plain2...), EndStream: true, EndHeaders: true, Priority: http2.PriorityParam{StreamDep: 1}})
		},
		"priority of itself": func(f *client2) {
			_ = f.WritePriority(1, http2.PriorityParam{StreamDep: 1, Weight: 3})
			f.head(1, true, plain2...)
		},
		"priority of zero": func(f *client2) {
			_ = f.WritePriority(0, http2.PriorityParam{StreamDep: 1, Weight: 3})
			f.head(1, true, plain2...)
		},
		"priority length": func(f *client2) {
			_ = f.WriteRawFrame(http2.FramePriority, 0, 1, []byte{1})
			f.head(1, true, plain2...)
		},
		"rst length": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteRawFrame(http2.FrameRSTStream, 0, 1, []byte{1})
		},
		"window length": func(f *client2) {
			f.head(1, false, post2...)
			_ = f.WriteRawFrame(http2.FrameWindowUpdate, 0, 1, []byte{1})
		},
		"priority flood": func(f *client2) {
			for range 20000 {
				_ = f.WritePriority(1, http2.PriorityParam{Weight: 3})
			}
			f.head(1, true, plain2...)
		},
		"window flood": func(f *client2) {
			for range 20000 {
				_ = f.WriteWindowUpdate(0, 1)
			}
			f.head(1, true, plain2...)
		},
		"empty data": func(f *client2) {
			f.head(1, false, post2...)
			for range 1 {
				_ = f.WriteData(1, false, nil)
			}
			_ = f.WriteData(1, true, []byte("a"))
		},
		"empty data twice": func(f *client2) {
			f.head(1, false, post2...)
			for range 2 {
				_ = f.WriteData(1, false, nil)
			}
			_ = f.WriteData(1, true, []byte("a"))
		},
		"empty data flood": func(f *client2) {
			f.head(1, false, post2...)
			for range 20000 {
				_ = f.WriteData(1, false, nil)
			}
		},
		"empty headers flood": func(f *client2) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			for range 20 {
				_ = f.WriteContinuation(1, false, nil)
			}
			_ = f.WriteContinuation(1, true, f.encode(plain2...))
		},
		"rapid reset": func(f *client2) {
			for i := range 2000 {
				f.head(uint32(2*i+1), true, ":method", "GET", ":scheme", "http", ":path", "/silent", ":authority", "h")
				_ = f.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
			}
		},
		"many streams": func(f *client2) {
			for i := range 1030 {
				f.head(uint32(2*i+1), true, ":method", "GET", ":scheme", "http", ":path", "/silent", ":authority", "h")
			}
		},
		"length short": func(f *client2) {
			f.head(1, false, with2(post2, "content-length", "4")...)
			_ = f.WriteData(1, true, []byte("abc"))
		},
		"length long": func(f *client2) {
			f.head(1, false, with2(post2, "content-length", "2")...)
			_ = f.WriteData(1, true, []byte("abc"))
		},
		"length without body": func(f *client2) { f.head(1, true, with2(post2, "content-length", "2")...) },
		"length short, trailers": func(f *client2) {
			f.head(1, false, with2(post2, "content-length", "4")...)
			_ = f.WriteData(1, false, []byte("abc"))
			f.head(1, true, "t", "1")
		},
		"lengths": func(f *client2) {
			f.head(1, false, with2(post2, "content-length", "3", "content-length", "3")...)
			_ = f.WriteData(1, true, []byte("abc"))
		},
		"lengths differ": func(f *client2) {
			f.head(1, false, with2(post2, "content-length", "3", "content-length", "4")...)
			_ = f.WriteData(1, true, []byte("abc"))
		},
		"length list": func(f *client2) {
			f.head(1, false, with2(post2, "content-length", "3, 3")...)
			_ = f.WriteData(1, true, []byte("abc"))
		},
		"length sign": func(f *client2) {
			f.head(1, false, with2(post2, "content-length", "+3")...)
			_ = f.WriteData(1, true, []byte("abc"))
		},
		"length empty": func(f *client2) {
			f.head(1, false, with2(post2, "content-length", "")...)
			_ = f.WriteData(1, true, []byte("abc"))
		},
		"no method":    func(f *client2) { f.head(1, true, ":scheme", "http", ":path", "/p/x", ":authority", "h") },
		"no scheme":    func(f *client2) { f.head(1, true, ":method", "GET", ":path", "/p/x", ":authority", "h") },
		"no path":      func(f *client2) { f.head(1, true, ":method", "GET", ":scheme", "http", ":authority", "h") },
		"no authority": func(f *client2) { f.head(1, true, ":method", "GET", ":scheme", "http", ":path", "/p/x") },
		"only host":    func(f *client2) { f.head(1, true, ":method", "GET", ":scheme", "http", ":path", "/p/x", "host", "h") },
		"only hosts": func(f *client2) {
			f.head(1, true, ":method", "GET", ":scheme", "http", ":path", "/p/x", "host", "h", "host", "i")
		},
		"host too":       func(f *client2) { f.head(1, true, with2(plain2, "host", "i")...) },
		"status":         func(f *client2) { f.head(1, true, with2(plain2, ":status", "200")...) },
		"unknown pseudo": func(f *client2) { f.head(1, true, with2(plain2, ":what", "200")...) },
		"pseudo after": func(f *client2) {
			f.head(1, true, ":method", "GET", ":scheme", "http", ":path", "/p/x", "a", "b", ":authority", "h")
		},
		"pseudo twice": func(f *client2) { f.head(1, true, with2(plain2, ":path", "/p/x")...) },
		"protocol":     func(f *client2) { f.head(1, true, with2(plain2, ":protocol", "websocket")...) },
		"extended connect": func(f *client2) {
			f.head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/p/x", ":authority", "h")
		},
		"connect": func(f *client2) { f.head(1, false, ":method", "CONNECT", ":authority", "h:80") },
		"connect with path": func(f *client2) {
			f.head(1, false, ":method", "CONNECT", ":authority", "h:80", ":path", "/p/x", ":scheme", "http")
		},
		"options asterisk": func(f *client2) {
			f.head(1, true, ":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "h")
		},
		"expect": func(f *client2) { f.head(1, false, with2(post2, "expect", "100-continue")...) },
		"many fields": func(f *client2) {
			p := plain2
			for range 120 {
				p = with2(p, "a", "b")
			}
			f.head(1, true, p...)
		},
		"99 fields": func(f *client2) {
			p := plain2
			for range 95 {
				p = with2(p, "a", "b")
			}
			f.head(1, true, p...)
		},
		"101 fields": func(f *client2) {
			p := plain2
			for range 97 {
				p = with2(p, "a", "b")
			}
			f.head(1, true, p...)
		},
		"large field": func(f *client2) { b := f.encode(with2(plain2, "a", strings.Repeat("~", 70<<10))...); f.cut(1, b) },
		"large fields": func(f *client2) {
			p := plain2
			for range 7 {
				p = with2(p, "a", strings.Repeat("~", 10<<10))
			}
			f.cut(1, f.encode(p...))
		},
		"59 KB": func(f *client2) {
			p := plain2
			for range 59 {
				p = with2(p, "a", strings.Repeat("~", 1<<10))
			}
			f.cut(1, f.encode(p...))
		},
		"many trailers": func(f *client2) {
			f.head(1, false, post2...)
			p := []string{}
			for range 120 {
				p = with2(p, "a", "b")
			}
			f.head(1, true, p...)
		},
		"large trailers": func(f *client2) { f.head(1, false, post2...); f.cut(1, f.encode("a", strings.Repeat("~", 70<<10))) },
	}
	for _, field := range []string{
		"Upper b", "a\x00 b", "a: b", " b", "a\x80 b", "a( b", "connection close", "connection keep-alive", "keep-alive 5", "proxy-connection x", "transfer-encoding chunked", "upgrade websocket", "te gzip", "te trailers", "te trailers,gzip",
		"a \x00", "a \x01", "a \x7f", "a \x80", "a b\rc", "a b\nc", "a  b", "a b ", "a \tb", "a ", "a_b c", "http2-settings x", "content-length x", "content-length -1", "content-length 0", "x-forwarded-for a",
	} {
		name, value, _ := strings.Cut(field, " ")
		all[fmt.Sprintf("field %q", field)] = func(f *client2) { f.head(1, true, with2(plain2, name, value)...) }
	}
	for _, path := range []string{"", "x", "*", "/a b", "/\x00", "/\x01", "/\x80", "/a#b", "http://o/p/x", "/p/\x7f", "/p/\t"} {
		all[fmt.Sprintf("path %q", path)] = func(f *client2) {
			f.head(1, true, ":method", "GET", ":scheme", "http", ":path", path, ":authority", "h")
		}
	}
	for _, a := range []string{"", "a b", "a,b", "u@h", "h/p", "h:x", "h\\i", "h?q", "[::1]:80", "h\x80", "h_i"} {
		all[fmt.Sprintf("authority %q", a)] = func(f *client2) {
			f.head(1, true, ":method", "GET", ":scheme", "http", ":path", "/p/x", ":authority", a)
		}
	}
	for _, s := range []string{"", "https", "ftp", "HTTP", "a b", "1x"} {
		all[fmt.Sprintf("scheme %q", s)] = func(f *client2) { f.head(1, true, ":method", "GET", ":scheme", s, ":path", "/p/x", ":authority", "h") }
	}
	for _, m := range []string{"", "get", "BREW", "G T", "G\x00", "G(", "PRI"} {
		all[fmt.Sprintf("method %q", m)] = func(f *client2) { f.head(1, true, ":method", m, ":scheme", "http", ":path", "/p/x", ":authority", "h") }
	}
	return all
}

// cut writes a head in frames of 16 KB.
func (f *client2) cut(id uint32, b []byte) {
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:10], EndStream: true})
	for b = b[10:]; len(b) > 16000; b = b[16000:] {
		_ = f.WriteContinuation(id, false, b[:16000])
	}
	_ = f.WriteContinuation(id, true, b)
}

// stricter2 reports whether the engine ends a connection that Envoy goes on with, as
// RFC 9113 wants it to, or because what comes is worth nothing.
func stricter2(name string) bool {
	return slices.Contains([]string{
		"continuation flood, large", "headers after rst", "ids fall", "priority of zero", "settings window overflow",
	}, name)
}

// alike is what was heard but for why a connection ended: Envoy seldom tells.
func alike(heard string) string {
	if strings.HasSuffix(heard, "closed") {
		heard = goAway.ReplaceAllString(heard, "")
	}
	return heard
}

var goAway = regexp.MustCompile(`goaway \S+ \d+ "[^"]*", `)

// TestHostileHTTP2LikeEnvoy does to both what one must not: what comes of it is the same,
// or the end.
func TestHostileHTTP2LikeEnvoy(t *testing.T) {
	back, silent := backend(t, echo), silentBackend(t)
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), staticCluster(t, "silent", silent), httpListener(t, "main", port, "", "stream_idle_timeout: 0s"),
			routeConfig(t, `
- match: {prefix: /silent}
  route: {cluster: silent, timeout: 0s}
- match: {prefix: /direct}
  direct_response: {status: 418, body: {inline_string: teapot}}`+toBackend),
		}
	})
	hear := func(name string, do func(*client2), port int) string {
		f := dial2(t, port)
		var sent sync.WaitGroup
		sent.Go(func() { do(f) })
		heard := f.heard(1500 * time.Millisecond)
		f.conn.Close()
		sent.Wait()
		return heard
	}
	var running sync.WaitGroup
	room := make(chan struct{}, 16)
	for name, do := range hostile2() {
		running.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			got := hear(name, do, p.enginePort)
			if stricter2(name) {
				if !strings.HasSuffix(got, "closed") {
					t.Errorf("%s: %s", name, got)
				}
				return
			}
			if diff := cmp.Diff(alike(hear(name, do, p.envoyPort)), alike(got)); diff != "" {
				t.Errorf("%s (-envoy +engine):\n%s", name, diff)
			}
		})
	}
	running.Wait()
}

// answer is all of the response on a stream, its fields in order.
func (f *client2) answer() string {
	var out strings.Builder
	_ = f.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			fmt.Fprintf(&out, "[%v]", err)
			return out.String()
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range frame.Fields {
				fmt.Fprintf(&out, "%s: %s\r\n", h.Name, h.Value)
			}
			ended = frame.StreamEnded()
		case *http2.DataFrame:
			out.Write(frame.Data())
			ended = frame.StreamEnded()
		case *http2.RSTStreamFrame:
			fmt.Fprintf(&out, "[%s]", frame.ErrCode)
			ended = true
		}
		if ended {
			text := dateLine.ReplaceAllString(out.String(), "date: now\r")
			text = idLine.ReplaceAllString(text, "x-request-id: id\r")
			text = timeLine.ReplaceAllString(text, "x-envoy-upstream-service-time: n\r")
			return strings.ReplaceAll(text, "\r", "")
		}
	}
}

// TestHTTP2LikeEnvoy compares what the upstream and the client get, byte for byte and with
// every field in its place.
func TestHTTP2LikeEnvoy(t *testing.T) {
	back, silent, down := rawBackend(t), silentBackend(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			staticCluster(t, "backend", back), staticCluster(t, "down", down), staticCluster(t, "none"), staticCluster(t, "silent", silent),
			httpListener(t, "main", port, "", "normalize_path: true\nuse_remote_address: true\nstream_idle_timeout: 0.5s"), routeConfig(t, manyRoutes),
		}
	})
	head := func(method, path string, more ...string) []string {
		return append([]string{":method", method, ":authority", "example.com", ":scheme", "http", ":path", path}, more...)
	}
	type request struct {
		head     []string
		body     string
		trailers []string
	}
	for name, r := range map[string]request{
		"get":                {head: head("GET", "/p/x")},
		"order":              {head: head("GET", "/p/x", "zebra", "1", "apple", "2", "user-agent", "me", "zebra", "3", "accept", "*/*")},
		"order of pseudo":    {head: []string{":path", "/p/x", ":scheme", "http", ":authority", "h", ":method", "GET", "a", "b"}},
		"repeated":           {head: head("GET", "/p/x", "accept", "a", "accept", "b", "x-a", "1", "x-a", "2", "user-agent", "a", "user-agent", "b")},
		"cookie":             {head: head("GET", "/p/x", "a", "1", "cookie", "a=1", "b", "2")},
		"cookies":            {head: head("GET", "/p/x", "a", "1", "cookie", "a=1", "b", "2", "cookie", "b=2", "c", "3")},
		"host too":           {head: head("GET", "/p/x", "host", "other")},
		"only host":          {head: []string{":method", "GET", ":scheme", "http", ":path", "/p/x", "a", "1", "host", "other", "b", "2"}},
		"te":                 {head: head("GET", "/p/x", "te", "trailers")},
		"http2-settings":     {head: head("GET", "/p/x", "http2-settings", "x")},
		"empty values":       {head: head("GET", "/p/x", "a", "", "b", " x ", "c", "\t")},
		"other scheme":       {head: []string{":method", "GET", ":scheme", "https", ":path", "/p/x", ":authority", "h"}},
		"post":               {head: head("POST", "/p/x"), body: "hello"},
		"post with length":   {head: head("POST", "/p/x", "content-length", "5"), body: "hello"},
		"post nothing":       {head: head("POST", "/p/x")},
		"post length zero":   {head: head("POST", "/p/x", "content-length", "0")},
		"trailers":           {head: head("POST", "/p/x", "trailer", "t"), body: "hello", trailers: []string{"t", "1", "u", "2"}},
		"expect":             {head: head("POST", "/p/x", "expect", "100-continue"), body: "hello"},
		"head":               {head: head("HEAD", "/p/x")},
		"options":            {head: head("OPTIONS", "/p/x")},
		"unknown method":     {head: head("BREW", "/p/x")},
		"connect":            {head: []string{":method", "CONNECT", ":authority", "h:80"}},
		"chunked":            {head: head("GET", "/p/chunked")},
		"trailers of http1":  {head: head("GET", "/p/trailers")},
		"204":                {head: head("GET", "/p/204")},
		"304":                {head: head("GET", "/p/304")},
		"empty":              {head: head("GET", "/p/empty")},
		"503":                {head: head("GET", "/p/503")},
		"until close":        {head: head("GET", "/p/until-close")},
		"fields":             {head: head("GET", "/p/fields")},
		"garbage":            {head: head("GET", "/p/garbage")},
		"upstream closes":    {head: head("GET", "/p/close")},
		"not found":          {head: head("GET", "/nothing")},
		"direct":             {head: head("GET", "/direct")},
		"direct head":        {head: head("HEAD", "/direct")},
		"direct empty":       {head: head("GET", "/direct-empty")},
		"post direct":        {head: head("POST", "/direct"), body: "hello"},
		"redirect":           {head: head("GET", "/redirect/prefix/a?b=c")},
		"add":                {head: head("GET", "/add/x", "x-set", "1", "x-gone", "1", "x-add", "0")},
		"no cluster":         {head: head("GET", "/nocluster")},
		"down":               {head: head("GET", "/down")},
		"grpc down":          {head: head("POST", "/down", "content-type", "application/grpc"), body: "x"},
		"none":               {head: head("GET", "/none")},
		"late":               {head: head("GET", "/late")},
		"late post":          {head: head("POST", "/late"), body: "hello"},
		"fragment":           {head: head("GET", "/p/x#y")},
		"dots":               {head: head("GET", "/p/a/../b/./c%2e?x=/../")},
		"try":                {head: head("GET", "/try")},
		"envoy's own fields": {head: head("GET", "/p/x", "x-envoy-max-retries", "1", "x-envoy-internal", "true", "x-forwarded-for", "1.2.3.4", "x-forwarded-proto", "https")},
	} {
		t.Run(name, func(t *testing.T) {
			ask := func(port int) string {
				f := dial2(t, port)
				f.head(1, r.body == "" && r.trailers == nil, r.head...)
				if r.body != "" {
					_ = f.WriteData(1, r.trailers == nil, []byte(r.body)) // the answer tells
				}
				if r.trailers != nil {
					f.head(1, true, r.trailers...)
				}
				return f.answer()
			}
			if diff := cmp.Diff(ask(p.envoyPort), ask(p.enginePort)); diff != "" {
				t.Errorf("%v (-envoy +engine):\n%s", r.head, diff)
			}
		})
	}
}

// TestHTTP2UpstreamLikeEnvoy compares what an upstream of HTTP/2 gets, field by field and
// with trailers that no one announced, and what comes of its answers.
func TestHTTP2UpstreamLikeEnvoy(t *testing.T) {
	back := frameBackend(t)
	p := startPair(t, func(port int) []proto.Message {
		return []proto.Message{
			overHTTP2(t, staticCluster(t, "backend", back)), httpListener(t, "main", port, "", "stream_idle_timeout: 0.5s"),
			routeConfig(t, `
- match: {prefix: /refuse/retry}
  route: {cluster: backend, timeout: 0s, retry_policy: {num_retries: 1, retry_on: refused-stream}}`+toBackend),
		}
	})
	for name, r := range map[string]struct {
		path     string
		body     string
		fields   []string
		trailers []string
	}{
		"get":             {path: "/x", fields: []string{"z", "1", "a", "2", "z", "3", "te", "trailers", "cookie", "a=b", "user-agent", "me"}},
		"post":            {path: "/x", fields: []string{"content-length", "5"}, body: "hello"},
		"trailers":        {path: "/x", body: "hello", trailers: []string{"t", "1", "b", "2"}},
		"only trailers":   {path: "/x", trailers: []string{"t", "1"}},
		"refuse":          {path: "/refuse"},
		"refuse twice":    {path: "/refuse/retry"},
		"reset":           {path: "/reset"},
		"reset after":     {path: "/cut"},
		"close":           {path: "/close"},
		"malformed":       {path: "/malformed"},
		"go away":         {path: "/goaway"},
		"early":           {path: "/early"},
		"length is wrong": {path: "/short"},
	} {
		t.Run(name, func(t *testing.T) {
			ask := func(port int) string {
				f := dial2(t, port)
				f.head(1, r.body == "" && r.trailers == nil, append([]string{":method", "POST", ":authority", "h", ":scheme", "http", ":path", r.path}, r.fields...)...)
				if r.body != "" {
					_ = f.WriteData(1, r.trailers == nil, []byte(r.body)) // the answer tells
				}
				if r.trailers != nil {
					f.head(1, true, r.trailers...)
				}
				return f.answer()
			}
			if diff := cmp.Diff(ask(p.envoyPort), ask(p.enginePort)); diff != "" {
				t.Errorf("(-envoy +engine):\n%s", diff)
			}
		})
	}
}

// frameBackend answers requests over HTTP/2 with their fields as they came, or does what
// the path says.
func frameBackend(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			serving.Go(func() { frames(c) })
		}
	})
	return l.Addr().String()
}

// frames serves one connection. Its errors end it.
func frames(c net.Conn) {
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := &client2{Framer: http2.NewFramer(c, c), conn: c}
	f.AllowIllegalWrites = true
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.enc = hpack.NewEncoder(&f.block)
	_ = f.WriteSettings()
	paths, seen := map[uint32]string{}, map[uint32]string{}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		id, ended := frame.Header().StreamID, false
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			if p := frame.PseudoValue("path"); p != "" {
				paths[id] = p
			}
			for _, h := range frame.Fields {
				seen[id] += h.Name + ": " + h.Value + "\n"
			}
			ended = frame.StreamEnded()
		case *http2.DataFrame:
			seen[id] += "[" + string(frame.Data()) + "]\n"
			ended = frame.StreamEnded()
		}
		if ended && !f.reply(id, paths[id], anyID.ReplaceAllString(strings.ReplaceAll(seen[id], "[]\n", ""), "id")) {
			return
		}
	}
}

// reply answers a request; false ends the connection.
func (f *client2) reply(id uint32, path, seen string) bool {
	switch {
	case strings.HasPrefix(path, "/refuse"):
		_ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream)
	case path == "/reset":
		_ = f.WriteRSTStream(id, http2.ErrCodeInternal)
	case path == "/close":
		return false
	case path == "/malformed":
		f.head(id, true, ":status", "200", "Upper", "x")
	case path == "/goaway":
		_ = f.WriteGoAway(0, http2.ErrCodeNo, nil)
	case path == "/cut":
		f.head(id, false, ":status", "200")
		_ = f.WriteData(id, false, []byte("half"))
		_ = f.WriteRSTStream(id, http2.ErrCodeCancel)
	case path == "/short":
		f.head(id, false, ":status", "200", "content-length", "9")
		_ = f.WriteData(id, true, []byte("half"))
	case path == "/early":
		f.head(id, false, ":status", "103", "link", "x")
		f.head(id, true, ":status", "204", "a", "1")
	default:
		f.head(id, false, ":status", "200", "z", "1", "a", "2", "z", "3", "set-cookie", "a", "set-cookie", "b")
		_ = f.WriteData(id, false, []byte(seen))
		f.head(id, true, "v", "1", "b", "2")
	}
	return true
}
