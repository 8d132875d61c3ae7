package proxywasm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// encode makes a message of fields: strings, bytes and numbers.
func encode(fields ...any) (b []byte) {
	for i, f := range fields {
		n := protowire.Number(i + 1)
		switch f := f.(type) {
		case string:
			b = appendBytes(b, n, f)
		case []byte:
			b = appendBytes(b, n, f)
		case int:
			b = protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), uint64(f))
		}
	}
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func pemOf(name string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: name, Bytes: der}))
}

// What Envoy 1.40 answers to each of these is compared in package engine.
func TestSignatures(t *testing.T) {
	text := []byte("some text")
	for _, tt := range []struct {
		name string
		key  crypto.Signer
	}{
		{"rsa", must(rsa.GenerateKey(rand.Reader, 1024))},
		{"p224", must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))},
		{"p521", must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))},
	} {
		private, public := must(x509.MarshalPKCS8PrivateKey(tt.key)), must(x509.MarshalPKIXPublicKey(tt.key.Public()))
		var older string
		switch k := tt.key.(type) {
		case *rsa.PrivateKey:
			older = pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k))
		case *ecdsa.PrivateKey:
			older = pemOf("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(k)))
		}
		for _, hash := range []string{"sha1", "SHA224", "sha256", "Sha384", "sha512"} {
			for form, arguments := range map[string][]byte{
				"der": encode(hash, append(private[:len(private):len(private)], "junk"...), text), "pem": encode(hash, nil, text, "junk\n"+pemOf("CERTIFICATE", nil)+pemOf("PRIVATE KEY", private)+"junk"),
				"older": encode(hash, nil, text, older),
			} {
				out, status := sign(nil, arguments)
				m, ok := decodeMessage(out)
				if status != abi.OK || !ok || !m.bool(1) || len(m.bytes[2]) == 0 || len(m.bytes[3]) != 0 {
					t.Fatalf("%s %s %s: %v %q", tt.name, hash, form, status, out)
				}
				for what, want := range map[string]struct {
					arguments []byte
					want      []byte
				}{
					"der":        {encode(hash, append(public[:len(public):len(public)], 'x'), m.bytes[2], text), encode(1)},
					"pem":        {encode(hash, nil, m.bytes[2], text, pemOf("PRIVATE KEY", private)+pemOf("PUBLIC KEY", public)), encode(1)},
					"other text": {encode(hash, public, m.bytes[2], "other"), encode(nil, "Failed to verify digest. Error code: 0")},
					"other hash": {encode(map[bool]string{true: "sha1", false: "sha256"}[hash != "sha1"], public, m.bytes[2], text), encode(nil, "Failed to verify digest. Error code: 0")},
				} {
					if got, status := verifySignature(nil, want.arguments); status != abi.OK || string(got) != string(want.want) {
						t.Errorf("%s %s %s, verified by %s: %v %q, want %q", tt.name, hash, form, what, status, got, want.want)
					}
				}
			}
		}
	}
}

