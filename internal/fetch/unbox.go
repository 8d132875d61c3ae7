package fetch

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/chandler-proxy/chandler/internal/module"
)

const (
	maxDepth    = 4        // boxes within boxes
	maxEntries  = 10_000   // of an archive that are looked at
	maxWindow   = 32 << 20 // bytes of memory that a zstd stream may ask for
	maxOverhead = 1 << 20  // bytes by which a box may exceed the largest module
	sniffSize   = 512      // bytes that show what a stream is; a tar header
)

// A Body is a stream from the network: it bounds it, tells the network's errors
// from those of whoever unpacks it, and can compare its digest.
type Body struct {
	r     io.Reader
	left  int64
	limit int64
	want  module.Digest
	hash  hash.Hash // nil if nothing is to be compared
	err   error     // of the network
}

// NewBody bounds r to what could hold a module of maxModule bytes. With h not
// nil, [Body.Finish] compares the digest of all of it with want.
func NewBody(r io.Reader, maxModule int64, want module.Digest, h hash.Hash) *Body {
	limit := maxModule + maxOverhead
	return &Body{r: r, left: limit, limit: limit, want: want, hash: h}
}

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		err, n = tooLarge("download", b.limit), 0
	}
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	if err != nil && err != io.EOF {
		b.err = Transient(err)
		err = b.err
	}
	return n, err
}

// Finish reads the rest and compares the digest.
func (b *Body) Finish() error {
	if b.hash == nil {
		return nil
	}
	if _, err := io.Copy(io.Discard, b); err != nil {
		return err
	}
	if got := module.Digest(b.hash.Sum(nil)); got != b.want {
		return &Error{Kind: Checksum, Err: &module.DigestError{Want: b.want, Got: got}}
	}
	return nil
}

// Unpack delivers the module that is boxed in body; see [Unbox] and [Deliver].
func Unpack(req *Request, body *Body, want module.Digest, name string, maxModule int64) error {
	box, err := Unbox(body, name, maxModule)
	if err != nil {
		return body.blame(err)
	}
	defer box.Close()
	return Deliver(req, body, want, box)
}

// Deliver puts the module that r yields, which must have digest want unless
// that is zero. What does not begin as one is refused before. r reads from
// body, whose digest is compared before Put sees the end. Errors are those of
// [Fetcher].
func Deliver(req *Request, body *Body, want module.Digest, r io.Reader) error {
	br := bufio.NewReaderSize(&ending{r, body.Finish}, 64<<10)
	head, err := br.Peek(sniffSize)
	if err != nil && err != io.EOF {
		return body.blame(err)
	}
	if err := module.Sniff(head); err != nil {
		return body.blame(&Error{Kind: NotModule, Err: err})
	}
	return body.blame(checksum(req.Put(want, br)))
}

// blame finds what is behind err: the network's error if there was one, which
// decompressors hide, or the digest of what could not be understood.
func (b *Body) blame(err error) error {
	if err == nil {
		return nil
	}
	if b.err != nil {
		return b.err
	}
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Failed && e.Kind != NotModule {
		return err
	}
	return cmp.Or(b.Finish(), err)
}

// An ending calls done before it reports the end.
type ending struct {
	r    io.Reader
	done func() error
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err == io.EOF {
		if bad := e.done(); bad != nil {
			err = bad
		}
	}
	return n, err
}

// Unbox finds the module in r: r itself, or what is in the gzip, zstd or tar
// that r is, and so on. Of an archive it takes the first regular file whose
// base name is name, or with no name the first of all. What it unpacks on the
// way is bounded by maxModule and 1 MiB, the module by maxModule. The caller
// closes what it returns. Errors are of type *Error, or r's.
func Unbox(r io.Reader, name string, maxModule int64) (io.ReadCloser, error) {
	var closers closers
	for range maxDepth {
		br := bufio.NewReaderSize(r, 32<<10)
		head, err := br.Peek(sniffSize)
		if err != nil && err != io.EOF {
			closers.Close()
			return nil, malformed("download", err)
		}
		r = br
		open := opener(head)
		if open == nil {
			break
		}
		if r, err = open(br, name, maxModule, &closers); err != nil {
			closers.Close()
			return nil, err
		}
	}
	return box{Bound(r, maxModule), closers}, nil
}

// Bound is r with an error of kind TooLarge after maxModule bytes.
func Bound(r io.Reader, maxModule int64) io.Reader {
	return &limited{r: r, what: "module", left: maxModule, limit: maxModule}
}

type box struct {
	io.Reader
	io.Closer
}

type closers []func()

func (c closers) Close() error {
	for _, f := range c {
		f()
	}
	return nil
}

type openFunc func(r io.Reader, name string, maxModule int64, c *closers) (io.Reader, error)

// opener is how to open the box that starts with head, or nil if it is none.
func opener(head []byte) openFunc {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return openGzip
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return openZstd
	case len(head) == sniffSize && bytes.HasPrefix(head[257:], []byte("ustar")):
		return openTar
	}
	return nil
}

func openGzip(r io.Reader, _ string, maxModule int64, _ *closers) (io.Reader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, malformed("gzip", err)
	}
	return unpacked(z, "gzip", maxModule), nil
}

func openZstd(r io.Reader, _ string, maxModule int64, c *closers) (io.Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, malformed("zstd", err)
	}
	*c = append(*c, z.Close)
	return unpacked(z, "zstd", maxModule), nil
}

func unpacked(r io.Reader, what string, maxModule int64) io.Reader {
	limit := maxModule + maxOverhead
	return &limited{r: r, what: "what the " + what + " unpacks to", left: limit, limit: limit}
}

func openTar(r io.Reader, name string, maxModule int64, _ *closers) (io.Reader, error) {
	archive := tar.NewReader(r)
	var seen []string
	for n := 0; ; n++ {
		h, err := archive.Next()
		switch {
		case err == io.EOF:
			return nil, notThere(name, seen)
		case err != nil:
			return nil, malformed("tar", err)
		case n == maxEntries:
			return nil, &Error{Kind: TooLarge, Err: fmt.Errorf("tar has more entries than the limit of %d", maxEntries)}
		}
		if h.Typeflag != tar.TypeReg || name != "" && path.Base(h.Name) != name {
			if len(seen) < 10 {
				seen = append(seen, h.Name[:min(len(h.Name), 100)])
			}
			continue
		}
		if h.Size > maxModule {
			return nil, tooLarge("module", maxModule)
		}
		return &limited{r: archive, left: 1<<63 - 1}, nil
	}
}

func notThere(name string, seen []string) error {
	if name == "" {
		name = "regular file"
	}
	if len(seen) == 0 {
		return &Error{Kind: NotModule, Err: fmt.Errorf("no %s in the archive, which is empty", name)}
	}
	return &Error{Kind: NotModule, Err: fmt.Errorf("no %s in the archive, which has %s", name, clip(strings.Join(seen, ", ")))}
}

// malformed makes an Error of a decoder's, unless it is one already.
func malformed(what string, err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Err: fmt.Errorf("read %s: %w", what, err)}
}

// A limited reader gives an error, not an end, after limit bytes.
type limited struct {
	r     io.Reader
	what  string
	left  int64
	limit int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, tooLarge(l.what, l.limit)
	}
	if err != nil && err != io.EOF {
		err = malformed("archive", err)
	}
	return n, err
}
