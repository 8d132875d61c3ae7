package kube

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKey has every ingredient of an image change its key, and nothing else.
func TestKey(t *testing.T) {
	fresh := func(t *testing.T) Recipe {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "tree", "sub", "file"), "text")
		if err := os.Symlink("sub/file", filepath.Join(dir, "tree", "link")); err != nil {
			t.Fatal(err)
		}
		return Recipe{
			Name:       "name:tag",
			Dockerfile: write(t, filepath.Join(dir, "Dockerfile"), "FROM scratch"),
			Files:      map[string]string{"tree": filepath.Join(dir, "tree"), "one": write(t, filepath.Join(dir, "one"), "1")},
			Args:       map[string]string{"ARG": "value"},
			Base:       &Image{Name: "base:1", Archive: "base-1.tar"},
		}
	}
	key := func(t *testing.T, r Recipe) string {
		t.Helper()
		k, err := r.key()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	want := key(t, fresh(t))
	if got := key(t, fresh(t)); got != want {
		t.Errorf("the same in another folder: %s, want %s", got, want)
	}
	for name, change := range map[string]func(t *testing.T, r *Recipe) error{
		"name":       func(t *testing.T, r *Recipe) error { r.Name = "name:other"; return nil },
		"Dockerfile": func(t *testing.T, r *Recipe) error { write(t, r.Dockerfile, "FROM other"); return nil },
		"argument":   func(t *testing.T, r *Recipe) error { r.Args["ARG"] = "other"; return nil },
		"base":       func(t *testing.T, r *Recipe) error { r.Base.Archive = "base-2.tar"; return nil },
		"no base":    func(t *testing.T, r *Recipe) error { r.Base = nil; return nil },
		"file":       func(t *testing.T, r *Recipe) error { write(t, r.Files["one"], "2"); return nil },
		"mode":       func(t *testing.T, r *Recipe) error { return os.Chmod(r.Files["one"], 0o755) },
		"below": func(t *testing.T, r *Recipe) error {
			write(t, filepath.Join(r.Files["tree"], "sub", "file"), "other")
			return nil
		},
		"link": func(t *testing.T, r *Recipe) error {
			link := filepath.Join(r.Files["tree"], "link")
			return errors.Join(os.Remove(link), os.Symlink("sub", link))
		},
		"renamed": func(t *testing.T, r *Recipe) error {
			return os.Rename(filepath.Join(r.Files["tree"], "sub"), filepath.Join(r.Files["tree"], "bus"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := fresh(t)
			if err := change(t, &r); err != nil {
				t.Fatal(err)
			}
			if key(t, r) == want {
				t.Error("the key is the same")
			}
		})
	}
}

// TestMade makes an image once, again when its key changes, and nothing of one
// that fails.
func TestMade(t *testing.T) {
	cfg := Config{Cache: t.TempDir()}
	calls := 0
	create := func(archive string) error { calls++; return os.WriteFile(archive, nil, 0o644) }
	for _, tt := range []struct {
		key  string
		want int
	}{{"0123456789abcdef-one", 1}, {"0123456789abcdef-one", 1}, {"fedcba9876543210-two", 2}, {"0123456789abcdef-one", 3}} {
		if _, err := made(cfg, "registry/name:tag", tt.key, create); err != nil || calls != tt.want {
			t.Errorf("made %s: %v, calls = %d, want %d", tt.key, err, calls, tt.want)
		}
	}
	_, err := made(cfg, "other", "0123456789abcdef", func(archive string) error {
		write(t, archive, "half")
		return io.ErrUnexpectedEOF
	})
	if err != io.ErrUnexpectedEOF {
		t.Errorf("made = %v, want what create says", err)
	}
	if left, err := filepath.Glob(filepath.Join(cfg.Cache, "images", "*.tar*")); err != nil || len(left) != 1 {
		t.Errorf("archives = %q (%v), want the last of name", left, err)
	}
}
