package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
	"github.com/chandler-proxy/chandler/internal/source/sourcetest"
)

func TestContract(t *testing.T) {
	decoder := resource.NewDecoder()
	sourcetest.Run(t, func(t *testing.T) sourcetest.Harness {
		return harness{dir: t.TempDir(), decoder: decoder}
	})
}

// A harness keeps each resource in a file of its own.
type harness struct {
	dir     string
	decoder *resource.Decoder
}

func (h harness) Source() source.Source {
	return New(Config{Paths: []string{h.dir}, Decoder: h.decoder})
}

func (h harness) path(t *testing.T, manifest string) string {
	var m struct {
		Kind     string
		Metadata struct{ Name string }
	}
	if err := yaml.Unmarshal([]byte(manifest), &m); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(h.dir, m.Kind+"-"+m.Metadata.Name+".yaml")
}

func (h harness) Put(t *testing.T, manifest string) { write(t, h.path(t, manifest), manifest) }

func (h harness) Delete(t *testing.T, manifest string) { remove(t, h.path(t, manifest)) }

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// plugin is a document with a WasmPlugin.
func plugin(name, tag string) string {
	return fmt.Sprintf("---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: %s}\nspec: {url: 'oci://r.example/x:%s'}\n", name, tag)
}

// say tells a snapshot as lines: name and tag of each plugin, then the
// problems, with the folder dir left out.
func say(s source.Snapshot, dir string) string {
	var lines []string
	for _, o := range s.Objects {
		p := o.(*extensionsv1alpha1.WasmPlugin)
		lines = append(lines, p.Name+" "+p.Spec.Url[strings.LastIndex(p.Spec.Url, ":")+1:])
	}
	slices.Sort(lines)
	for _, p := range s.Problems {
		lines = append(lines, strings.ReplaceAll(p.String(), dir+"/", ""))
	}
	return strings.Join(lines, "\n")
}

// A watcher is a source that runs on the real file system.
type watcher struct {
	t         *testing.T
	dir       string
	snapshots chan source.Snapshot
	deadline  <-chan time.Time
}

