package http2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http2"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// dial connects a Client to a peer that is led frame by frame: here the client's methods
// are what a server says.
func dial(t *testing.T, idle time.Duration) (*http2.Client, *client) {
	t.Helper()
	ours, theirs := net.Pipe()
	c := http2.NewClient(ours, new(http2.Buffers), idle)
	p := &client{Framer: h2.NewFramer(theirs, theirs), Conn: theirs, t: t, said: make(chan func(), 100), over: make(chan struct{})}
	p.AllowIllegalWrites = true
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.block)
	go func() { // waited for by closing
		defer close(p.over)
		p.err = c.Run()
	}()
	go func() { // waited for by the bubble
		for f := range p.said {
			f()
		}
	}()
	t.Cleanup(func() {
		close(p.said)
		theirs.Close()
		<-p.over
	})
	preface := make([]byte, len(h2.ClientPreface))
	if _, err := io.ReadFull(theirs, preface); err != nil || string(preface) != h2.ClientPreface {
		t.Fatalf("preface %q, %v", preface, err)
	}
	p.say(func() { _ = p.WriteSettings() })
	return c, p
}

func asked(method string, more ...string) *proxywasm.Fields {
	f := proxywasm.NewRequestFields(abi.Pair{Key: ":method", Value: method}, abi.Pair{Key: ":scheme", Value: "http"},
		abi.Pair{Key: ":authority", Value: "h"}, abi.Pair{Key: ":path", Value: "/"})
	for i := 0; i < len(more); i += 2 {
		f.Add(more[i], more[i+1])
	}
	return f
}

// start begins a request without a body.
func start(t *testing.T, c *http2.Client, method string) *http2.Stream {
	t.Helper()
	s, err := c.Start(asked(method), true)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// answer is all of a response in words.
func answer(s *http2.Stream) string {
	f, end, err := s.Response()
	if err != nil {
		return err.Error()
	}
	out := words(f)
	if end {
		return out + " $"
	}
	body, err := io.ReadAll(s)
	out += " " + string(body)
	if err != nil {
		return out + " " + err.Error()
	}
	if f := s.Trailers(); f != nil {
		out += " " + words(f)
	}
	return out
}

const asks = ": :method=GET :scheme=http :authority=h :path=/ $"

// Fields stay in their order both ways, and trailers need no announcement.
func TestClientFields(t *testing.T) {
	in(t, func(t *testing.T) {
		c, p := dial(t, 0)
		s, err := c.Start(asked("POST", "z", "1", "a", "2", "connection", "x", "upgrade", "y", "te", "trailers"), false)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Write([]byte("body"), false), s.WriteTrailers(proxywasm.NewFields(abi.Pair{Key: "u", Value: "1"}, abi.Pair{Key: "t", Value: "2"}))); err != nil {
			t.Fatal(err)
		}
		p.expect("1: :method=POST :scheme=http :authority=h :path=/ z=1 a=2 te=trailers", "1: body", "1: u=1 t=2 $")
		p.say(func() {
			p.head(1, false, ":status", "100")
			p.head(1, false, ":status", "103", "link", "x")
			p.head(1, false, ":status", "200", "z", "1", "a", "2", "z", "3")
			_ = p.WriteData(1, false, []byte("answer"))
			p.head(1, true, "v", "1", "b", "2")
		})
		if got, want := answer(s), ":status=200;z=1;a=2;z=3; answer v=1;b=2;"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		s.Close()
	})
}

