// Package spec runs the tests that people write beside a plugin, whatever its language:
// YAML or textproto files that say what happens to the plugin and what it must do.
//
// It reads two forms. One is our own, docs/plugin-tests.md: a suite is a plugin with its
// configuration, a test is a sequence of steps with what to expect after each; it runs
// on package plugintest, hence as in Envoy. The other is that of Google's Service
// Extensions (tests.textpb or tests.yaml, service_extensions_samples.pb.TestSuite), whose runner calls single
// callbacks: it does so with streams of its own in a plugin of plugintest's, so that tests
// keep their meaning. Which form a file has, its contents tell.
//
// A file that cannot be understood is never run in part: [Load] says all that is wrong
// with it, with lines. A plugin that traps or loops fails its test and nothing else. What
// is printed of it all is for package report; what [Run] finds it tells as it happens.
//
// Start at [Find], [Load] and [Run].
package spec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/chandler-proxy/chandler/internal/spec/document"
)

// maxFile is how large a file that a suite names may be.
const maxFile = 16 << 20

// A Suite is the tests of one file.
type Suite struct {
	File  string
	Tests []*Test
}

// A Test is one of a suite. Its name has no white space, and is the only one in its suite.
type Test struct {
	Name string
	Line int

	module string // file
	run    func(*run)
	bench  func(*run, benchmark) // nil for most
}

// Options are what the caller knows better than the files. The zero value knows nothing.
type Options struct {
	// Module is the module to test, instead of what the files say.
	Module string
	// PluginConfig is the plugin's configuration for files of Google's form, instead of
	// their config_path; nil leaves it to them.
	PluginConfig []byte
	// Stdout and Stderr are what such files mean by the log_path /dev/stdout and
	// /dev/stderr; nil discards it.
	Stdout, Stderr io.Writer
}

// Why a file's module cannot be tested.
var (
	ErrNoModule  = errors.New("no such module")
	ErrNotModule = errors.New("not a Wasm module")
)

// defaultModule is where, in a plugin's folder, its module is.
const defaultModule = "build/plugin.wasm"

// Find returns the files with tests at a path: itself, if it is a file; in a plugin's
// folder, its tests*.yaml and tests*.textpb and all such files in the folder tests; all of
// those in that folder.
func Find(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("find tests: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, checkName(path)
	}
	patterns := []string{"tests*", "tests/*"}
	if abs, err := filepath.Abs(path); err == nil && filepath.Base(abs) == "tests" {
		patterns = []string{"*"}
	}
	var all []string
	for _, pattern := range patterns {
		for _, extension := range []string{".yaml", ".yml", ".textpb"} {
			files, err := filepath.Glob(filepath.Join(escape(path), filepath.FromSlash(pattern)+extension))
			if err != nil {
				return nil, fmt.Errorf("find tests in %s: %w", path, err)
			}
			all = append(all, files...)
		}
	}
	slices.Sort(all)
	return all, nil
}

// checkName refuses what is no file of tests by its name, such as a module.
func checkName(path string) error {
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json", ".textpb", ".textproto", "":
		return nil
	case ".wasm":
		return fmt.Errorf("%s is a module, want a file of tests, or the plugin's folder; --module names another module for those", path)
	}
	return fmt.Errorf("%s is no file of tests: want .yaml, .yml, .json, .textpb or .textproto", path)
}

// escape is the path as a pattern that means only itself.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// Load reads a file of tests. Errors: *[document.Error], one that wraps [ErrNoModule] or
// [ErrNotModule], or what keeps the file from being read.
func Load(file string, opts Options) (*Suite, error) {
	data, err := readFile(file, document.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("read tests: %w", err)
	}
	tests, err := parse(file, data, opts)
	if err != nil {
		return nil, err
	}
	name(tests)
	for _, t := range tests {
		if err := checkModule(t.module); err != nil {
			return nil, fmt.Errorf("%s:%d: %w; build it (chandler plugin build) or say where it is (--module)", file, t.Line, err)
		}
	}
	return &Suite{file, tests}, nil
}

// checkModule looks whether there is a module in a file. What else may be wrong with it is
// for the tests to find.
func checkModule(file string) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoModule, file)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return fmt.Errorf("%w: %s is a folder", ErrNotModule, file)
	}
	magic := make([]byte, 4)
	if _, err := io.ReadFull(f, magic); err != nil || string(magic) != "\x00asm" {
		return fmt.Errorf("%w: %s", ErrNotModule, file)
	}
	return nil
}

// parse reads tests of either form.
func parse(file string, data []byte, opts Options) ([]*Test, error) {
	textproto := filepath.Ext(file) == ".textpb" || filepath.Ext(file) == ".textproto"
	read := document.ParseYAML
	if textproto {
		read = document.ParseTextproto
	}
	n, err := read(data)
	if p, ok := errors.AsType[*document.Problem](err); ok {
		return nil, &document.Error{File: file, Problems: []document.Problem{*p}}
	}
	d := &document.Decoder{File: func(name string) ([]byte, error) { return readFile(beside(file, name), maxFile) }}
	var tests []*Test
	if textproto || googleForm(n) {
		tests = googleTests(d, file, n, opts)
	} else {
		tests = suiteTests(d, file, n, opts)
	}
	return tests, d.Err(file)
}

// beside is the path of a file that another names: its own, if it is absolute, else from
// the other's folder on.
func beside(file, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(file), name)
}

// readFile reads a regular file that is not too large.
func readFile(path string, limit int64) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() { // opening a pipe would wait
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, err
}

// project is the folder of the plugin that a file's tests are of.
func project(file string) string {
	dir := filepath.Dir(file)
	if abs, err := filepath.Abs(dir); err == nil && filepath.Base(abs) == "tests" {
		return filepath.Join(dir, "..")
	}
	return dir
}

// name makes the tests' names what reports and patterns can use: without white space, and
// different from each other.
func name(tests []*Test) {
	seen := map[string]int{}
	for _, t := range tests {
		t.Name = Name(t.Name)
		seen[t.Name]++
		if n := seen[t.Name]; n > 1 {
			t.Name = fmt.Sprintf("%s#%02d", t.Name, n-1)
		}
	}
}

// Name is a test's name, or a pattern for such, without white space, as Go's tests have it.
func Name(text string) string { return strings.Join(strings.Fields(text), "_") }
