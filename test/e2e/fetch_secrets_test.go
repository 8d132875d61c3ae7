//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What must never be seen.
const (
	user     = "puller"
	password = "correct-horse-battery"
	wrong    = "incorrect-horse"
	later    = "password-from-tomorrow"
)

// basic is user and password as HTTP and Docker write them.
func basic(password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// dockerConfig is a config.json of docker's.
func dockerConfig(registry, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, registry, basic(password))
}

// pullSecret is a Secret of type dockerconfigjson.
func pullSecret(name, config string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: %s, namespace: istio-system}
type: kubernetes.io/dockerconfigjson
data: {.dockerconfigjson: %s}
`, name, base64.StdEncoding.EncodeToString([]byte(config)))
}

// secrets are all forms of the passwords.
func secrets(config ...string) []string {
	all := []string{password, wrong, later, basic(password), basic(wrong), basic(later)}
	for _, c := range config {
		all = append(all, base64.StdEncoding.EncodeToString([]byte(c)))
	}
	return all
}

// A passwordFile is htpasswd's.
type passwordFile string

func newPasswordFile(t testing.TB, password string) passwordFile {
	t.Helper()
	f := passwordFile(filepath.Join(t.TempDir(), "htpasswd"))
	f.set(t, password)
	return f
}

// set makes password the only one.
func (f passwordFile) set(t testing.TB, password string) {
	t.Helper()
	line := run(t, "htpasswd", "-Bbn", user, password)
	next := string(f) + ".next"
	if err := os.WriteFile(next, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, string(f)); err != nil {
		t.Fatal(err)
	}
}

// env makes a registry ask for the password.
func (f passwordFile) env() []string {
	return []string{"REGISTRY_AUTH=htpasswd", "REGISTRY_AUTH_HTPASSWD_REALM=chandler", "REGISTRY_AUTH_HTPASSWD_PATH=" + string(f)}
}

// A plugin from a registry with a password is pulled as soon as the pull secret
// is the right one, wherever the mistake was and whoever mends it.
func TestPullSecret(t *testing.T) {
	passwords := newPasswordFile(t, password)
	r := startRegistry(t, passwords.env()...)
	v1 := r.push(t, "private:1", module(t, "one"), "docker", "--creds", user+":"+password)
	v2 := r.push(t, "private:2", module(t, "two"), "oci", "--creds", user+":"+password)
	right, bad := dockerConfig(r.Addr, password), dockerConfig(r.Addr, wrong)
	m := start(t, agentEnv("WASM_HTTP_REQUEST_MAX_RETRIES=1"))
	m.answers(200, "")
	usesSecret := "imagePullSecret: registry"

	for _, tt := range []struct {
		name   string // of the plugin
		secret string // resource; empty for none
		more   []string
		reason string
	}{
		{name: "no-pull-secret", reason: "check that the image exists and the imagePullSecret is right"},
		{name: "secret-missing", more: []string{usesSecret}, reason: "check that the image exists and the imagePullSecret is right"},
		{name: "wrong-password", secret: pullSecret("registry", bad), more: []string{usesSecret}, reason: "the imagePullSecret is right"},
		{name: "other-registry", secret: pullSecret("registry", dockerConfig("registry.example", password)), more: []string{usesSecret}, reason: "the imagePullSecret is right"},
		{name: "no-json", secret: pullSecret("registry", "not JSON: "+password), more: []string{usesSecret}, reason: "pull secret is not a dockerconfigjson"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := m.in(t)
			before := m.counts("manifest_failure")
			l := m.load()
			if tt.secret != "" {
				m.write("secret.yaml", tt.secret)
				defer m.remove("secret.yaml")
			}
			m.write("plugin.yaml", plugin(tt.name, v1, tt.name, tt.more...))
			defer m.remove("plugin.yaml")
			m.refused(tt.name, tt.reason)
			m.moved("manifest_failure", before)
			if tt.name == "secret-missing" {
				m.hasProblem("spec.imagePullSecret", "there is no Secret istio-system/registry")
			}
			l.more(100)
			l.only(ok(""))
		})
	}

	t.Run("Secret mended", func(t *testing.T) {
		m := m.in(t)
		l := m.load()
		m.write("secret.yaml", pullSecret("registry", bad))
		m.write("plugin.yaml", plugin("private", v1, "one", usesSecret))
		m.refused("private", "imagePullSecret is right", "401")
		m.write("secret.yaml", pullSecret("registry", right))
		m.answers(200, "one")
		m.accepted("private")
		l.only(ok(""), ok("one"))
	})
	t.Run("update with the secret gone bad", func(t *testing.T) {
		m := m.in(t)
		l := m.load()
		m.write("secret.yaml", pullSecret("registry", bad))
		m.refused("private", "imagePullSecret is right", "401")
		m.write("plugin.yaml", plugin("private", v2, "two", usesSecret))
		m.refused("private", "/private:2", "401")
		l.more(100)
		l.only(ok("one"))
		l = m.load()
		m.write("secret.yaml", pullSecret("registry", right))
		m.answers(200, "two")
		l.only(ok("one"), ok("two"))
	})
	t.Run("registry mended", func(t *testing.T) {
		m := m.in(t)
		l := m.load()
		m.write("secret.yaml", pullSecret("registry", dockerConfig(r.Addr, later)))
		m.write("plugin.yaml", plugin("private", v1, "tomorrow", usesSecret))
		m.refused("private", "401")
		l.more(100)
		l.only(ok("two"))
		passwords.set(t, later)
		m.answers(200, "tomorrow")
		m.accepted("private")
	})
	m.hides(secrets(right, bad, dockerConfig(r.Addr, later))...)
}

// Without a pull secret the machine's docker configuration counts. A registry
// with TLS is trusted if its CA is, or if it is listed.
func TestRegistryTLSAndDockerConfig(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	passwords := newPasswordFile(t, password)
	private := startRegistry(t, passwords.env()...)
	secure := startRegistry(t, ca.issue(t, dir, "secure").env()...)
	selfSigned := startRegistry(t, newAuthority(t, dir, "self").keyPair.env()...)
	unknown := startRegistry(t, newAuthority(t, dir, "unknown").keyPair.env()...)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(dockerConfig(private.Addr, password)), 0o600); err != nil {
		t.Fatal(err)
	}
	m := start(t, agentEnv(
		"DOCKER_CONFIG="+dir,
		"SSL_CERT_FILE="+ca.file,
		"WASM_INSECURE_REGISTRIES=registry.example,"+selfSigned.Addr,
		"WASM_HTTP_REQUEST_MAX_RETRIES=1",
	))
	m.answers(200, "")

	serves := ""
	for _, tt := range []struct {
		name string
		url  string
	}{
		{"docker-config", private.push(t, "header:1", module(t, "private"), "docker", "--creds", user+":"+password)},
		{"own-ca", secure.push(t, "header:1", module(t, "secure"), "docker")},
		{"self-signed", selfSigned.push(t, "header:1", module(t, "self"), "oci")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := m.in(t)
			l := m.load()
			m.write("plugin.yaml", plugin("header", tt.url, tt.name))
			m.answers(200, tt.name)
			m.loads(module(t, map[string]string{"docker-config": "private", "own-ca": "secure", "self-signed": "self"}[tt.name]))
			l.more(50)
			l.only(ok(serves), ok(tt.name))
			serves = tt.name
		})
	}
	t.Run("unknown authority", func(t *testing.T) {
		m := m.in(t)
		url := unknown.push(t, "header:1", module(t, "unknown"), "docker")
		before := m.counts("manifest_failure")
		l := m.load()
		m.write("plugin.yaml", plugin("header", url, "unknown"))
		m.refused("header", "certificate signed by unknown authority", "WASM_INSECURE_REGISTRIES")
		m.moved("manifest_failure", before)
		l.more(100)
		l.only(ok(serves))
	})
	// A pull secret is used in place of the machine's configuration, not besides.
	t.Run("wrong secret despite docker config", func(t *testing.T) {
		m := m.in(t)
		url := private.push(t, "header:2", module(t, "private two"), "docker", "--creds", user+":"+password)
		l := m.load()
		m.write("secret.yaml", pullSecret("registry", dockerConfig(private.Addr, wrong)))
		m.write("plugin.yaml", plugin("header", url, "two", "imagePullSecret: registry"))
		m.refused("header", "imagePullSecret is right", "401")
		l.more(100)
		l.only(ok(serves))
	})
	m.hides(secrets(dockerConfig(private.Addr, wrong))...)
}

// A keyPair is a certificate of 127.0.0.1 and its key, as PEM files.
type keyPair struct{ file, key string }

// env makes a registry serve TLS with it.
func (c keyPair) env() []string {
	return []string{"REGISTRY_HTTP_TLS_CERTIFICATE=" + c.file, "REGISTRY_HTTP_TLS_KEY=" + c.key}
}

// An authority issues certificates; its own is one as well.
type authority struct {
	keyPair
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, dir, name string) *authority {
	t.Helper()
	a := new(authority)
	a.key = newKey(t)
	template := template(name)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.keyPair = store(t, dir, name, der, a.key)
	return a
}

// issue makes a certificate that a vouches for.
func (a *authority) issue(t testing.TB, dir, name string) keyPair {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template(name), a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return store(t, dir, name, der, key)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
}

// pemOf is a certificate as a PEM file has it.
func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// store writes a certificate and its key.
func store(t testing.TB, dir, name string, der []byte, key *ecdsa.PrivateKey) keyPair {
	t.Helper()
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c := keyPair{filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")}
	for path, block := range map[string]*pem.Block{
		c.file: {Type: "CERTIFICATE", Bytes: der},
		c.key:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}
