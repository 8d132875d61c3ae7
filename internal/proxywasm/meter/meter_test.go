package meter

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

func assemble(t testing.TB, wat string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "m.wasm")
	cmd := exec.Command("wat2wasm", "--debug-names", "-", "-o", out)
	cmd.Stdin = strings.NewReader(wat)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("wat2wasm: %v: %s", err, msg)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// run runs the module's function run, and returns its result and how often the module
// called to be interrupted, every budget'th time it could.
func run(t testing.TB, wasm []byte, budget int64) (result uint64, interrupts int, err error) {
	t.Helper()
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer r.Close(ctx)
	host := func(name string, f api.GoFunc, params, results []api.ValueType) {
		if _, err := r.NewHostModuleBuilder(name).NewFunctionBuilder().WithGoFunction(f, params, results).Export("f").Instantiate(ctx); err != nil {
			t.Fatal(err)
		}
	}
	host("meter", func(_ context.Context, stack []uint64) {
		if interrupts++; interrupts > 1000 {
			panic(errors.New("enough"))
		}
		stack[0] = uint64(budget)
	}, nil, []api.ValueType{api.ValueTypeI64})
	i32 := []api.ValueType{api.ValueTypeI32}
	host("twice", func(_ context.Context, stack []uint64) { stack[0] *= 2 }, i32, i32)
	m, err := r.Instantiate(ctx, wasm)
	if err != nil {
		return 0, interrupts, err
	}
	results, err := m.ExportedFunction("run").Call(ctx)
	if err != nil {
		return 0, interrupts, err
	}
	return results[0], interrupts, nil
}

