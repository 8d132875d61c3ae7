package engine

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"testing"
)

// canned answers every request without a body with 200 and a few bytes.
func canned(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					if len(line) == 2 {
						if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// BenchmarkRequest is a request over a connection that is kept, through no
// filter and through a plugin that adds a header each way.
func BenchmarkRequest(b *testing.B) {
	for _, tt := range []struct{ name, filters string }{{"plain", ""}, {"plugin", discovered}} {
		b.Run(tt.name, func(b *testing.B) {
			c, port := newControlPlane(b), freePort(b)
			l := httpListener(b, "main", port, tt.filters, "stream_idle_timeout: 0s")
			c.set(staticCluster(b, "backend", canned(b)), l, routeConfig(b, toBackend))
			c.set(wasmExtension(b, wasmDir+"addheader.wasm", ""))
			h := run(b, c)
			<-h.engine.Ready()
			b.ReportAllocs()
			drive(b, port)
		})
	}
}

// drive sends requests over connections that are kept.
func drive(b *testing.B, port int) {
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		request := []byte(get("/", "User-Agent: bench"))
		for pb.Next() {
			if _, err := conn.Write(request); err != nil {
				b.Error(err)
				return
			}
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					b.Error(err)
					return
				}
				if len(line) == 2 {
					break
				}
			}
			if _, err := r.Discard(5); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
