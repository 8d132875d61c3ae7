// Package toolchain builds a plugin with the compiler of its own language: Go, Rust,
// C++ or AssemblyScript.
//
// It calls what is installed and installs nothing; what is missing is a
// [MissingError] that says how to get it. The compiler's own messages go where the
// caller wants them, unchanged. It does not judge the module that comes out, and
// leaves no file in the plugin's folder but what the compiler leaves there. Start at
// [Detect] and [Build].
package toolchain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A Language is what a plugin is written in.
type Language string

// The languages whose toolchains are known.
const (
	Go             Language = "go"
	Rust           Language = "rust"
	Cpp            Language = "cpp"
	AssemblyScript Language = "assemblyscript"
)

// Languages lists them.
func Languages() []Language { return []Language{Go, Rust, Cpp, AssemblyScript} }

// ParseLanguage reads a language by its name.
func ParseLanguage(name string) (Language, error) {
	if l := Language(name); slices.Contains(Languages(), l) {
		return l, nil
	}
	return "", fmt.Errorf("%q is none of go, rust, cpp, assemblyscript", name)
}

// marks are the files that tell a language, by patterns, the surest first: a plugin in
// C++ may have a package.json for its tests, one in Rust a Makefile.
var marks = [...]struct {
	language Language
	patterns []string
}{
	{Rust, []string{"Cargo.toml"}},
	{Go, []string{"go.mod", "*.go"}},
	{AssemblyScript, []string{"asconfig.json"}},
	{Cpp, []string{"*.cc", "*.cpp", "*.cxx", "CMakeLists.txt"}},
	{AssemblyScript, []string{"package.json"}},
}

// Detect says what the plugin in a folder is written in.
func Detect(dir string) (Language, error) {
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return "", fmt.Errorf("look for a plugin: %s is a file, want the plugin's folder, such as %s", dir, filepath.Dir(dir))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("look for a plugin: %w", err)
	}
	if language := marked(entries); language != "" {
		return language, nil
	}
	mend := "chandler plugin init begins one"
	if above := filepath.Join(dir, ".."); hasPlugin(above) {
		mend = "did you mean " + above + "?"
	}
	return "", fmt.Errorf("look for a plugin: %s has no go.mod, Cargo.toml, asconfig.json, package.json or C++ source; %s", dir, mend)
}

// marked is the language that the files of a folder tell, if they do.
func marked(entries []os.DirEntry) Language {
	for _, m := range marks {
		for _, e := range entries {
			if slices.ContainsFunc(m.patterns, func(p string) bool { ok, _ := filepath.Match(p, e.Name()); return ok }) {
				return m.language
			}
		}
	}
	return ""
}

func hasPlugin(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && marked(entries) != ""
}

// A MissingError says that part of a toolchain is not installed.
type MissingError struct {
	What string // as in "cargo", with what it is for
	Get  string // how to get it, as a command or address
}

func (e *MissingError) Error() string { return e.What + " is missing: " + e.Get }

// Build builds the plugin in a folder and returns the module. What the compiler says
// goes to output. Errors: *MissingError, the compiler's exit, or that it left no
// module.
func Build(ctx context.Context, dir string, language Language, output io.Writer) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "chandler-build-*")
	if err != nil {
		return nil, fmt.Errorf("build plugin: %w", err)
	}
	defer os.RemoveAll(tmp)
	b := builder{dir: dir, output: output, tmp: filepath.Join(tmp, "plugin.wasm")}
	var path string
	switch language {
	case Go:
		path, err = b.goPlugin(ctx)
	case Rust:
		path, err = b.rustPlugin(ctx)
	case Cpp:
		path, err = b.cppPlugin(ctx)
	case AssemblyScript:
		path, err = b.assemblyScriptPlugin(ctx)
	default:
		return nil, fmt.Errorf("build plugin: language %q is unknown", language)
	}
	if err != nil {
		return nil, fmt.Errorf("build plugin: %w", err)
	}
	wasm, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("build plugin: the compiler has left no module: %w", err)
	}
	return wasm, nil
}

// A builder is one build. Its methods return where the module is.
type builder struct {
	dir    string
	output io.Writer
	tmp    string // a path for the module
}

// command is a command in the plugin's folder.
func (b *builder) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.dir
	cmd.Stdout, cmd.Stderr = b.output, b.output
	return cmd
}

// run runs a command; its error names it.
func run(cmd *exec.Cmd) error {
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(cmd.Args[:min(2, len(cmd.Args))], " "), err)
	}
	return nil
}

// need looks for a program.
func need(program, what, get string) error {
	if _, err := exec.LookPath(program); err != nil {
		return &MissingError{program + " (" + what + ")", get}
	}
	return nil
}

