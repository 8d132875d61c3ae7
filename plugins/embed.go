// Package plugins carries the example plugins, as built, inside the chandler
// binary, so that `chandler run` needs nothing else to show them.
//
// The plugins are programs of their own in the folders beside this file;
// `make plugins` compiles them with the stock Go compiler into dist, which git
// ignores. The package builds without them: what is missing is told when it is
// opened. It neither compiles nor runs a module. For tests there are modules in
// testdata, written by hand in the text format and as small as can be, each
// with what it does in its first lines; go generate assembles them. Start at
// [Modules].
package plugins

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

// The modules that Modules holds after `make plugins`.
const (
	BasicAuth     = "basic-auth.wasm"     // folder basicauth
	HeaderCounter = "header-counter.wasm" // folder headercounter
)

//go:generate sh testdata/generate.sh

//go:embed all:dist
var dist embed.FS

// Modules is the built modules, by the names above. Opening one that is not
// built gives an error that says how to and is [fs.ErrNotExist].
func Modules() fs.FS { return modules{} }

type modules struct{}

func (modules) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	f, err := dist.Open("dist/" + name)
	if name == "." {
		f, err = dist.Open("dist")
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("plugin is not built: run make build: %w", fs.ErrNotExist)}
	}
	return f, err
}
