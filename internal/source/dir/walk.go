package dir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/chandler-proxy/chandler/internal/resource"
)

// found is the outcome of looking for files.
type found struct {
	entries []entry // in order, each file once
	// watch are the folders whose events matter, by their real paths, each with
	// the names it is watched for.
	watch map[string]names
	kept  []string // folders that could not be read or are gone whole: what was below them may still be there
}

// An entry is a file that was found, or a path with a problem instead of one.
type entry struct {
	path   string // as the user would write it
	target string // without symbolic links
	stamp
	problem *resource.Problem
	keep    bool // with a problem: what was at path may still be there
}

// A stamp changes when a file is replaced, and most often when it is written.
type stamp struct {
	id
	size     int64
	modified time.Time
}

// An id identifies a file or folder on this machine, whatever its path.
type id struct{ device, inode uint64 }

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), modified: info.ModTime()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		s.id = id{uint64(stat.Dev), stat.Ino}
	}
	return s
}

// names are those in one folder that matter.
type names struct {
	id   // of the folder; zero if not known
	some map[string]bool
	all  bool // and all that are not skipped
}

// cares reports whether an event for the file of that path matters.
func (f found) cares(path string) bool {
	if _, self := f.watch[path]; self {
		return true // a watched folder is gone, say
	}
	n, name := f.watch[filepath.Dir(path)], filepath.Base(path)
	return n.some[name] || n.all && !skipped(name)
}

// unsure reports whether the file of that path may exist although it was not found.
func (f found) unsure(path string) bool {
	for _, k := range f.kept {
		if path == k || strings.HasPrefix(path, k+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// skipped reports whether name is hidden, as are the folders that Kubernetes
// makes for a volume (..data), or one that an editor leaves beside a file.
func skipped(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~")
}

// wanted reports whether a file in a folder is one to read.
func wanted(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !skipped(name)
	}
	return false
}

// find looks for all files at and below paths.
func find(paths []string) found {
	w := walk{found: found{watch: map[string]names{}}, seen: map[id]bool{}}
	for _, path := range paths {
		w.path(filepath.Clean(path))
	}
	return w.found
}

type walk struct {
	found
	seen map[id]bool // files and folders, so that none is read twice
}

// path visits one that the user gave.
func (w *walk) path(path string) {
	target, info, err := w.resolve(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		w.entries = append(w.entries, entry{path: path, problem: &resource.Problem{
			File: path, Message: "no such file or folder",
			Mend: "check the path; it is read as soon as it exists, and until then what a folder there held stays in force",
		}})
		w.kept = append(w.kept, path)
	case err != nil:
		w.unreadable(path, err)
	case info.IsDir():
		w.folder(path, target, info)
	case info.Mode().IsRegular():
		w.file(path, target, info)
	default:
		w.entries = append(w.entries, entry{path: path, problem: &resource.Problem{File: path, Message: "neither a file nor a folder"}})
	}
}

func (w *walk) unreadable(path string, err error) {
	p := unreadable(path, err)
	w.entries = append(w.entries, entry{path: path, problem: &p, keep: true})
	w.kept = append(w.kept, path)
}

// file takes a file, unless it was come by before.
func (w *walk) file(path, target string, info fs.FileInfo) {
	if s := stampOf(info); w.once(s.id) {
		w.entries = append(w.entries, entry{path: path, target: target, stamp: s})
	}
}

func (w *walk) once(i id) bool {
	first := !w.seen[i]
	w.seen[i] = true
	return first
}

// folder visits what is in a folder, by name.
func (w *walk) folder(path, target string, info fs.FileInfo) {
	i := stampOf(info).id
	if !w.once(i) {
		return
	}
	n := w.watch[target]
	n.id, n.all = i, true
	w.watch[target] = n
	entries, err := os.ReadDir(target)
	if err != nil {
		w.unreadable(path, err)
		return
	}
	for _, e := range entries {
		if !skipped(e.Name()) {
			w.child(filepath.Join(path, e.Name()), filepath.Join(target, e.Name()), e)
		}
	}
}

// child visits what a folder holds at path.
func (w *walk) child(path, target string, e fs.DirEntry) {
	info, err := e.Info()
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		target, info, err = w.resolve(target)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// It was deleted meanwhile, or is a link to something that was.
	case err != nil && (wanted(e.Name()) || e.IsDir()):
		w.unreadable(path, err)
	case err != nil:
	case info.IsDir():
		w.folder(path, target, info)
	case info.Mode().IsRegular() && wanted(e.Name()):
		w.file(path, target, info)
	}
}

// resolve follows path through symbolic links to what it leads to, and sees to
// it that every folder is watched whose change would make it lead elsewhere. If
// something is missing on the way, it is watched for where it would be. Folders
// on the way are not watched for being renamed: too much happens in /tmp.
func (w *walk) resolve(path string) (target string, info fs.FileInfo, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", nil, err
	}
	const most = 40 // links, as in Linux
	links := 0
	at, in := string(filepath.Separator), id{}
	rest := strings.Split(strings.Trim(abs, at), at)
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at, in = filepath.Dir(at), id{}
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if err != nil || info.Mode()&fs.ModeSymlink != 0 || len(rest) == 0 {
			w.watchFor(at, in, name)
		}
		if err != nil {
			return "", nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at, in = next, stampOf(info).id
			continue
		}
		if links++; links > most {
			return "", nil, &fs.PathError{Op: "follow", Path: path, Err: syscall.ELOOP}
		}
		link, err := os.Readlink(next)
		if err != nil {
			return "", nil, err
		}
		if filepath.IsAbs(link) {
			at, in = string(filepath.Separator), id{}
		}
		rest = append(strings.Split(link, string(filepath.Separator)), rest...)
	}
	info, err = os.Lstat(at)
	return at, info, err
}

func (w *walk) watchFor(dir string, i id, name string) {
	n := w.watch[dir]
	if n.some == nil {
		n.some = map[string]bool{}
	}
	if n.id == (id{}) {
		n.id = i
	}
	n.some[name] = true
	w.watch[dir] = n
}
