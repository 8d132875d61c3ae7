package store

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/module"
)

const (
	chunkSize = 64 << 10 // bytes read at once
	chunks    = 4        // that may be on their way
)

// buffers are the chunks of one copy.
type buffers [chunks][chunkSize]byte

// copy writes what r yields to tmp and returns its digest. Reading, which waits
// for a network and unpacks, and hashing and writing go on beside each other.
func (s *Store) copy(tmp *os.File, r io.Reader) (module.Digest, error) {
	var (
		read    = make(chan []byte, chunks)
		written = make(chan []byte, chunks)
		failed  = make(chan struct{}) // closed when writing ends early
		out     = sink{file: tmp, hash: sha256.New()}
		g       errgroup.Group
	)
	b, _ := s.buffers.Get().(*buffers)
	if b == nil {
		b = new(buffers)
	}
	defer s.buffers.Put(b)
	for i := range b {
		written <- b[i][:]
	}
	g.Go(func() error {
		defer close(read)
		return s.take(r, written, read, failed)
	})
	g.Go(func() error {
		for b := range read {
			if err := out.write(b); err != nil {
				close(failed)
				return fmt.Errorf("store module: %w", diskError(err))
			}
			written <- b[:chunkSize]
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return module.Digest{}, err
	}
	return module.Digest(out.hash.Sum(nil)), nil
}

// take fills buffers from free and passes them to full until r ends, r has
// yielded more than the limit, or writing has failed.
func (s *Store) take(r io.Reader, free <-chan []byte, full chan<- []byte, failed <-chan struct{}) error {
	left := s.maxSize
	for {
		var b []byte
		select {
		case b = <-free:
		case <-failed:
			return nil // that error is the one to tell
		}
		n, err := fill(r, b)
		if left -= int64(n); left < 0 {
			return &TooLargeError{s.maxSize}
		}
		select {
		case full <- b[:n]:
		case <-failed:
			return nil
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fill reads until b is full or r ends or fails. Unlike io.ReadFull it does not
// make one error of an end and a failure.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// A sink hashes and writes.
type sink struct {
	file *os.File
	hash hash.Hash
}

func (s *sink) write(b []byte) error {
	s.hash.Write(b) // never fails
	_, err := s.file.Write(b)
	return err
}
