package http2_test

import (
	"bufio"
	"bytes"
	"context"
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

// A client is the other end of a connection, frame by frame.
type client struct {
	*h2.Framer
	net.Conn
	t     *testing.T
	enc   *hpack.Encoder
	block bytes.Buffer
	said  chan func()
	over  chan struct{} // closed when the server is done with the connection
	err   error         // of the server, then
}

// serve connects a client to a server by a pipe, which holds nothing. It is to be used
// within a bubble of synctest.
func serve(t *testing.T, s *http2.Server, handle func(*http2.Stream)) *client {
	t.Helper()
	ours, theirs := net.Pipe()
	c := &client{Framer: h2.NewFramer(theirs, theirs), Conn: theirs, t: t, said: make(chan func(), 100), over: make(chan struct{})}
	c.AllowIllegalWrites = true
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.block)
	go func() { // waited for by closing
		defer close(c.over)
		c.err = s.Serve(ours, bufio.NewReader(ours), handle)
	}()
	go func() { // waited for by the bubble
		for f := range c.said {
			f()
		}
	}()
	t.Cleanup(func() {
		close(c.said)
		theirs.Close()
		<-c.over
		time.Sleep(5 * time.Second) // goroutines that are kept for the next stream
	})
	c.say(func() {
		_, _ = theirs.Write([]byte(h2.ClientPreface))
		_ = c.WriteSettings()
	})
	return c
}

// say has f write, after all that was to be written before. It does not wait.
func (c *client) say(f func()) { c.said <- f }

func (c *client) encode(pairs ...string) []byte {
	c.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = c.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(c.block.Bytes())
}

// head sends a header block, in as many frames as it takes.
func (c *client) head(id uint32, end bool, pairs ...string) {
	b := c.encode(pairs...)
	n := min(len(b), 1<<14)
	_ = c.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: b[:n], EndStream: end, EndHeaders: n == len(b)})
	for b = b[n:]; len(b) > 0; b = b[n:] {
		n = min(len(b), 1<<14)
		_ = c.WriteContinuation(id, n == len(b), b[:n])
	}
}

func get(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "h", ":path", "/"}, more...)
}

func post(more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":authority", "h", ":path", "/"}, more...)
}

// next is the next frame in words, without SETTINGS and the first WINDOW_UPDATE; "closed"
// is the end.
func (c *client) next() string {
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *h2.SettingsFrame:
			continue
		case *h2.WindowUpdateFrame:
			if f.StreamID == 0 && f.Increment == 4<<20-65535 {
				continue
			}
			return fmt.Sprintf("%d: window %d", f.StreamID, f.Increment)
		case *h2.MetaHeadersFrame:
			s := fmt.Sprintf("%d:", f.StreamID)
			for _, h := range f.Fields {
				s += " " + h.Name + "=" + h.Value
			}
			return ended(s, f.StreamEnded())
		case *h2.DataFrame:
			s := string(f.Data())
			if len(s) > 200 {
				s = fmt.Sprintf("[%d]", len(s))
			}
			return ended(fmt.Sprintf("%d: %s", f.StreamID, s), f.StreamEnded())
		case *h2.RSTStreamFrame:
			return fmt.Sprintf("%d: reset %s", f.StreamID, f.ErrCode)
		case *h2.GoAwayFrame:
			return fmt.Sprintf("go away %d %s", f.LastStreamID, f.ErrCode)
		case *h2.PingFrame:
			return fmt.Sprintf("ping %t %s", f.IsAck(), bytes.TrimRight(f.Data[:], "\x00"))
		}
	}
}

func ended(s string, end bool) string {
	if end {
		s += " $"
	}
	return s
}

func (c *client) expect(want ...string) {
	c.t.Helper()
	for _, w := range want {
		if got := c.next(); got != w {
			c.t.Fatalf("got %q, want %q", got, w)
		}
	}
}

func status(s string, more ...string) *proxywasm.Fields {
	f := proxywasm.NewResponseFields(abi.Pair{Key: ":status", Value: s})
	for i := 0; i < len(more); i += 2 {
		f.Add(more[i], more[i+1])
	}
	return f
}

