package module

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrNotModule says that bytes are no WebAssembly core module.
var ErrNotModule = errors.New("not a Wasm module")

// HeadSize is how many bytes [Sniff] wants: magic and version.
const HeadSize = 8

var (
	coreHead      = []byte("\x00asm\x01\x00\x00\x00")
	componentHead = []byte("\x00asm\x0d\x00\x01\x00")
)

// Sniff says whether head begins a core module; if not, the error wraps
// ErrNotModule and says what it seems to be. More than HeadSize bytes make for
// a better guess.
func Sniff(head []byte) error {
	if bytes.HasPrefix(head, coreHead) {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrNotModule, guess(head))
}

func guess(head []byte) string {
	text := bytes.ToLower(bytes.TrimSpace(head))
	switch {
	case len(head) == 0:
		return "it is empty"
	case bytes.HasPrefix(head, componentHead):
		return "it is a WebAssembly component, proxies run core modules only"
	case bytes.HasPrefix(head, coreHead[:4]) && len(head) < HeadSize:
		return "it ends in its header"
	case bytes.HasPrefix(head, coreHead[:4]):
		return fmt.Sprintf("it has version %x, want 01000000", head[4:HeadSize])
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return "it is gzip data"
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return "it is a zip archive"
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return "it is a native (ELF) program"
	case bytes.HasPrefix(text, []byte("<!doctype")), bytes.HasPrefix(text, []byte("<html")):
		return "it is an HTML page"
	case bytes.HasPrefix(text, []byte("(module")):
		return "it is WebAssembly text, build it with wat2wasm"
	case bytes.HasPrefix(text, []byte("{")):
		return "it is JSON"
	}
	return fmt.Sprintf("it starts with %q", head[:min(len(head), 16)])
}

// Bounds on what a module may make Inspect remember or walk through. They are
// those of the WebAssembly JavaScript API where it has one.
const (
	maxSections = 10_000
	maxEntries  = 100_000 // imports, and as many exports
	maxName     = 100_000 // bytes
	maxNames    = 4 << 20 // bytes, all names together
	maxTools    = 1_000   // entries of the producers section
)

// Info is what a module file says of itself.
type Info struct {
	Size      int64 // bytes
	Sections  []Section
	Imports   []Import
	Exports   []Export
	ABI       string // Proxy-Wasm version, as in "0.2.1", or empty
	Language  string // from the producers section, as in "Rust 2021", or empty
	Producers []Producer
}

// A Section is one part of a module file.
type Section struct {
	ID   byte
	Name string // of a custom section its own, else the specification's
	Size int64  // bytes of content
}

// A Kind is what an import or export is.
type Kind byte

// Kinds, numbered as in the binary format.
const (
	Func Kind = iota
	Table
	Memory
	Global
	Tag
)

var kindNames = [...]string{"func", "table", "memory", "global", "tag"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", byte(k))
}

// An Import is what a module needs from its host.
type Import struct {
	Module, Name string
	Kind         Kind
}

// An Export is what a module gives to its host.
type Export struct {
	Name string
	Kind Kind
}

// A Producer is one tool that had a part in the module.
type Producer struct {
	Field string // language, processed-by or sdk
	Name  string
	Tool  string // version
}

var sectionNames = [...]string{
	"custom", "type", "import", "function", "table", "memory", "global",
	"export", "start", "element", "code", "data", "data count", "tag",
}

// Inspect reads a module to its end. It holds names, not code: memory does not
// grow with the module beyond 4 MiB of names. It checks framing, imports and
// exports, not whether code is valid. What is no core module at all gives an
// error that wraps ErrNotModule.
//
// https://webassembly.github.io/spec/core/binary/modules.html
func Inspect(r io.Reader) (Info, error) {
	p := &parser{r: bufio.NewReaderSize(r, 32<<10), left: -1}
	head, err := p.r.Peek(64)
	if err != nil && !errors.Is(err, io.EOF) {
		return Info{}, fmt.Errorf("read module: %w", err)
	}
	if err := Sniff(head); err != nil {
		return Info{}, err
	}
	p.skip(HeadSize)
	for p.more() {
		p.section()
	}
	if p.err != nil {
		return Info{}, fmt.Errorf("inspect module at byte %d: %w", p.at, p.err)
	}
	p.info.Size = p.at
	p.info.ABI = abi(p.info.Exports)
	p.info.Language = language(p.info.Producers)
	return p.info, nil
}

// abi is the newest Proxy-Wasm version that the exports promise.
func abi(exports []Export) string {
	version := ""
	for _, e := range exports {
		switch v, _ := strings.CutPrefix(e.Name, "proxy_abi_version_"); v {
		case "0_1_0", "0_2_0", "0_2_1":
			version = max(version, strings.ReplaceAll(v, "_", "."))
		}
	}
	return version
}

func language(producers []Producer) string {
	for _, p := range producers {
		if p.Field == "language" {
			return strings.TrimSpace(p.Name + " " + p.Tool)
		}
	}
	return ""
}

