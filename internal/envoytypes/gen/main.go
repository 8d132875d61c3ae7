// Command gen writes descriptors.zip, the protobuf descriptors of everything
// Envoy can be configured with, for package envoytypes to embed.
//
// It reads the descriptors out of the Go source of the modules that go.mod
// names, so that nothing of the five hundred packages has to be compiled. Run
// it with go generate after changing their versions.
package main

import (
	"archive/zip"
	"bytes"
	"cmp"
	"compress/flate"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

const out = "descriptors.zip"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// wanted are the modules whose every file is kept. Of the others only what
// those import.
var wanted = []string{"github.com/envoyproxy/go-control-plane/envoy", "github.com/cncf/xds/go"}

var others = []string{
	"cel.dev/expr",
	"github.com/envoyproxy/protoc-gen-validate",
	"github.com/prometheus/client_model",
	"go.opentelemetry.io/proto/otlp",
	"google.golang.org/genproto/googleapis/api",
	"google.golang.org/genproto/googleapis/rpc",
}

func run() error {
	files := map[string]*descriptorpb.FileDescriptorProto{}
	var roots, versions []string
	for _, module := range slices.Concat(wanted, others) {
		version, found, err := read(module)
		if err != nil {
			return fmt.Errorf("read module %s: %w", module, err)
		}
		if slices.Contains(wanted, module) {
			roots = slices.AppendSeq(roots, maps.Keys(found))
			versions = append(versions, module+" "+version)
		}
		maps.Copy(files, found)
	}
	kept, err := closure(files, roots)
	if err != nil {
		return err
	}
	archive, err := pack(kept, versions)
	if err != nil {
		return err
	}
	return os.WriteFile(out, archive, 0o644)
}

// read returns the version of a module and the descriptors in its source, by
// path of the .proto file.
func read(module string) (string, map[string]*descriptorpb.FileDescriptorProto, error) {
	listed, err := exec.Command("go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", module).Output()
	if err != nil {
		return "", nil, err
	}
	version, dir, _ := strings.Cut(strings.TrimSpace(string(listed)), " ")
	if dir == "" {
		return "", nil, errors.New("not downloaded: go mod download " + module)
	}
	found := map[string]*descriptorpb.FileDescriptorProto{}
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".pb.go") {
			return err
		}
		raw, err := descriptor(path)
		if err != nil || raw == nil {
			return err
		}
		fd := new(descriptorpb.FileDescriptorProto)
		if err := proto.Unmarshal(raw, fd); err != nil {
			return fmt.Errorf("decode descriptor in %s: %w", path, err)
		}
		found[fd.GetName()] = strip(fd)
		return nil
	})
	return version, found, err
}

// descriptor returns the bytes of the constant or variable that protoc-gen-go
// names file_…_rawDesc; nil if there is none.
func descriptor(path string) ([]byte, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range gen.Specs {
			if v, ok := spec.(*ast.ValueSpec); ok && len(v.Values) == 1 && strings.HasSuffix(v.Names[0].Name, "_rawDesc") {
				return literal(v.Values[0])
			}
		}
	}
	return nil, nil
}

// literal evaluates a sum of string literals, or a []byte{…}.
func literal(e ast.Expr) ([]byte, error) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return []byte(s), err
	case *ast.BinaryExpr:
		x, err := literal(e.X)
		if err != nil {
			return nil, err
		}
		y, err := literal(e.Y)
		return append(x, y...), err
	case *ast.CompositeLit:
		b := make([]byte, len(e.Elts))
		for i, elt := range e.Elts {
			n, err := strconv.ParseUint(elt.(*ast.BasicLit).Value, 0, 8)
			if err != nil {
				return nil, err
			}
			b[i] = byte(n)
		}
		return b, nil
	}
	return nil, fmt.Errorf("descriptor is a %T", e)
}

// strip removes what only code generators read.
func strip(fd *descriptorpb.FileDescriptorProto) *descriptorpb.FileDescriptorProto {
	fd.SourceCodeInfo = nil
	fd.Options = nil
	return fd
}

// closure returns the roots and all they import, less google/protobuf, which
// every program with a protobuf runtime has.
func closure(files map[string]*descriptorpb.FileDescriptorProto, roots []string) ([]*descriptorpb.FileDescriptorProto, error) {
	seen := map[string]bool{}
	var kept []*descriptorpb.FileDescriptorProto
	for queue := roots; len(queue) > 0; {
		path := queue[0]
		queue = queue[1:]
		if seen[path] || strings.HasPrefix(path, "google/protobuf/") {
			continue
		}
		seen[path] = true
		fd, ok := files[path]
		if !ok {
			return nil, fmt.Errorf("no module has %s", path)
		}
		kept = append(kept, fd)
		queue = append(queue, fd.GetDependency()...)
	}
	slices.SortFunc(kept, func(a, b *descriptorpb.FileDescriptorProto) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return kept, nil
}

// pack is the archive: VERSIONS, a line a module; INDEX, a line a message with
// its file; and the files.
func pack(files []*descriptorpb.FileDescriptorProto, versions []string) ([]byte, error) {
	var index []string
	for _, fd := range files {
		for _, name := range messages(fd.GetPackage(), fd.GetMessageType()) {
			index = append(index, name+" "+fd.GetName())
		}
	}
	slices.Sort(index)

	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	w.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	err := errors.Join(
		add(w, "VERSIONS", []byte(strings.Join(versions, "\n")+"\n")),
		add(w, "INDEX", []byte(strings.Join(index, "\n")+"\n")))
	for _, fd := range files {
		raw, merr := proto.MarshalOptions{Deterministic: true}.Marshal(fd)
		err = errors.Join(err, merr, add(w, fd.GetName(), raw))
	}
	err = errors.Join(err, w.Close())
	return buf.Bytes(), err
}

func add(w *zip.Writer, name string, content []byte) error {
	f, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate})
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return err
}

// messages lists the full names of msgs and of what is nested in them. Map
// entries are no types of their own.
func messages(scope string, msgs []*descriptorpb.DescriptorProto) []string {
	var names []string
	for _, m := range msgs {
		if m.GetOptions().GetMapEntry() {
			continue
		}
		name := scope + "." + m.GetName()
		names = append(names, name)
		names = append(names, messages(name, m.GetNestedType())...)
	}
	return names
}
