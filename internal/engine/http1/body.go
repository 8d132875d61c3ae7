package http1

import (
	"bufio"
	"io"
)

// A Body is that of one message. It is an [io.Reader] for one goroutine.
type Body struct {
	r    *bufio.Reader
	src  *chunks // nil unless it is in chunks
	left int64   // of a body of known length
	raw  bool    // until the connection ends
	done bool
}

func fixedBody(r *bufio.Reader, n int64) *Body { return &Body{r: r, left: n, done: n == 0} }
func rawBody(r *bufio.Reader) *Body            { return &Body{r: r, raw: true} }
func chunkedBody(r *bufio.Reader) *Body        { return &Body{r: r, src: &chunks{r: r}} }

// Raw returns a body that is whatever else comes on the connection: of a request
// that was upgraded.
func Raw(r *bufio.Reader) *Body { return rawBody(r) }

// Done reports whether there is nothing more to read.
func (b *Body) Done() bool { return b.done }

// Ready reports whether some of the body is at hand.
func (b *Body) Ready() bool { return b.done || b.r.Buffered() > 0 }

// Trailers returns nil: as in Envoy, unless it is told otherwise, those of HTTP/1.1
// are read and dropped.
func (b *Body) Trailers() *Fields { return nil }

// Read reads some of the body. Its end is [io.EOF]; [ErrIncomplete] is an end
// that came too early, and a [*Refusal] that chunks are malformed.
func (b *Body) Read(p []byte) (int, error) {
	switch {
	case b.done:
		return 0, io.EOF
	case b.raw:
		n, err := b.r.Read(p)
		b.done = err == io.EOF
		return n, err
	case b.src != nil:
		return b.readChunks(p)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	b.done = b.left == 0
	if err == io.EOF && !b.done {
		return n, ErrIncomplete
	}
	if b.done {
		return n, nil
	}
	return n, err
}

func (b *Body) readChunks(p []byte) (int, error) {
	n, err := b.src.Read(p)
	if err != io.EOF {
		return n, err
	}
	if _, err := readFields(b.r, 0, MaxHead); err != nil {
		return n, err
	}
	b.done = true
	return n, io.EOF
}