// ok answers with nothing.
func ok(s *http2.Stream) { _ = s.WriteHead(status("200"), true) }

// echo answers with the head in words, the body, and the trailers.
func echo(s *http2.Stream) {
	_ = s.WriteHead(status("200"), false)
	_ = s.Write([]byte(words(s.Fields())), false)
	buf := make([]byte, 20_000)
	for {
		n, err := s.Read(buf)
		_ = s.Write(buf[:n], false)
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
	}
	if t := s.Trailers(); t != nil {
		_ = s.WriteTrailers(t)
	} else {
		_ = s.Write(nil, true)
	}
}

func words(f *proxywasm.Fields) string {
	var b strings.Builder
	for _, p := range f.Pairs() {
		b.WriteString(p.Key + "=" + p.Value + ";")
	}
	return b.String()
}

func server() *http2.Server { return &http2.Server{MaxStreams: 10} }

// in runs f in a bubble in which time is at will.
func in(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// Package net/http's client is answered: it knows HTTP/2 well.
func TestServeClients(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http2.Server{MaxStreams: 100}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				if err := s.Serve(c, bufio.NewReader(c), echo); err != nil {
					t.Errorf("Serve: %v", err)
				}
			})
		}
	})
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	defer serving.Wait()
	defer l.Close()
	defer transport.CloseIdleConnections()
	var asking sync.WaitGroup
	for i := range 40 {
		asking.Go(func() {
			body := strings.Repeat(fmt.Sprint(i), 1+i*5_000)
			req, _ := http.NewRequestWithContext(context.Background(), "POST", "http://"+l.Addr().String()+"/", strings.NewReader(body))
			req.Trailer = http.Header{"T": {fmt.Sprint(i)}}
			req.ContentLength = -1
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !strings.HasSuffix(string(got), ";"+body) || resp.Trailer.Get("T") != fmt.Sprint(i) {
				t.Errorf("%d: %d bytes, %v, trailers %v", i, len(got), err, resp.Trailer)
			}
		})
	}
	asking.Wait()
}

// Fields stay in their order, trailers need no announcement, cookies are one, a host
// beside an authority is none.
func TestFields(t *testing.T) {
	in(t, func(t *testing.T) {
		c := serve(t, server(), echo)
		c.say(func() {
			c.head(1, false, ":path", "/", ":method", "POST", ":scheme", "http", ":authority", "h",
				"z", "1", "cookie", "a=b", "a", "2", "host", "i", "z", "3", "accept", "a", "cookie", "c=d", "accept", "b", "te", "trailers")
			_ = c.WriteData(1, false, []byte("body"))
			c.head(1, true, "u", "1", "t", "2")
		})
		c.expect("1: :status=200", "1: :path=/;:method=POST;:scheme=http;:authority=h;z=1;a=2;z=3;accept=a,b;te=trailers;cookie=a=b; c=d;", "1: body", "1: u=1 t=2 $")
	})
	in(t, func(t *testing.T) {
		var got string
		c := serve(t, server(), func(s *http2.Stream) {
			got = words(s.Fields())
			_ = s.WriteHead(status("200", "z", "1", "a", "b\r\nc: d", "Upper", "x", "a b", "y", "x-a", "2"), true)
		})
		c.say(func() {
			c.head(1, true, ":scheme", "http", ":method", "GET", ":path", "/", "z", "1", "host", "h", "cookie", "a=b", "a", "")
		})
		c.expect("1: :status=200 z=1 a=bc: d x-a=2 $")
		if want := ":authority=h;:scheme=http;:method=GET;:path=/;z=1;a=;cookie=a=b;"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestContinue(t *testing.T) {
	in(t, func(t *testing.T) {
		c := serve(t, server(), func(s *http2.Stream) {
			_ = s.Continue()
			echo(s)
		})
		c.say(func() { c.head(1, false, post()...) })
		c.expect("1: :status=100", "1: :status=200", "1: :method=POST;:scheme=http;:authority=h;:path=/;")
		c.say(func() { _ = c.WriteData(1, true, []byte("abc")) })
		c.expect("1: abc", "1:  $")
	})
}

// A head that is longer than a frame goes out, and comes in, in several.
func TestContinuation(t *testing.T) {
	in(t, func(t *testing.T) {
		long := strings.Repeat("~", 30<<10)
		c := serve(t, server(), func(s *http2.Stream) {
			v, _ := s.Fields().Get("long")
			_ = s.WriteHead(status("200", "long", v), true)
		})
		c.say(func() {
			b := c.encode(get("long", long)...)
			_ = c.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:5], EndStream: true})
			_ = c.WriteContinuation(1, false, b[5:16000])
			_ = c.WriteContinuation(1, true, b[16000:])
		})
		c.expect("1: :status=200 long=" + long + " $")
	})
}