// watch runs a source for paths, which are relative to dir.
func watch(t *testing.T, dir string, paths ...string) *watcher {
	for i, p := range paths {
		paths[i] = filepath.Join(dir, p)
	}
	w := &watcher{t: t, dir: dir, snapshots: make(chan source.Snapshot)}
	if deadline, ok := t.Deadline(); ok {
		w.deadline = time.After(time.Until(deadline) * 9 / 10) // to say what came, not how the goroutines are
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- New(Config{Paths: paths}).Run(ctx, func(s source.Snapshot) {
			select {
			case w.snapshots <- s:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return w
}

// until waits for a snapshot that says lines, and returns what was said on the way.
func (w *watcher) until(lines ...string) (before []string) {
	w.t.Helper()
	want := strings.Join(lines, "\n")
	for {
		select {
		case s := <-w.snapshots:
			got := say(s, w.dir)
			if got == want {
				return before
			}
			before = append(before, got)
		case <-w.deadline:
			w.t.Fatalf("instead of %q came %q", lines, before)
		}
	}
}

// only is until with nothing else on the way.
func (w *watcher) only(lines ...string) {
	w.t.Helper()
	if before := w.until(lines...); len(before) > 0 {
		w.t.Errorf("before %q came %q", lines, before)
	}
}

func TestWays(t *testing.T) {
	const missing = ": no such file or folder; check the path; it is read as soon as it exists, and until then what a folder there held stays in force"
	for name, test := range map[string]func(t *testing.T, dir string){
		"written again and again": func(t *testing.T, dir string) {
			write(t, dir+"/a.yaml", plugin("a", "v0"))
			w := watch(t, dir, "a.yaml")
			w.only("a v0")
			for _, tag := range []string{"v1", "v2", "v3"} {
				write(t, dir+"/a.yaml", plugin("a", tag))
				w.only("a " + tag)
			}
		},
		"renamed over": func(t *testing.T, dir string) {
			write(t, dir+"/a.yaml", plugin("a", "v1"))
			w := watch(t, dir, "a.yaml")
			w.only("a v1")
			for _, tag := range []string{"v2", "v3"} {
				write(t, dir+"/.a.yaml.swp", plugin("a", tag))
				rename(t, dir+"/.a.yaml.swp", dir+"/a.yaml")
				w.only("a " + tag)
			}
		},
		"moved aside and written anew": func(t *testing.T, dir string) {
			write(t, dir+"/a.yaml", plugin("a", "v1"))
			w := watch(t, dir, ".")
			w.only("a v1")
			rename(t, dir+"/a.yaml", dir+"/a.yaml~")
			write(t, dir+"/a.yaml", plugin("a", "v2"))
			w.only("a v2")
		},
		"renamed to another name": func(t *testing.T, dir string) {
			write(t, dir+"/a.yaml", plugin("a", "v1"))
			w := watch(t, dir, ".")
			w.only("a v1")
			rename(t, dir+"/a.yaml", dir+"/z.yaml")
			write(t, dir+"/b.yaml", plugin("b", "v1"))
			w.only("a v1", "b v1")
			write(t, dir+"/z.yaml", plugin("a", "v2"))
			w.only("a v2", "b v1")
		},
		"created and deleted": func(t *testing.T, dir string) {
			w := watch(t, dir, ".")
			w.only("")
			write(t, dir+"/a.yaml", plugin("a", "v1"))
			w.only("a v1")
			remove(t, dir+"/a.yaml")
			w.only("")
		},
		"folders at any depth": func(t *testing.T, dir string) {
			write(t, dir+"/one/two/a.yml", plugin("a", "v1"))
			w := watch(t, dir, ".")
			w.only("a v1")
			write(t, dir+"/three/four/b.json", plugin("b", "v1"))
			w.only("a v1", "b v1")
			write(t, dir+"/three/four/b.json", plugin("b", "v2"))
			w.only("a v1", "b v2")
			remove(t, dir+"/one")
			w.only("b v2")
			rename(t, dir+"/three", dir+"/one")
			write(t, dir+"/one/two/a.yml", plugin("a", "v3"))
			w.until("a v3", "b v2")
		},
		"does not exist yet": func(t *testing.T, dir string) {
			w := watch(t, dir, "one/two", "three.yaml")
			w.only("one/two"+missing, "three.yaml"+missing)
			write(t, dir+"/one/two/a.yaml", plugin("a", "v1"))
			w.until("a v1", "three.yaml"+missing)
			write(t, dir+"/three.yaml", plugin("b", "v1"))
			w.only("a v1", "b v1")
			rename(t, dir+"/one", dir+"/lost")
			w.until("a v1", "b v1", "one/two"+missing)
			write(t, dir+"/one/two/a.yaml", plugin("a", "v2"))
			w.until("a v2", "b v1")
			remove(t, dir+"/one/two/a.yaml")
			w.until("b v1")
			remove(t, dir+"/three.yaml") // it was no folder
			w.until("three.yaml" + missing)
		},
		"links swapped as Kubernetes does for a volume": func(t *testing.T, dir string) {
			write(t, dir+"/..1/a.yaml", plugin("a", "v1"))
			write(t, dir+"/..1/b.yaml", plugin("b", "v1"))
			link(t, "..1", dir+"/..data")
			link(t, "..data/a.yaml", dir+"/a.yaml")
			link(t, "..data/b.yaml", dir+"/b.yaml")
			w := watch(t, dir, ".")
			w.only("a v1", "b v1")
			for i, tag := range []string{"v2", "v3", "v4"} {
				next := fmt.Sprintf("..%d", i+2)
				write(t, dir+"/"+next+"/a.yaml", plugin("a", tag))
				write(t, dir+"/"+next+"/b.yaml", plugin("b", tag))
				link(t, next, dir+"/..data_tmp")
				rename(t, dir+"/..data_tmp", dir+"/..data")
				remove(t, fmt.Sprintf("%s/..%d", dir, i+1))
				w.only("a "+tag, "b "+tag)
			}
			write(t, dir+"/..5/a.yaml", plugin("a", "v5"))
			link(t, "..5", dir+"/..data_tmp")
			rename(t, dir+"/..data_tmp", dir+"/..data")
			remove(t, dir+"/b.yaml")
			w.until("a v5")
		},
		"a link to a folder swapped": func(t *testing.T, dir string) {
			write(t, dir+"/r1/a.yaml", plugin("a", "v1"))
			write(t, dir+"/r2/a.yaml", plugin("a", "v2"))
			link(t, "r1", dir+"/current")
			w := watch(t, dir, "current")
			w.only("a v1")
			link(t, "r2", dir+"/next")
			rename(t, dir+"/next", dir+"/current")
			w.only("a v2")
			write(t, dir+"/r2/a.yaml", plugin("a", "v3"))
			w.only("a v3")
		},
		"read once however it is come by": func(t *testing.T, dir string) {
			write(t, dir+"/a.yaml", plugin("a", "v1"))
			link(t, "a.yaml", dir+"/b.yaml")
			link(t, ".", dir+"/self")
			w := watch(t, dir, ".", "a.yaml", "self/self/b.yaml")
			w.only("a v1")
		},
		"what is skipped": func(t *testing.T, dir string) {
			for _, name := range []string{".a.yaml", "a.yaml~", "#a.yaml#", ".#a.yaml", "a.yaml.bak", "README.md", ".git/a.yaml", "4913"} {
				write(t, dir+"/"+name, plugin("a", "v1"))
			}
			link(t, "nothing", dir+"/dangling.yaml")
			w := watch(t, dir, ".")
			w.only("")
			write(t, dir+"/any.name", plugin("a", "v1"))
			write(t, dir+"/b.yaml", plugin("b", "v1"))
			w.only("b v1")
			w = watch(t, dir, "any.name")
			w.only("a v1")
		},
		"a file with a problem removes nothing": func(t *testing.T, dir string) {
			write(t, dir+"/f.yaml", plugin("a", "v1")+plugin("b", "v1")+plugin("c", "v1"))
			w := watch(t, dir, "f.yaml")
			w.only("a v1", "b v1", "c v1")
			write(t, dir+"/f.yaml", plugin("a", "v2")+strings.Replace(plugin("b", "v2"), "spec", "sepc", 1))
			w.only("a v2", "b v1", "c v1",
				"f.yaml:7: WasmPlugin default/b: spec: Required value",
				`f.yaml:10: WasmPlugin default/b: unknown field "sepc"; did you mean "spec"?`)
			write(t, dir+"/f.yaml", "{")
			w.only("a v2", "b v1", "c v1", "f.yaml:1: not YAML: did not find expected node content")
			write(t, dir+"/f.yaml", plugin("a", "v3"))
			w.only("a v3")
		},
		"a problem from the start": func(t *testing.T, dir string) {
			write(t, dir+"/f.yaml", plugin("a", "v1")+"---\n{")
			w := watch(t, dir, "f.yaml")
			w.only("a v1", "f.yaml:7: not YAML: did not find expected node content")
			write(t, dir+"/f.yaml", plugin("a", "v2"))
			w.only("a v2")
		},
		"cannot be read": func(t *testing.T, dir string) {
			write(t, dir+"/folder/a.yaml", plugin("a", "v1"))
			write(t, dir+"/f.yaml", plugin("b", "v1"))
			w := watch(t, dir, "folder", "f.yaml")
			w.only("a v1", "b v1")
			rename(t, dir+"/folder", dir+"/aside")
			rename(t, dir+"/f.yaml", dir+"/aside.yaml")
			link(t, "folder", dir+"/folder")
			link(t, "f.yaml", dir+"/f.yaml")
			const loop = ": cannot be read: too many levels of symbolic links; what it held stays in force"
			w.until("a v1", "b v1", "folder"+loop, "f.yaml"+loop)
			remove(t, dir+"/folder")
			remove(t, dir+"/f.yaml")
			rename(t, dir+"/aside", dir+"/folder")
			write(t, dir+"/f.yaml", plugin("b", "v2"))
			w.until("a v1", "b v2")
		},
		"too large": func(t *testing.T, dir string) {
			write(t, dir+"/f.yaml", plugin("a", "v1"))
			w := watch(t, dir, "f.yaml")
			w.only("a v1")
			write(t, dir+"/.f.yaml.swp", plugin("a", "v2")+strings.Repeat("#", resource.MaxFile))
			rename(t, dir+"/.f.yaml.swp", dir+"/f.yaml") // half of it would be valid
			w.only("a v1", "f.yaml: larger than 4 MiB")
		},
		"in two files": func(t *testing.T, dir string) {
			const repeated = "b.yaml:2: WasmPlugin default/x: is already in a.yaml:2, which is taken; keep one of them"
			write(t, dir+"/b.yaml", plugin("x", "b1"))
			w := watch(t, dir, "a.yaml", "b.yaml")
			w.only("x b1", "a.yaml"+missing)
			write(t, dir+"/a.yaml", plugin("x", "a1"))
			w.only("x a1", repeated)
			write(t, dir+"/b.yaml", plugin("x", "b2")+plugin("z", "v1"))
			w.only("x a1", "z v1", repeated)
			remove(t, dir+"/a.yaml")
			w.until("x b2", "z v1", "a.yaml"+missing)
		},
		"nothing new": func(t *testing.T, dir string) {
			write(t, dir+"/a.yaml", plugin("a", "v1"))
			w := watch(t, dir, ".")
			w.only("a v1")
			write(t, dir+"/a.yaml", "# a comment\n"+plugin("a", "v1"))
			write(t, dir+"/b.txt", "text")
			write(t, dir+"/c.yaml", "# nothing")
			write(t, dir+"/b.yaml", plugin("b", "v1"))
			w.only("a v1", "b v1")
		},
		"not a file": func(t *testing.T, dir string) {
			w := watch(t, "/dev", "null")
			w.only("null: neither a file nor a folder")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A folder that is itself behind a link: macOS has such, and so do volumes.
			base := t.TempDir()
			if err := os.Mkdir(filepath.Join(base, "real"), 0o755); err != nil {
				t.Fatal(err)
			}
			link(t, "real", filepath.Join(base, "link"))
			test(t, filepath.Join(base, "link"))
		})
	}
}

// A simulation runs a source with events of the test's own, in a bubble where
// time passes only when all wait.
type simulation struct {
	t      *testing.T
	dir    string
	events chan fsnotify.Event
	errors chan error

	mu   sync.Mutex
	said []string // all snapshots since the last take
}

// take returns what was delivered since the last call, all waiting done.
func (s *simulation) take() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	said := s.said
	s.said = nil
	return said
}

func simulate(t *testing.T, test func(t *testing.T, s *simulation), add func(string) error) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, dir: dir, events: make(chan fsnotify.Event), errors: make(chan error)}
		write(t, s.path(), plugin("a", "v1"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() {
			defer close(done)
			New(Config{Paths: []string{dir}}).run(ctx, watches{add: add, events: s.events, errors: s.errors}, func(snapshot source.Snapshot) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.said = append(s.said, say(snapshot, dir))
			})
		}()
		s.expect("a v1")
		test(t, s)
		cancel()
		<-done
	})
}