func TestKeysRefused(t *testing.T) {
	key := must(rsa.GenerateKey(rand.Reader, 1024))
	private, public := must(x509.MarshalPKCS8PrivateKey(key)), must(x509.MarshalPKIXPublicKey(key.Public()))
	edPublic, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, edDER := must(x509.MarshalPKCS8PrivateKey(edPrivate)), must(x509.MarshalPKIXPublicKey(edPublic))
	const init, failed = "Failed to initialize digest verify.", "Failed to verify digest. Error code: 0"
	for _, tt := range []struct {
		name      string
		f         ForeignFunc
		arguments []byte
		status    abi.Status
		why       string
	}{
		{"sign nothing", sign, nil, abi.BadArgument, ""},
		{"sign malformed", sign, []byte("a"), abi.BadArgument, ""},
		{"sign with two keys", sign, encode("sha256", private, "x", pemOf("PRIVATE KEY", private)), abi.BadArgument, ""},
		{"sign with no hash", sign, encode("", private), abi.OK, " is not supported."},
		{"sign with another hash", sign, encode("md5", []byte("x")), abi.OK, "md5 is not supported."},
		{"hash is not UTF-8", sign, encode("\xff", private), abi.BadArgument, ""},
		{"PEM is not UTF-8", sign, encode("sha256", nil, "x", "\xff"), abi.BadArgument, ""},
		{"sign with junk", sign, encode("sha256", []byte("x")), abi.OK, noPrivateKey},
		{"sign with PEM junk", sign, encode("sha256", nil, "x", "junk"), abi.OK, noPrivateKey},
		{"sign with junk in PEM", sign, encode("sha256", nil, "x", pemOf("PRIVATE KEY", []byte("x"))), abi.OK, noPrivateKey},
		{"sign with junk in older PEM", sign, encode("sha256", nil, "x", pemOf("EC PRIVATE KEY", []byte("x"))), abi.OK, noPrivateKey},
		{"sign with PKCS 1", sign, encode("sha256", x509.MarshalPKCS1PrivateKey(key)), abi.OK, noPrivateKey},
		{"sign with a public key", sign, encode("sha256", public), abi.OK, noPrivateKey},
		{"sign with an encrypted key", sign, encode("sha256", nil, "x", pemOf("ENCRYPTED PRIVATE KEY", private)), abi.OK, noPrivateKey},
		{"sign with ed25519", sign, encode("sha256", ed), abi.OK, badPrivateKey},
		{"sign with dsa", sign, encode("sha256", dsaPKCS8()), abi.OK, badPrivateKey},
		{"sign with dsa in PEM", sign, encode("sha256", nil, "x", pemOf("DSA PRIVATE KEY", nil)), abi.OK, badPrivateKey},
		{"sign with a curve of its own", sign, encode("sha256", explicitKey()), abi.NotFound, ""},
		{"sign with a curve of its own in PEM", sign, encode("sha256", nil, "x", pemOf("EC PRIVATE KEY", append([]byte{0x30}, must(asn1.Marshal(oidPrimeField))...))), abi.NotFound, ""},
		{"sign with small rsa", sign, encode("sha256", smallKey(t)), abi.NotFound, ""},

		{"verify nothing", verifySignature, nil, abi.BadArgument, ""},
		{"verify malformed", verifySignature, []byte("a"), abi.BadArgument, ""},
		{"verify with two keys", verifySignature, encode("sha256", public, "s", "t", pemOf("PUBLIC KEY", public)), abi.BadArgument, ""},
		{"verify with another hash", verifySignature, encode("md5", []byte("x")), abi.OK, "md5 is not supported."},
		{"verify with junk", verifySignature, encode("sha256", []byte("x")), abi.OK, init},
		{"verify with PEM junk", verifySignature, encode("sha256", nil, "s", "t", "x"), abi.OK, init},
		{"verify with PKCS 1", verifySignature, encode("sha256", x509.MarshalPKCS1PublicKey(&key.PublicKey)), abi.OK, init},
		{"verify with a private key", verifySignature, encode("sha256", private), abi.OK, init},
		{"verify with ed25519", verifySignature, encode("sha256", edDER), abi.OK, init},
		{"no signature", verifySignature, encode("sha256", public), abi.OK, failed},
		{"verify with small rsa", verifySignature, encode("sha256", must(x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 511, 1), E: 3}))), abi.NotFound, ""},
	} {
		out, status := tt.f(nil, tt.arguments)
		m, _ := decodeMessage(out)
		why := m.text(2) + m.text(3)
		if diff := cmp.Diff(tt.why, why); diff != "" || status != tt.status || m.bool(1) {
			t.Errorf("%s: %v, want %v: %s", tt.name, status, tt.status, diff)
		}
	}
}

func algorithm(oid asn1.ObjectIdentifier, parameters any, key []byte) []byte {
	raw := must(asn1.Marshal(parameters))
	type identifier struct {
		OID        asn1.ObjectIdentifier
		Parameters asn1.RawValue
	}
	return must(asn1.Marshal(struct {
		Version   int
		Algorithm identifier
		Key       []byte
	}{0, identifier{oid, asn1.RawValue{FullBytes: raw}}, key}))
}

func dsaPKCS8() []byte {
	return algorithm(oidDSA, struct{ P, Q, G int }{23, 11, 4}, must(asn1.Marshal(7)))
}

// explicitKey has its curve told by parameters.
func explicitKey() []byte {
	return algorithm(oidEC, struct {
		Version int
		Field   asn1.ObjectIdentifier
	}{1, oidPrimeField}, []byte("key"))
}

// smallKey is an RSA key of 512 bits, which Go reads but does not use.
func smallKey(t *testing.T) []byte {
	for {
		p, q := must(rand.Prime(rand.Reader, 256)), must(rand.Prime(rand.Reader, 256))
		n, one := new(big.Int).Mul(p, q), big.NewInt(1)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(big.NewInt(65537), phi)
		if d == nil || n.BitLen() != 512 || p.Cmp(q) == 0 {
			continue
		}
		key := struct {
			Version                  int
			N                        *big.Int
			E                        int
			D, P, Q, Dp, Dq, Inverse *big.Int
		}{0, n, 65537, d, p, q, new(big.Int).Mod(d, new(big.Int).Sub(p, one)), new(big.Int).Mod(d, new(big.Int).Sub(q, one)), new(big.Int).ModInverse(q, p)}
		return algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, asn1.NullRawValue, must(asn1.Marshal(key)))
	}
}

// No argument makes a foreign function panic.
func FuzzForeign(f *testing.F) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	f.Add(encode("sha256", must(x509.MarshalPKCS8PrivateKey(key)), "text"))
	f.Add(encode("sha256", must(x509.MarshalPKIXPublicKey(key.Public())), "sig", "text"))
	f.Add(encode("sha1", nil, "sig", pemOf("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key))), pemOf("PUBLIC KEY", []byte("x"))))
	f.Add(encode("name", 1, 3, "type.googleapis.com/a.B", 2))
	f.Add([]byte("\xa3\x01\xa4\x01\x0a\x00"))
	f.Fuzz(func(t *testing.T, arguments []byte) {
		for name, function := range EnvoyForeign() {
			c := &Context{in: &Instance{}}
			if out, status := function(c, arguments); status != abi.OK && len(out) > 0 {
				t.Errorf("%s: %v with %q", name, status, out)
			}
		}
	})
}
