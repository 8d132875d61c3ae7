package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/chandler-proxy/chandler/internal/module"
)

// Local is a Fetcher of files on this machine. The file must be a module as it
// is, not packed.
type Local struct {
	MaxModule int64 // bytes; default DefaultMaxModule
}

// Fetch reads the file. It is not interrupted by ctx: a disk answers.
func (l Local) Fetch(ctx context.Context, r Request) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, context.Cause(ctx)
	}
	f, err := os.Open(r.Ref.Target())
	if err != nil {
		return Result{}, fileError(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Result{}, fileError(err)
	}
	if !info.Mode().IsRegular() {
		return Result{}, &Error{Kind: NotModule, Err: fmt.Errorf("%w: it is a %v", module.ErrNotModule, info.Mode().Type())}
	}
	limit := cmp.Or(l.MaxModule, DefaultMaxModule)
	body := NewBody(f, limit, module.Digest{}, nil)
	return Result{}, Deliver(&r, body, r.Ref.Digest(), Bound(body, limit))
}

func fileError(err error) error {
	e := &Error{Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Kind = NotFound
	case errors.Is(err, fs.ErrPermission):
		e.Kind = Denied
	}
	return e
}
