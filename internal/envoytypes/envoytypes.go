// Package envoytypes finds the protobuf type behind any type URL that Envoy's
// configuration can hold, so that an Any of an extension that Chandler itself
// does not use can be read and written as JSON.
//
// A type that the program links in is that Go type. Any other is made, when it
// is first asked for, from the descriptors embedded here: linking all five
// hundred packages of go-control-plane would cost a hundred megabytes and
// minutes of building. The descriptors are those of the very module version in
// go.mod; go generate makes them anew. Types that Envoy builds only into its
// contrib image are not among them.
//
// It does no I/O. Start at [Types].
package envoytypes

import (
	"archive/zip"
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"iter"
	"maps"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	_ "google.golang.org/protobuf/types/known/anypb" // the archive leaves google/protobuf out
	_ "google.golang.org/protobuf/types/known/apipb"
	_ "google.golang.org/protobuf/types/known/durationpb"
	_ "google.golang.org/protobuf/types/known/emptypb"
	_ "google.golang.org/protobuf/types/known/fieldmaskpb"
	_ "google.golang.org/protobuf/types/known/sourcecontextpb"
	_ "google.golang.org/protobuf/types/known/structpb"
	_ "google.golang.org/protobuf/types/known/timestamppb"
	_ "google.golang.org/protobuf/types/known/typepb"
	_ "google.golang.org/protobuf/types/known/wrapperspb"
)

//go:generate go run ./gen

// archive is a zip of VERSIONS (module and version a line), INDEX (message and
// file a line), and FileDescriptorProtos by path.
//
//go:embed descriptors.zip
var archive []byte

// Types returns the types of Envoy's API, for protojson's and anypb's Resolver.
// It is a constant that is computed as it is asked for: what a name resolves to
// never changes. Safe for concurrent use.
func Types() *Resolver { return types() }

var types = sync.OnceValue(func() *Resolver {
	r, err := open(archive)
	if err != nil {
		panic("envoytypes: embedded descriptors: " + err.Error()) // the tests would not have passed
	}
	return r
})

// A Resolver finds message types by name or URL. It is a
// [protoregistry.MessageTypeResolver] and a [protoregistry.ExtensionTypeResolver].
type Resolver struct {
	versions map[string]string                // by module
	index    map[protoreflect.FullName]string // path of the .proto file, by message
	files    map[string]*zip.File             // by path

	mu    sync.Mutex
	built protoregistry.Files // what was asked for so far, and what that imports
	made  map[protoreflect.FullName]protoreflect.MessageType
}

func open(archive []byte) (*Resolver, error) {
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		return nil, err
	}
	r := &Resolver{
		versions: map[string]string{},
		index:    map[protoreflect.FullName]string{},
		files:    make(map[string]*zip.File, len(z.File)),
		made:     map[protoreflect.FullName]protoreflect.MessageType{},
	}
	for _, f := range z.File {
		r.files[f.Name] = f
	}
	if err := r.table("VERSIONS", func(module, version string) { r.versions[module] = version }); err != nil {
		return nil, err
	}
	err = r.table("INDEX", func(message, path string) { r.index[protoreflect.FullName(message)] = path })
	return r, err
}

// table reads an entry of the archive that has two words a line.
func (r *Resolver) table(name string, row func(a, b string)) error {
	text, err := r.read(name)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		a, b, _ := strings.Cut(strings.TrimSpace(line), " ")
		row(a, b)
	}
	return nil
}

func (r *Resolver) read(name string) ([]byte, error) {
	f, ok := r.files[name]
	if !ok {
		return nil, fmt.Errorf("find %s: %w", name, protoregistry.NotFound)
	}
	rc, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer rc.Close() // of a reader of memory: cannot fail
	return io.ReadAll(rc)
}

// Version is the version of the Go module that the embedded descriptors were
// read from; empty if none was.
func (r *Resolver) Version(module string) string { return r.versions[module] }

// Names yields the embedded message types' full names, in no order.
func (r *Resolver) Names() iter.Seq[protoreflect.FullName] { return maps.Keys(r.index) }

// FindMessageByURL returns the type that follows the last slash of url, or
// [protoregistry.NotFound].
func (r *Resolver) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	return r.FindMessageByName(protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:]))
}

// FindMessageByName returns the type of that name, or [protoregistry.NotFound].
func (r *Resolver) FindMessageByName(name protoreflect.FullName) (protoreflect.MessageType, error) {
	if mt, err := protoregistry.GlobalTypes.FindMessageByName(name); err == nil {
		return mt, nil
	}
	path, ok := r.index[name]
	if !ok {
		return nil, protoregistry.NotFound
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if mt, ok := r.made[name]; ok {
		return mt, nil
	}
	file, err := r.file(path)
	if err != nil {
		return nil, err
	}
	md, err := find(file, name)
	if err != nil {
		return nil, err
	}
	r.made[name] = dynamicpb.NewMessageType(md)
	return r.made[name], nil
}

// find looks name up in file, however deeply it is nested.
func find(file protoreflect.FileDescriptor, name protoreflect.FullName) (protoreflect.MessageDescriptor, error) {
	var scope interface {
		Messages() protoreflect.MessageDescriptors
	} = file
	var md protoreflect.MessageDescriptor
	rest := strings.TrimPrefix(string(name), string(file.Package())+".")
	for part := range strings.SplitSeq(rest, ".") {
		if md = scope.Messages().ByName(protoreflect.Name(part)); md == nil {
			return nil, protoregistry.NotFound
		}
		scope = md
	}
	return md, nil
}

// file returns the linked or else the embedded file at path, after those it
// imports. r.mu is held.
func (r *Resolver) file(path string) (protoreflect.FileDescriptor, error) {
	if fd, err := protoregistry.GlobalFiles.FindFileByPath(path); err == nil {
		return fd, nil
	}
	if fd, err := r.built.FindFileByPath(path); err == nil {
		return fd, nil
	}
	raw, err := r.read(path)
	if err != nil {
		return nil, err
	}
	fdp := new(descriptorpb.FileDescriptorProto)
	if err := proto.Unmarshal(raw, fdp); err != nil {
		return nil, fmt.Errorf("decode descriptor %s: %w", path, err)
	}
	for _, dep := range fdp.GetDependency() {
		if _, err := r.file(dep); err != nil {
			return nil, err
		}
	}
	fd, err := protodesc.NewFile(fdp, both{&r.built, protoregistry.GlobalFiles})
	if err != nil {
		return nil, fmt.Errorf("build descriptor %s: %w", path, err)
	}
	return fd, r.built.RegisterFile(fd)
}

// both looks in each registry in turn.
type both [2]*protoregistry.Files

func (b both) FindFileByPath(path string) (protoreflect.FileDescriptor, error) {
	if fd, err := b[0].FindFileByPath(path); err == nil {
		return fd, nil
	}
	return b[1].FindFileByPath(path)
}

func (b both) FindDescriptorByName(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	if d, err := b[0].FindDescriptorByName(name); err == nil {
		return d, nil
	}
	return b[1].FindDescriptorByName(name)
}

// FindExtensionByName returns a linked extension: Envoy's messages have none.
func (r *Resolver) FindExtensionByName(field protoreflect.FullName) (protoreflect.ExtensionType, error) {
	return protoregistry.GlobalTypes.FindExtensionByName(field)
}

// FindExtensionByNumber is [Resolver.FindExtensionByName] by number.
func (r *Resolver) FindExtensionByNumber(message protoreflect.FullName, field protoreflect.FieldNumber) (protoreflect.ExtensionType, error) {
	return protoregistry.GlobalTypes.FindExtensionByNumber(message, field)
}
