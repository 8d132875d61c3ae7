package http1

import (
	"bufio"
	"net/http"
	"strconv"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// A Framing is how the end of a body is told.
type Framing uint8

const (
	Bare    Framing = iota // there is no body, or its length is among the fields, or it ends with the connection
	Chunked                // in chunks
)

// WriteRequest writes the head of a request. It adds what end and the fields call
// for: how the body, if there is one, will be written is returned.
func WriteRequest(w *bufio.Writer, f *Fields, end, upgrade bool) (Framing, error) {
	var method, path, authority string
	for _, p := range f.Pairs() {
		switch p.Key {
		case ":method":
			method = p.Value
		case ":path":
			path = p.Value
		case ":authority":
			authority = p.Value
		}
	}
	_, _ = w.WriteString(method)
	_ = w.WriteByte(' ')
	_, _ = w.WriteString(path)
	_, _ = w.WriteString(" HTTP/1.1\r\nhost: ")
	_, _ = w.WriteString(authority)
	_, _ = w.WriteString("\r\n")
	known := writeFields(w, f.Pairs())
	framing := Bare
	switch {
	case known || upgrade:
	case !end:
		framing = Chunked
		_, _ = w.WriteString("transfer-encoding: chunked\r\n")
	case method != "GET" && method != "HEAD" && method != "DELETE" && method != "CONNECT" && method != "TRACE":
		_, _ = w.WriteString("content-length: 0\r\n")
	}
	_, err := w.WriteString("\r\n")
	return framing, err
}

// WriteResponse writes the head of a response to a request of that method.
func WriteResponse(w *bufio.Writer, f *Fields, method string, end bool) (Framing, error) {
	status := 0
	if v, ok := f.Get(":status"); ok {
		status, _ = strconv.Atoi(v)
	}
	_, _ = w.WriteString("HTTP/1.1 ")
	var digits [4]byte
	_, _ = w.Write(strconv.AppendInt(digits[:0], int64(status), 10))
	_ = w.WriteByte(' ')
	_, _ = w.WriteString(reason(status))
	_, _ = w.WriteString("\r\n")
	known := writeFields(w, f.Pairs())
	framing := Bare
	switch {
	case known || status < 200 || status == 204 || status == 304:
	case end && method != "HEAD":
		_, _ = w.WriteString("content-length: 0\r\n")
	default:
		framing = Chunked
		_, _ = w.WriteString("transfer-encoding: chunked\r\n")
	}
	if method == "HEAD" {
		framing = Bare
	}
	_, err := w.WriteString("\r\n")
	return framing, err
}

// reason is the phrase of a status, as Envoy's CodeUtility has it.
func reason(status int) string {
	switch status {
	case 413:
		return "Payload Too Large"
	case 414:
		return "Request-URI Too Long"
	case 416:
		return "Range Not Satisfiable"
	case 418, 451:
		return "Unknown"
	}
	if s := http.StatusText(status); s != "" {
		return s
	}
	return "Unknown"
}

// writeFields reports whether there is a content-length. Pseudo-headers are left out.
func writeFields(w *bufio.Writer, fields []abi.Pair) (known bool) {
	for _, p := range fields {
		if p.Key == "" || p.Key[0] == ':' {
			continue
		}
		known = known || p.Key == "content-length"
		_, _ = w.WriteString(p.Key)
		_, _ = w.WriteString(": ")
		writeValue(w, p.Value)
		_, _ = w.WriteString("\r\n")
	}
	return known
}

// writeValue leaves out what would end the line: a plugin may have set anything.
func writeValue(w *bufio.Writer, s string) {
	for i := range len(s) {
		if c := s[i]; c == '\r' || c == '\n' || c == 0 {
			for _, c := range []byte(s) {
				if c != '\r' && c != '\n' && c != 0 {
					_ = w.WriteByte(c)
				}
			}
			return
		}
	}
	_, _ = w.WriteString(s)
}

// WriteBody writes some of a body.
func WriteBody(w *bufio.Writer, framing Framing, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if framing == Bare {
		_, err := w.Write(p)
		return err
	}
	var digits [18]byte
	_, _ = w.Write(append(strconv.AppendInt(digits[:0], int64(len(p)), 16), '\r', '\n'))
	_, _ = w.Write(p)
	_, err := w.WriteString("\r\n")
	return err
}

// WriteEnd ends a body. There are no trailers in HTTP/1.1: Envoy writes none
// unless told to.
func WriteEnd(w *bufio.Writer, framing Framing) error {
	if framing == Bare {
		return nil
	}
	_, err := w.WriteString("0\r\n\r\n")
	return err
}