// A response is sent as far as the client's windows let it be, in turns.
func TestSendWindows(t *testing.T) {
	in(t, func(t *testing.T) {
		c := serve(t, server(), func(s *http2.Stream) {
			_ = s.WriteHead(status("200"), false)
			_ = s.Write(make([]byte, 40_000), true)
		})
		c.say(func() {
			_ = c.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 30})
			c.head(1, true, get()...)
		})
		c.expect("1: :status=200", "1: "+strings.Repeat("\x00", 30))
		synctest.Wait()
		c.say(func() {
			_ = c.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 20})
			_ = c.WriteWindowUpdate(1, 35)
		})
		c.expect("1: " + strings.Repeat("\x00", 25))
		c.say(func() { _ = c.WriteWindowUpdate(1, 1<<20) })
		c.expect("1: [16384]", "1: [16384]", "1: [7177] $")
		c.say(func() {
			_ = c.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 20})
			for id := uint32(3); id < 9; id += 2 {
				c.head(id, true, get()...)
			}
		})
		for n := 0; n < 25_535; {
			var id, size int
			if got := c.next(); got == "closed" {
				t.Fatal(got)
			} else if _, err := fmt.Sscanf(got, "%d: [%d]", &id, &size); err == nil {
				n += size
			}
		}
		c.say(func() { _ = c.WriteWindowUpdate(0, 1<<20) })
		for range 3 {
			for got := ""; !strings.HasSuffix(got, "$"); {
				if got = c.next(); got == "closed" {
					t.Fatal(got)
				}
			}
		}
	})
}

// What no one reads is bounded, and read again when someone does.
func TestReceiveWindows(t *testing.T) {
	in(t, func(t *testing.T) {
		read := make(chan struct{})
		c := serve(t, server(), func(s *http2.Stream) {
			<-read
			n, err := io.Copy(io.Discard, s)
			_ = s.WriteHead(status("200", "n", fmt.Sprint(n), "err", fmt.Sprint(err)), true)
		})
		send := func(id uint32, n int) {
			for ; n > 0; n -= 1 << 14 {
				_ = c.WriteData(id, false, make([]byte, 1<<14))
			}
		}
		c.say(func() {
			c.head(1, false, post()...)
			send(1, 1<<20)
			close(read)
		})
		c.expect("1: window 262144", "1: window 262144", "1: window 262144", "0: window 1048576", "1: window 262144")
		c.say(func() { _ = c.WriteData(1, true, []byte("x")) })
		c.expect("1: :status=200 n=1048577 err=<nil> $")
	})
	in(t, func(t *testing.T) {
		c := serve(t, server(), func(s *http2.Stream) {
			done := make(chan struct{})
			s.OnReset(func() { close(done) })
			<-done
		})
		c.say(func() {
			c.head(1, false, post()...)
			for range 1<<6 + 1 {
				_ = c.WriteData(1, false, make([]byte, 1<<14))
			}
		})
		c.expect("go away 1 FLOW_CONTROL_ERROR", "closed")
	})
	in(t, func(t *testing.T) { // many streams together
		c := serve(t, server(), func(s *http2.Stream) {
			done := make(chan struct{})
			s.OnReset(func() { close(done) })
			<-done
		})
		c.say(func() {
			for id := uint32(1); id < 11; id += 2 {
				c.head(id, false, post()...)
				for range 1 << 6 {
					_ = c.WriteData(id, false, make([]byte, 1<<14))
				}
			}
		})
		c.expect("go away 9 FLOW_CONTROL_ERROR", "closed")
	})
}

