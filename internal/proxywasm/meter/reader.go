package meter

import (
	"fmt"
	"math"
)

// A reader reads a module. After its first error it reads zeros.
type reader struct {
	data []byte
	at   int
	err  error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s at offset %d", what, r.at)
	}
}

func (r *reader) more() bool { return r.err == nil && r.at < len(r.data) }

func (r *reader) byte() byte {
	if !r.more() {
		r.fail("unexpected end")
		return 0
	}
	r.at++
	return r.data[r.at-1]
}

func (r *reader) bytes(n uint32) []byte {
	if r.err != nil || uint64(n) > uint64(len(r.data)-r.at) {
		r.fail("unexpected end")
		return nil
	}
	r.at += int(n)
	return r.data[r.at-int(n) : r.at]
}

func (r *reader) skip(n uint32) { r.bytes(n) }

// leb skips an integer of at most limit bytes and returns the value of its bits,
// without sign.
func (r *reader) leb(limit int) uint64 {
	var v uint64
	for i := range limit {
		b := r.byte()
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return v
		}
	}
	r.fail("integer too long")
	return 0
}

func (r *reader) u32() uint32 {
	v := r.leb(5)
	if v > math.MaxUint32 {
		r.fail("integer too large")
		return 0
	}
	return uint32(v)
}

func (r *reader) s33() { r.leb(5) }

// count is the length of a vector, each of whose elements takes a byte at least.
func (r *reader) count() uint32 {
	n := r.u32()
	if r.err != nil || uint64(n) > uint64(len(r.data)-r.at) {
		r.fail("unexpected end")
		return 0
	}
	return n
}

// limits reads the least and the greatest size of a table or memory.
func (r *reader) limits() (lower, upper uint32) {
	flags := r.byte()
	lower, upper = r.u32(), math.MaxUint32
	if flags > 3 {
		r.fail("unknown limits")
	}
	if flags&1 != 0 {
		upper = r.u32()
	}
	return lower, upper
}

func (r *reader) memarg() {
	if align := r.u32(); align&0x40 != 0 {
		r.u32() // memory
	}
	r.leb(10)
}

// A writer copies what a reader reads, but for what is put in between.
type writer struct {
	r    *reader
	out  []byte
	from int // what was read before it is copied or dropped
}

// flush copies what was read.
func (w *writer) flush() {
	w.out = append(w.out, w.r.data[w.from:w.r.at]...)
	w.from = w.r.at
}

// drop forgets what was read.
func (w *writer) drop() { w.from = w.r.at }

// before has put append something before what was read since offset at.
func (w *writer) before(at int, put func([]byte) []byte) {
	if w.r.err != nil {
		return
	}
	w.out = put(append(w.out, w.r.data[w.from:at]...))
	w.from = at
}

func appendU32(out []byte, v uint32) []byte {
	for v >= 0x80 {
		out = append(out, byte(v)|0x80)
		v >>= 7
	}
	return append(out, byte(v))
}

func appendName(out []byte, name string) []byte {
	return append(appendU32(out, uint32(len(name))), name...)
}