func TestClientResponses(t *testing.T) {
	for name, tt := range map[string]struct {
		method string
		do     func(p *client)
		want   string
	}{
		"no body": {"GET", func(p *client) { p.head(1, true, ":status", "204") }, ":status=204; $"},
		"HEAD":    {"HEAD", func(p *client) { p.head(1, true, ":status", "200", "content-length", "9") }, ":status=200;content-length=9; $"},
		"304":     {"GET", func(p *client) { p.head(1, true, ":status", "304", "content-length", "9") }, ":status=304;content-length=9; $"},
		"length": {"GET", func(p *client) {
			p.head(1, false, ":status", "200", "content-length", "2")
			_ = p.WriteData(1, true, []byte("ab"))
		}, ":status=200;content-length=2; ab"},
		"no status":  {"GET", func(p *client) { p.head(1, true, "a", "b") }, "stream reset: PROTOCOL_ERROR"},
		"bad status": {"GET", func(p *client) { p.head(1, true, ":status", "2000") }, "stream reset: PROTOCOL_ERROR"},
		"switched":   {"GET", func(p *client) { p.head(1, true, ":status", "101") }, "stream reset: PROTOCOL_ERROR"},
		"request":    {"GET", func(p *client) { p.head(1, true, get(":status", "200")...) }, "stream reset: PROTOCOL_ERROR"},
		"upper case": {"GET", func(p *client) { p.head(1, true, ":status", "200", "A", "b") }, "stream reset: PROTOCOL_ERROR"},
		"hop by hop": {"GET", func(p *client) { p.head(1, true, ":status", "200", "connection", "b") }, "stream reset: PROTOCOL_ERROR"},
		"no head":    {"GET", func(p *client) { _ = p.WriteData(1, true, []byte("a")) }, "stream reset: PROTOCOL_ERROR"},
		"ends early": {"GET", func(p *client) { p.head(1, true, ":status", "100") }, "stream reset: PROTOCOL_ERROR"},
		"no content": {"GET", func(p *client) { p.head(1, true, ":status", "200", "content-length", "2") }, "stream reset: PROTOCOL_ERROR"},
		"short": {"GET", func(p *client) {
			p.head(1, false, ":status", "200", "content-length", "2")
			_ = p.WriteData(1, true, []byte("a"))
		}, ":status=200;content-length=2;  stream reset: PROTOCOL_ERROR"},
		"short, trailers": {"GET", func(p *client) { p.head(1, false, ":status", "200", "content-length", "2"); p.head(1, true, "t", "1") }, ":status=200;content-length=2;  stream reset: PROTOCOL_ERROR"},
		"bad trailers":    {"GET", func(p *client) { p.head(1, false, ":status", "200"); p.head(1, true, ":status", "200") }, ":status=200;  stream reset: PROTOCOL_ERROR"},
		"large":           {"GET", func(p *client) { p.head(1, true, ":status", "200", "a", strings.Repeat("~", 61<<10)) }, "stream reset: PROTOCOL_ERROR"},
		"refused":         {"GET", func(p *client) { _ = p.WriteRSTStream(1, h2.ErrCodeRefusedStream) }, "stream reset: REFUSED_STREAM"},
		"reset": {"GET", func(p *client) {
			p.head(1, false, ":status", "200")
			_ = p.WriteData(1, false, []byte("half"))
			_ = p.WriteRSTStream(1, h2.ErrCodeCancel)
		}, ":status=200; half stream reset: CANCEL"},
		"lost": {"GET", func(p *client) { p.head(1, false, ":status", "200"); p.Close() }, ":status=200;  connection lost"},
		"push": {"GET", func(p *client) {
			_ = p.WritePushPromise(h2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, "connection error PROTOCOL_ERROR: PUSH_PROMISE"},
		"stream of its": {"GET", func(p *client) { p.head(2, true, ":status", "200") }, "connection error PROTOCOL_ERROR: stream that the peer may not open"},
		"idle stream":   {"GET", func(p *client) { p.head(5, true, ":status", "200") }, "connection error PROTOCOL_ERROR: stream that the peer may not open"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				c, p := dial(t, 0)
				s := start(t, c, tt.method)
				other := start(t, c, "GET")
				p.next()
				p.next()
				p.say(func() { tt.do(p) })
				synctest.Wait()
				if got := answer(s); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
				s.Close()
				if strings.Contains(tt.want, "connection") {
					return
				}
				if strings.HasSuffix(tt.want, "PROTOCOL_ERROR") {
					p.expect("1: reset PROTOCOL_ERROR")
				}
				p.say(func() { p.head(3, true, ":status", "200") }) // it goes on
				if got, want := answer(other), ":status=200; $"; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		})
	}
}

// A response counts that is complete before the request is.
func TestClientEarlyResponse(t *testing.T) {
	in(t, func(t *testing.T) {
		c, p := dial(t, 0)
		s, err := c.Start(asked("POST"), false)
		if err != nil {
			t.Fatal(err)
		}
		p.next()
		p.say(func() {
			p.head(1, false, ":status", "413")
			_ = p.WriteData(1, true, []byte("no"))
			_ = p.WriteRSTStream(1, h2.ErrCodeNo)
		})
		synctest.Wait()
		if err := s.Write([]byte("body"), true); err == nil {
			t.Error("the rest of the request was sent")
		}
		if got, want := answer(s), ":status=413; no"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// No more streams are begun than the server allows; a request that is given up is reset.
func TestClientStreams(t *testing.T) {
	in(t, func(t *testing.T) {
		c, p := dial(t, 0)
		p.say(func() { _ = p.WriteSettings(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 2}) })
		synctest.Wait()
		first, second := start(t, c, "GET"), start(t, c, "GET")
		if _, err := c.Start(asked("GET"), true); !errors.Is(err, http2.ErrBusy) {
			t.Errorf("Start: %v", err)
		}
		if usable, now := c.Usable(); !usable || now {
			t.Errorf("Usable = %t, %t", usable, now)
		}
		first.Close()
		p.expect("1"+asks, "3"+asks, "1: reset CANCEL")
		start(t, c, "GET").Close()
		p.expect("5"+asks, "5: reset CANCEL")
		p.say(func() { // of what was given up before
			p.head(1, false, ":status", "200")
			_ = p.WriteData(1, true, []byte("x"))
			p.head(3, true, ":status", "200")
		})
		if got, want := answer(second), ":status=200; $"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// A server that goes away answers what it has taken; what it has not is refused.
func TestClientGoAway(t *testing.T) {
	in(t, func(t *testing.T) {
		c, p := dial(t, 0)
		first, second := start(t, c, "GET"), start(t, c, "GET")
		p.expect("1"+asks, "3"+asks)
		p.say(func() { _ = p.WriteGoAway(1, h2.ErrCodeNo, nil) })
		if got, want := answer(second), "stream reset: REFUSED_STREAM"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if _, err := c.Start(asked("GET"), true); !errors.Is(err, http2.ErrGone) {
			t.Errorf("Start: %v", err)
		}
		p.say(func() { p.head(1, true, ":status", "200") })
		if got, want := answer(first), ":status=200; $"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if <-p.over; p.err != nil {
			t.Errorf("Run: %v", p.err)
		}
	})
}

func TestClientEnds(t *testing.T) {
	in(t, func(t *testing.T) { // when it was idle for long
		c, p := dial(t, time.Minute)
		s := start(t, c, "GET")
		p.next()
		time.Sleep(time.Hour)
		p.say(func() { p.head(1, true, ":status", "200") })
		answer(s)
		from := time.Now()
		<-p.over
		if took := time.Since(from); took < time.Minute || took > time.Minute+2*time.Second {
			t.Errorf("it took %v", took)
		}
	})
	in(t, func(t *testing.T) { // when it is told to
		c, p := dial(t, 0)
		s := start(t, c, "GET")
		c.Leave()
		p.next()
		p.say(func() { p.head(1, true, ":status", "200") })
		if got, want := answer(s), ":status=200; $"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		<-p.over
	})
	in(t, func(t *testing.T) { // when nothing can be written, also for those that have not begun
		c, p := dial(t, 0)
		var asking sync.WaitGroup
		for range 100 {
			asking.Go(func() {
				if s, err := c.Start(asked("POST", "a", strings.Repeat("~", 8000)), false); err == nil {
					_, _, err = s.Response()
					if err == nil || err == io.EOF {
						t.Errorf("Response: %v", err)
					}
				}
			})
		}
		synctest.Wait()
		p.Close()
		asking.Wait()
	})
}

// Package net/http's server is asked: it knows HTTP/2 well.
func TestClientAsksServers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
		w.Header().Set(http.TrailerPrefix+"T", r.Trailer.Get("T"))
	})}
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(l) })
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := http2.NewClient(raw, new(http2.Buffers), 0)
	running.Go(func() {
		if err := c.Run(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	var asking sync.WaitGroup
	for i := range 40 {
		asking.Go(func() {
			body := strings.Repeat(fmt.Sprint(i), i*5_000)
			s, err := c.Start(asked("POST", "trailer", "t"), false)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			var sending sync.WaitGroup
			sending.Go(func() {
				err := errors.Join(s.Write([]byte(body), false), s.WriteTrailers(proxywasm.NewFields(abi.Pair{Key: "t", Value: fmt.Sprint(i)})))
				if err != nil {
					t.Error(err)
				}
			})
			if _, _, err := s.Response(); err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(s)
			if string(got) != body || err != nil || s.Trailers() == nil || words(s.Trailers()) != fmt.Sprintf("t=%d;", i) {
				t.Errorf("%d: %d bytes, %v", i, len(got), err)
			}
			sending.Wait()
		})
	}
	asking.Wait()
	c.Leave()
	_ = s.Close()
	running.Wait()
}

// FuzzClient says anything to a client: what it takes for a response is one.
func FuzzClient(f *testing.F) {
	seed := func(do func(*client)) {
		var b bytes.Buffer
		c := &client{Framer: h2.NewFramer(&b, nil)}
		c.AllowIllegalWrites = true
		c.enc = hpack.NewEncoder(&c.block)
		_ = c.WriteSettings()
		do(c)
		f.Add(b.Bytes())
	}
	seed(func(c *client) {
		c.head(1, false, ":status", "200", "content-length", "3")
		_ = c.WriteData(1, true, []byte("abc"))
		c.head(3, true, ":status", "304")
	})
	seed(func(c *client) {
		c.head(1, false, ":status", "100")
		c.head(1, false, ":status", "200")
		c.head(1, true, "t", "1")
		_ = c.WriteRSTStream(3, h2.ErrCodeRefusedStream)
	})
	seed(func(c *client) { _ = c.WriteGoAway(1, 0, nil); _ = c.WritePing(false, [8]byte{}) })
	f.Fuzz(func(t *testing.T, said []byte) {
		c := http2.NewClient(wire{bytes.NewReader(said)}, new(http2.Buffers), 0)
		var asking sync.WaitGroup
		for range 3 {
			s, err := c.Start(asked("GET"), true)
			if err != nil {
				t.Fatal(err)
			}
			asking.Go(func() {
				defer s.Close()
				f, _, err := s.Response()
				if err != nil {
					return
				}
				if v, _ := f.Get(":status"); len(v) != 3 {
					t.Errorf("status %q", v)
				}
				_, _ = io.Copy(io.Discard, s)
			})
		}
		_ = c.Run() // what the server did is its affair
		asking.Wait()
	})
}
