// Package dir is the source that reads files and folders and watches them.
//
// A path may be a file, whatever its name, or a folder, of which it reads all
// files named .yaml, .yml or .json at any depth; hidden ones and what editors
// leave behind are skipped. A path need not exist yet: that is a problem, as is
// anything else wrong with a file, until it does.
//
// Guarantees:
//
//   - A file with a problem removes nothing: what it held stays in force, but
//     for the resources that it still holds in a valid form, which take effect.
//     A folder or file that cannot be read leaves everything from it in force, as
//     does a folder that was named and is gone: a mount that was lost looks like
//     that. A file that is gone takes its resources with it.
//   - A change that only adds takes effect a few milliseconds after the file was
//     written. One that takes away, or brings a problem, has to last for
//     [settle]: a file that is being written looks like that for a moment.
//   - Of two resources with the same kind, namespace and name the one in the
//     first file counts, in the order of the paths and then of the names; the
//     other one is a problem.
//
// Start at [Source.Run]; how files are found is in walk.go, what becomes of
// their content in file.go.
package dir

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

const (
	// quiet is how long there must be no event before files are read: a write is
	// often several.
	quiet = 5 * time.Millisecond
	// patience is how long events may keep coming before files are read all the same.
	patience = 100 * time.Millisecond
	// settle is how long a change for the worse has to last.
	settle = 100 * time.Millisecond
	// poll is how often files are read when they cannot be watched.
	poll = time.Second
)

// A Config says what to read.
type Config struct {
	Paths   []string          // files and folders; order decides which of two equal resources counts
	Decoder *resource.Decoder // default: one of its own
	Log     *slog.Logger      // default: none
}

// A Source reads the files and folders of one Config. It implements source.Source.
type Source struct {
	paths   []string
	decoder *resource.Decoder
	log     *slog.Logger
}

// New returns a source. It reads nothing yet.
func New(c Config) *Source {
	return &Source{
		paths:   c.Paths,
		decoder: cmp.Or(c.Decoder, resource.NewDecoder()),
		log:     cmp.Or(c.Log, slog.New(slog.DiscardHandler)),
	}
}

// Run delivers what the files hold, now and after each change, until ctx ends;
// then it returns nil. If the system has no watches left it looks every second
// instead.
func (s *Source) Run(ctx context.Context, deliver func(source.Snapshot)) error {
	watches := watches{add: func(string) error { return errors.ErrUnsupported }}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Warn("cannot watch files", "error", err, "polling", poll)
	} else {
		defer watcher.Close()
		watches.add, watches.events, watches.errors = watcher.Add, watcher.Events, watcher.Errors
	}
	s.run(ctx, watches, deliver)
	return nil
}

// watches is what tells that something changed.
type watches struct {
	add    func(dir string) error // may be called again for the same folder
	events <-chan fsnotify.Event
	errors <-chan error
}

// run is Run with watches given.
func (s *Source) run(ctx context.Context, w watches, deliver func(source.Snapshot)) {
	r := reading{Source: s, watches: w, files: map[string]*file{}, changed: map[string]bool{}}
	last := r.read(time.Now())
	if ctx.Err() != nil {
		return
	}
	deliver(last)
	timer := time.NewTimer(r.next(time.Now()))
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-w.events:
			if !r.note(event) {
				continue
			}
		case err := <-w.errors:
			r.lost(err)
		case <-timer.C:
			snapshot := r.read(time.Now())
			if ctx.Err() == nil && !same(last, snapshot) {
				last = snapshot
				deliver(snapshot)
			}
		}
		timer.Reset(r.next(time.Now()))
	}
}

// same reports whether two snapshots say the same. Objects of one resource
// version have the same content.
func same(a, b source.Snapshot) bool {
	return a.Unread == b.Unread && slices.Equal(a.Problems, b.Problems) && maps.Equal(versions(a), versions(b))
}

func versions(s source.Snapshot) map[resource.Key]string {
	m := make(map[resource.Key]string, len(s.Objects))
	for _, o := range s.Objects {
		m[resource.KeyOf(o)] = o.GetResourceVersion()
	}
	return m
}

// A reading is what is known of the files. It belongs to one goroutine.
type reading struct {
	*Source
	watches
	files   map[string]*file // by path
	found   found            // last
	watched map[string]id    // folders, by path
	started bool             // it was read once
	unread  bool             // something could not be read
	whole   bool             // everything was read once
	polling bool             // some folder could not be watched

	// Of the events since the last read:
	first, latest time.Time
	changed       map[string]bool // names of files that must be read, whatever their stamp says
	all           bool            // all must
}

// note takes down an event and reports whether it matters.
func (r *reading) note(event fsnotify.Event) bool {
	if !r.found.cares(event.Name) {
		return false
	}
	r.changed[filepath.Base(event.Name)] = true
	r.touch()
	return true
}

