package proxywasm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // what a guest may ask for
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// Signatures as Envoy makes and checks them: RSA with PKCS #1 v1.5 and ECDSA over
// P-224, P-256, P-384 and P-521, with SHA-1 or SHA-2. Keys are SubjectPublicKeyInfo and
// PKCS #8, as DER or PEM; a private key in PEM may be of PKCS #1 or SEC 1, too.
//
// Two kinds of keys, that Envoy takes and Go's library does not, are answered as a
// function that is not there, with NOT_FOUND: RSA of fewer than 1,024 bits, and private
// keys for a curve that is told by its parameters in place of its name.

// Fields of VerifySignatureArguments and SignArguments, and of their results.
const (
	argHash      protowire.Number = 1
	argKey       protowire.Number = 2
	argSignature protowire.Number = 3 // verify
	argText      protowire.Number = 4
	argKeyPEM    protowire.Number = 5

	signText   protowire.Number = 3
	signKeyPEM protowire.Number = 4
)

// verifySignature is the foreign function verify_signature: the result says whether the
// signature is the key's, or why not.
func verifySignature(_ *Context, arguments []byte) ([]byte, abi.Status) {
	m, ok := decodeMessage(arguments, argHash, argKeyPEM)
	if !ok || !oneKey(m, argKeyPEM) {
		return nil, abi.BadArgument
	}
	why, status := verify(m)
	if status != abi.OK {
		return nil, status
	}
	return appendBytes(appendBool(nil, 1, why == ""), 2, why), abi.OK
}

// oneKey reports whether there is one key, as DER or as PEM.
func oneKey(m decoded, pemField protowire.Number) bool {
	return (len(m.bytes[argKey]) > 0) != (len(m.bytes[pemField]) > 0)
}

// verify returns why the signature does not hold, in Envoy's words.
func verify(m decoded) (why string, status abi.Status) {
	hash := hashOf(m.text(argHash))
	if hash == 0 {
		return m.text(argHash) + " is not supported.", abi.OK
	}
	der := m.bytes[argKey]
	if len(der) == 0 {
		der = pemBlock(m.bytes[argKeyPEM], "PUBLIC KEY").Bytes
	}
	key, err := x509.ParsePKIXPublicKey(firstElement(der))
	if err != nil {
		return "Failed to initialize digest verify.", abi.OK
	}
	sum := digest(hash, m.bytes[argText])
	valid := false
	switch key := key.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < minRSA {
			return "", abi.NotFound
		}
		valid = rsa.VerifyPKCS1v15(key, hash, sum, m.bytes[argSignature]) == nil
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(key, sum, m.bytes[argSignature])
	default:
		return "Failed to initialize digest verify.", abi.OK
	}
	if !valid {
		return "Failed to verify digest. Error code: 0", abi.OK
	}
	return "", abi.OK
}

// minRSA is the size of the smallest RSA key that Go uses, in bits.
const minRSA = 1024

// hashOf is the hash function of that name, in any case; 0 if it is none of Envoy's.
func hashOf(name string) crypto.Hash {
	switch strings.ToLower(name) {
	case "sha1":
		return crypto.SHA1
	case "sha224":
		return crypto.SHA224
	case "sha256":
		return crypto.SHA256
	case "sha384":
		return crypto.SHA384
	case "sha512":
		return crypto.SHA512
	}
	return 0
}

func digest(hash crypto.Hash, text []byte) []byte {
	h := hash.New()
	h.Write(text)
	return h.Sum(nil)
}

// firstElement cuts off what follows a DER element: BoringSSL reads no further.
func firstElement(der []byte) []byte {
	var first asn1.RawValue
	if _, err := asn1.Unmarshal(der, &first); err != nil {
		return der
	}
	return first.FullBytes
}

// pemBlock returns the first block of one of the types, or an empty one.
func pemBlock(text []byte, types ...string) *pem.Block {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return new(pem.Block)
		}
		for _, t := range types {
			if b.Type == t {
				return b
			}
		}
	}
}

// sign is the foreign function sign: the result is the signature, or why there is none.
func sign(_ *Context, arguments []byte) ([]byte, abi.Status) {
	m, ok := decodeMessage(arguments, argHash, signKeyPEM)
	if !ok || !oneKey(m, signKeyPEM) {
		return nil, abi.BadArgument
	}
	signature, why, status := signed(m)
	if status != abi.OK {
		return nil, status
	}
	return appendBytes(appendBytes(appendBool(nil, 1, why == ""), 2, signature), 3, why), abi.OK
}

const (
	noPrivateKey  = "Invalid key type: private key required for signing operation."
	badPrivateKey = "Invalid private key: key data is corrupted or malformed."
)

// signed returns the signature, or in Envoy's words why there is none.
func signed(m decoded) (signature []byte, why string, status abi.Status) {
	hash := hashOf(m.text(argHash))
	if hash == 0 {
		return nil, m.text(argHash) + " is not supported.", abi.OK
	}
	sum := digest(hash, m.bytes[signText])
	var err error
	switch key := privateKey(m).(type) {
	case *rsa.PrivateKey:
		if key.N.BitLen() < minRSA {
			return nil, "", abi.NotFound
		}
		signature, err = rsa.SignPKCS1v15(rand.Reader, key, hash, sum)
	case *ecdsa.PrivateKey:
		signature, err = ecdsa.SignASN1(rand.Reader, key, sum)
	case explicitCurve:
		return nil, "", abi.NotFound
	case nil:
		return nil, noPrivateKey, abi.OK
	default:
		return nil, badPrivateKey, abi.OK
	}
	if err != nil {
		return nil, "Failed to create signature.", abi.OK
	}
	return signature, "", abi.OK
}

// explicitCurve stands for a key that Envoy would take and Go does not.
type explicitCurve struct{}

// dsaKey stands for one that Envoy reads and does not sign with.
type dsaKey struct{}

// privateKey returns nil if there is none.
func privateKey(m decoded) any {
	if der := m.bytes[argKey]; len(der) > 0 {
		return pkcs8(firstElement(der))
	}
	b := pemBlock(m.bytes[signKeyPEM], "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
	var key any
	var err error
	switch b.Type {
	case "PRIVATE KEY":
		return pkcs8(b.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		if hasExplicitCurve(b.Bytes) {
			return explicitCurve{}
		}
		key, err = x509.ParseECPrivateKey(b.Bytes)
	case "DSA PRIVATE KEY":
		return dsaKey{}
	default: // no password was given
		return nil
	}
	if err != nil {
		return nil
	}
	return key
}

var (
	oidEC         = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidDSA        = asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}
	oidPrimeField = asn1.ObjectIdentifier{1, 2, 840, 10045, 1, 1} // of an explicit curve
)

// pkcs8 returns nil for what is no key.
func pkcs8(der []byte) any {
	var info struct {
		Version   int
		Algorithm struct {
			OID        asn1.ObjectIdentifier
			Parameters asn1.RawValue `asn1:"optional"`
		}
		Key []byte
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil
	}
	switch oid := info.Algorithm.OID; {
	case oid.Equal(oidEC) && info.Algorithm.Parameters.Tag == asn1.TagSequence:
		return explicitCurve{}
	case oid.Equal(oidDSA):
		return dsaKey{}
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil
	}
	return key
}

// hasExplicitCurve reports whether a key of SEC 1 has parameters for a curve.
func hasExplicitCurve(der []byte) bool {
	field, err := asn1.Marshal(oidPrimeField)
	return err == nil && bytes.Contains(der, field)
}