// A stream that the client reset counts as long as its handler runs (CVE-2023-44487).
func TestStreamsThatWereReset(t *testing.T) {
	in(t, func(t *testing.T) {
		finish := make(chan struct{})
		running := 0
		var mu sync.Mutex
		c := serve(t, server(), func(s *http2.Stream) {
			mu.Lock()
			running++
			if running > 10 {
				t.Errorf("%d handlers run", running)
			}
			mu.Unlock()
			<-finish
			mu.Lock()
			running--
			mu.Unlock()
			ok(s)
		})
		c.say(func() {
			for id := uint32(1); id < 30; id += 2 {
				c.head(id, true, get()...)
				_ = c.WriteRSTStream(id, h2.ErrCodeCancel)
			}
		})
		for id := 21; id < 30; id += 2 {
			c.expect(fmt.Sprintf("%d: reset REFUSED_STREAM", id))
		}
		synctest.Wait()
		close(finish)
		synctest.Wait()
		c.say(func() { c.head(31, true, get()...) })
		c.expect("31: :status=200 $")
	})
}

// Who resets half of many streams at once is not served.
func TestRapidReset(t *testing.T) {
	in(t, func(t *testing.T) {
		c := serve(t, server(), func(s *http2.Stream) {
			done := make(chan struct{})
			s.OnReset(func() { close(done) })
			<-done
		})
		c.say(func() {
			for id := uint32(1); id < 600; id += 2 {
				c.head(id, true, get()...)
				_ = c.WriteRSTStream(id, h2.ErrCodeCancel)
				synctest.Wait()
			}
		})
		c.expect("go away 499 ENHANCE_YOUR_CALM", "closed")
	})
}

// What a handler leaves undone is reset.
func TestHandlerReturns(t *testing.T) {
	for name, tt := range map[string]struct {
		handle func(*http2.Stream)
		end    bool
		want   []string
	}{
		"nothing":          {func(*http2.Stream) {}, true, []string{"1: reset INTERNAL_ERROR"}},
		"half a response":  {func(s *http2.Stream) { _ = s.WriteHead(status("200"), false) }, true, []string{"1: :status=200", "1: reset INTERNAL_ERROR"}},
		"half a request":   {ok, false, []string{"1: :status=200 $", "1: reset NO_ERROR"}},
		"reset":            {func(s *http2.Stream) { s.Reset(h2.ErrCodeCancel); ok(s) }, true, []string{"1: reset CANCEL"}},
		"more than enough": {func(s *http2.Stream) { ok(s); ok(s); _ = s.Write([]byte("x"), true) }, true, []string{"1: :status=200 $"}},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				c := serve(t, server(), tt.handle)
				c.say(func() {
					c.head(1, tt.end, post()...)
				})
				c.expect(tt.want...)
				c.say(func() {
					_ = c.WriteData(1, true, []byte("late"))
					_ = c.WritePing(false, [8]byte{'p'})
				})
				if tt.end && name != "nothing" && name != "half a response" && name != "reset" {
					return
				}
				c.expect("ping true p")
			})
		})
	}
}

// A handler hears that the client has gone, whatever it is doing.
func TestReset(t *testing.T) {
	for name, leave := range map[string]func(*client){
		"RST_STREAM": func(c *client) { _ = c.WriteRSTStream(1, h2.ErrCodeCancel) },
		"end":        func(c *client) { c.Close() },
		"error":      func(c *client) { _ = c.WriteSettingsAck(); _ = c.WriteSettingsAck() },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				heard := make(chan error, 3)
				c := serve(t, server(), func(s *http2.Stream) {
					s.OnReset(func() { heard <- errors.New("told") })
					var reading sync.WaitGroup
					reading.Go(func() {
						_, err := s.Read(make([]byte, 1))
						heard <- err
					})
					_ = s.WriteHead(status("200"), false)
					heard <- s.Write(make([]byte, 1<<20), true)
					reading.Wait()
				})
				go func() { _, _ = io.Copy(io.Discard, c.Conn) }()
				c.say(func() { c.head(1, false, post()...) })
				synctest.Wait()
				c.say(func() { leave(c) })
				for range 3 {
					if err := <-heard; err == nil {
						t.Error("no error")
					}
				}
			})
		})
	}
}

