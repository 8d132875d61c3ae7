package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func read(text string) (*Message, error) {
	return ReadRequest(bufio.NewReader(strings.NewReader(text)), "http")
}

func TestReadRequest(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		fields   []string
		body     string
		err      error
	}{
		{name: "plain", in: "GET /a HTTP/1.1\r\nHost: h\r\nB: 1\r\nA:\t2 \r\n\r\n", fields: []string{":authority=h", ":path=/a", ":method=GET", ":scheme=http", "b=1", "a=2"}},
		{name: "length", in: "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcd", fields: []string{":authority=h", ":path=/a", ":method=POST", ":scheme=http", "content-length=3"}, body: "abc"},
		{name: "chunks", in: "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\nT: 1\r\n\r\n", fields: []string{":authority=h", ":path=/a", ":method=POST", ":scheme=http", "transfer-encoding=chunked"}, body: "abc"},
		{name: "repeated", in: "GET /a HTTP/1.1\r\nHost: h\r\nAccept: a\r\nX: 1\r\nAccept: b\r\nX: 2\r\n\r\n", fields: []string{":authority=h", ":path=/a", ":method=GET", ":scheme=http", "accept=a,b", "x=1", "x=2"}},
		{name: "absolute", in: "GET http://o/b?c HTTP/1.1\r\nHost: h\r\n\r\n", fields: []string{":authority=o", ":path=/b?c", ":method=GET", ":scheme=http"}},
		{name: "nothing", in: "", err: io.EOF},
		{name: "half", in: "GET / HTTP/1.1\r\nHost: h\r\n", err: ErrIncomplete},
		{name: "folded", in: "GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\n 2\r\n\r\n", err: ErrSyntax},    // Envoy joins the lines
		{name: "two hosts", in: "GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", err: ErrAuthority}, // Envoy joins the hosts
		{name: "space before colon", in: "GET / HTTP/1.1\r\nHost: h\r\nA : 1\r\n\r\n", err: ErrSyntax},
		{name: "length and chunks", in: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", err: ErrLengths},
		{name: "two lengths", in: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", err: ErrSyntax},
		{name: "signed length", in: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\n", err: ErrSyntax},
		{name: "coding", in: "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", err: ErrCoding},
		{name: "control", in: "GET / HTTP/1.1\r\nHost: h\r\nA: \x01\r\n\r\n", err: ErrCharacters},
		{name: "1.0", in: "GET / HTTP/1.0\r\nHost: h\r\n\r\n", err: ErrVersion},
		{name: "no host", in: "GET / HTTP/1.1\r\n\r\n", fields: []string{":path=/", ":method=GET", ":scheme=http"}},
		{name: "no host, absolute", in: "GET https://u@o:1?b HTTP/1.1\r\n\r\n", fields: []string{":authority=o:1", ":path=?b", ":method=GET", ":scheme=http"}},
		{name: "port", in: "GET http://o:65536/ HTTP/1.1\r\nHost: h\r\n\r\n", err: ErrTarget},
		{name: "scheme", in: "GET ftp://o/ HTTP/1.1\r\nHost: h\r\n\r\n", err: ErrScheme},
		{name: "relative", in: "GET a HTTP/1.1\r\nHost: h\r\n\r\n", err: ErrTarget},
		{name: "asterisk", in: "GET * HTTP/1.1\r\nHost: h\r\n\r\n", err: ErrTarget},
		{name: "authority", in: "GET / HTTP/1.1\r\nHost: h?q\r\n\r\n", err: ErrAuthority},
		{name: "0.9", in: "GET /\r\n\r\n", err: ErrVersion},
		{name: "method", in: "BREW / HTTP/1.1\r\nHost: h\r\n\r\n", err: ErrSyntax},
		{name: "too many", in: "GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("A: 1\r\n", MaxFields) + "\r\n", err: ErrTooMany},
		{name: "too large", in: "GET / HTTP/1.1\r\nHost: h\r\nA: " + strings.Repeat("a", MaxHead) + "\r\n\r\n", err: ErrTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := read(tt.in)
			if !errors.Is(err, tt.err) || tt.err == nil && err != nil {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			var fields []string
			for _, p := range m.Fields.Pairs() {
				fields = append(fields, p.Key+"="+p.Value)
			}
			if diff := cmp.Diff(tt.fields, fields); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
			if body, err := io.ReadAll(m.Body); string(body) != tt.body || err != nil {
				t.Errorf("body %q, %v", body, err)
			}
		})
	}
}

func TestReadResponse(t *testing.T) {
	for _, tt := range []struct {
		name, method, in, body string
		close                  bool
		err                    error
	}{
		{name: "length", method: "GET", in: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", body: "ab"},
		{name: "until the end", method: "GET", in: "HTTP/1.1 200 OK\r\n\r\nabc", body: "abc", close: true},
		{name: "head", method: "HEAD", in: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc"},
		{name: "none", method: "GET", in: "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nabc"},
		{name: "continue first", method: "GET", in: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"},
		{name: "1.0", method: "GET", in: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", body: "a", close: true},
		{name: "garbage", method: "GET", in: "garbage\r\n\r\n", err: ErrSyntax},
		{name: "short", method: "GET", in: "HTTP/1.1 20 OK\r\n\r\n", err: ErrSyntax},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := ReadResponse(bufio.NewReader(strings.NewReader(tt.in)), tt.method)
			if !errors.Is(err, tt.err) || tt.err == nil && err != nil {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			if body, err := io.ReadAll(m.Body); string(body) != tt.body || err != nil || m.Close != tt.close {
				t.Errorf("body %q, %v, close %t", body, err, m.Close)
			}
		})
	}
}

// What is malformed in a body is told from a body that ends too early.
func TestReadChunks(t *testing.T) {
	for in, want := range map[string]error{
		"3\r\nabc\r\n0\r\n\r\n": nil, "3\r\nab": ErrIncomplete, "3\r\nabc\r\n": ErrIncomplete, "0\r\n": ErrIncomplete, "x\r\n": ErrSyntax, "3\nabc": ErrSyntax,
		"3\r\nabcd\r\n": ErrSyntax, "10000000000000000\r\n": ErrSyntax, "0\r\nT : 1\r\n\r\n": ErrSyntax, "0\r\nT: \x00\r\n\r\n": ErrCharacters,
		"0\r\n" + strings.Repeat("T: 1\r\n", MaxFields+1) + "\r\n": ErrTooMany, "1;" + strings.Repeat("x", 1<<20) + "\r\na\r\n0\r\n\r\n": ErrSyntax,
	} {
		m, err := read("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(m.Body); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%.40q: %v, want %v", in, err, want)
		}
	}
}

// A plugin can set anything: it cannot end a line.
func TestWriteKeepsLines(t *testing.T) {
	f := new(Fields)
	f.Add(":status", "200")
	f.Add("a", "b\r\nc: d")
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	if _, err := WriteResponse(w, f, "GET", true); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	if want := "HTTP/1.1 200 OK\r\na: bc: d\r\ncontent-length: 0\r\n\r\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

// FuzzReadRequest reads what clients may send. What is taken and written again is
// read the same: no one behind the proxy can see another request.
func FuzzReadRequest(f *testing.F) {
	f.Add("GET /a HTTP/1.1\r\nHost: h\r\nB: 1\r\n\r\n")
	f.Add("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n")
	f.Add("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		m, err := read(in)
		if err != nil {
			return
		}
		body, err := io.ReadAll(io.LimitReader(m.Body, 1<<20))
		if err != nil {
			return
		}
		m.Fields.Remove("transfer-encoding")
		var b bytes.Buffer
		w := bufio.NewWriter(&b)
		end := len(body) == 0 && m.Body.Done()
		framing, err := WriteRequest(w, m.Fields, end, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(WriteBody(w, framing, body), WriteEnd(w, framing), w.Flush()); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(&b)
		again, err := ReadRequest(r, "http")
		if err != nil {
			t.Fatalf("%v:\n%q", err, b.String())
		}
		rest, err := io.ReadAll(again.Body)
		if err != nil || !bytes.Equal(rest, body) || r.Buffered() > 0 {
			t.Fatalf("body %q became %q, %v; %d bytes are left", body, rest, err, r.Buffered())
		}
		for _, name := range []string{":authority", ":path", ":method"} {
			a, _ := m.Fields.Get(name)
			b, _ := again.Fields.Get(name)
			if a != b {
				t.Fatalf("%s %q became %q", name, a, b)
			}
		}
	})
}