// Programs that use what the format has, each with its result.
var programs = []struct {
	name, wat  string
	want       uint64
	interrupts int // with a budget of 10
}{
	{"straight", `(module (func (export "run") (result i32) (i32.const 7)))`, 7, 0},
	{"loop", `(module (func (export "run") (result i32) (local $i i32)
		(loop $l (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if $l (i32.lt_u (local.get $i) (i32.const 100))))
		(local.get $i)))`, 100, 10},
	{"loop with parameters", `(module (func (export "run") (result i32) (local $n i32)
		i32.const 0
		loop $l (param i32) (result i32)
			i32.const 1 i32.add local.tee $n
			local.get $n i32.const 30 i32.lt_u br_if $l
		end))`, 30, 3},
	{"recursion", `(module (func $f (param i32) (result i32)
			(if (result i32) (local.get 0) (then (i32.add (i32.const 2) (call $f (i32.sub (local.get 0) (i32.const 1))))) (else (i32.const 1))))
		(func (export "run") (result i32) (call $f (i32.const 50))))`, 101, 5},
	{"imports", `(module (import "twice" "f" (func $twice (param i32) (result i32)))
		(func $g (result i32) (i32.const 4))
		(func (export "run") (result i32) (call $twice (call $g))))`, 8, 1},
	{"start and globals", `(module (global $g (mut i32) (i32.const 1)) (global $r funcref (ref.func $set)) (table 1 funcref)
		(func $set (global.set $g (i32.const 9))) (start $set)
		(func (export "run") (result i32) (global.get $g)))`, 9, 0},
	{"indirect calls and elements", `(module (import "twice" "f" (func $twice (param i32) (result i32)))
		(type $t (func (param i32) (result i32)))
		(table $a 4 funcref) (table $b 4 funcref)
		(func $add (type $t) (i32.add (local.get 0) (i32.const 3)))
		(elem (table $a) (i32.const 0) func $twice $add)
		(elem (table $b) (i32.const 1) funcref (ref.func $add) (ref.null func))
		(elem $p func $add) (elem $e funcref (ref.func $twice)) (elem declare func $add)
		(func (export "run") (result i32)
			(table.init $b $e (i32.const 3) (i32.const 0) (i32.const 1))
			(table.copy $a $b (i32.const 2) (i32.const 3) (i32.const 1))
			(table.set $b (i32.const 0) (ref.func $add))
			(elem.drop $p)
			(i32.add
				(call_indirect $a (type $t) (call_indirect $a (type $t) (i32.const 5) (i32.const 1)) (i32.const 2))
				(call_indirect $b (type $t) (i32.const 1) (i32.const 0)))))`, 20, 1},
	{"bulk memory", `(module (memory 2) (data $d "abcd")
		(func (export "run") (result i32) (local i64 f32)
			(memory.fill (i32.const 0) (i32.const 1) (i32.const 100000))
			(memory.copy (i32.const 200) (i32.const 0) (i32.const 64))
			(memory.init $d (i32.const 300) (i32.const 1) (i32.const 2))
			(data.drop $d)
			(drop (memory.grow (i32.const 1)))
			(i32.add (memory.size) (i32.load16_u (i32.const 300)))))`, 3 + 0x6362, 2},
	{"tables grow", `(module (table $t 1 externref)
		(func (export "run") (result i32)
			(drop (table.grow $t (ref.null extern) (i32.const 5)))
			(table.fill $t (i32.const 0) (ref.null extern) (i32.const 2))
			(i32.add (table.size $t) (ref.is_null (table.get $t (i32.const 1))))))`, 7, 1},
	{"control", `(module (func (export "run") (result i32) (local $n i32)
		(block $a (block $b (block $c (br_table $a $b $c $a (i32.const 1))) (local.set $n (i32.const 100))) (local.set $n (i32.add (local.get $n) (i32.const 5))))
		(if (i32.eqz (i32.const 0)) (then (nop)) (else (unreachable)))
		(select (result i32) (local.get $n) (i32.const 0) (i32.const 1))
		(return)))`, 5, 0},
	{"numbers", `(module (memory 1) (func (export "run") (result i32)
		(i64.store offset=8 (i32.const 0) (i64.const -9223372036854775808))
		(f64.store (i32.const 32) (f64.const 1.5)) (f32.store (i32.const 48) (f32.const -2))
		(drop (i32.trunc_sat_f64_u (f64.load (i32.const 32)))) (drop (i32.extend8_s (i32.const 255)))
		(i32.wrap_i64 (i64.shr_u (i64.load offset=8 (i32.const 0)) (i64.const 63)))))`, 1, 0},
	{"vectors", `(module (memory 1) (func (export "run") (result i32)
		(v128.store (i32.const 0) (v128.const i32x4 1 2 3 4))
		(v128.store32_lane 2 (i32.const 64) (v128.load (i32.const 0)))
		(drop (v128.load8_lane 3 (i32.const 0) (v128.load64_zero (i32.const 0))))
		(i32.add (i32.load (i32.const 64)) (i32x4.extract_lane 1 (i8x16.shuffle 4 5 6 7 4 5 6 7 0 0 0 0 0 0 0 0 (v128.load (i32.const 0)) (i32x4.splat (i32.const 9)))))))`, 5, 0},
}

// Instrumented programs do what they did, and ask to be interrupted as often as they
// do something that takes time.
func TestInstrument(t *testing.T) {
	for _, tt := range programs {
		t.Run(tt.name, func(t *testing.T) {
			wasm := assemble(t, tt.wat)
			if got, _, err := run(t, wasm, 0); err != nil || got != tt.want {
				t.Fatalf("as it was: %d, %v, want %d", got, err, tt.want)
			}
			metered, err := Instrument(wasm, "meter", "f")
			if err != nil {
				t.Fatal(err)
			}
			got, interrupts, err := run(t, metered, 10)
			if err != nil || got != tt.want || interrupts != tt.interrupts {
				t.Errorf("instrumented: %d, %v after %d interrupts, want %d after %d", got, err, interrupts, tt.want, tt.interrupts)
			}
		})
	}
}

