package module

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// uleb and the functions after it write the binary format.
func uleb(n int) []byte { return binary.AppendUvarint(nil, uint64(n)) }

func str(s string) []byte { return append(uleb(len(s)), s...) }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func sec(id byte, content ...[]byte) []byte {
	body := cat(content...)
	return cat([]byte{id}, uleb(len(body)), body)
}

func file(sections ...[]byte) []byte { return cat(coreHead, cat(sections...)) }

func sample() []byte {
	return file(
		sec(1, uleb(1), []byte{0x60, 0, 0}),
		sec(2, uleb(5),
			str("env"), str("proxy_log"), []byte{0, 0},
			str("env"), str("t"), []byte{1, 0x70, 1, 1, 9},
			str("env"), str("m"), []byte{2, 3, 1, 2},
			str("env"), str("g"), []byte{3, 0x7f, 1},
			str("env"), str("x"), []byte{4, 0, 0}),
		sec(7, uleb(3),
			str("proxy_abi_version_0_2_1"), []byte{0, 1},
			str("proxy_abi_version_9_9_9"), []byte{0, 1},
			str("memory"), []byte{2, 0}),
		sec(0, str("producers"), uleb(1), str("language"), uleb(1), str("Rust"), str("2021")),
	)
}

func TestInspect(t *testing.T) {
	// One byte a read: what is peeked and what is read must not depend on chunks.
	got, err := Inspect(iotest.OneByteReader(bytes.NewReader(sample())))
	if err != nil {
		t.Fatal(err)
	}
	want := Info{
		Size: int64(len(sample())),
		Sections: []Section{
			{ID: 1, Name: "type", Size: 4}, {ID: 2, Name: "import", Size: 56},
			{ID: 7, Name: "export", Size: 62}, {ID: 0, Name: "producers", Size: 31},
		},
		Imports: []Import{
			{"env", "proxy_log", Func}, {"env", "t", Table}, {"env", "m", Memory}, {"env", "g", Global}, {"env", "x", Tag},
		},
		Exports:   []Export{{"proxy_abi_version_0_2_1", Func}, {"proxy_abi_version_9_9_9", Func}, {"memory", Memory}},
		ABI:       "0.2.1",
		Language:  "Rust 2021",
		Producers: []Producer{{"language", "Rust", "2021"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestInspectIgnoresBadProducers(t *testing.T) {
	got, err := Inspect(bytes.NewReader(file(sec(0, str("producers"), uleb(99), str("language")), sec(1, uleb(0)))))
	if err != nil || len(got.Sections) != 2 {
		t.Fatalf("Inspect = %+v, %v; want both sections", got, err)
	}
}

func TestInspectRefuses(t *testing.T) {
	huge := bytes.Repeat([]byte{0xff}, 5)
	for _, tt := range []struct {
		name string
		in   []byte
		want string
	}{
		{"empty", nil, "it is empty"},
		{"header cut", []byte("\x00asm\x01"), "ends in its header"},
		{"version", []byte("\x00asm\x02\x00\x00\x00"), "version 02000000"},
		{"component", append(bytes.Clone(componentHead), 0), "component"},
		{"html", []byte("\n<!DOCTYPE html>"), "HTML"},
		{"text", []byte("(module)"), "wat2wasm"},
		{"section cut", file(sec(10, make([]byte, 100)))[:50], "unexpected EOF"},
		{"section size huge", file([]byte{10}, huge), "longer than 5"},
		{"section size", file([]byte{10, 0xff, 0xff, 0xff, 0xff, 0x7f}), "32 bits"},
		{"unknown section", file(sec(77)), "unknown section 77"},
		{"second section", file(sec(2, uleb(0)), sec(2, uleb(0))), "second import section"},
		{"too many imports", file(sec(2, uleb(1<<30))), "more than 100000"},
		{"name beyond section", file(sec(2, uleb(1), uleb(1<<20))), "name of"},
		{"long name", file(sec(2, uleb(1), str(strings.Repeat("x", maxName+1)))), "more than 100000"},
		{"import kind", file(sec(2, uleb(1), str("a"), str("b"), []byte{9})), "unknown kind 9"},
		{"export kind", file(sec(7, uleb(1), str("a"), []byte{9, 0})), "unknown kind 9"},
		{"section ends in entry", file(sec(7, uleb(2), str("a"), []byte{0, 0})), "ends too early"},
		{"limits", file(sec(2, uleb(1), str("a"), str("b"), []byte{2, 0xf0})), "unknown flags"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Inspect(bytes.NewReader(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error = %v, want one with %q", err, tt.want)
			}
			if header := !bytes.HasPrefix(tt.in, coreHead); header != errors.Is(err, ErrNotModule) {
				t.Errorf("is ErrNotModule: %v, want %v", !header, header)
			}
		})
	}
}

func TestInspectPassesReadErrors(t *testing.T) {
	boom := errors.New("boom")
	in := io.MultiReader(bytes.NewReader(sample()[:70]), iotest.ErrReader(boom))
	if _, err := Inspect(in); !errors.Is(err, boom) {
		t.Fatalf("error = %v, want boom", err)
	}
}

// A module of 100 MB must not cost memory.
func TestInspectHoldsNoCode(t *testing.T) {
	const size = 100 << 20
	head := cat(coreHead, []byte{10}, uleb(size))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	info, err := Inspect(io.MultiReader(bytes.NewReader(head), io.LimitReader(zeros{}, size)))
	runtime.ReadMemStats(&after)
	if err != nil || info.Size != int64(len(head))+size {
		t.Fatalf("Inspect = %+v, %v", info, err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("allocated %d bytes", grown)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func FuzzInspect(f *testing.F) {
	f.Add(sample())
	f.Add(file(sec(2, uleb(1<<20), str("a"))))
	f.Add(file(sec(0, str("producers"), uleb(1<<30))))
	f.Add([]byte("\x00asm"))
	f.Fuzz(func(t *testing.T, in []byte) {
		info, err := Inspect(bytes.NewReader(in))
		if err != nil {
			return
		}
		if info.Size != int64(len(in)) {
			t.Fatalf("read %d bytes of %d without an error", info.Size, len(in))
		}
		if len(info.Imports)+len(info.Exports)+len(info.Sections)+len(info.Producers) > len(in) {
			t.Fatal("more entries than bytes")
		}
	})
}