// A server that drains tells clients so, answers what is on its way, and leaves.
func TestDrain(t *testing.T) {
	in(t, func(t *testing.T) {
		s, finish := server(), make(chan struct{})
		c := serve(t, s, func(s *http2.Stream) {
			if s.Fields().Len() > 4 {
				<-finish
			}
			ok(s)
		})
		c.say(func() { c.head(1, true, get("wait", "1")...) })
		synctest.Wait()
		s.Drain()
		c.expect("go away 2147483647 NO_ERROR", "ping false goodbye")
		c.say(func() { c.head(3, true, get()...) })
		c.expect("3: :status=200 $")
		c.say(func() { _ = c.WritePing(true, [8]byte{'g', 'o', 'o', 'd', 'b', 'y', 'e'}) })
		c.expect("go away 3 NO_ERROR")
		c.say(func() { c.head(5, true, get()...) }) // no one answers
		synctest.Wait()
		close(finish)
		c.expect("1: :status=200 $", "closed")
		<-c.over
		if c.err != nil {
			t.Error(c.err)
		}
	})
	in(t, func(t *testing.T) { // one that does not answer the PING
		s := server()
		c := serve(t, s, ok)
		go func() { _, _ = io.Copy(io.Discard, c.Conn) }()
		synctest.Wait()
		s.Drain()
		from := time.Now()
		<-c.over
		if took := time.Since(from); took < 5*time.Second || took > 7*time.Second {
			t.Errorf("it took %v", took)
		}
	})
	in(t, func(t *testing.T) { // one that comes later
		s := server()
		s.Drain()
		c := serve(t, s, ok)
		c.say(func() { c.head(1, true, get()...) })
		c.expect("1: :status=200 $", "go away 2147483647 NO_ERROR")
	})
}

func TestIdle(t *testing.T) {
	in(t, func(t *testing.T) {
		s := server()
		s.Idle = time.Hour
		c := serve(t, s, func(s *http2.Stream) {
			time.Sleep(90 * time.Minute)
			ok(s)
		})
		from := time.Now()
		c.say(func() { c.head(1, true, get()...) })
		c.expect("1: :status=200 $", "go away 2147483647 NO_ERROR", "ping false goodbye")
		if took := time.Since(from); took != 150*time.Minute {
			t.Errorf("it took %v", took)
		}
	})
}

// A client that takes nothing has not for ever what it was sent: neither one whose window
// is closed, nor one that does not read.
func TestStall(t *testing.T) {
	in(t, func(t *testing.T) {
		s := server()
		s.Stall = time.Minute
		c := serve(t, s, func(s *http2.Stream) {
			_ = s.WriteHead(status("200"), false)
			_ = s.Write(make([]byte, 1<<20), true)
		})
		c.say(func() {
			_ = c.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 30})
			c.head(1, true, get()...)
		})
		c.expect("1: :status=200", "1: "+strings.Repeat("\x00", 30), "1: reset CANCEL")
	})
	in(t, func(t *testing.T) {
		s := server()
		s.Stall = time.Minute
		written := 0
		c := serve(t, s, func(s *http2.Stream) {
			_ = s.WriteHead(status("200"), false)
			for s.Write(make([]byte, 1000), false) == nil {
				written += 1000
			}
		})
		c.expect() // SETTINGS are there
		c.say(func() {
			_ = c.WriteWindowUpdate(0, 1<<30)
			_ = c.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 30})
			c.head(1, true, get()...)
		})
		<-c.over
		if written == 0 || written > 100_000 {
			t.Errorf("%d bytes were taken of what no one reads", written)
		}
	})
}