func TestEndless(t *testing.T) {
	for name, wat := range map[string]string{
		"loop":      `(module (func (export "run") (result i32) (loop $l (br $l)) (unreachable)))`,
		"recursion": `(module (func $f (param i32) (if (local.get 0) (then (call $f (i32.sub (local.get 0) (i32.const 1))) (call $f (i32.sub (local.get 0) (i32.const 1)))))) (func (export "run") (result i32) (call $f (i32.const 40)) (i32.const 0)))`,
		"start":     `(module (func $f (loop $l (br $l))) (start $f) (func (export "run") (result i32) (i32.const 0)))`,
		"fill":      `(module (memory 1) (func (export "run") (result i32) (loop $l (memory.fill (i32.const 0) (i32.const 0) (i32.const 65536)) (br $l)) (unreachable)))`,
		"grow":      `(module (memory 1) (func (export "run") (result i32) (loop $l (drop (memory.grow (i32.const 0))) (br $l)) (unreachable)))`,
	} {
		metered, err := Instrument(assemble(t, wat), "meter", "f")
		if err != nil {
			t.Fatal(err)
		}
		if _, interrupts, err := run(t, metered, 100); err == nil || !strings.Contains(err.Error(), "enough") {
			t.Errorf("%s: %v after %d interrupts, want to be stopped", name, err, interrupts)
		}
	}
}

func TestNames(t *testing.T) {
	wasm := assemble(t, `(module (import "twice" "f" (func $twice (param i32) (result i32)))
		(func $inner (unreachable)) (func (export "run") (result i32) (call $inner) (i32.const 0)))`)
	metered, err := Instrument(wasm, "meter", "f")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, metered, 10); err == nil || !strings.Contains(err.Error(), "inner") {
		t.Errorf("trap = %v, want the name of inner in it", err)
	}
}

func TestTables(t *testing.T) {
	for _, tt := range []struct {
		wat string
		ok  bool
	}{
		{`(module (table 4194304 funcref) (func))`, true},
		{`(module (table 4194305 funcref) (func))`, false},
		{`(module (table 4194304 funcref) (table 1 funcref) (func))`, false},
		{`(module ` + strings.Repeat("(table 0 funcref)", 65) + ` (func))`, false},
	} {
		if _, err := Instrument(assemble(t, tt.wat), "meter", "f"); (err == nil) != tt.ok {
			t.Errorf("Instrument = %v, want ok %v: %.60s", err, tt.ok, tt.wat)
		}
	}
	metered, err := Instrument(assemble(t, `(module (table $t 0 externref) (func (export "run") (result i32) (table.grow $t (ref.null extern) (i32.const 4194305))))`), "meter", "f")
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := run(t, metered, 10); err != nil || int32(got) != -1 {
		t.Errorf("a table beyond its bounds grew to %d, %v", int32(got), err)
	}
}

func TestMalformed(t *testing.T) {
	const header = "\x00asm\x01\x00\x00\x00"
	for _, wasm := range []string{
		"", "\x00asm", "\x00asm\x02\x00\x00\x00", header + "\x01", header + "\x01\xff", header + "\x01\x80\x80\x80\x80\x80\x00",
		header + "\x0a\x01\x01",                                                                   // code without functions
		header + "\x03\x02\x01\x00" + "\x0a\x04\x01\x02\x00\x0b",                                  // of no type
		header + "\x01\x04\x01\x60\x00\x00" + "\x03\x02\x01\x00" + "\x0a\x05\x01\x03\x00\xff\x0b", // unknown instruction
		header + "\x01\x04\x01\x60\x00\x00" + "\x03\x02\x01\x00" + "\x0a\x04\x01\x09\x00\x0b",     // longer than its section
		header + "\x01\x05\x01\x60\x00\x00\x00" + "\x03\x02\x01\x00" + "\x0a\x04\x01\x02\x00\x0b", // bytes after the last type
	} {
		if out, err := Instrument([]byte(wasm), "meter", "f"); !errors.Is(err, ErrMalformed) {
			t.Errorf("Instrument(%q) = %d bytes, %v, want ErrMalformed", wasm, len(out), err)
		}
	}
	for _, wasm := range []string{
		header + "\x02\x01\x80\x80\x80\x7f", header + "\x02\x05\xff\xff\xff\xff\x0f", // as many imports as there are numbers
		header + "\x0b\x08\x01\x01\xff\xff\xff\xff\x0f\x00", header + "\x05\x05\xff\xff\xff\xff\x0f",
	} {
		if _, err := Instrument([]byte(wasm), "meter", "f"); !errors.Is(err, ErrMalformed) {
			t.Errorf("Instrument(%q) = %v, want ErrMalformed", wasm, err)
		}
	}
}