func (b *builder) goPlugin(ctx context.Context) (string, error) {
	if err := need("go", "Go 1.24 or newer", "get it from https://go.dev/dl"); err != nil {
		return "", err
	}
	// Nothing of this machine or of the moment goes into the module.
	cmd := b.command(ctx, "go", "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", b.tmp, ".")
	cmd.Env = append(cmd.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	return b.tmp, run(cmd)
}

const rustTarget = "wasm32-wasip1"

func (b *builder) rustPlugin(ctx context.Context) (string, error) {
	if err := need("cargo", "Rust 1.78 or newer", "get it from https://rustup.rs"); err != nil {
		return "", err
	}
	probe := b.command(ctx, "rustc", "--print", "target-libdir", "--target", rustTarget)
	probe.Stdout = nil
	lib, err := probe.Output()
	if err == nil {
		_, err = os.Stat(strings.TrimSpace(string(lib)))
	}
	if err != nil {
		return "", &MissingError{"Rust's standard library for " + rustTarget, "run rustup target add " + rustTarget}
	}
	build := b.command(ctx, "cargo", "build", "--release", "--target", rustTarget, "--message-format", "json-render-diagnostics")
	var messages strings.Builder
	build.Stdout = &messages
	if err := run(build); err != nil {
		return "", err
	}
	return cargoModule(messages.String())
}

// cargoModule finds the module in what cargo says of a build, a JSON object a line.
//
// https://doc.rust-lang.org/cargo/reference/external-tools.html#json-messages
func cargoModule(messages string) (string, error) {
	var found []string
	for d := json.NewDecoder(strings.NewReader(messages)); ; {
		var m struct {
			Reason    string
			Filenames []string
		}
		switch err := d.Decode(&m); {
		case errors.Is(err, io.EOF):
			if len(found) != 1 {
				return "", fmt.Errorf("cargo makes %d modules, want one: a lib with crate-type cdylib%s", len(found), listed(found))
			}
			return found[0], nil
		case err != nil:
			return "", fmt.Errorf("read cargo's messages: %w", err)
		}
		for _, f := range m.Filenames {
			if m.Reason == "compiler-artifact" && strings.HasSuffix(f, ".wasm") {
				found = append(found, f)
			}
		}
	}
}

func listed(names []string) string {
	if len(names) == 0 {
		return ""
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	return "; it makes " + strings.Join(names, ", ")
}

const getCpp = "on Debian and Ubuntu run apt-get install clang lld wasi-libc libc++-dev-wasm32 libclang-rt-dev-wasm32; " +
	"elsewhere get wasi-sdk from https://github.com/WebAssembly/wasi-sdk and put its bin before your PATH"

func (b *builder) cppPlugin(ctx context.Context) (string, error) {
	if exists(b.dir, "Makefile") {
		if err := need("make", "it runs the Makefile", "install it with your system's packages"); err != nil {
			return "", err
		}
	} else if exists(b.dir, "CMakeLists.txt") {
		return "", errors.New("plugins with a CMakeLists.txt are not built here: build it with cmake, then push the module by its path")
	}
	if err := b.needCpp(ctx); err != nil {
		return "", err
	}
	if exists(b.dir, "Makefile") {
		return filepath.Join(b.dir, "build", "plugin.wasm"), run(b.command(ctx, "make", "build/plugin.wasm"))
	}
	sources, err := cppSources(b.dir)
	if err != nil {
		return "", err
	}
	args := []string{"--target=wasm32-wasi", "-mexec-model=reactor", "-fno-exceptions", "-std=c++17", "-O2", "-Wl,--strip-debug", "-o", b.tmp}
	return b.tmp, run(b.command(ctx, "clang++", append(args, sources...)...))
}

// needCpp asks the compiler where its libraries for Wasm are; it answers with the mere
// name of what it does not have.
func (b *builder) needCpp(ctx context.Context) error {
	if err := need("clang++", "for C++", getCpp); err != nil {
		return err
	}
	for _, file := range []string{"libc.a", "libc++.a"} {
		probe := b.command(ctx, "clang++", "--target=wasm32-wasi", "-print-file-name="+file)
		probe.Stdout = nil
		out, err := probe.Output()
		if err != nil {
			return fmt.Errorf("ask clang++ for %s: %w", file, err)
		}
		if path := strings.TrimSpace(string(out)); !filepath.IsAbs(path) {
			return &MissingError{"clang's " + file + " for wasm32-wasi", getCpp}
		}
	}
	return nil
}

// cppSources are the sources in a folder, without tests.
func cppSources(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		name, isSource := e.Name(), slices.Contains([]string{".cc", ".cpp", ".cxx"}, filepath.Ext(e.Name()))
		if isSource && !strings.HasSuffix(strings.TrimSuffix(name, filepath.Ext(name)), "_test") {
			list = append(list, name)
		}
	}
	return list, nil
}

func (b *builder) assemblyScriptPlugin(ctx context.Context) (string, error) {
	if err := need("npm", "with Node.js 20 or newer", "get it from https://nodejs.org"); err != nil {
		return "", err
	}
	if !installed(b.dir, "assemblyscript") {
		return "", &MissingError{"the package assemblyscript", "run npm install in " + b.dir}
	}
	if err := run(b.command(ctx, "npm", "run", "--silent", "asbuild")); err != nil {
		return "", err
	}
	out, err := ascOutput(b.dir)
	return filepath.Join(b.dir, out), err
}

// installed says whether Node finds a package from a folder: there or above.
func installed(dir, name string) bool {
	dir, err := filepath.Abs(dir)
	for err == nil {
		if exists(dir, filepath.Join("node_modules", name)) {
			return true
		}
		above := filepath.Dir(dir)
		if above == dir {
			break
		}
		dir = above
	}
	return false
}

// ascOutput is where asconfig.json has the release written, or what asinit makes of
// it.
func ascOutput(dir string) (string, error) {
	const usual = "build/release.wasm"
	text, err := os.ReadFile(filepath.Join(dir, "asconfig.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return usual, nil
	}
	if err != nil {
		return "", err
	}
	var config struct {
		Targets struct {
			Release struct{ OutFile string }
		}
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return "", fmt.Errorf("read asconfig.json: %w", err)
	}
	if out := config.Targets.Release.OutFile; out != "" {
		return out, nil
	}
	return usual, nil
}

func exists(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}