func (s *simulation) path() string { return filepath.Join(s.dir, "a.yaml") }

// write changes the file and tells the source.
func (s *simulation) write(content string) {
	write(s.t, s.path(), content)
	s.events <- fsnotify.Event{Name: s.path(), Op: fsnotify.Write}
}

// pass lets time pass.
func (s *simulation) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// expect checks what was delivered since the last call.
func (s *simulation) expect(want ...string) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.take()); diff != "" {
		s.t.Errorf("snapshots (-want +got):\n%s", diff)
	}
}

func added(string) error { return nil }

func TestQuiet(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		s.write(plugin("a", "v2"))
		s.pass(quiet - 1)
		s.expect()
		s.pass(1)
		s.expect("a v2")
	}, added)
}

func TestPatience(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		for i := range int(patience/quiet) * 2 {
			s.write(plugin("a", fmt.Sprintf("n%d", i)))
			s.pass(quiet - 1)
		}
		if n := len(s.take()); n < 1 || n > 2 {
			t.Errorf("%d snapshots in twice the time of patience, want 1 or 2", n)
		}
	}, added)
}

// A file that is cut and written again, slowly, shows neither state.
func TestSettle(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		s.write("")
		s.pass(settle / 2)
		s.write("{")
		s.pass(settle / 4)
		s.write(plugin("a", "v2"))
		s.pass(quiet)
		s.expect("a v2")

		s.write("")
		s.pass(settle + quiet)
		s.expect("")

		s.write("{")
		s.pass(settle + quiet - 1)
		s.expect()
		s.pass(1)
		s.expect("a.yaml:1: not YAML: did not find expected node content")

		// Once told, it is not told again, nor looked at for nothing.
		s.pass(time.Hour)
		s.expect()
	}, added)
}

