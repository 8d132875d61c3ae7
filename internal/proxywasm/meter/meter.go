// Package meter instruments WebAssembly modules, so that whoever runs them can stop
// them: a module that loops or recurses for ever calls a function of its host every so
// often, which may trap.
//
// It adds one import, a function () -> i64, and one global that counts down in every
// loop iteration, in every function that calls others, and by the size of every bulk
// operation. Below zero the import is called, and returns what to count down from. It
// also bounds what nothing else bounds: tables, locals, and every count and length in
// the module, which wazero believes and allocates for. It does not validate otherwise,
// and runs nothing.
//
// wazero has the same (WithCloseOnContextDone), but returns from compiled code in
// every iteration, which makes a request through a plugin in Go take 4.6 times as
// long, where this costs nothing that can be measured, and it does not count
// recursion. Without either a looping guest holds up the garbage collector, and so the
// process. The binary format is the specification's
// (webassembly.github.io/spec/core/binary). Start at [Instrument].
package meter

import (
	"errors"
	"fmt"
)

// Limits on modules.
const (
	MaxTables    = 64      // tables
	MaxTable     = 1 << 22 // elements that all tables together start with, and that each may grow to
	MaxLocals    = 50_000  // locals of a function; as in browsers, and thus in Envoy
	MaxAllLocals = 1 << 26 // locals of all functions together
)

// What is wrong with a module.
var (
	ErrMalformed = errors.New("malformed WebAssembly module")
	ErrTooLarge  = errors.New("module exceeds a limit")
)

const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
	secTag
)

const i64 = 0x7e

// Instrument returns the module with an import of module.name that can stop it. Custom
// sections but the names of functions are gone from it: what they say of code is no
// longer so. Errors wrap ErrMalformed or ErrTooLarge.
func Instrument(wasm []byte, module, name string) ([]byte, error) {
	sections, err := split(wasm)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	in := &instrumenter{module: module, name: name}
	out := append(make([]byte, 0, len(wasm)+len(wasm)/2), wasm[:8]...)
	for _, s := range sections.complete() {
		body, err := in.section(s)
		if errors.Is(err, ErrTooLarge) {
			return nil, err
		}
		if err != nil {
			return nil, fmt.Errorf("%w: section %d: %w", ErrMalformed, s.id, err)
		}
		if body != nil {
			out = append(out, s.id)
			out = appendU32(out, uint32(len(body)))
			out = append(out, body...)
		}
	}
	return out, nil
}

type section struct {
	id   byte
	body []byte
}

type sectionList []section

func split(wasm []byte) (sectionList, error) {
	if len(wasm) < 8 || string(wasm[:8]) != "\x00asm\x01\x00\x00\x00" {
		return nil, errors.New("no header of version 1")
	}
	var list sectionList
	r := &reader{data: wasm, at: 8}
	for r.more() {
		id := r.byte()
		size := r.u32()
		list = append(list, section{id, r.bytes(size)})
	}
	return list, r.err
}

func (l sectionList) find(id byte) *section {
	for i := range l {
		if l[i].id == id {
			return &l[i]
		}
	}
	return nil
}

// rank is the order of sections in a module; custom ones are anywhere.
var rank = [...]int{secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secTag: 6, secGlobal: 7,
	secExport: 8, secStart: 9, secElement: 10, secDataCount: 11, secCode: 12, secData: 13}

// complete is the list with the sections that the instrumenter adds to.
func (l sectionList) complete() sectionList {
	for _, id := range []byte{secType, secImport, secGlobal} {
		if l.find(id) != nil {
			continue
		}
		at := 0
		for at < len(l) && (l[at].id == secCustom || int(l[at].id) < len(rank) && rank[l[at].id] < rank[id]) {
			at++
		}
		l = append(l[:at:at], append(sectionList{{id, []byte{0}}}, l[at:]...)...)
	}
	return l
}

type instrumenter struct {
	module, name string

	params    []uint32 // number of parameters, by type
	imported  uint32   // functions; the index of the added import
	types     []uint32 // of the module's own functions
	globals   uint32   // imported and own; the index of the added one
	tableSize uint64
	locals    uint64
}

func (in *instrumenter) section(s section) ([]byte, error) {
	r := &reader{data: s.body}
	var out []byte
	switch s.id {
	case secCustom:
		return in.custom(r)
	case secType:
		out = in.typeSection(r)
	case secImport:
		out = in.importSection(r)
	case secFunction:
		for n := r.count(); n > 0; n-- {
			in.types = append(in.types, r.u32())
		}
		out = s.body
	case secTable:
		return in.tableSection(r)
	case secGlobal:
		out = in.globalSection(r)
	case secExport:
		out = in.exportSection(r)
	case secStart:
		out = appendU32(nil, in.function(r.u32()))
	case secElement:
		out = in.elementSection(r)
	case secCode:
		return in.codeSection(r)
	case secMemory:
		for n := r.count(); n > 0; n-- {
			r.limits()
		}
		out = s.body
	case secData:
		in.dataSection(r)
		out = s.body
	case secDataCount:
		r.u32()
		out = s.body
	case secTag:
		for n := r.count(); n > 0; n-- {
			r.byte()
			r.u32()
		}
		out = s.body
	default:
		r.fail("section of an unknown kind")
	}
	if r.err == nil && r.more() {
		r.fail("bytes after its end")
	}
	return out, r.err
}

