package artifact

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/chandler-proxy/chandler/internal/module"
)

// wasmFile is a module with these imports and exports, and nothing behind them.
func wasmFile(imports, exports string) []byte {
	section := func(id byte, entries string) []byte {
		content := []byte{byte(len(strings.Fields(entries)))}
		for _, e := range strings.Fields(entries) {
			parts := strings.Split(e, ":") // [MODULE:]NAME:KIND
			for _, name := range parts[:len(parts)-1] {
				content = append(binary.AppendUvarint(content, uint64(len(name))), name...)
			}
			kind := strings.Index("ftmg", parts[len(parts)-1])
			content = append(content, byte(kind))
			switch {
			case id == 2 && kind == 2: // memory: limits
				content = append(content, 0, 1)
			case id == 2 && kind == 3: // global: type, mutability
				content = append(content, 0x7f, 0)
			default:
				content = append(content, 0)
			}
		}
		return append(binary.AppendUvarint([]byte{id}, uint64(len(content))), content...)
	}
	return bytes.Join([][]byte{[]byte("\x00asm\x01\x00\x00\x00"), section(2, imports), section(7, exports)}, nil)
}

const sound = "memory:m malloc:f proxy_abi_version_0_2_1:f"

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name, imports, exports string
		want                   []string // in the problems, in their order
	}{
		{"sound", "env:proxy_log:f wasi_snapshot_preview1:fd_write:f", sound, nil},
		{"memory imported", "env:memory:m", "proxy_on_memory_allocate:f proxy_abi_version_0_2_0:f", nil},
		{"no ABI version", "", "memory:m malloc:f", []string{"no Proxy-Wasm ABI version"}},
		{"unknown ABI version", "", "memory:m malloc:f proxy_abi_version_9_9_9:f", []string{"no Proxy-Wasm ABI version"}},
		{"nothing to allocate with", "", "memory:m proxy_abi_version_0_2_1:f", []string{"neither malloc nor"}},
		{"no memory", "", "malloc:f proxy_abi_version_0_2_1:f", []string{"no memory"}},
		{"malloc is no function", "", "memory:m malloc:g proxy_abi_version_0_2_1:f", []string{"neither malloc nor"}},
		{"unknown imports", "env:abort:f env:proxy_log:f wasi_snapshot_preview1:sock_open:f", sound, []string{"env.abort", "sock_open"}},
		{"global", "env:base:g", sound, []string{"env.base"}},
		{"of another ABI version", "env:proxy_get_configuration:f", sound, []string{"proxy_get_configuration: not in Proxy-Wasm ABI 0.2.1"}},
		{"all at once", "env:x:f", "x:f", []string{"ABI version", "malloc", "memory", "env.x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Check(wasmFile(tt.imports, tt.exports))
			var problems []string
			if e, ok := errors.AsType[*RefusedError](err); ok {
				problems = e.Problems
			} else if err != nil {
				t.Fatal(err)
			}
			if len(problems) != len(tt.want) {
				t.Fatalf("problems = %q, want %q", problems, tt.want)
			}
			for i, want := range tt.want {
				if !strings.Contains(problems[i], want) {
					t.Errorf("problem %q, want %q in it", problems[i], want)
				}
			}
		})
	}
}

func TestCheckNotModule(t *testing.T) {
	if _, err := Check([]byte("hello")); !errors.Is(err, module.ErrNotModule) {
		t.Errorf("Check = %v, want ErrNotModule", err)
	}
}

// Whatever a module has, what is made of it can be told and fetched again.
func FuzzCheck(f *testing.F) {
	f.Add(wasmFile("env:proxy_log:f env:x:g", sound))
	f.Add(testModule(f, "addheader"))
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, wasm []byte) {
		info, err := Check(wasm)
		refused, isRefused := errors.AsType[*RefusedError](err)
		if isRefused && len(refused.Problems) == 0 {
			t.Error("refused for no reason")
		}
		if err == nil && (info.ABI == "" || info.Size != int64(len(wasm))) {
			t.Errorf("a module of ABI %q and %d bytes of %d passes", info.ABI, info.Size, len(wasm))
		}
		for _, form := range Forms() {
			one, two := build(t, wasm, Options{Form: form}), build(t, wasm, Options{Form: form})
			if digestOf(t, one) != digestOf(t, two) {
				t.Errorf("form %s is not reproducible", form)
			}
		}
	})
}