// Frames that ask for answers which are not read end the connection, in good time.
func TestAnswersThatAreNotRead(t *testing.T) {
	for name, ask := range map[string]func(*client){
		"ping":     func(c *client) { _ = c.WritePing(false, [8]byte{}) },
		"settings": func(c *client) { _ = c.WriteSettings() },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				c := serve(t, server(), ok)
				sent := 0
				from := time.Now()
				var asking sync.WaitGroup
				asking.Add(1)
				c.say(func() {
					defer asking.Done()
					for c.SetWriteDeadline(time.Now().Add(time.Minute)) == nil && sent < 5000 {
						select {
						case <-c.over:
							return
						default:
						}
						ask(c)
						sent++
					}
				})
				<-c.over
				c.Close()
				asking.Wait()
				var fault *http2.ProtocolError
				if !errors.As(c.err, &fault) || fault.Code != h2.ErrCodeEnhanceYourCalm || time.Since(from) > 5*time.Second {
					t.Errorf("%v after %v and %d frames", c.err, time.Since(from), sent)
				}
			})
		})
	}
}

// What is wrong ends the connection, and says why.
func TestRefusals(t *testing.T) {
	field := func(name, value string) func(*client) {
		return func(c *client) { c.head(1, true, get(name, value)...) }
	}
	type request struct {
		do   func(*client)
		want string
	}
	const protocol, calm = "go away 0 PROTOCOL_ERROR", "go away 0 ENHANCE_YOUR_CALM"
	all := map[string]request{
		"even stream": {func(c *client) { c.head(2, true, get()...) }, protocol},
		"idle DATA":   {func(c *client) { _ = c.WriteData(1, true, nil) }, protocol},
		"idle RST":    {func(c *client) { _ = c.WriteRSTStream(1, 0) }, protocol},
		"idle window": {func(c *client) { _ = c.WriteWindowUpdate(1, 1) }, protocol},
		"window":      {func(c *client) { _ = c.WriteWindowUpdate(0, 1<<31-1) }, "go away 0 FLOW_CONTROL_ERROR"},
		"window of 0": {func(c *client) { _ = c.WriteWindowUpdate(0, 0) }, protocol},
		"own dependency": {func(c *client) {
			_ = c.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: c.encode(get()...), Priority: h2.PriorityParam{StreamDep: 1}})
		}, protocol},
		"interrupted": {func(c *client) {
			_ = c.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(get()...)})
			_ = c.WritePing(false, [8]byte{})
		}, protocol},
		"index": {func(c *client) {
			_ = c.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0x80, 1}, EndHeaders: true})
		}, "go away 0 COMPRESSION_ERROR"},
		"long block": {func(c *client) {
			_ = c.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(get()...)})
			for range 30 {
				_ = c.WriteContinuation(1, false, c.encode("a", strings.Repeat("~", 9000)))
			}
		}, calm},
		"empty CONTINUATION": {func(c *client) {
			_ = c.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(get()...)})
			for range 3 {
				_ = c.WriteContinuation(1, false, nil)
			}
		}, calm},
		"empty DATA": {func(c *client) {
			c.head(1, false, post()...)
			for range 2 {
				_ = c.WriteData(1, false, nil)
			}
		}, "go away 1 ENHANCE_YOUR_CALM"},
		"PRIORITY": {func(c *client) {
			for range 101 {
				_ = c.WritePriority(1, h2.PriorityParam{StreamDep: 3})
			}
		}, calm},
		"WINDOW_UPDATE": {func(c *client) {
			for range 6 {
				_ = c.WriteWindowUpdate(0, 1)
			}
		}, calm},
		"PUSH_PROMISE": {func(c *client) {
			_ = c.WritePushPromise(h2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, protocol},
		"frame size": {func(c *client) { _ = c.WriteRawFrame(h2.FrameData, 0, 1, make([]byte, 1<<14+1)) }, "go away 0 FRAME_SIZE_ERROR"},
		"padding": {func(c *client) {
			_ = c.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersPadded|h2.FlagHeadersEndHeaders, 1, []byte{9, 1})
		}, protocol},
		"no padding":       {func(c *client) { _ = c.WriteRawFrame(h2.FrameData, h2.FlagDataPadded, 1, nil) }, "go away 0 FRAME_SIZE_ERROR"},
		"unasked ACK":      {func(c *client) { _ = c.WriteSettingsAck(); _ = c.WriteSettingsAck() }, protocol},
		"ENABLE_PUSH":      {func(c *client) { _ = c.WriteSettings(h2.Setting{ID: h2.SettingEnablePush, Val: 2}) }, protocol},
		"MAX_FRAME_SIZE":   {func(c *client) { _ = c.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 1}) }, protocol},
		"window too large": {func(c *client) { _ = c.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 31}) }, "go away 0 FLOW_CONTROL_ERROR"},
		"open trailers":    {func(c *client) { c.head(1, false, post()...); c.head(1, false, "t", "1") }, "go away 1 PROTOCOL_ERROR"},
		"pseudo trailers":  {func(c *client) { c.head(1, false, post()...); c.head(1, true, ":path", "/") }, "go away 1 PROTOCOL_ERROR"},
		"after the end":    {func(c *client) { c.head(1, true, get("wait", "1")...); _ = c.WriteData(1, true, nil) }, "go away 1 STREAM_CLOSED"},
		"short, trailers":  {func(c *client) { c.head(1, false, post("content-length", "3")...); c.head(1, true, "t", "1") }, "go away 1 PROTOCOL_ERROR"},
		"no body":          {func(c *client) { c.head(1, true, post("content-length", "3")...) }, protocol},
		"short": {func(c *client) {
			c.head(1, false, post("content-length", "3")...)
			_ = c.WriteData(1, true, []byte("ab"))
		}, "1: reset PROTOCOL_ERROR"},
		"long": {func(c *client) {
			c.head(1, false, post("content-length", "3")...)
			_ = c.WriteData(1, false, []byte("abcd"))
		}, "1: reset PROTOCOL_ERROR"},
		"large": {func(c *client) {
			c.head(1, true, get("a", strings.Repeat("~", 12_000), "b", strings.Repeat("0", 25_000), "c", strings.Repeat("0", 25_000))...)
		}, "1: reset INTERNAL_ERROR"},
		"many":          {func(c *client) { c.head(1, true, get(strings.Split(strings.Repeat("a,b,", 97)+"a,b", ",")...)...) }, "1: reset INTERNAL_ERROR"},
		"CONNECT, path": {func(c *client) { c.head(1, true, ":method", "CONNECT", ":authority", "h", ":path", "/") }, protocol},
		"extended CONNECT": {func(c *client) {
			c.head(1, true, ":method", "CONNECT", ":authority", "h", ":path", "/", ":scheme", "http", ":protocol", "x")
		}, protocol},
		"no method":    {func(c *client) { c.head(1, true, get()[2:]...) }, protocol},
		"no scheme":    {func(c *client) { c.head(1, true, append(get()[:2], get()[4:]...)...) }, protocol},
		"no authority": {func(c *client) { c.head(1, true, append(get()[:4], get()[6:]...)...) }, protocol},
		"no path":      {func(c *client) { c.head(1, true, get()[:6]...) }, protocol},
		"two paths":    {field(":path", "/"), protocol},
		"status":       {field(":status", "200"), protocol},
		"late pseudo":  {func(c *client) { c.head(1, true, append([]string{"a", "b"}, get()...)...) }, protocol},
		"two hosts":    {func(c *client) { c.head(1, true, append(append(get()[:4], get()[6:]...), "host", "a", "host", "b")...) }, protocol},
		"two lengths":  {func(c *client) { c.head(1, false, post("content-length", "0", "content-length", "0")...) }, protocol},
		"stream again": {func(c *client) { c.head(3, true, get("wait", "1")...); c.head(1, true, get()...) }, "go away 3 STREAM_CLOSED"},
	}
	for _, f := range []string{"Upper=b", "a =b", "=b", "a\x00=b", "a=\x00", "a=b\r", "a=\n", "a=\x7f", "connection=close", "keep-alive=1", "proxy-connection=x", "transfer-encoding=chunked", "upgrade=x", "te=gzip", "content-length=x", "content-length=+1", "content-length="} {
		name, value, _ := strings.Cut(f, "=")
		all[fmt.Sprintf("%q", f)] = request{field(name, value), protocol}
	}
	for name, r := range all {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				wait := make(chan struct{})
				c := serve(t, server(), func(s *http2.Stream) {
					if !s.End() || s.Fields().Len() > 4 {
						s.OnReset(func() { close(wait) })
						<-wait
					}
					ok(s)
				})
				c.say(func() { r.do(c) })
				c.expect(r.want)
				if strings.HasPrefix(r.want, "go away") {
					c.expect("closed")
					var fault *http2.ProtocolError
					if <-c.over; !errors.As(c.err, &fault) || !strings.HasSuffix(r.want, fault.Code.String()) {
						t.Errorf("Serve: %v", c.err)
					}
				}
			})
		})
	}
}

