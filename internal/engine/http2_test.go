package engine

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// inFrames sends the head of a request, of names and values in turn, and returns the status
// and the body of the response.
func inFrames(t *testing.T, port int, head ...string) (status, body string) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(head); i += 2 {
		if err := enc.WriteField(hpack.HeaderField{Name: head[i], Value: head[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			status, ended = frame.PseudoValue("status"), frame.StreamEnded()
		case *http2.DataFrame:
			body += string(frame.Data())
			ended = frame.StreamEnded()
		case *http2.RSTStreamFrame:
			return "reset", frame.ErrCode.String()
		}
		if ended {
			return status, body
		}
	}
}

// A client that names two hosts over HTTP/2 has the upstream told one, and one that names
// none is refused.
func TestHostOverHTTP2(t *testing.T) {
	c, port := newControlPlane(t), freePort(t)
	c.set(staticCluster(t, "backend", backend(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %v", r.Host, r.Header["Host"])
	})), httpListener(t, "main", port, "", "stream_idle_timeout: 0s"), routeConfig(t, toBackend))
	<-run(t, c).engine.Ready()
	for _, tt := range []struct{ head, status, body string }{
		{":method GET :scheme http :authority a :path / host b", "200", "a []"},
		{":method GET :scheme http :authority a :path /", "200", "a []"},
		{":method GET :scheme http :path / host b", "200", "b []"},
		{":method GET :scheme http :path /", "400", ""},
	} {
		if status, body := inFrames(t, port, strings.Fields(tt.head)...); status != tt.status || body != tt.body {
			t.Errorf("%s: %s %q, want %s %q", tt.head, status, body, tt.status, tt.body)
		}
	}
}