func TestLocals(t *testing.T) {
	// func with 4294967295 locals of type i32
	wasm := "\x00asm\x01\x00\x00\x00" + "\x01\x04\x01\x60\x00\x00" + "\x03\x02\x01\x00" + "\x0a\x0a\x01\x08\x01\xff\xff\xff\xff\x0f\x7f\x0b"
	if _, err := Instrument([]byte(wasm), "meter", "f"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Instrument = %v, want ErrTooLarge", err)
	}
}

// What was valid stays so.
func FuzzInstrument(f *testing.F) {
	for _, p := range programs {
		f.Add(assemble(f, p.wat))
	}
	ctx := context.Background()
	f.Fuzz(func(t *testing.T, wasm []byte) {
		metered, err := Instrument(wasm, "meter", "f")
		if err != nil {
			return
		}
		r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithMemoryLimitPages(16))
		defer r.Close(ctx)
		if _, err := r.CompileModule(ctx, wasm); err != nil {
			return
		}
		if _, err := r.CompileModule(ctx, metered); err != nil {
			t.Fatalf("a valid module is not valid any more: %v", err)
		}
	})
}

// A memory that is imported becomes the module's own, and is exported.
func TestOwnMemory(t *testing.T) {
	const code = `(func (export "run") (result i32) (i32.load8_u (i32.const 5)))(data (i32.const 5) "*")`
	for name, wat := range map[string]string{
		"imported":             `(module (import "x" "y" (memory 1 2))` + code + `)`,
		"among others":         `(module (import "twice" "f" (func (param i32) (result i32))) (import "x" "y" (memory 1)) (global i32 (i32.const 1)) ` + code + `)`,
		"exported too":         `(module (import "x" "y" (memory 1)) (export "other" (memory 0))` + code + `)`,
		"its own":              `(module (memory (export "memory") 1)` + code + `)`,
		"nothing is exported":  `(module (import "x" "y" (memory 1)))`,
		"a name that is taken": `(module (import "x" "y" (memory 1)) (func (export "memory"))` + code + `)`,
	} {
		t.Run(name, func(t *testing.T) {
			wasm, err := OwnMemory(assemble(t, wat))
			if err != nil {
				t.Fatal(err)
			}
			compiled, err := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigInterpreter()).CompileModule(t.Context(), wasm)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(compiled.ImportedMemories()); n != 0 {
				t.Errorf("%d memories are imported", n)
			}
			if n := len(compiled.ExportedMemories()); n != 1 && name != "a name that is taken" {
				t.Errorf("%d memories are exported", n)
			}
			if name == "nothing is exported" {
				return
			}
			if got, _, err := run(t, wasm, 1); got != '*' || err != nil {
				t.Errorf("run = %d, %v", got, err)
			}
		})
	}
}

func FuzzOwnMemory(f *testing.F) {
	f.Add(assemble(f, `(module (import "x" "y" (memory 1)) (import "x" "z" (table 1 funcref)) (import "x" "g" (global i32)))`))
	f.Add(assemble(f, `(module (memory (export "memory") 1))`))
	f.Fuzz(func(t *testing.T, wasm []byte) {
		once, err := OwnMemory(wasm)
		if err != nil {
			return
		}
		if _, err := OwnMemory(once); err != nil {
			t.Fatalf("what OwnMemory made is refused: %v", err)
		}
	})
}
