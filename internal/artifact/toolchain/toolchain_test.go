package toolchain

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// folder makes a folder of files, each given as its name and content.
func folder(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDetect(t *testing.T) {
	for _, tt := range []struct {
		files []string
		want  Language
	}{
		{[]string{"go.mod"}, Go},
		{[]string{"main.go", "Makefile"}, Go},
		{[]string{"Cargo.toml", "Makefile", "package.json"}, Rust},
		{[]string{"plugin.cc", "plugin.h"}, Cpp},
		{[]string{"plugin.cpp", "package.json"}, Cpp},
		{[]string{"CMakeLists.txt"}, Cpp},
		{[]string{"package.json"}, AssemblyScript},
		{[]string{"asconfig.json", "package.json"}, AssemblyScript},
		{[]string{"README.md", "Makefile"}, ""},
		{nil, ""},
	} {
		var files []string
		for _, f := range tt.files {
			files = append(files, f, "")
		}
		if got, err := Detect(folder(t, files...)); got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("Detect of %q = %q, %v, want %q", tt.files, got, err, tt.want)
		}
	}
	if _, err := Detect(filepath.Join(t.TempDir(), "nowhere")); err == nil {
		t.Error("Detect finds a plugin nowhere")
	}
}

func TestParseLanguage(t *testing.T) {
	for _, l := range Languages() {
		if got, err := ParseLanguage(string(l)); got != l || err != nil {
			t.Errorf("ParseLanguage(%q) = %q, %v", l, got, err)
		}
	}
	if _, err := ParseLanguage("cobol"); err == nil {
		t.Error("cobol is a language")
	}
}

// What is missing is told with how to get it.
func TestMissing(t *testing.T) {
	const echo = "#!/bin/sh\necho "
	for _, tt := range []struct {
		name     string
		tools    []string // on the PATH, with what they do
		files    []string
		language Language
		want     string
	}{
		{"no Go", nil, nil, Go, "go.dev/dl"},
		{"no Rust", nil, nil, Rust, "rustup.rs"},
		{"no target", []string{"cargo", "", "rustc", echo + "nowhere"}, nil, Rust, "rustup target add wasm32-wasip1"},
		{"old Rust", []string{"cargo", "", "rustc", "#!/bin/sh\nexit 1"}, nil, Rust, "rustup target add wasm32-wasip1"},
		{"no clang", nil, nil, Cpp, "apt-get install clang"},
		{"no make", []string{"clang++", ""}, []string{"Makefile", ""}, Cpp, "install it"},
		{"no libraries", []string{"clang++", echo + "libc.a"}, nil, Cpp, "libc++-dev-wasm32"},
		{"no npm", nil, nil, AssemblyScript, "nodejs.org"},
		{"no packages", []string{"npm", ""}, nil, AssemblyScript, "run npm install"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", folder(t, tt.tools...))
			_, err := Build(t.Context(), folder(t, tt.files...), tt.language, new(bytes.Buffer))
			if _, ok := errors.AsType[*MissingError](err); !ok || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build = %v, want what is missing, and %q", err, tt.want)
			}
		})
	}
}

