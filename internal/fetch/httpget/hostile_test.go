package httpget_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
)

// rawServer answers every connection with what f writes, whatever is asked, until the
// client hangs up.
func rawServer(t *testing.T, f func(w io.Writer) error) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_ = f(c) // ends when the client has had enough
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return "http://" + l.Addr().String()
}

func endlessly(text string) func(io.Writer) error {
	b := []byte(text)
	return func(w io.Writer) error {
		for {
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
	}
}

func after(text string, then func(io.Writer) error) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return errors.Join(err, then(w))
	}
}

// drips writes a byte at a time, each in time for whoever waits for one only.
func drips(w io.Writer) error {
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for range pace.C {
		if _, err := w.Write([]byte{0}); err != nil {
			return err
		}
	}
	return nil
}

func nothing(w io.Writer) error {
	_, err := io.Copy(io.Discard, w.(io.Reader)) // until the client hangs up
	return err
}

// Servers that never end their answers: a fetch ends all the same, in its time or at its
// limits, and keeps nothing.
func TestEndlessAnswers(t *testing.T) {
	const head, slow = "HTTP/1.1 200 OK\r\n", "no answer within"
	module := string(fetchtest.Module(1000))
	for name, tt := range map[string]struct {
		serve func(io.Writer) error
		want  string
	}{
		"headers":             {after(head, endlessly("x-more: and more\r\n")), "headers exceeded"},
		"one header":          {after(head+"x-more: ", endlessly("and more ")), "headers exceeded"},
		"status line":         {after("HTTP/1.1 200 ", endlessly("OK ")), "headers exceeded"},
		"hints":               {endlessly("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"), ""},
		"trailers":            {after(head+"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"+module+"\r\n0\r\n", endlessly("x-more: and more\r\n")), ""},
		"chunk extension":     {after(head+"Transfer-Encoding: chunked\r\n\r\n3e8;", endlessly("x")), ""},
		"empty answer":        {nothing, slow},
		"headers, slow":       {after(head+"x-more: ", drips), slow},
		"body, slow":          {after(head+"Content-Length: 1000000\r\n\r\n"+module, drips), slow},
		"body that stops":     {after(head+"Content-Length: 1000000\r\n\r\n"+module, nothing), slow},
		"chunks, slow":        {after(head+"Transfer-Encoding: chunked\r\n\r\n", nothing), slow},
		"body without an end": {after(head+"\r\n"+module, endlessly(strings.Repeat("x", 1000))), "larger than the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			url := rawServer(t, tt.serve)
			var sink fetchtest.Sink
			f := fetch.Retry{Fetcher: newFetcher(t, 1<<20), Tries: 2, Try: time.Minute, Backoff: 1}
			if tt.want == slow {
				f.Try = 100 * time.Millisecond
			}
			_, err := f.Fetch(t.Context(), fetchtest.Request(t, url, "", &sink))
			if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Retry || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v (%+v), want %q", err, e, tt.want)
			}
			if err != nil && len(err.Error()) > 600 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			if sink.Has(fetchtest.Module(1000)) {
				t.Error("the receiver took it")
			}
		})
	}
}

// What a server says of the length is not what there is.
func TestLengthLies(t *testing.T) {
	module := fetchtest.Module(1000)
	sum := sha256.Sum256(module)
	pin := hex.EncodeToString(sum[:])
	for name, tt := range map[string]struct {
		head  string
		pin   string
		kind  fetch.Kind
		retry bool
	}{
		"less":                {"Content-Length: 999", pin, fetch.Checksum, false},
		"more":                {"Content-Length: 1001", pin, fetch.Failed, true},
		"none":                {"Content-Length: 0", "", fetch.NotModule, false},
		"negative":            {"Content-Length: -1", pin, fetch.Failed, true},
		"two":                 {"Content-Length: 1000\r\nContent-Length: 999", pin, fetch.Failed, true},
		"huge":                {"Content-Length: 99999999999999999999", pin, fetch.Failed, true},
		"beyond the limit":    {"Content-Length: 9000000000000000000", pin, fetch.Failed, true},
		"chunks, but are not": {"Transfer-Encoding: chunked", pin, fetch.Failed, true},
		"gzip, but is not":    {"Content-Encoding: gzip\r\nContent-Length: 500", pin, fetch.Checksum, false},
	} {
		t.Run(name, func(t *testing.T) {
			url := rawServer(t, func(w io.Writer) error {
				_, err := io.WriteString(w, "HTTP/1.1 200 OK\r\nConnection: close\r\n"+tt.head+"\r\n\r\n"+string(module))
				return err
			})
			var sink fetchtest.Sink
			_, err := newFetcher(t, 1<<20).Fetch(t.Context(), fetchtest.Request(t, url, tt.pin, &sink))
			if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Kind != tt.kind || e.Retry != tt.retry {
				t.Errorf("error is %v (%+v), want %v", err, e, tt.kind)
			}
			if sink.Has(module) {
				t.Error("the receiver took it")
			}
		})
	}
}

