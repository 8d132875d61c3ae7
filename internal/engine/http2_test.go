package engine

import (
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
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// inFrames sends the head of a request, of names and values in turn, and returns the status
// and the body of the response.
func inFrames(t *testing.T, port int, head ...string) (code, body string) {
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
			code, ended = frame.PseudoValue("status"), frame.StreamEnded()
		case *http2.DataFrame:
			body += string(frame.Data())
			ended = frame.StreamEnded()
		case *http2.RSTStreamFrame:
			return "reset", frame.ErrCode.String()
		case *http2.GoAwayFrame:
			return "closed", frame.ErrCode.String()
		}
		if ended {
			return code, body
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
		{":method GET :scheme http :path /", "closed", "PROTOCOL_ERROR"},
	} {
		if status, body := inFrames(t, port, strings.Fields(tt.head)...); status != tt.status || body != tt.body {
			t.Errorf("%s: %s %q, want %s %q", tt.head, status, body, tt.status, tt.body)
		}
	}
}

// gRPC passes, in both directions at once, with its status in trailers.
func TestGRPCPasses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		for {
			m := new(wrapperspb.StringValue)
			switch err := stream.RecvMsg(m); {
			case err == io.EOF:
				stream.SetTrailer(metadata.Pairs("x-last", "yes"))
				return status.Error(codes.DataLoss, "that is all")
			case err != nil:
				return err
			}
			m.Value = "you said " + m.Value
			if err := stream.SendMsg(m); err != nil {
				return err
			}
		}
	}))
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		serving.Wait()
	})
	c, port := newControlPlane(t), freePort(t)
	cluster := staticCluster(t, "backend", l.Addr().String())
	cluster.TypedExtensionProtocolOptions = parse(t, `
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}`, new(clusterv3.Cluster)).TypedExtensionProtocolOptions
	c.set(cluster, httpListener(t, "main", port, "", ""), routeConfig(t, toBackend))
	<-run(t, c).engine.Ready()
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", port), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var talking sync.WaitGroup
	for i := range 20 {
		talking.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/a.B/C")
			if err != nil {
				t.Error(err)
				return
			}
			for j := range 20 {
				said := strings.Repeat(fmt.Sprintf("%d-%d ", i, j), 1+j*1000)
				got := new(wrapperspb.StringValue)
				if err := errors.Join(stream.SendMsg(wrapperspb.String(said)), stream.RecvMsg(got)); err != nil || got.Value != "you said "+said {
					t.Errorf("%d bytes, %v", len(got.Value), err)
					return
				}
			}
			err = errors.Join(stream.CloseSend(), stream.RecvMsg(new(wrapperspb.StringValue)))
			if last := stream.Trailer().Get("x-last"); status.Code(err) != codes.DataLoss || len(last) != 1 {
				t.Errorf("%v, %q", err, last)
			}
		})
	}
	talking.Wait()
}
