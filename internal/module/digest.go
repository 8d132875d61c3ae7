package module

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// A Digest is a SHA-256. The zero Digest stands for none.
type Digest [32]byte

const algorithm = "sha256:"

// ParseDigest reads 64 hexadecimal digits, with or without "sha256:" before them.
// It refuses zeros only, which nothing has for its digest: they would be taken
// for no digest, and nothing compared.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	digits := strings.TrimPrefix(s, algorithm)
	if name, _, ok := strings.Cut(digits, ":"); ok {
		return d, fmt.Errorf("digest %q: %s is not supported, only sha256", s, name)
	}
	if len(digits) != 2*len(d) {
		return d, fmt.Errorf("digest %q: want 64 hexadecimal digits, got %d", s, len(digits))
	}
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, fmt.Errorf("digest %q: %w", s, err)
	}
	if d.IsZero() {
		return d, fmt.Errorf("digest %q: nothing has that digest", s)
	}
	return d, nil
}

// String is "sha256:" and 64 lower-case digits, as OCI writes it.
func (d Digest) String() string { return algorithm + d.Hex() }

// Hex is the digits alone.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// IsZero says that there is no digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// A DigestError says that bytes are not what they should be.
type DigestError struct{ Want, Got Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("digest is %s, want %s", e.Got, e.Want)
}
