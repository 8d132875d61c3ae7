package listener

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/chandler-proxy/chandler/internal/engine/hcm"
)

const (
	recordHeader = 5        // bytes before a TLS record
	maxRecord    = 16 << 10 // bytes of one, without its header
	handshake    = 0x16
)

// errSeen ends a handshake that was begun to read the client's first message.
var errSeen = errors.New("seen")

// inspect makes c.R and reads what the client says first, if the listener wants to
// know. It returns false if the client said nothing in time, or went away. The room
// that it takes is not the connection's for life.
func (l *Listener) inspect(c *hcm.Conn) (hello, bool) {
	var h hello
	wantTLS, wantHTTP := l.Config.InspectTLS.On(c.Dst.Port()), l.Config.InspectHTTP.On(c.Dst.Port())
	if !wantTLS && !wantHTTP {
		c.R = bufio.NewReader(c.Conn)
		return h, true
	}
	r := bufio.NewReaderSize(c.Conn, recordHeader+maxRecord)
	if l.Config.InspectTimeout > 0 {
		_ = c.SetReadDeadline(time.Now().Add(l.Config.InspectTimeout))
	}
	var err error
	if wantTLS {
		err = inspectTLS(r, &h)
	}
	if wantHTTP && !h.tls && err == nil {
		err = inspectHTTP(r, &h)
	}
	_ = c.SetReadDeadline(time.Time{})
	have, _ := r.Peek(r.Buffered()) // there is so much
	c.R = bufio.NewReader(&prefixed{Conn: c.Conn, head: bytes.Clone(have)})
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() && l.Config.ContinueOnSilent {
		return hello{}, true
	}
	return h, err == nil
}

// A prefixed connection starts with some bytes.
type prefixed struct {
	net.Conn
	head []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.head) > 0 {
		n := copy(b, p.head)
		if p.head = p.head[n:]; len(p.head) == 0 {
			p.head = nil // and its memory with it
		}
		return n, nil
	}
	return p.Conn.Read(b)
}

// inspectTLS reads a ClientHello, if it is one.
func inspectTLS(r *bufio.Reader, h *hello) error {
	b, err := r.Peek(1)
	if err != nil || b[0] != handshake {
		return err
	}
	if b, err = r.Peek(recordHeader); err != nil {
		return err
	}
	size := int(b[3])<<8 | int(b[4])
	if b[1] != 3 || size > maxRecord {
		return nil // not TLS
	}
	if b, err = r.Peek(recordHeader + size); err != nil {
		return err
	}
	return readHello(b, h)
}

// readHello has crypto/tls read a ClientHello.
func readHello(b []byte, h *hello) error {
	server := tls.Server(&readOnly{r: bytes.NewReader(b)}, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			h.tls, h.name, h.applications = true, strings.ToLower(info.ServerName), info.SupportedProtos
			return nil, errSeen
		},
	})
	if err := server.Handshake(); !errors.Is(err, errSeen) && !h.tls {
		return nil // something else that starts alike
	}
	return nil
}

// A readOnly connection ends after some bytes, and drops what is written.
type readOnly struct {
	net.Conn
	r *bytes.Reader
}

func (c *readOnly) Read(b []byte) (int, error)        { return c.r.Read(b) }
func (c *readOnly) Write(b []byte) (int, error)       { return len(b), nil }
func (c *readOnly) Close() error                      { return nil }
func (c *readOnly) SetDeadline(time.Time) error       { return nil }
func (c *readOnly) SetWriteDeadline(time.Time) error  { return nil }
func (c *readOnly) SetReadDeadline(t time.Time) error { return nil }

// methods are the ones that Envoy's inspector knows.
const methods = " GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH "

const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// inspectHTTP finds out whether it is HTTP, by the first line.
func inspectHTTP(r *bufio.Reader, h *hello) error {
	for n := 1; ; n = r.Buffered() + 1 {
		if n > r.Size() {
			h.applications = []string{"http/1.1"} // a very long target
			return nil
		}
		_, err := r.Peek(n)
		b, _ := r.Peek(r.Buffered())
		switch protocol, known := firstLine(b); {
		case known && protocol != "":
			h.applications = []string{protocol}
			return nil
		case known:
			return nil
		case err != nil:
			return err
		}
	}
}

// firstLine tells the protocol of what starts with b: known is false if more is needed.
func firstLine(b []byte) (protocol string, known bool) {
	if n := min(len(b), len(http2Preface)); string(b[:n]) == http2Preface[:n] && n > 0 {
		return "h2c", n == len(http2Preface)
	}
	method, rest, found := bytes.Cut(b, []byte(" "))
	if !found {
		return "", !strings.Contains(methods, " "+string(b))
	}
	if !strings.Contains(methods, " "+string(method)+" ") || len(method) == 0 {
		return "", true
	}
	line, _, found := bytes.Cut(rest, []byte("\n"))
	if !found {
		return "", false
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case bytes.HasSuffix(line, []byte(" HTTP/1.1")):
		return "http/1.1", true
	case bytes.HasSuffix(line, []byte(" HTTP/1.0")):
		return "http/1.0", true
	}
	return "", true
}