// The compilers of this test are scripts, which make what is asked of real ones.
func TestBuild(t *testing.T) {
	const (
		libraries = "case $* in *print-file-name*) echo /; exit;; esac\n"
		clang     = "#!/bin/sh\n" + libraries + `echo warning >&2; echo "$*" | grep -q plugin.cc && ! echo "$*" | grep -q _test || exit 3
			while [ "$1" != -o ]; do shift; done; echo module >$2`
	)
	cargo := `#!/bin/sh
		echo warning >&2
		echo module >"$PWD/a.wasm"
		echo '{"reason":"compiler-artifact","filenames":["libdep.rlib"]}'
		echo '{"reason":"compiler-artifact","filenames":["'"$PWD"'/a.wasm"]}'
		echo '{"reason":"build-finished","success":true}'`
	npm := "#!/bin/sh\necho warning; mkdir -p build; echo module >build/a.wasm; echo module >build/release.wasm"
	asc := []string{"node_modules/assemblyscript/package.json", ""}
	for _, tt := range []struct {
		name     string
		tools    []string
		files    []string
		language Language
	}{
		{"go", []string{"go", `#!/bin/sh
			echo warning >&2; [ "$GOOS $GOARCH" = "wasip1 wasm" ] || exit 3
			while [ "$1" != -o ]; do shift; done; echo module >$2`}, nil, Go},
		{"rust", []string{"rustc", "#!/bin/sh\necho /", "cargo", cargo}, nil, Rust},
		{"C++ with a Makefile", []string{"clang++", clang, "make", "#!/bin/sh\necho warning; mkdir build; echo module >$1"}, []string{"Makefile", "", "plugin.cc", ""}, Cpp},
		{"C++ without", []string{"clang++", clang}, []string{"plugin.cc", "", "plugin_test.cc", "", "plugin.h", ""}, Cpp},
		{"assemblyscript as asconfig.json has it", []string{"npm", npm}, append(asc, "asconfig.json", `{"targets":{"release":{"outFile":"build/a.wasm"}}}`), AssemblyScript},
		{"assemblyscript as usual", []string{"npm", npm}, asc, AssemblyScript},
		{"assemblyscript with an empty asconfig.json", []string{"npm", npm}, append(asc, "asconfig.json", `{}`), AssemblyScript},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", folder(t, tt.tools...)+string(os.PathListSeparator)+os.Getenv("PATH"))
			var said bytes.Buffer
			wasm, err := Build(t.Context(), folder(t, tt.files...), tt.language, &said)
			if err != nil || string(wasm) != "module\n" {
				t.Errorf("Build = %q, %v", wasm, err)
			}
			if said.String() != "warning\n" {
				t.Errorf("the compiler says %q", &said)
			}
		})
	}
}

func TestBuildFails(t *testing.T) {
	for _, tt := range []struct {
		name     string
		tools    []string
		files    []string
		language Language
		want     string
	}{
		{"compiler fails", []string{"go", "#!/bin/sh\nexit 2"}, nil, Go, "go build: exit status 2"},
		{"compiler leaves nothing", []string{"go", "#!/bin/sh\n"}, nil, Go, "left no module"},
		{"cargo makes none", []string{"rustc", "#!/bin/sh\necho /", "cargo", "#!/bin/sh\n"}, nil, Rust, "cdylib"},
		{"CMakeLists.txt", nil, []string{"CMakeLists.txt", ""}, Cpp, "cmake"},
		{"asconfig.json", []string{"npm", "#!/bin/sh\n"}, []string{"asconfig.json", "{", "node_modules/assemblyscript/x", ""}, AssemblyScript, "read asconfig.json"},
		{"unknown language", nil, nil, "cobol", "cobol"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", folder(t, tt.tools...))
			_, err := Build(t.Context(), folder(t, tt.files...), tt.language, new(bytes.Buffer))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestInstalledAbove(t *testing.T) {
	dir := folder(t, "node_modules/assemblyscript/package.json", "", "plugins/a/package.json", "")
	if !installed(filepath.Join(dir, "plugins", "a"), "assemblyscript") {
		t.Error("a package in the folder of the workspace is not found")
	}
	if installed(dir, "other") {
		t.Error("a package that is not there is found")
	}
}

// Whatever cargo prints, there is one module or an error.
func FuzzCargoModule(f *testing.F) {
	f.Add(`{"reason":"compiler-artifact","filenames":["/a.wasm"]}`)
	f.Add(`{"reason":"compiler-artifact","filenames":["/a.wasm","/b.wasm"]}`)
	f.Add(`{"reason":"compiler-message"}` + "\n" + `{`)
	f.Fuzz(func(t *testing.T, messages string) {
		path, err := cargoModule(messages)
		if (err == nil) != strings.HasSuffix(path, ".wasm") {
			t.Errorf("cargoModule = %q, %v", path, err)
		}
	})
}
