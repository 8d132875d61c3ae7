package hcm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newPipe2(ctx context.Context) (*conn2, net.Conn) {
	client, server := net.Pipe()
	buffers := &sync.Pool{New: func() any { return new([16 << 10]byte) }}
	return newConn2(ctx, &Conn{Conn: server}, buffers), client
}

// What is written while nothing is sent goes out as one.
func TestConn2Gathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client := newPipe2(t.Context())
		for _, p := range []string{"a", "bc", "def"} {
			if n, err := io.WriteString(c, p); n != len(p) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		var flush sync.WaitGroup
		flush.Go(c.flush)
		buf := make([]byte, 100)
		if n, err := client.Read(buf); string(buf[:n]) != "abcdef" || err != nil {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		synctest.Wait()
		if c.buffer != nil {
			t.Error("a connection that is idle keeps its buffer")
		}
		c.Close()
		flush.Wait()
	})
}

// One that does not read has writers wait, and gets everything in order.
func TestConn2Waits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client := newPipe2(t.Context())
		var flush, write sync.WaitGroup
		flush.Go(c.flush)
		var want bytes.Buffer
		written := 0
		write.Go(func() {
			for i := range 60 {
				p := bytes.Repeat([]byte{byte('A' + i)}, i*i*10) // up to 35 KB: more than is gathered
				want.Write(p)
				if n, err := c.Write(p); n != len(p) || err != nil {
					t.Errorf("Write = %d, %v", n, err)
				}
				written += len(p)
			}
			c.Close()
		})
		synctest.Wait()
		if written == 0 || written > 32<<10 {
			t.Errorf("%d bytes were taken of what no one reads", written)
		}
		got, err := io.ReadAll(client)
		write.Wait()
		flush.Wait()
		if !bytes.Equal(got, want.Bytes()) || err != nil {
			t.Errorf("read %d bytes, %v, want %d", len(got), err, want.Len())
		}
	})
}

// A write that fails ends the connection, and fails those after it.
func TestConn2Fails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range []int{10, 20 << 10} { // gathered, and sent at once
			c, client := newPipe2(t.Context())
			client.Close()
			var flush sync.WaitGroup
			flush.Go(c.flush)
			_, _ = c.Write(make([]byte, size)) // may fail only later
			synctest.Wait()
			if n, err := c.Write([]byte("x")); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("Write = %d, %v", n, err)
			}
			if _, err := c.Conn.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("Read: %v, want a closed connection", err)
			}
			c.Close()
			flush.Wait()
		}
	})
}

func TestConn2Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client := newPipe2(t.Context())
		_, _ = io.WriteString(c, "goodbye")
		c.Close()
		var flush sync.WaitGroup
		flush.Go(c.flush)
		if got, err := io.ReadAll(client); string(got) != "goodbye" || err != nil {
			t.Errorf("read %q, %v, want what was written before the end", got, err)
		}
		flush.Wait()
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write = %v, want %v", err, net.ErrClosed)
		}
	})
}

// One that does not read does not hold up the end, nor does it keep a writer.
func TestConn2CloseByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client := newPipe2(t.Context())
		defer client.Close()
		var flush, write sync.WaitGroup
		flush.Go(c.flush)
		write.Go(func() {
			_, err := io.Copy(c, strings.NewReader(strings.Repeat("x", 40<<10)))
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Write: %v", err)
			}
		})
		synctest.Wait()
		from := time.Now()
		c.Close()
		flush.Wait()
		write.Wait()
		if took := time.Since(from); took != farewell {
			t.Errorf("it took %v, want %v", took, farewell)
		}
	})
}