// Frames that mean nothing are passed over; a client that goes away may go on with what
// it has.
func TestIgnored(t *testing.T) {
	in(t, func(t *testing.T) {
		c := serve(t, server(), ok)
		c.say(func() {
			_ = c.WriteRawFrame(99, 0, 0, []byte("x"))
			_ = c.WritePriority(1, h2.PriorityParam{StreamDep: 1})
			_ = c.WriteSettings(h2.Setting{ID: 99, Val: 1}, h2.Setting{ID: h2.SettingHeaderTableSize, Val: 0})
			_ = c.WriteGoAway(0, h2.ErrCodeNo, nil)
			c.head(1, true, get()...)
		})
		c.expect("1: :status=200 $")
		c.say(func() {
			_ = c.WriteWindowUpdate(1, 1)
			_ = c.WriteRSTStream(1, h2.ErrCodeCancel)
			_ = c.WriteRSTStream(1, h2.ErrCodeCancel)
			_ = c.WritePing(false, [8]byte{'x'})
		})
		c.expect("ping true x")
	})
}

// A wire is a connection on which all that the client says is there at once.
type wire struct{ io.Reader }

func (wire) Write(p []byte) (int, error)      { return len(p), nil }
func (wire) Close() error                     { return nil }
func (wire) LocalAddr() net.Addr              { return nil }
func (wire) RemoteAddr() net.Addr             { return nil }
func (wire) SetDeadline(time.Time) error      { return nil }
func (wire) SetReadDeadline(time.Time) error  { return nil }
func (wire) SetWriteDeadline(time.Time) error { return nil }

