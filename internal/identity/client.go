package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// maxFile bounds what is read of a file with certificates or a key.
const maxFile = 1 << 20

// A Client is what an agent proves itself with, and knows the control plane by.
// CAFile is required; a token, a certificate with its key, or neither may be
// given. All are files that others replace: roots, certificate and key are read
// for each connection, the token for each stream. Safe for concurrent use.
type Client struct {
	CAFile     string // PEM; the roots that the control plane's certificate must be of
	TokenFile  string // service-account token
	CertFile   string // PEM
	KeyFile    string // PEM
	ServerName string // in the control plane's certificate; default: the host that is dialled
}

// Check reads all files once. An error names the file that is not good, and what
// it should be; it never holds a token or key.
func (c Client) Check() error {
	if _, err := c.tls(); err != nil {
		return err
	}
	if c.TokenFile == "" {
		return nil
	}
	_, err := readToken(c.TokenFile)
	return err
}

// DialOptions make a connection to the control plane that is encrypted, verified
// and authenticated. They read nothing yet: what is wrong with a file is the
// error of the connection, or of the call, that needs it.
func (c Client) DialOptions() []grpc.DialOption {
	options := []grpc.DialOption{grpc.WithTransportCredentials(transport{c})}
	if c.ServerName != "" {
		options = append(options, grpc.WithAuthority(c.ServerName))
	}
	if c.TokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenFile(c.TokenFile)))
	}
	return options
}

// tls is the configuration of one handshake, by the files of now.
func (c Client) tls() (*tls.Config, error) {
	if c.CAFile == "" {
		return nil, errors.New("no file with the control plane's root certificates is given")
	}
	roots, err := readRoots(c.CAFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	if c.CertFile == "" && c.KeyFile == "" {
		return config, nil
	}
	pair, err := readPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, err
	}
	config.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		// The control plane would only hang up.
		if err := request.SupportsCertificate(&pair); err != nil {
			return nil, fmt.Errorf("client certificate %s is not one that the control plane takes: %w", c.CertFile, err)
		}
		return &pair, nil
	}
	return config, nil
}

// transport is TLS by the files of now. It implements credentials.TransportCredentials.
type transport struct{ client Client }

// ClientHandshake makes a configuration for this connection alone: gRPC's own TLS
// credentials would keep the roots of their beginning.
func (t transport) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := t.client.tls()
	if err != nil {
		return nil, nil, err
	}
	secured, info, err := credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
	if unknown, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return nil, nil, fmt.Errorf("verify control plane by the roots in %s: %w", t.client.CAFile, unknown.Err)
	}
	return secured, info, err
}

// ServerHandshake is a server's, which this is not.
func (transport) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are a client's credentials")
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName is deprecated, and part of the interface all the same.
func (transport) OverrideServerName(string) error {
	return errors.New("the name is the connection's authority")
}

// tokenFile sends the token that is in that file. It implements
// credentials.PerRPCCredentials.
type tokenFile string

func (f tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := readToken(string(f))
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity keeps tokens from being sent in plain.
func (tokenFile) RequireTransportSecurity() bool { return true }

// String keeps the path, which tells nothing, and no more.
func (f tokenFile) String() string { return string(f) }

func readToken(path string) (string, error) {
	data, err := readFile(path, maxToken)
	if err != nil {
		return "", fmt.Errorf("read token: %w: mount a service-account token with audience %s there", err, Audience)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", fmt.Errorf("read token: %s is empty: mount a service-account token with audience %s there", path, Audience)
	}
	// What is no header's value must not become one.
	if strings.IndexFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) >= 0 {
		return "", fmt.Errorf("read token: %s is not a token: there is more than one word in it", path)
	}
	return token, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	data, err := readFile(path, maxFile)
	if err != nil {
		return nil, fmt.Errorf("read root certificates: %w: it should hold the control plane's, which it publishes as ConfigMap chandler-ca-root-cert", err)
	}
	pool := x509.NewCertPool()
	n := 0
	for rest := data; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, fmt.Errorf("read root certificates: %s is not PEM after %d certificates", path, n)
			}
			break
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("read root certificates: %s holds a %q: it should hold certificates only", path, block.Type)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read root certificates: %s: certificate %d: %w", path, n+1, err)
		}
		pool.AddCert(certificate)
	}
	if n == 0 {
		return nil, fmt.Errorf("read root certificates: %s is empty: it should hold the control plane's, which it publishes as ConfigMap chandler-ca-root-cert", path)
	}
	return pool, nil
}

func readPair(certFile, keyFile string) (tls.Certificate, error) {
	if certFile == "" || keyFile == "" {
		return tls.Certificate{}, errors.New("a client certificate needs both its file and its key's")
	}
	certificate, err := readFile(certFile, maxFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read client certificate: %w", err)
	}
	key, err := readFile(keyFile, maxFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read client key: %w", err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read client certificate %s with key %s: %w", certFile, keyFile, err)
	}
	if end := pair.Leaf.NotAfter; time.Now().After(end) {
		return tls.Certificate{}, fmt.Errorf("client certificate %s has expired at %s: have another one issued", certFile, end.UTC().Format(time.RFC3339))
	}
	return pair, nil
}

// readFile reads a file of at most limit bytes. Its errors name the file.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readBounded(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}
