package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/chandler-proxy/chandler/internal/module"
)

// maxRemembered bounds the versions, and the fingerprints, of one record; the
// oldest go first.
const maxRemembered = 64

// A Record is what is known of a reference. Records are shared: what they hold
// is never modified.
type Record struct {
	Ref      string        `json:"ref"`      // for people, without credentials
	Digest   module.Digest `json:"-"`        // of the module
	Hex      string        `json:"digest"`   // the same, on disk
	Size     int64         `json:"size"`     // of the module, bytes
	Source   string        `json:"source"`   // what it was made from: a manifest digest, an ETag
	Versions []string      `json:"versions"` // of resources for which it was pulled
	Access   []string      `json:"access"`   // fingerprints of secrets that may pull it, "" for none
}

// Remember adds version and access to the record of the reference with that
// key, and sets the rest. Versions and access of before stay: who may pull a
// reference and which resources have pulled it does not depend on where its
// tag points.
func (s *Store) Remember(key string, r Record, version, access string) error {
	return s.locked(func() error {
		if old, ok := s.read(key); ok {
			r.Versions, r.Access = old.Versions, old.Access
		}
		r.Versions = appendLast(r.Versions, version)
		r.Access = appendLast(r.Access, access)
		r.Hex = r.Digest.Hex()
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		s.keep(key, r)
		return replaceFile(s.refPath(key), data)
	})
}

// appendLast is list with s at its end, once, and without its first if too long.
func appendLast(list []string, s string) []string {
	list = slices.DeleteFunc(slices.Clone(list), func(old string) bool { return old == s })
	list = append(list, s)
	return list[max(0, len(list)-maxRemembered):]
}

// Find returns what this process knows of a reference. It does not touch the disk.
func (s *Store) Find(key string) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records[key]
	return r, ok
}

// Refresh is Find, after a look at what other processes have remembered.
func (s *Store) Refresh(key string) (Record, bool) {
	r, ok := s.read(key)
	if ok {
		s.keep(key, r)
	}
	return r, ok
}

// FindSource returns the module that was made from a source, if this process
// knows of one.
func (s *Store) FindSource(source string) (module.Digest, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.Source == source && source != "" {
			return r.Digest, true
		}
	}
	return module.Digest{}, false
}

func (s *Store) refPath(key string) string {
	return filepath.Join(s.dir, refsName, key+".json")
}

func (s *Store) keep(key string, r Record) {
	s.mu.Lock()
	s.records[key] = r
	s.mu.Unlock()
}

// read reads a record. One that cannot be read is as good as none: what it
// spares is a download.
func (s *Store) read(key string) (Record, bool) {
	var r Record
	data, err := os.ReadFile(s.refPath(key))
	if err != nil || json.Unmarshal(data, &r) != nil {
		return Record{}, false
	}
	r.Digest, err = module.ParseDigest(r.Hex)
	return r, err == nil
}

// loadRecords reads all records, and removes modules whose size is not theirs.
func (s *Store) loadRecords() error {
	return s.eachRecord(func(key string, r Record) error {
		s.records[key] = r
		info, err := os.Lstat(s.path(r.Digest))
		if err == nil && info.Size() != r.Size {
			err = os.Remove(s.path(r.Digest))
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
}

// forgetLost removes records of modules that are gone.
func (s *Store) forgetLost() error {
	return s.eachRecord(func(key string, r Record) error {
		if _, err := os.Lstat(s.path(r.Digest)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.mu.Lock()
		delete(s.records, key)
		delete(s.known, r.Digest)
		s.mu.Unlock()
		return os.Remove(s.refPath(key))
	})
}

// eachRecord calls f for every record on disk, and removes what is none.
func (s *Store) eachRecord(f func(key string, r Record) error) error {
	dir := filepath.Join(s.dir, refsName)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		key, isRecord := strings.CutSuffix(e.Name(), ".json")
		if r, ok := s.read(key); isRecord && ok {
			errs = append(errs, f(key, r))
		} else {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// replaceFile writes a file that other processes see whole or not at all. The
// caller holds the store's lock, so the temporary name needs not be unique.
func replaceFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return errors.Join(diskError(err), os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}