// FuzzServe says anything to a server: it ends when the client does, and what reaches a
// handler is a request.
func FuzzServe(f *testing.F) {
	seed := func(do func(*client)) {
		var b bytes.Buffer
		c := &client{Framer: h2.NewFramer(&b, nil)}
		c.AllowIllegalWrites = true
		c.enc = hpack.NewEncoder(&c.block)
		_ = c.WriteSettings()
		do(c)
		f.Add(b.Bytes())
	}
	seed(func(c *client) { c.head(1, true, get()...) })
	seed(func(c *client) {
		c.head(1, false, post("content-length", "3", "cookie", "a")...)
		_ = c.WriteDataPadded(1, false, []byte("abc"), []byte{0})
		c.head(1, true, "t", "1")
		_ = c.WriteRSTStream(1, 0)
	})
	seed(func(c *client) {
		_ = c.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1})
		_ = c.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(get()...)})
		_ = c.WriteContinuation(1, true, nil)
		_ = c.WriteWindowUpdate(1, 9)
		_ = c.WriteWindowUpdate(0, 9)
		_ = c.WritePing(false, [8]byte{})
		_ = c.WriteGoAway(1, 0, nil)
	})
	f.Fuzz(func(t *testing.T, said []byte) {
		s := server()
		all := io.MultiReader(strings.NewReader(h2.ClientPreface), bytes.NewReader(said))
		err := s.Serve(wire{all}, bufio.NewReader(all), func(s *http2.Stream) {
			f := s.Fields()
			for _, name := range []string{":method", ":authority"} {
				if v, _ := f.Get(name); v == "" {
					t.Errorf("a request has no %s: %s", name, words(f))
				}
			}
			for _, p := range f.Pairs() {
				if strings.ContainsAny(p.Key+p.Value, "\r\n\x00") || p.Key != strings.ToLower(p.Key) {
					t.Errorf("a request has %q", p)
				}
			}
			echo(s)
		})
		var fault *http2.ProtocolError
		if err != nil && !errors.As(err, &fault) {
			t.Errorf("Serve: %v", err)
		}
	})
}
