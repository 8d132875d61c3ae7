package bench

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
)

// wasmOf is a module of about that many bytes that does nothing.
func wasmOf(size int) []byte { return appendSection([]byte("\x00asm\x01\x00\x00\x00"), text(size)) }

// appendSection appends a custom section to a module.
func appendSection(wasm, content []byte) []byte {
	const name = "\x05bench"
	out := append(wasm[:len(wasm):len(wasm)], 0)
	out = binary.AppendUvarint(out, uint64(len(name)+len(content)))
	return append(append(out, name...), content...)
}

// text is that many bytes that compress about as code does, to less than half:
// of every 16, 4 are random and 12 one of a thousand words.
func text(size int) []byte {
	random := rand.New(rand.NewPCG(1, uint64(size)))
	var words [1000][12]byte
	for w := range words {
		for i := range words[w] {
			words[w][i] = byte(random.Uint32())
		}
	}
	out := make([]byte, 0, size+16)
	for len(out) < size {
		out = binary.NativeEndian.AppendUint32(out, random.Uint32())
		out = append(out, words[random.IntN(len(words))][:]...)
	}
	return out[:size]
}

// serve answers with content, whatever is asked.
func serve(content []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(content) // who asked knows how it ended
	})
}

func sizeName(bytes int) string {
	if bytes < 1<<20 {
		return fmt.Sprintf("%dkB", bytes>>10)
	}
	return fmt.Sprintf("%dMB", bytes>>20)
}
