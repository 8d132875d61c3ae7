package abi

import (
	"encoding/binary"
	"unsafe"
)

// A Pair is one entry of a header map: a name as it goes on the wire, and one value.
type Pair struct{ Key, Value string }

// Limits on maps that a guest passes; Envoy's.
const (
	MaxPairsBytes = 1 << 20
	MaxPairs      = 1024
)

// PairsSize is how many bytes AppendPairs appends for the pairs. It is 0 for none:
// Envoy gives the guest an empty value for an empty header map.
func PairsSize(pairs []Pair) int {
	if len(pairs) == 0 {
		return 0
	}
	n := 4
	for _, p := range pairs {
		n += 8 + len(p.Key) + 1 + len(p.Value) + 1
	}
	return n
}

// AppendPairs appends the serialized map:
//
//	count  [len(key) len(value)]...  [key \0 value \0]...
//
// with 32-bit little-endian integers. No pairs append nothing.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#serialization
func AppendPairs(dst []byte, pairs []Pair) []byte {
	if len(pairs) == 0 {
		return dst
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(pairs)))
	for _, p := range pairs {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(p.Key)))
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(p.Value)))
	}
	for _, p := range pairs {
		dst = append(dst, p.Key...)
		dst = append(dst, 0)
		dst = append(dst, p.Value...)
		dst = append(dst, 0)
	}
	return dst
}

// DecodePairs decodes a serialized map. It shares no memory with data. It returns
// false, and no pairs, for a map that is malformed, longer than MaxPairsBytes, of more
// than MaxPairs, or followed by anything.
//
// Besides what the specification says of an empty map (no bytes, or a single zero
// byte) it takes four zero bytes, which is what SDKs send.
func DecodePairs(data []byte) ([]Pair, bool) {
	if len(data) == 0 || len(data) == 1 && data[0] == 0 {
		return nil, true
	}
	if len(data) < 4 || len(data) > MaxPairsBytes {
		return nil, false
	}
	n := binary.LittleEndian.Uint32(data)
	if n > MaxPairs || int(n)*8 > len(data)-4 {
		return nil, false
	}
	if n == 0 {
		return nil, len(data) == 4
	}
	lengths, rest := data[4:4+n*8], string(data[4+n*8:])
	pairs := make([]Pair, n)
	for i := range pairs {
		var ok bool
		if pairs[i].Key, rest, ok = cutTerminated(rest, binary.LittleEndian.Uint32(lengths[i*8:])); !ok {
			return nil, false
		}
		if pairs[i].Value, rest, ok = cutTerminated(rest, binary.LittleEndian.Uint32(lengths[i*8+4:])); !ok {
			return nil, false
		}
	}
	if rest != "" {
		return nil, false
	}
	return pairs, true
}

// cutTerminated cuts n bytes and the zero byte that must follow them.
func cutTerminated(s string, n uint32) (field, rest string, ok bool) {
	if uint64(n) >= uint64(len(s)) || s[n] != 0 {
		return "", "", false
	}
	return s[:n], s[n+1:], true
}

// AppendLower appends s with ASCII upper case made lower, which is how every header
// name reaches a guest and leaves it.
func AppendLower(dst, s []byte) []byte {
	for _, c := range s {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// View returns b as a string that shares b's memory. It is valid only as long as b is
// not written to.
func View(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
