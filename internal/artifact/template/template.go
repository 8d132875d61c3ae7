// Package template begins new plugins: small ones that build, do something that can
// be seen, and are tested as their language tests.
//
// The plugins are ours, a folder each in files, and all do the same: they add the
// headers that their configuration has to responses. What is in files/common goes
// into each, tests for chandler plugin test among it. It writes files and runs
// nothing; an existing file is never touched. Start at [Write].
package template

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/chandler-proxy/chandler/internal/artifact/toolchain"
)

//go:embed all:files
var files embed.FS

// suffix is on files that would mean something to tools where they lie.
const suffix = ".tmpl"

// validName is what Go, Cargo, npm and registries all take for a name.
var validName = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

var (
	// ErrExists says that there is something where the plugin should be.
	ErrExists = errors.New("exists, and is not an empty folder")
	// ErrName says that a name cannot be a plugin's.
	ErrName = errors.New("want lower-case letters, digits and single hyphens, a letter first")
)

// commands are what a plugin's README says: how to get what it needs, how to test it.
func commands(language toolchain.Language) (setup, test string, ok bool) {
	switch language {
	case toolchain.Go:
		return "go mod download", "go test .", true
	case toolchain.Rust:
		return "rustup target add wasm32-wasip1", "cargo test", true
	case toolchain.Cpp:
		return "apt-get install clang lld make libc++-dev-wasm32 libclang-rt-dev-wasm32", "make test", true
	case toolchain.AssemblyScript:
		return "npm install", "npm test", true
	}
	return "", "", false
}

// Write begins a plugin in a new or empty folder. Errors: one that wraps ErrExists or
// ErrName, or about language or files.
func Write(dir string, language toolchain.Language, name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q: %w", name, ErrName)
	}
	setup, test, ok := commands(language)
	if !ok {
		return fmt.Errorf("no template for language %q", language)
	}
	switch entries, err := os.ReadDir(dir); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil && !exists(dir): // something above it is in the way
		return fmt.Errorf("begin plugin: %w", err)
	case err != nil || len(entries) > 0:
		return fmt.Errorf("begin plugin: %s %w", dir, ErrExists)
	}
	fill := strings.NewReplacer("__NAME__", name, "__SETUP__", setup, "__TEST__", test)
	for _, from := range []string{"common", string(language)} {
		if err := write(dir, "files/"+from, fill); err != nil {
			return fmt.Errorf("begin plugin: %w", err)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// write copies a folder of templates to dir.
func write(dir, from string, fill *strings.Replacer) error {
	return fs.WalkDir(files, from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, filepath.FromSlash(strings.TrimSuffix(strings.TrimPrefix(path, from), suffix)))
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		text, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		return create(to, fill.Replace(string(text)))
	})
}

// create makes a file that must not exist.
func create(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
