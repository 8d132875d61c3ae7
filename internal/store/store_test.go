package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/chandler-proxy/chandler/internal/module"
)

const limit = 1 << 20

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func digestOf(content string) module.Digest { return sha256.Sum256([]byte(content)) }

func put(t *testing.T, s *Store, content string) *Lease {
	t.Helper()
	l, err := s.Put(digestOf(content), strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// age makes a module look unused for an hour.
func age(t *testing.T, path string) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
}

func collect(t *testing.T, s *Store, want int) {
	t.Helper()
	got, err := s.Collect(time.Now().Add(-time.Minute))
	if err != nil || got != want {
		t.Fatalf("Collect = %d, %v; want %d", got, err, want)
	}
}

// modules lists what is in the directory, the store's own files apart.
func modules(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		if n := e.Name(); n != lockName && n != saltName && n != refsName {
			names = append(names, n)
		}
	}
	return names
}

func TestPutAndLease(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	first, err := s.Put(module.Digest{}, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := open(t, dir).Lease(digestOf("hello"))
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]*Lease{"put": first, "other store": again} {
		content, err := os.ReadFile(l.Path)
		if err != nil || string(content) != "hello" || l.Size != 5 || l.Digest != digestOf("hello") {
			t.Errorf("%s: lease %+v of %q, %v", name, l, content, err)
		}
	}
	if info, _ := os.Stat(first.Path); info.Mode().Perm() != 0o444 {
		t.Errorf("mode is %v", info.Mode())
	}
	if s.Len() != 1 {
		t.Errorf("Len = %d, want 1", s.Len())
	}
	first.Release()
	first.Release()
	again.Release()
	(*Lease)(nil).Release()
}

