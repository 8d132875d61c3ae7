package artifact

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/all"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
	"github.com/chandler-proxy/chandler/internal/module"
)

// Config says how to reach registries and servers. Its Timeout, of one try, is 5m by
// default.
type Config = all.Config

// A Client pushes, pulls and inspects. It is safe for concurrent use.
type Client struct {
	registries *oci.Fetcher
	retry      fetch.Retry
}

// NewClient makes a Client.
func NewClient(cfg Config) *Client {
	cfg.Timeout = cmp.Or(cfg.Timeout, 5*time.Minute)
	retry, registries := all.New(cfg)
	return &Client{registries: registries, retry: retry}
}

// Progress is told of a push: how many bytes of how many are there. A try that
// starts again may go back. It is called by one goroutine at a time.
type Progress func(done, total int64)

// Push puts an image into a registry under the name or digest that ref has, and
// tries again where that may help. Layers that are there are not sent. progress
// may be nil. Errors are of type *fetch.Error, or ctx's.
func (c *Client) Push(ctx context.Context, ref module.Ref, image v1.Image, progress Progress) error {
	if ref.Scheme() != module.OCI {
		return &fetch.Error{Err: fmt.Errorf("push to %s: only registries take images, want oci://REGISTRY/REPOSITORY:TAG", ref)}
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	if pin := ref.Digest(); !pin.IsZero() && pin.String() != digest.String() {
		return &fetch.Error{Kind: fetch.Checksum, Err: fmt.Errorf("push to %s: the image's digest is %s", ref, digest)}
	}
	err = c.retry.Do(ctx, 0, func(ctx context.Context) error {
		to, way, err := c.registries.Connect(ctx, ref, nil, transport.PushScope)
		if err != nil {
			return err
		}
		opts := []remote.Option{
			remote.WithTransport(way),
			remote.WithJobs(2),
			remote.WithRetryBackoff(remote.Backoff{Steps: 1}), // the tries are ours
		}
		return write(ctx, image, progress, func(ctx context.Context, more ...remote.Option) error {
			more = append(more, remote.WithContext(ctx))
			return classify(remote.Write(to, image, append(opts, more...)...))
		})
	})
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// write calls do, and tells progress meanwhile if there is one.
func write(ctx context.Context, image v1.Image, progress Progress, do func(context.Context, ...remote.Option) error) error {
	if progress == nil {
		return do(ctx)
	}
	updates := make(chan v1.Update, 16)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return do(ctx, remote.WithProgress(updates)) }) // closes updates
	g.Go(func() error {
		for u := range updates {
			if u.Error == nil {
				progress(u.Complete, u.Total)
			}
		}
		return nil
	})
	return g.Wait()
}

// classify makes a fetch.Error of the registry library's.
func classify(err error) error {
	if err == nil {
		return nil
	}
	refused, ok := errors.AsType[*transport.Error](err)
	if !ok {
		return fetch.Transient(err)
	}
	said := ""
	if len(refused.Errors) > 0 {
		said = refused.Errors[0].String()
	}
	return fetch.Status(refused.StatusCode, http.Header{}, said)
}

// Pulled is what a pull brought.
type Pulled struct {
	Digest module.Digest // as the sha256 of a plugin wants it: of the image, or of the module where there is none
	Module module.Digest
	Size   int64 // bytes
}

// Pull gets the module that ref leads to and writes it to the file at path, as
// [WriteFile] does. Errors are of type *fetch.Error, about the file, or ctx's.
func (c *Client) Pull(ctx context.Context, ref module.Ref, path string) (Pulled, error) {
	var p Pulled
	res, err := c.retry.Fetch(ctx, fetch.Request{
		Want: module.Want{Ref: ref},
		Put: func(want module.Digest, r io.Reader) error {
			v := &verifier{r: r, hash: sha256.New(), want: want}
			if err := WriteFile(path, v); err != nil {
				return err
			}
			p.Module, p.Size = v.digest(), v.size
			return nil
		},
	})
	if err != nil {
		return Pulled{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	p.Digest = p.Module
	if ref.Scheme() == module.OCI {
		if p.Digest, err = module.ParseDigest(res.Source); err != nil {
			return Pulled{}, fmt.Errorf("pull %s: %w", ref, err)
		}
	}
	return p, nil
}

// A verifier gives an error instead of the end of what is not what it should be.
type verifier struct {
	r    io.Reader
	hash hash.Hash
	want module.Digest // or zero
	size int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.size += int64(n)
	if got := v.digest(); err == io.EOF && !v.want.IsZero() && got != v.want {
		err = &module.DigestError{Want: v.want, Got: got}
	}
	return n, err
}

func (v *verifier) digest() module.Digest { return module.Digest(v.hash.Sum(nil)) }