func TestRedirectLoops(t *testing.T) {
	for name, to := range map[string]func(r *http.Request) string{
		"to itself": func(r *http.Request) string { return r.URL.Path },
		"deeper":    func(r *http.Request) string { return r.URL.Path + "x/" },
		"nowhere":   func(*http.Request) string { return "http://[::" },
		"to a file": func(*http.Request) string { return "file:///etc/passwd" },
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				w.Header().Set("Location", to(r))
				w.WriteHeader(http.StatusFound)
			}))
			t.Cleanup(s.Close)
			var sink fetchtest.Sink
			_, err := newFetcher(t, 1<<20).Fetch(t.Context(), fetchtest.Request(t, s.URL, "", &sink))
			if _, ok := errors.AsType[*fetch.Error](err); !ok || asked > 10 || sink.Calls() > 0 {
				t.Errorf("after %d requests: %v", asked, err)
			}
		})
	}
}

// gzipped is what f writes, compressed as it comes: the server needs no memory for it either.
func gzipped(f func(w io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err == nil && f(z) == nil {
			_ = z.Close() // the client may be gone
		}
	}
}

// Archives that would be far larger, or never end: memory is bounded whatever they say.
func TestArchivesThatExplode(t *testing.T) {
	const limit = 1 << 20
	header := func(h *tar.Header) func(io.Writer) error {
		return func(w io.Writer) error { return tar.NewWriter(w).WriteHeader(h) }
	}
	big := func(n int) map[string]string { return map[string]string{"CHANDLER.x": strings.Repeat("x", n)} }
	for name, tt := range map[string]struct {
		serve func(io.Writer) error
		kind  fetch.Kind
	}{
		"zeros":             {endlessly(string(make([]byte, 64<<10))), fetch.NotModule},
		"module of zeros":   {after(string(fetchtest.Module(1000)), endlessly(string(make([]byte, 64<<10)))), fetch.TooLarge},
		"large file":        {header(&tar.Header{Name: "m", Typeflag: tar.TypeReg, Size: 1 << 50}), fetch.TooLarge},
		"files for ever":    {after(member("a/", tar.TypeDir, 0), endlessly(member("b/", tar.TypeDir, 0))), fetch.TooLarge},
		"large record":      {header(&tar.Header{Name: "m", Typeflag: tar.TypeReg, PAXRecords: big(900 << 10), Format: tar.FormatPAX}), fetch.NotModule},
		"larger record":     {record(8 << 20), fetch.Failed},
		"largest record":    {record(1 << 40), fetch.Failed},
		"records for ever":  {recordsForEver, fetch.TooLarge},
		"sparse":            {sparse(1 << 40), fetch.TooLarge},
		"sparse, in bounds": {sparse(limit / 2), fetch.NotModule},
		"sparse, negative":  {sparse(-1), fetch.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(gzipped(tt.serve))
			t.Cleanup(s.Close)
			f := newFetcher(t, limit)
			var sink fetchtest.Sink
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := f.Fetch(ctx, fetchtest.Request(t, s.URL, "", &sink))
			runtime.ReadMemStats(&after)
			if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Kind != tt.kind || e.Retry {
				t.Errorf("error is %v (%+v), want %v", err, e, tt.kind)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 32<<20 {
				t.Errorf("allocated %d bytes, the server's included", grown)
			}
		})
	}
}

// member is one entry of an archive, as it is.
func member(name string, kind byte, size int64) string {
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Typeflag: kind, Size: size, Format: tar.FormatGNU}); err != nil {
		panic(err)
	}
	return b.String()
}

// record is an extended header (PAX) that says it has that size, and then no end of it.
func record(size int64) func(io.Writer) error {
	return func(w io.Writer) error {
		h := []byte(member("m", tar.TypeReg, size))
		h[156] = tar.TypeXHeader
		return after(string(sum(h)), endlessly(strings.Repeat("x", 4096)))(w)
	}
}

// sum sets the checksum of a header.
func sum(h []byte) []byte {
	copy(h[148:156], "        ")
	n := 0
	for _, b := range h[:512] {
		n += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", n))
	return h
}

// recordsForEver are extended headers without a file that they are for.
func recordsForEver(w io.Writer) error {
	text := "12 path=mmm\n"
	h := []byte(member("m", tar.TypeReg, int64(len(text))))
	h[156] = tar.TypeXHeader
	return endlessly(string(sum(h)) + text + strings.Repeat("\x00", 512-len(text)))(w)
}

// sparse is a file of that size with nothing in it (GNU's PAX form 1.0).
func sparse(size int64) func(io.Writer) error {
	return func(w io.Writer) error {
		line := func(k, v string) string {
			s := fmt.Sprintf(" %s=%s\n", k, v)
			n := len(s) + 2
			if n > 99 {
				n++
			}
			return fmt.Sprint(n) + s
		}
		text := line("GNU.sparse.major", "1") + line("GNU.sparse.minor", "0") + line("GNU.sparse.name", "m") + line("GNU.sparse.realsize", fmt.Sprint(size))
		x := []byte(member("m", tar.TypeReg, int64(len(text))))
		x[156] = tar.TypeXHeader
		all := string(sum(x)) + text + strings.Repeat("\x00", (512-len(text)%512)%512)
		all += member("m", tar.TypeReg, 512) + "0\n" + strings.Repeat("\x00", 510) + strings.Repeat("\x00", 1024)
		_, err := io.WriteString(w, all)
		return err
	}
}