// lost deals with an error of the watches: events may be missing.
func (r *reading) lost(err error) {
	if !errors.Is(err, fsnotify.ErrEventOverflow) {
		r.log.Warn("watching files", "error", err)
	}
	r.all = true
	r.touch()
}

func (r *reading) touch() {
	r.latest = time.Now()
	if r.first.IsZero() {
		r.first = r.latest
	}
}

// next is how long to wait before reading again if nothing happens.
func (r *reading) next(now time.Time) time.Duration {
	wait := time.Duration(math.MaxInt64)
	if r.polling {
		wait = poll
	}
	if !r.first.IsZero() {
		wait = min(wait, r.latest.Add(quiet).Sub(now), r.first.Add(patience).Sub(now))
	}
	for _, f := range r.files {
		if f.waiting != nil {
			wait = min(wait, f.since.Add(settle).Sub(now))
		}
	}
	return max(wait, 0)
}

// read looks at all files again and returns what is in force then.
func (r *reading) read(now time.Time) source.Snapshot {
	r.look()
	r.unread = false
	listed := map[string]bool{}
	for i, e := range r.found.entries {
		listed[e.path] = true
		if r.files[e.path] == nil {
			r.files[e.path] = &file{path: e.path}
		}
		f := r.files[e.path]
		f.place = i
		r.load(f, e, now)
	}
	for path, f := range r.files {
		if !listed[path] && !r.found.unsure(path) {
			f.offer(content{}, r.started, now)
		}
		f.settle(now)
		if !listed[path] && f.isEmpty() {
			delete(r.files, path)
		}
	}
	r.started = true
	r.whole = r.whole || !r.unread
	r.first, r.latest, r.all = time.Time{}, time.Time{}, false
	clear(r.changed)
	return r.merge()
}

// look finds the files, and does so again until all that they hang on was
// watched before it was read: what changes later is told by an event.
func (r *reading) look() {
	const enough = 10 // someone keeps making folders; their events will come
	polling := false
	for range enough {
		r.found = find(r.paths)
		watched := map[string]id{}
		for dir, n := range r.found.watch {
			watched[dir] = n.id
			if err := r.add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				if !r.polling && !polling {
					r.log.Warn("cannot watch folder", "folder", dir, "error", err, "polling", poll)
				}
				polling = true
			}
		}
		unchanged := maps.Equal(watched, r.watched)
		r.watched = watched
		if unchanged {
			break
		}
	}
	r.polling = polling
}

// load reads what is at e, if it may have changed, and offers it to f.
func (r *reading) load(f *file, e entry, now time.Time) {
	if e.problem != nil {
		r.unread = r.unread || e.keep
		f.offer(content{placed: f.kept(e.keep), problems: []resource.Problem{*e.problem}}, r.started, now)
		return
	}
	must := r.all || r.changed[filepath.Base(e.path)] || r.changed[filepath.Base(e.target)]
	if !must && f.stamp == e.stamp {
		return
	}
	data, err := readFile(e.path)
	switch sum := sha256.Sum256(data); {
	case errors.Is(err, fs.ErrNotExist):
		f.offer(content{}, r.started, now)
	case err != nil:
		r.unread = true
		f.offer(content{placed: f.placed, problems: []resource.Problem{unreadable(e.path, err)}}, r.started, now)
	case f.sum == sum:
		f.stamp = e.stamp
	default:
		f.offer(f.decoded(r.decoder.Documents(f.path, data)), r.started, now)
		f.stamp, f.sum = e.stamp, sum
	}
}

// merge puts together what is in force of all files. What is about to leave one
// of them gives way without a word: it may be on its way to another.
func (r *reading) merge() source.Snapshot {
	files := slices.SortedFunc(maps.Values(r.files), func(a, b *file) int {
		return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.path, b.path))
	})
	snapshot := source.Snapshot{Unread: !r.whole, Places: map[resource.Key]source.Place{}}
	taken := map[resource.Key]string{}
	for _, f := range files {
		snapshot.Problems = append(snapshot.Problems, f.problems...)
		for _, p := range f.staying() {
			if first, repeated := taken[p.key()]; repeated {
				snapshot.Problems = append(snapshot.Problems, p.repeated(f.path, first))
				continue
			}
			taken[p.key()] = fmt.Sprintf("%s:%d", f.path, p.line)
			snapshot.Places[p.key()] = source.Place{File: f.path, Line: p.line, Lines: p.lines}
			snapshot.Objects = append(snapshot.Objects, p.object)
		}
	}
	for _, f := range files {
		for _, p := range f.leaving() {
			if _, repeated := taken[p.key()]; !repeated {
				taken[p.key()] = f.path
				snapshot.Objects = append(snapshot.Objects, p.object)
			}
		}
	}
	return snapshot
}