func TestPutLeavesNothingBehind(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name string
		want module.Digest
		r    io.Reader
		is   func(error) bool
	}{
		{"reader fails", module.Digest{}, io.MultiReader(strings.NewReader("half"), iotest.ErrReader(boom)),
			func(err error) bool { return err == boom }},
		{"other digest", digestOf("other"), strings.NewReader("this"), func(err error) bool {
			d, ok := errors.AsType[*module.DigestError](err)
			return ok && d.Want == digestOf("other") && d.Got == digestOf("this")
		}},
		{"too large", module.Digest{}, io.LimitReader(neverEnding{}, limit+1), func(err error) bool {
			e, ok := errors.AsType[*TooLargeError](err)
			return ok && e.Limit == limit
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			if _, err := s.Put(tt.want, tt.r); err == nil || !tt.is(err) {
				t.Errorf("error is %v", err)
			}
			if left := modules(t, dir); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	l, err := open(t, t.TempDir()).Put(module.Digest{}, io.LimitReader(neverEnding{}, limit))
	if err != nil {
		t.Errorf("exactly the limit: %v", err)
	}
	l.Release()
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

// A module is of use before it is on the disk, and is put there once it is.
func TestSync(t *testing.T) {
	s := open(t, t.TempDir())
	l := put(t, s, "hello")
	again, err := s.Lease(l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	if err := again.Sync(); err != nil {
		t.Error(err)
	}
	again.Release()
	if err := again.Sync(); err == nil {
		t.Error("synced what was given back")
	}
	var none *Lease
	if err := none.Sync(); err != nil {
		t.Error(err)
	}
}

func TestPutKeepsTheFileThatOthersUse(t *testing.T) {
	dir := t.TempDir()
	l := put(t, open(t, dir), "hello")
	before, _ := os.Stat(l.Path)
	second := put(t, open(t, dir), "hello")
	after, _ := os.Stat(l.Path)
	if !os.SameFile(before, after) {
		t.Error("the file was replaced while it was leased")
	}
	if got := modules(t, dir); len(got) != 1 {
		t.Errorf("store holds %v", got)
	}
	l.Release()
	second.Release()
}

func TestDamagedFileIsNeverHandedOut(t *testing.T) {
	damage := func(content string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, []byte(content), 0o644), os.Chmod(path, 0o444)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, hurt := range map[string]func(*testing.T, string){
		"truncated": damage("hel"), "empty": damage(""), "altered": damage("hellO"), "longer": damage("hello!"),
	} {
		for _, reopened := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				s := open(t, dir)
				l := put(t, s, "hello")
				l.Release()
				hurt(t, l.Path)
				if reopened {
					s = open(t, dir)
				}
				if _, err := s.Lease(l.Digest); !errors.Is(err, ErrNotFound) {
					t.Fatalf("Lease = %v, want ErrNotFound", err)
				}
				if left := modules(t, dir); len(left) != 0 {
					t.Errorf("left: %v", left)
				}
				put(t, s, "hello").Release()
			})
		}
	}
}

func TestPutReplacesDamagedFile(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := os.WriteFile(s.path(digestOf("hello")), []byte("hell"), 0o444); err != nil {
		t.Fatal(err)
	}
	l := put(t, s, "hello")
	defer l.Release()
	if content, _ := os.ReadFile(l.Path); string(content) != "hello" {
		t.Errorf("store holds %q", content)
	}
}

func TestOpenComparesSizes(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	l := put(t, s, "hello")
	if err := s.Remember("k", Record{Digest: l.Digest, Size: l.Size}, "", ""); err != nil {
		t.Fatal(err)
	}
	l.Release()
	if err := os.Truncate(l.Path, 2); err != nil && !errors.Is(err, os.ErrPermission) {
		t.Fatal(err)
	} else if err != nil {
		if err := errors.Join(os.Chmod(l.Path, 0o644), os.Truncate(l.Path, 2)); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	if left := modules(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestOpenRemovesLeftoversOfTheDead(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	live, err := s.ingest()
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	dead := filepath.Join(dir, ingestPrefix+"dead")
	junk := filepath.Join(dir, refsName, "junk.json")
	if err := errors.Join(os.WriteFile(dead, []byte("half"), 0o600), os.WriteFile(junk, []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if diff := cmp.Diff([]string{filepath.Base(live.Name())}, modules(t, dir)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(junk); err == nil {
		t.Error("a broken record is still there")
	}
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	l := put(t, s, "hello")
	second, err := other.Lease(l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	age(t, l.Path)
	collect(t, s, 0)
	l.Release()
	age(t, l.Path)
	collect(t, s, 0) // the other store has it
	second.Release() // touches it: it was in use until now
	collect(t, s, 0)
	age(t, l.Path)
	collect(t, s, 1)
	if _, err := other.Lease(l.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("Lease = %v, want ErrNotFound", err)
	}
}

func TestCollectForgetsReferences(t *testing.T) {
	s := open(t, t.TempDir())
	l := put(t, s, "hello")
	if err := s.Remember("k", Record{Digest: l.Digest, Size: 5, Source: "src"}, "", ""); err != nil {
		t.Fatal(err)
	}
	if d, ok := s.FindSource("src"); !ok || d != l.Digest {
		t.Errorf("FindSource = %v, %v", d, ok)
	}
	l.Release()
	age(t, l.Path)
	collect(t, s, 1)
	if _, ok := s.Find("k"); ok {
		t.Error("Find still knows it")
	}
	if _, ok := s.Refresh("k"); ok {
		t.Error("Refresh still knows it")
	}
	if _, ok := s.FindSource("src"); ok {
		t.Error("FindSource still knows it")
	}
}

func TestRemember(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	l := put(t, s, "hello")
	defer l.Release()
	want := Record{Ref: "oci://x", Digest: l.Digest, Hex: l.Digest.Hex(), Size: 5, Source: "src",
		Versions: []string{"2", "1"}, Access: []string{"a", ""}}
	given := Record{Ref: "oci://x", Digest: l.Digest, Size: 5, Source: "src"}
	err := errors.Join(
		s.Remember("k", given, "1", "a"),
		other.Remember("k", given, "2", ""), // of another process: added to, not replaced
		s.Remember("k", given, "1", ""),
	)
	if err != nil {
		t.Fatal(err)
	}
	for name, find := range map[string]func() (Record, bool){
		"same":     func() (Record, bool) { return s.Find("k") },
		"other":    func() (Record, bool) { return other.Refresh("k") },
		"reopened": func() (Record, bool) { return open(t, dir).Find("k") },
	} {
		got, ok := find()
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("%s: %v\n%s", name, ok, diff)
		}
	}
	for range 3 * maxRemembered {
		if err := s.Remember("k", given, time.Now().String(), ""); err != nil {
			t.Fatal(err)
		}
	}
	if r, _ := s.Find("k"); len(r.Versions) > maxRemembered {
		t.Errorf("%d versions remembered", len(r.Versions))
	}
}

func TestFingerprint(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir).Fingerprint([]byte("secret"))
	if b := open(t, dir).Fingerprint([]byte("secret")); a != b {
		t.Error("differs after opening again")
	}
	if b := open(t, t.TempDir()).Fingerprint([]byte("secret")); a == b {
		t.Error("is the same in another store")
	}
	if open(t, dir).Fingerprint(nil) != "" {
		t.Error("that of nothing is something")
	}
}

// Many goroutines want one module at once; it must be hashed and held once.
func TestLeaseTogether(t *testing.T) {
	dir := t.TempDir()
	put(t, open(t, dir), "hello").Release()
	s := open(t, dir)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			l, err := s.Lease(digestOf("hello"))
			if err != nil {
				t.Error(err)
				return
			}
			l.Release()
		})
	}
	wg.Wait()
	if len(s.handles) != 0 {
		t.Errorf("%d handles left open", len(s.handles))
	}
}

// Another process's lease keeps a module; its death gives the lease back.
func TestLeaseAcrossProcesses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	l := put(t, s, "hello")
	l.Release()
	other := exec.Command(os.Args[0], "-test.run=^TestHelper$")
	other.Env = append(os.Environ(), "STORE_TEST=hold", "STORE_DIR="+dir)
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "leased\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	age(t, l.Path)
	collect(t, s, 0)
	other.Process.Kill()
	other.Wait()
	collect(t, s, 1)
}

// A disk that takes no more gives an error and keeps no part.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelper$")
	cmd.Env = append(os.Environ(), "STORE_TEST=full", "STORE_DIR="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "store module: ") || !strings.Contains(string(out), "file too large") {
		t.Fatalf("%v: %s", err, out)
	}
	if left := modules(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestDiskFull(t *testing.T) {
	for _, errno := range []error{unix.ENOSPC, unix.EDQUOT} {
		if err := diskError(&os.PathError{Op: "write", Path: "x", Err: errno}); !errors.Is(err, ErrFull) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
	if err := diskError(unix.EIO); errors.Is(err, ErrFull) {
		t.Error("EIO becomes ErrFull")
	}
}

// TestHelper is what the tests above run in a process of its own.
func TestHelper(t *testing.T) {
	role, dir := os.Getenv("STORE_TEST"), os.Getenv("STORE_DIR")
	switch role {
	case "hold":
		if _, err := open(t, dir).Lease(digestOf("hello")); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("leased\n")
		select {} // until killed
	case "full":
		s := open(t, dir)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100 << 10, Max: 100 << 10}); err != nil {
			t.Fatal(err)
		}
		_, err := s.Put(module.Digest{}, io.LimitReader(neverEnding{}, 200<<10))
		os.Stdout.WriteString(err.Error() + "\n")
	}
}

func BenchmarkPut10MB(b *testing.B) {
	s, err := Open(b.TempDir(), 16<<20)
	if err != nil {
		b.Fatal(err)
	}
	content := make([]byte, 10<<20)
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		content[0], content[1], content[2] = byte(i), byte(i>>8), byte(i>>16)
		l, err := s.Put(module.Digest{}, bytes.NewReader(content))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		l.Release()
		os.Remove(l.Path)
		b.StartTimer()
	}
}

func BenchmarkLease(b *testing.B) {
	s, err := Open(b.TempDir(), 16<<20)
	if err != nil {
		b.Fatal(err)
	}
	l, err := s.Put(module.Digest{}, bytes.NewReader(make([]byte, 1<<20)))
	if err != nil {
		b.Fatal(err)
	}
	l.Release()
	b.ReportAllocs()
	for b.Loop() {
		again, err := s.Lease(l.Digest)
		if err != nil {
			b.Fatal(err)
		}
		again.Release()
	}
}