// function is a function's new index: all after the imports move up by one.
func (in *instrumenter) function(index uint32) uint32 {
	if index >= in.imported {
		return index + 1
	}
	return index
}

func (in *instrumenter) typeSection(r *reader) []byte {
	n := r.count()
	start := r.at
	for range n {
		if r.byte() != 0x60 {
			r.fail("type that is no function")
		}
		params := r.count()
		r.skip(params)
		r.skip(r.count())
		in.params = append(in.params, params)
	}
	out := append(appendU32(nil, n+1), r.data[start:r.at]...)
	return append(out, 0x60, 0, 1, i64)
}

func (in *instrumenter) importSection(r *reader) []byte {
	n := r.count()
	start := r.at
	for range n {
		r.skip(r.u32()) // module
		r.skip(r.u32()) // name
		switch r.byte() {
		case 0:
			r.u32()
			in.imported++
		case 1:
			r.byte()
			r.limits()
		case 2:
			r.limits()
		case 3:
			r.skip(2)
			in.globals++
		case 4:
			r.byte()
			r.u32()
		default:
			r.fail("import of an unknown kind")
		}
	}
	out := append(appendU32(nil, n+1), r.data[start:r.at]...)
	out = appendName(out, in.module)
	out = appendName(out, in.name)
	return appendU32(append(out, 0), uint32(len(in.params)))
}

func (in *instrumenter) tableSection(r *reader) ([]byte, error) {
	n := r.count()
	out := appendU32(nil, n)
	if n > MaxTables {
		return nil, fmt.Errorf("%w: %d tables, at most %d", ErrTooLarge, n, MaxTables)
	}
	for range n {
		out = append(out, r.byte()) // reference type
		lower, upper := r.limits()
		if in.tableSize += uint64(lower); r.err == nil && in.tableSize > MaxTable {
			return nil, fmt.Errorf("%w: tables of more than %d elements", ErrTooLarge, MaxTable)
		}
		out = appendU32(appendU32(append(out, 1), lower), min(upper, MaxTable))
	}
	if r.err == nil && r.more() {
		r.fail("bytes after its end")
	}
	return out, r.err
}

func (in *instrumenter) globalSection(r *reader) []byte {
	n := r.count()
	w := &writer{r: r, from: r.at}
	for range n {
		r.skip(2)
		in.expression(w)
	}
	w.flush()
	in.globals += n
	out := append(appendU32(nil, n+1), w.out...)
	return append(out, i64, 1, 0x42, 0, 0x0b) // mutable, i64.const 0, end
}

func (in *instrumenter) exportSection(r *reader) []byte {
	w := &writer{r: r}
	for n := r.count(); n > 0; n-- {
		r.skip(r.u32())
		if r.byte() == 0 {
			in.index(w)
		} else {
			r.u32()
		}
	}
	w.flush()
	return w.out
}

func (in *instrumenter) elementSection(r *reader) []byte {
	w := &writer{r: r}
	for n := r.count(); n > 0; n-- {
		flags := r.u32()
		if flags > 7 {
			r.fail("element segment of an unknown kind")
		}
		if flags&1 == 0 { // active
			if flags&2 != 0 {
				r.u32() // table
			}
			in.expression(w)
		}
		if flags&3 != 0 {
			r.byte() // kind or type
		}
		for m := r.count(); m > 0; m-- {
			if flags&4 != 0 {
				in.expression(w)
			} else {
				in.index(w)
			}
		}
	}
	w.flush()
	return w.out
}

// dataSection reads it, for its lengths.
func (in *instrumenter) dataSection(r *reader) {
	w := &writer{r: r}
	for n := r.count(); n > 0; n-- {
		flags := r.u32()
		if flags > 2 {
			r.fail("data segment of an unknown kind")
		}
		if flags == 2 {
			r.u32() // memory
		}
		if flags != 1 {
			in.expression(w)
		}
		r.skip(r.u32())
	}
}

// index copies the index of a function.
func (in *instrumenter) index(w *writer) {
	w.flush()
	w.out = appendU32(w.out, in.function(w.r.u32()))
	w.drop()
}

// expression copies a constant expression.
func (in *instrumenter) expression(w *writer) {
	for depth := 0; w.r.err == nil; {
		switch op := in.instruction(w, nil); op {
		case opBlock, opLoop, opIf:
			depth++
		case opEnd:
			if depth--; depth < 0 {
				return
			}
		}
	}
}

// custom keeps the names of functions, for stack traces.
func (in *instrumenter) custom(r *reader) ([]byte, error) {
	name := string(r.bytes(r.u32()))
	if r.err != nil || name != "name" {
		return nil, r.err
	}
	out := appendName(nil, name)
	for r.more() {
		id := r.byte()
		sub := &reader{data: r.bytes(r.u32())}
		if id != 1 || r.err != nil {
			continue
		}
		n := sub.count()
		names := appendU32(nil, n)
		for range n {
			names = appendU32(names, in.function(sub.u32()))
			names = appendName(names, string(sub.bytes(sub.u32())))
		}
		if sub.err != nil {
			return nil, nil // Not worth refusing a module for.
		}
		out = append(appendU32(append(out, id), uint32(len(names))), names...)
	}
	if r.err != nil {
		return nil, nil
	}
	return out, nil
}