// A parser reads forward. Its first error sticks; after it all reads give zero,
// so that callers check once.
type parser struct {
	r     *bufio.Reader
	at    int64  // bytes read
	left  int64  // bytes left in the section, -1 outside
	names int    // bytes of names kept
	seen  uint32 // bit i: there was a section i
	info  Info
	err   error
	cut   bool // err is about reading, not about what was read
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// more says whether another section follows.
func (p *parser) more() bool {
	if p.err != nil {
		return false
	}
	_, err := p.r.Peek(1)
	if err != nil && !errors.Is(err, io.EOF) {
		p.err = err
	}
	return err == nil
}

func (p *parser) section() {
	id := p.byte()
	size := int64(p.u32())
	if p.err != nil {
		return
	}
	if len(p.info.Sections) == maxSections {
		p.fail("more than %d sections", maxSections)
		return
	}
	p.left = size
	s := Section{ID: id, Size: size}
	if id != 0 {
		s.Name = p.once(id)
	}
	switch id {
	case 0:
		s.Name = p.name()
		if s.Name == "producers" {
			p.producers()
		}
	case 2:
		p.repeat("imports", p.importEntry)
	case 7:
		p.repeat("exports", p.exportEntry)
	}
	p.skip(p.left)
	p.left = -1
	p.info.Sections = append(p.info.Sections, s)
}

// once names a section that is not custom; a module has each at most once.
func (p *parser) once(id byte) string {
	if int(id) >= len(sectionNames) {
		p.fail("unknown section %d", id)
		return ""
	}
	if p.seen&(1<<id) != 0 {
		p.fail("second %s section", sectionNames[id])
	}
	p.seen |= 1 << id
	return sectionNames[id]
}

func (p *parser) repeat(what string, entry func()) {
	n := p.u32()
	if n > maxEntries {
		p.fail("%d %s, more than %d", n, what, maxEntries)
	}
	for ; n > 0 && p.err == nil; n-- {
		entry()
	}
}

func (p *parser) importEntry() {
	i := Import{Module: p.name(), Name: p.name(), Kind: Kind(p.byte())}
	switch i.Kind {
	case Func:
		p.u32()
	case Table:
		p.refType()
		p.limits()
	case Memory:
		p.limits()
	case Global:
		p.refType()
		p.byte()
	case Tag:
		p.byte()
		p.u32()
	default:
		p.fail("import %q %q is of unknown kind %d", i.Module, i.Name, byte(i.Kind))
	}
	p.info.Imports = append(p.info.Imports, i)
}

func (p *parser) exportEntry() {
	e := Export{Name: p.name(), Kind: Kind(p.byte())}
	p.u32()
	if e.Kind > Tag {
		p.fail("export %q is of unknown kind %d", e.Name, byte(e.Kind))
	}
	p.info.Exports = append(p.info.Exports, e)
}

// producers reads the tool conventions' section; what is wrong in it is not
// wrong with the module, so it only ends the reading.
//
// https://github.com/WebAssembly/tool-conventions/blob/main/ProducersSection.md
func (p *parser) producers() {
	for fields := p.u32(); fields > 0 && p.err == nil; fields-- {
		field := p.name()
		for n := p.u32(); n > 0 && p.err == nil; n-- {
			tool := Producer{Field: field, Name: p.name(), Tool: p.name()}
			if len(p.info.Producers) == maxTools {
				return
			}
			if p.err == nil {
				p.info.Producers = append(p.info.Producers, tool)
			}
		}
	}
	if !p.cut {
		p.err = nil
	}
}

// refType reads a value type: one byte, or two and a heap type.
func (p *parser) refType() {
	if t := p.byte(); t == 0x63 || t == 0x64 {
		p.leb(5)
	}
}

// limits reads minimum, maximum if flagged, and page size if flagged
// (memory64, threads and custom-page-sizes included).
func (p *parser) limits() {
	flags := p.byte()
	if flags > 0x0f {
		p.fail("limits with unknown flags %#x", flags)
	}
	p.leb(10)
	if flags&1 != 0 {
		p.leb(10)
	}
	if flags&8 != 0 {
		p.u32()
	}
}

func (p *parser) byte() byte {
	if p.err != nil {
		return 0
	}
	if p.left == 0 {
		p.fail("section ends too early")
		return 0
	}
	b, err := p.r.ReadByte()
	if err != nil {
		p.broken(err)
		return 0
	}
	p.advance(1)
	return b
}

func (p *parser) u32() uint32 {
	v := p.leb(5)
	if v > 1<<32-1 {
		p.fail("number %d does not fit 32 bits", v)
		return 0
	}
	return uint32(v)
}

// leb reads a number of at most size bytes in LEB128.
func (p *parser) leb(size int) uint64 {
	var v uint64
	for i := range size {
		b := p.byte()
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return v
		}
	}
	p.fail("number longer than %d bytes", size)
	return 0
}

func (p *parser) name() string {
	n := int(p.u32())
	if p.err != nil {
		return ""
	}
	p.names += n
	switch {
	case int64(n) > p.left && p.left >= 0:
		p.fail("name of %d bytes in %d", n, p.left)
	case n > maxName:
		p.fail("name of %d bytes, more than %d", n, maxName)
	case p.names > maxNames:
		p.fail("more than %d bytes of names", maxNames)
	}
	if p.err != nil {
		return ""
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(p.r, b); err != nil {
		p.broken(err)
		return ""
	}
	p.advance(int64(n))
	return string(b)
}

func (p *parser) skip(n int64) {
	if p.err != nil || n <= 0 {
		return
	}
	done, err := p.r.Discard(int(n))
	p.advance(int64(done))
	if err != nil {
		p.broken(err)
	}
}

func (p *parser) advance(n int64) {
	p.at += n
	if p.left > 0 {
		p.left -= n
	}
}

// broken records that the file ended, or could not be read, in the middle.
func (p *parser) broken(err error) {
	p.cut = true
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	p.err = err
}
