package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/chandler-proxy/chandler/internal/module"
)

var wasm = append([]byte("\x00asm\x01\x00\x00\x00\x00\x82\x10\x01x"), make([]byte, 2048)...)

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(b, nil)
}

type member struct {
	name string
	kind byte
	body []byte
}

func tarOf(members ...member) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		w.WriteHeader(&tar.Header{Name: m.name, Typeflag: m.kind, Size: int64(len(m.body)), Mode: 0o644})
		w.Write(m.body)
	}
	w.Close()
	return out.Bytes()
}

func reg(name string, body []byte) member { return member{name, tar.TypeReg, body} }

func dir(name string) member { return member{name, tar.TypeDir, nil} }

func unbox(in []byte, name string, maxModule int64) ([]byte, error) {
	r, err := Unbox(iotest.HalfReader(bytes.NewReader(in)), name, maxModule)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestUnbox(t *testing.T) {
	other := []byte("other")
	for _, tt := range []struct {
		name string
		in   []byte
		file string
	}{
		{"as it is", wasm, ""},
		{"gzip", gz(wasm), ""},
		{"gzip twice", gz(gz(wasm)), ""},
		{"zstd", zst(wasm), ""},
		{"tar", tarOf(dir("d/"), reg("d/x", wasm), reg("y", other)), ""},
		{"gzip of tar", gz(tarOf(reg("x", wasm))), ""},
		{"tar of gzip", tarOf(reg("x.gz", gz(wasm))), ""},
		{"zstd of tar", zst(tarOf(reg("x", wasm))), ""},
		{"two gzip members", append(gz(wasm[:100]), gz(wasm[100:])...), ""},
		{"by name", gz(tarOf(reg("README", other), reg("./a/plugin.wasm", wasm))), "plugin.wasm"},
		{"not the link", tarOf(member{"plugin.wasm", tar.TypeSymlink, nil}, reg("b/plugin.wasm", wasm)), "plugin.wasm"},
		{"not the suffix", tarOf(reg("other-plugin.wasm", other), reg("plugin.wasm", wasm)), "plugin.wasm"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := unbox(tt.in, tt.file, int64(len(wasm)))
			if err != nil || !bytes.Equal(got, wasm) {
				t.Errorf("Unbox: %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestUnboxRefuses(t *testing.T) {
	const limit = 64 << 10
	big := make([]byte, limit+1)
	bomb := make([]byte, limit+maxOverhead+1)
	for _, tt := range []struct {
		name string
		in   []byte
		kind Kind
		want string
	}{
		{"no such file", tarOf(reg("a", wasm), reg("b.wasm", wasm)), NotModule, `no plugin.wasm in the archive, which has "a, b.wasm"`},
		{"empty archive", tarOf(), Failed, ""}, // 1 KiB of zeros: not known for a tar
		{"directories only", tarOf(dir("plugin.wasm")), NotModule, "no plugin.wasm"},
		{"large module", gz(append(bytes.Clone(wasm), big...)), TooLarge, "module is larger than the limit of 65536 bytes"},
		{"large member", gz(tarOf(reg("plugin.wasm", big))), TooLarge, "module is larger than the limit of 65536 bytes"},
		{"gzip bomb before it", gz(tarOf(reg("a", bomb), reg("plugin.wasm", wasm))), TooLarge, "unpacks to is larger than the limit"},
		{"zstd bomb before it", zst(tarOf(reg("a", bomb), reg("plugin.wasm", wasm))), TooLarge, "unpacks to is larger than the limit"},
		{"bomb in a bomb", gz(gz(gz(bomb))), TooLarge, "larger than the limit"},
		{"cut gzip", gz(tarOf(reg("plugin.wasm", wasm)))[:60], Failed, "unexpected EOF"},
		{"cut tar", tarOf(reg("plugin.wasm", wasm))[:700], Failed, "unexpected EOF"},
		{"bad gzip", append(gz(nil)[:10], 0xff, 0xff, 0xff), Failed, "read archive"},
		{"bad gzip header", []byte("\x1f\x8b\x09rest of it"), Failed, "read gzip"},
		{"bad zstd", []byte("\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff"), Failed, "read archive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := unbox(tt.in, "plugin.wasm", limit)
			if tt.want == "" {
				if module.Sniff(got) == nil {
					t.Error("is a module")
				}
				return
			}
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Kind != tt.kind || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v (%+v), want %q of kind %v", err, e, tt.want, tt.kind)
			}
		})
	}
}

func TestUnboxCountsEntries(t *testing.T) {
	many := make([]member, maxEntries+1)
	for i := range many {
		many[i] = dir("d")
	}
	_, err := unbox(gz(tarOf(many...)), "", 64<<20)
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != TooLarge || !strings.Contains(err.Error(), "more entries than the limit of 10000") {
		t.Errorf("error is %v (%+v)", err, e)
	}
}

func TestUnboxGoesNoDeeper(t *testing.T) {
	got, err := unbox(gz(gz(gz(gz(gz(wasm))))), "", 1<<20)
	if err != nil || module.Sniff(got) == nil {
		t.Errorf("five boxes: %v, is a module: %v", err, module.Sniff(got) == nil)
	}
}

// A zstd header can ask for a huge window; it must not get it.
func TestUnboxBoundsZstdMemory(t *testing.T) {
	// Frame header without single segment, window descriptor for 2 GiB.
	in := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8}, make([]byte, 600)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := unbox(in, "", 1<<20)
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Error("no error")
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
		t.Errorf("allocated %d bytes", grown)
	}
}

// fetchBody is what a fetcher does with a layer.
func fetchBody(in io.Reader, want module.Digest, put func(module.Digest, io.Reader) error) error {
	req := &Request{Put: put}
	return Unpack(req, NewBody(in, 1<<20, want, sha256.New()), module.Digest{}, "plugin.wasm", 1<<20)
}

func read(_ module.Digest, r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

func TestUnpackComparesTheDigest(t *testing.T) {
	good := gz(tarOf(reg("plugin.wasm", wasm), reg("after", make([]byte, 5000))))
	want := module.Digest(sha256.Sum256(good))
	if err := fetchBody(bytes.NewReader(good), want, read); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	for name, tt := range map[string]struct {
		in    io.Reader
		put   func(module.Digest, io.Reader) error
		kind  Kind
		retry bool
		is    error
	}{
		"other bytes":     {in: bytes.NewReader(gz(tarOf(reg("plugin.wasm", append(wasm, 0))))), kind: Checksum},
		"more after it":   {in: io.MultiReader(bytes.NewReader(good), strings.NewReader("x")), kind: Checksum},
		"damaged":         {in: bytes.NewReader(append(bytes.Clone(good[:40]), good[30:]...)), kind: Checksum},
		"not gzip at all": {in: strings.NewReader("<html>"), kind: Checksum},
		"network":         {in: io.MultiReader(bytes.NewReader(good[:90]), iotest.ErrReader(boom)), retry: true, is: boom},
		"cut":             {in: io.MultiReader(bytes.NewReader(good[:90]), iotest.ErrReader(io.ErrUnexpectedEOF)), retry: true, is: io.ErrUnexpectedEOF},
		"never ends":      {in: io.MultiReader(bytes.NewReader(good), endless{}), kind: TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			err := fetchBody(tt.in, want, read)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Kind != tt.kind || e.Retry != tt.retry || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error is %v (%+v)", err, e)
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func FuzzUnbox(f *testing.F) {
	f.Add(wasm, true)
	f.Add(gz(tarOf(reg("plugin.wasm", wasm))), true)
	f.Add(zst(wasm), false)
	f.Add(tarOf(dir("d"), reg("x.gz", gz(wasm))), false)
	f.Add(gz(gz(gz(gz(gz(wasm))))), false)
	f.Fuzz(func(t *testing.T, in []byte, named bool) {
		const limit = 16 << 10
		name := ""
		if named {
			name = "plugin.wasm"
		}
		var got int64
		req := &Request{Put: func(_ module.Digest, r io.Reader) (err error) {
			got, err = io.Copy(io.Discard, r)
			return err
		}}
		err := Unpack(req, NewBody(bytes.NewReader(in), limit, module.Digest{}, nil), module.Digest{}, name, limit)
		if got > limit {
			t.Fatalf("%d bytes passed the limit of %d", got, limit)
		}
		if _, ok := errors.AsType[*Error](err); err != nil && !ok {
			t.Fatalf("error %v is of type %T", err, err)
		}
	})
}

func ExampleHosts() {
	h := Hosts{"localhost", "registry.local:5000"}
	fmt.Println(h.Has("localhost:1234"), h.Has("registry.local:5000"), h.Has("registry.local"))
	// Output: true true false
}
