package http1

import (
	"bufio"
	"bytes"
	"io"
)

const (
	maxChunkLine = 4096     // bytes of a line that starts a chunk, with its extensions
	maxWaste     = 16 << 10 // bytes of such lines above what chunks of a few bytes each need
)

// chunks reads a body in chunks, without waiting for all of a chunk: of package net/http's
// reader a piece of a large one is to be had only when there is a bufferful. What it takes
// is what RFC 9112, section 7.1, says, with no line but ends in CR LF. Trailers are left.
type chunks struct {
	r      *bufio.Reader
	left   uint64 // of this chunk
	begun  bool   // a chunk was: its end is to be read
	ended  bool   // the last chunk was read
	wasted int
}

// Read returns what there is, of several chunks if there are several.
func (c *chunks) Read(p []byte) (n int, err error) {
	for !c.ended && err == nil && n < len(p) && (n == 0 || c.ready()) {
		if c.left == 0 {
			err = c.next()
			continue
		}
		var m int
		m, err = c.r.Read(p[n : n+int(min(c.left, uint64(len(p)-n)))])
		n += m
		c.left -= uint64(m)
		c.wasted = max(0, c.wasted-2*m)
		if err == io.EOF {
			err = ErrIncomplete
		}
	}
	if n == 0 && err == nil && c.ended {
		err = io.EOF
	}
	return n, err
}

// ready reports whether more can be read without waiting for the client.
func (c *chunks) ready() bool {
	if c.left > 0 {
		return c.r.Buffered() > 0
	}
	have, _ := c.r.Peek(c.r.Buffered()) // what is buffered can be peeked
	if c.begun {
		have = bytes.TrimPrefix(have, []byte("\r\n"))
	}
	return bytes.IndexByte(have, '\n') >= 0
}

// next reads what is between two chunks.
func (c *chunks) next() error {
	if c.begun {
		if end, err := strictLine(c.r, 2); err != nil || len(end) > 0 {
			return orSyntax(err)
		}
	}
	line, err := strictLine(c.r, maxChunkLine)
	if err != nil {
		return orSyntax(err)
	}
	if c.wasted = max(0, c.wasted+len(line)-16); c.wasted > maxWaste {
		return ErrSyntax
	}
	size, ok := chunkSize(line)
	if !ok {
		return ErrSyntax
	}
	c.begun, c.left, c.ended = true, size, size == 0
	return nil
}

// orSyntax is why a line was not what it must be.
func orSyntax(err error) error {
	switch err {
	case nil, ErrTooLarge:
		return ErrSyntax
	case io.EOF:
		return ErrIncomplete
	}
	return err
}

// chunkSize reads a number in hexadecimal digits, which extensions may follow.
func chunkSize(line []byte) (size uint64, ok bool) {
	digits := 0
	for ; digits < len(line); digits++ {
		d := hexDigit(line[digits])
		if d < 0 {
			break
		}
		size = size<<4 | uint64(d)
	}
	rest := bytes.TrimLeft(line[digits:], " \t")
	if digits == 0 || digits > 16 || len(rest) > 0 && rest[0] != ';' { // space may follow the digits: old servers write it
		return 0, false
	}
	for _, b := range rest {
		if b < ' ' && b != '\t' || b == 0x7f {
			return 0, false
		}
	}
	return size, true
}

func hexDigit(c byte) int {
	switch {
	case isDigit(c):
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c - 'a' + 10)
	case c >= 'A' && c <= 'F':
		return int(c - 'A' + 10)
	}
	return -1
}

// strictLine reads a line that ends in CR LF, and returns it without them.
func strictLine(r *bufio.Reader, limit int) ([]byte, error) {
	b, err := rawLine(r, limit)
	if err != nil {
		return nil, err
	}
	if len(b) < 2 || b[len(b)-2] != '\r' {
		return nil, ErrSyntax
	}
	return b[:len(b)-2], nil
}