// Being gone for a moment is nothing, even if the file comes back as it was.
func TestGoneForAMoment(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		rename(t, s.path(), s.dir+"/aside")
		s.events <- fsnotify.Event{Name: s.path(), Op: fsnotify.Rename}
		s.pass(settle / 2)
		rename(t, s.dir+"/aside", s.path())
		s.events <- fsnotify.Event{Name: s.path(), Op: fsnotify.Create}
		s.pass(time.Hour)
		s.expect()

		remove(t, s.path())
		s.events <- fsnotify.Event{Name: s.path(), Op: fsnotify.Remove}
		s.pass(settle + quiet)
		s.expect("")
	}, added)
}

// A change of the same size and time as before is found by its event; without
// one, when events were lost.
func TestSameStamp(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		sameStamp := func(tag string) {
			info, err := os.Stat(s.path())
			if err != nil {
				t.Fatal(err)
			}
			write(t, s.path(), plugin("a", tag))
			if err := os.Chtimes(s.path(), time.Time{}, info.ModTime()); err != nil {
				t.Fatal(err)
			}
		}
		sameStamp("v2")
		s.events <- fsnotify.Event{Name: s.path(), Op: fsnotify.Write}
		s.pass(quiet)
		s.expect("a v2")
		sameStamp("v3")
		s.errors <- fsnotify.ErrEventOverflow
		s.pass(quiet)
		s.expect("a v3")
	}, added)
}

func TestIrrelevantEvents(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		write(t, s.path(), plugin("a", "v2"))
		for _, name := range []string{".a.yaml.swp", "a.yaml~", "../other/a.yaml"} {
			s.events <- fsnotify.Event{Name: filepath.Join(s.dir, name), Op: fsnotify.Write}
		}
		s.pass(time.Hour)
		s.expect()
	}, added)
}

func TestPollWithoutWatches(t *testing.T) {
	simulate(t, func(t *testing.T, s *simulation) {
		write(t, s.path(), plugin("b", "v2")+plugin("a", "v1"))
		s.pass(poll)
		s.expect("a v1\nb v2")
	}, func(string) error { return errors.New("no space left on device") })
}
