package dir

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// A file is what is known of one file, or of a path that is none yet.
type file struct {
	path  string
	place int // among the files found; its last if it is no more
	stamp stamp
	sum   [sha256.Size]byte // of what was last offered; zero if that was not read from the file

	content           // in force
	waiting *content  // for the worse; comes into force if it lasts
	since   time.Time // when waiting began
}

// A content is what a file brings into force.
type content struct {
	placed   []placed
	problems []resource.Problem
}

func (c content) equal(d content) bool {
	return slices.Equal(c.problems, d.problems) && slices.EqualFunc(c.placed, d.placed, func(a, b placed) bool {
		return a.line == b.line && a.key() == b.key() && a.object.GetResourceVersion() == b.object.GetResourceVersion()
	})
}

// placed is an object and the line where it begins in its file.
type placed struct {
	object resource.Object
	line   int
	lines  *resource.Lines
}

func (p placed) key() resource.Key { return resource.KeyOf(p.object) }

// repeated is the problem that p, in the file at path, is already in force from first.
func (p placed) repeated(path, first string) resource.Problem {
	key := p.key()
	return resource.Problem{
		File: path, Line: p.line,
		Kind: key.Kind, Namespace: key.Namespace, Name: key.Name,
		Message: "is already in " + first + ", which is taken",
		Mend:    "keep one of them",
	}
}

// decoded is the content that documents bring. If any of them has a problem it
// may stand for anything that was there, so what is in force and not among the
// valid ones stays.
func (f *file) decoded(documents []resource.Document) content {
	var c content
	for _, d := range documents {
		if d.Object != nil {
			c.placed = append(c.placed, placed{d.Object, d.Line, d.Lines})
		}
		c.problems = append(c.problems, d.Problems...)
	}
	if len(c.problems) > 0 {
		c.placed = append(c.placed, f.without(c)...)
	}
	return c
}

// kept is what is in force if keep, else nothing.
func (f *file) kept(keep bool) []placed {
	if keep {
		return f.placed
	}
	return nil
}

// without returns what is in force and not in c.
func (f *file) without(c content) []placed {
	_, missing := f.divide(c)
	return missing
}

// divide tells what is in force into what is in c, too, and what is not.
func (f *file) divide(c content) (in, missing []placed) {
	keys := make(map[resource.Key]bool, len(c.placed))
	for _, p := range c.placed {
		keys[p.key()] = true
	}
	for _, p := range f.placed {
		if keys[p.key()] {
			in = append(in, p)
		} else {
			missing = append(missing, p)
		}
	}
	return in, missing
}

// leaving is what is in force and will not be once waiting is.
func (f *file) leaving() []placed {
	if f.waiting == nil {
		return nil
	}
	return f.without(*f.waiting)
}

// staying is the rest.
func (f *file) staying() []placed {
	if f.waiting == nil {
		return f.placed
	}
	in, _ := f.divide(*f.waiting)
	return in
}

func (f *file) isEmpty() bool {
	return f.waiting == nil && len(f.placed) == 0 && len(f.problems) == 0
}

// offer brings c into force; if it is for the worse and patient, only once that
// has lasted. A problem is worse, and so is a resource less.
func (f *file) offer(c content, patient bool, now time.Time) {
	f.stamp, f.sum = stamp{}, [sha256.Size]byte{}
	worse := len(c.problems) > 0 || len(f.without(c)) > 0
	switch {
	case !worse || !patient || f.content.equal(c):
		f.content, f.waiting = c, nil
	case f.waiting == nil:
		f.waiting, f.since = &c, now
	default:
		f.waiting = &c
	}
}

// settle brings into force what has waited long enough.
func (f *file) settle(now time.Time) {
	if f.waiting != nil && now.Sub(f.since) >= settle {
		f.content, f.waiting = *f.waiting, nil
	}
}

// readFile reads a file, but not more of it than shows that it is too large.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, resource.MaxFile+1))
}

// unreadable is the problem that err keeps the file or folder at path from being read.
func unreadable(path string, err error) resource.Problem {
	// The operation and the path are in the problem anyway.
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	return resource.Problem{File: path, Message: "cannot be read: " + err.Error(), Mend: "what it held stays in force"}
}
