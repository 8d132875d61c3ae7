package meter

import "fmt"

// Instructions that something is done about.
const (
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opEnd          = 0x0b
	opCall         = 0x10
	opCallIndirect = 0x11
	opMemoryGrow   = 0x40
	opRefFunc      = 0xd2
	opBulk         = 0xfc
	opVector       = 0xfd

	bulkMemoryInit = 8
	bulkMemoryCopy = 10
	bulkMemoryFill = 11
	bulkTableInit  = 12
	bulkTableCopy  = 14
	bulkTableGrow  = 15
	bulkTableFill  = 17
)

// A body is what is known of the function that is being copied.
type body struct {
	local uint32 // index of a spare i32 local
	bulk  bool   // it is used
	calls bool
}

func (in *instrumenter) codeSection(r *reader) ([]byte, error) {
	n := r.count()
	out := appendU32(nil, n)
	if r.err == nil && int(n) != len(in.types) {
		r.fail("as many functions as there are not")
	}
	for i := range n {
		code := &reader{data: r.bytes(r.u32())}
		if r.err != nil {
			break
		}
		f := in.functionBody(code, in.types[i])
		if code.err != nil {
			r.err = code.err
			break
		}
		out = append(appendU32(out, uint32(len(f))), f...)
	}
	if r.err == nil && r.more() {
		r.fail("bytes after its end")
	}
	return out, r.err
}

func (in *instrumenter) functionBody(r *reader, typ uint32) []byte {
	if uint64(typ) >= uint64(len(in.params)) {
		r.fail("function of an unknown type")
		return nil
	}
	locals := uint64(in.params[typ])
	groups := r.count()
	start := r.at
	for range groups {
		locals += uint64(r.u32())
		r.byte()
	}
	if in.locals += locals; locals > MaxLocals || in.locals > MaxAllLocals {
		r.err = fmt.Errorf("%w: %d locals in a function, %d in all so far", ErrTooLarge, locals, in.locals)
		return nil
	}
	declared := r.data[start:r.at]
	b := &body{local: uint32(locals)}
	w := &writer{r: r}
	w.drop()
	for r.more() {
		in.instruction(w, b)
	}
	w.flush()

	out := make([]byte, 0, len(w.out)+len(declared)+64)
	if b.bulk {
		out = append(appendU32(out, groups+1), declared...)
		out = append(out, 1, 0x7f) // one more i32
	} else {
		out = append(appendU32(out, groups), declared...)
	}
	if b.calls { // recursion, too, is a loop
		out = in.check(out)
	}
	return append(out, w.out...)
}

// check appends instructions that count down by one and see whether it is time.
func (in *instrumenter) check(out []byte) []byte {
	out = append(in.get(out), 0x42, 1, 0x7d) // i64.const 1, i64.sub
	out = in.set(out)
	out = append(in.get(out), 0x42, 0, 0x53) // i64.const 0, i64.lt_s
	out = append(out, opIf, 0x40)
	out = appendU32(append(out, opCall), in.imported)
	return append(in.set(out), opEnd)
}

// charge appends instructions that count down by the i32 on the stack, which stays
// there, divided by 2^shift, and see whether it is time.
func (in *instrumenter) charge(out []byte, b *body, shift byte) []byte {
	b.bulk = true
	out = appendU32(append(out, 0x22), b.local) // local.tee
	out = in.get(out)
	out = appendU32(append(out, 0x20), b.local)      // local.get
	out = append(out, 0xad, 0x42, shift, 0x88, 0x7d) // i64.extend_i32_u, i64.const, i64.shr_u, i64.sub
	return in.check(in.set(out))
}

func (in *instrumenter) get(out []byte) []byte { return appendU32(append(out, 0x23), in.globals) }
func (in *instrumenter) set(out []byte) []byte { return appendU32(append(out, 0x24), in.globals) }

// instruction copies one instruction, with what is to come before or after it, and
// returns its first byte. Without a body it is part of a constant expression.
func (in *instrumenter) instruction(w *writer, b *body) byte {
	r := w.r
	at := r.at
	op := r.byte()
	switch {
	case op == opLoop:
		r.s33()
		if b != nil {
			w.flush()
			w.out = in.check(w.out)
		}
	case op == opBlock || op == opIf:
		r.s33()
	case op == opCall:
		if b != nil {
			b.calls = true
		}
		in.index(w)
	case op == opRefFunc:
		in.index(w)
	case op == opCallIndirect:
		if b != nil {
			b.calls = true
		}
		r.u32()
		r.u32()
	case op == opMemoryGrow:
		r.u32()
		if b != nil { // it may copy all there is: time to look
			w.before(at, func(out []byte) []byte { return in.check(in.set(append(out, 0x42, 0))) })
		}
	case op == opBulk:
		in.bulk(w, b, at)
	case op == opVector:
		vector(r)
	default:
		plain(r, op)
	}
	return op
}

// plain reads the immediates of an instruction that nothing is done about.
func plain(r *reader, op byte) {
	switch {
	case op == 0x00, op == 0x01, op == 0x05, op == opEnd, op == 0x0f, op == 0x1a, op == 0x1b, op == 0xd1, op >= 0x45 && op <= 0xc4:
	case op == 0x0c, op == 0x0d, op >= 0x20 && op <= 0x26, op == 0x3f:
		r.u32()
	case op == 0x0e: // br_table
		for n := r.count(); n > 0; n-- {
			r.u32()
		}
		r.u32()
	case op == 0x1c: // select of types
		r.skip(r.u32())
	case op >= 0x28 && op <= 0x3e:
		r.memarg()
	case op == 0x41, op == 0x42:
		r.leb(10)
	case op == 0x43:
		r.skip(4)
	case op == 0x44:
		r.skip(8)
	case op == 0xd0: // ref.null
		r.s33()
	default:
		r.fail("unknown instruction")
	}
}

// bulk copies an instruction of the prefix 0xfc, that began at offset at.
func (in *instrumenter) bulk(w *writer, b *body, at int) {
	r := w.r
	op := r.u32()
	shift := byte(0)
	switch op {
	case 0, 1, 2, 3, 4, 5, 6, 7:
		return
	case bulkMemoryInit, bulkMemoryCopy:
		r.u32()
		r.u32()
		shift = 6 // bytes
	case bulkMemoryFill:
		r.u32()
		shift = 6
	case bulkTableInit, bulkTableCopy:
		r.u32()
		r.u32()
		shift = 3 // references
	case bulkTableGrow, bulkTableFill:
		r.u32()
		shift = 3
	case 9, 13, 16: // data.drop, elem.drop, table.size
		r.u32()
		return
	default:
		r.fail("unknown instruction")
		return
	}
	if b != nil {
		w.before(at, func(out []byte) []byte { return in.charge(out, b, shift) })
	}
}

// vector reads an instruction of the prefix 0xfd.
func vector(r *reader) {
	switch op := r.u32(); {
	case op <= 11, op == 92, op == 93:
		r.memarg()
	case op == 12, op == 13: // v128.const, i8x16.shuffle
		r.skip(16)
	case op >= 21 && op <= 34:
		r.byte()
	case op >= 84 && op <= 91:
		r.memarg()
		r.byte()
	case op > 275:
		r.fail("unknown instruction")
	}
}
