package dev

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

// inputs are what the plugin is made of: the sources below tree, if it is built, and
// other files.
type inputs struct {
	tree  string // empty: there is none
	files []string
}

func (c Config) inputs() inputs {
	in := inputs{tree: c.Dir}
	if c.Language == "" {
		in = inputs{files: []string{c.Module}}
	}
	if c.ConfigFile != "" {
		in.files = append(in.files, c.ConfigFile)
	}
	return in
}

// leftOut are folders of what is built or fetched.
var leftOut = map[string]bool{"build": true, "dist": true, "target": true, "node_modules": true, "CVS": true}

// ignored reports whether something below the plugin's folder is not a source: what is
// built, hidden, kept by version control, or left behind by editors, tests and texts.
func ignored(name string, folder bool) bool {
	if strings.HasPrefix(name, ".") || folder && leftOut[name] {
		return true
	}
	if folder {
		return false
	}
	switch filepath.Ext(name) {
	case ".wasm", ".swp", ".swx", ".tmp", ".md", ".log", ".orig", ".rej":
		return true
	}
	return strings.HasSuffix(name, "~") || strings.HasPrefix(name, "#") || name == "4913" || strings.HasSuffix(name, "_test.go")
}

// A watch tells when something may have changed. Only Run and look may be called at
// once.
type watch struct {
	fs     *fsnotify.Watcher // nil: there is none, and it is polled
	events chan struct{}
	poll   atomic.Bool // some folder cannot be watched
}

// openWatch makes a watch. With an error there is one that looks once a second.
func openWatch() (*watch, error) {
	w := &watch{events: make(chan struct{}, 1)}
	var err error
	if w.fs, err = fsnotify.NewWatcher(); err != nil {
		w.fs = nil
		w.poll.Store(true)
	}
	return w, err
}

// Close ends the watch.
func (w *watch) Close() error {
	if w.fs == nil {
		return nil
	}
	return w.fs.Close()
}

// Run passes events on until ctx ends. What they are about does not matter: the files
// are compared.
func (w *watch) Run(ctx context.Context) error {
	var changed <-chan fsnotify.Event
	var errs <-chan error
	if w.fs != nil {
		changed, errs = w.fs.Events, w.fs.Errors
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-changed:
			if e.Op == fsnotify.Chmod {
				continue
			}
		case <-errs: // some event is lost, perhaps
		case <-tick.C:
			if !w.poll.Load() {
				continue
			}
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
}

// look returns the digests of all inputs, by path, and watches where they are. It looks
// again until all folders were watched before they were read.
func (w *watch) look(in inputs) (map[string][sha256.Size]byte, error) {
	const enough = 10 // someone keeps making folders; their events will come
	var folders map[string]bool
	for range enough {
		found, before := map[string][sha256.Size]byte{}, folders
		folders = map[string]bool{}
		if err := in.read(found, folders); err != nil {
			return nil, err
		}
		for dir := range folders {
			if w.fs != nil && w.fs.Add(dir) != nil {
				w.poll.Store(true)
			}
		}
		if maps.Equal(before, folders) {
			return found, nil
		}
	}
	return nil, errors.New("the plugin's folder does not settle")
}

// read digests all inputs, and notes the folders they are in. A file that is not there
// has no digest.
func (in inputs) read(found map[string][sha256.Size]byte, folders map[string]bool) error {
	note := func(path string) error {
		sum, err := digest(path)
		if err == nil {
			found[path] = sum
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, path := range in.files {
		folders[filepath.Dir(path)] = true
		if err := note(path); err != nil {
			return err
		}
	}
	if in.tree == "" {
		return nil
	}
	return filepath.WalkDir(in.tree, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != in.tree:
			return nil
		case err != nil:
			return err
		case path != in.tree && ignored(d.Name(), d.IsDir()):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			folders[path] = true
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		return note(path)
	})
}

func digest(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [sha256.Size]byte(h.Sum(nil)), err
}

// differ returns the paths that are new, gone or changed, in order.
func differ(old, now map[string][sha256.Size]byte) []string {
	var changed []string
	for path, sum := range now {
		if was, ok := old[path]; !ok || was != sum {
			changed = append(changed, path)
		}
	}
	for path := range old {
		if _, ok := now[path]; !ok {
			changed = append(changed, path)
		}
	}
	slices.Sort(changed)
	return changed
}

// list is the paths for people: below dir, and not too many.
func list(dir string, paths []string) []string {
	const most = 4
	var names []string
	for i, path := range paths {
		if i == most {
			return append(names, "…")
		}
		if rel, err := filepath.Rel(dir, path); err == nil && !strings.HasPrefix(rel, "..") {
			path = rel
		}
		names = append(names, path)
	}
	return names
}
