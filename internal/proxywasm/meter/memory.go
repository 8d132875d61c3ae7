package meter

import (
	"fmt"
	"slices"
)

const kindMemory = 2

// OwnMemory returns the module with the memory that it imports, if it does, as one of
// its own, which it exports: what a host does that gives each module a memory of the
// size it asks for, whatever the import is called. Errors wrap ErrMalformed.
func OwnMemory(wasm []byte) ([]byte, error) {
	sections, err := split(wasm)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	imports := sections.find(secImport)
	if imports == nil {
		return wasm, nil
	}
	rest, limits, err := withoutMemory(imports.body)
	if err != nil {
		return nil, fmt.Errorf("%w: section %d: %w", ErrMalformed, secImport, err)
	}
	if limits == nil || sections.find(secMemory) != nil { // two memories there may not be: the engine says so
		return wasm, nil
	}
	imports.body = rest
	sections = sections.with(secMemory, append([]byte{1}, limits...))
	exports := sections.find(secExport)
	if exports == nil {
		sections = sections.with(secExport, []byte{0})
		exports = sections.find(secExport)
	}
	if exports.body, err = withMemory(exports.body); err != nil {
		return nil, fmt.Errorf("%w: section %d: %w", ErrMalformed, secExport, err)
	}
	out := slices.Clone(wasm[:8])
	for _, s := range sections {
		out = append(appendU32(append(out, s.id), uint32(len(s.body))), s.body...)
	}
	return out, nil
}

// with is the list with one section more, at its place.
func (l sectionList) with(id byte, body []byte) sectionList {
	at := 0
	for at < len(l) && (l[at].id == secCustom || int(l[at].id) < len(rank) && rank[l[at].id] < rank[id]) {
		at++
	}
	return slices.Insert(l, at, section{id, body})
}

// withoutMemory takes the memory out of an import section and returns its limits, as
// they are encoded; nil if there is none.
func withoutMemory(body []byte) (rest, limits []byte, err error) {
	r := &reader{data: body}
	n := r.count()
	kept := n
	var entries []byte
	for range n {
		from := r.at
		r.skip(r.u32())
		r.skip(r.u32())
		switch kind := r.byte(); kind {
		case 0: // a function
			r.u32()
		case 1: // a table
			r.byte()
			r.limits()
		case kindMemory:
			at := r.at
			r.limits()
			if limits == nil && r.err == nil {
				limits = body[at:r.at]
				kept--
				continue
			}
		case 3: // a global
			r.byte()
			r.byte()
		default:
			r.fail("unknown import")
		}
		if r.err == nil {
			entries = append(entries, body[from:r.at]...)
		}
	}
	return append(appendU32(nil, kept), entries...), limits, r.err
}

// withMemory adds the memory to an export section that exports none.
func withMemory(body []byte) ([]byte, error) {
	const name = "memory"
	r := &reader{data: body}
	n := r.count()
	from := r.at
	for range n {
		is := string(r.bytes(r.u32()))
		kind := r.byte()
		r.u32()
		if kind == kindMemory || is == name {
			return body, r.err
		}
	}
	entry := append(appendName(nil, name), kindMemory, 0)
	return append(append(appendU32(nil, n+1), body[from:r.at]...), entry...), r.err
}
