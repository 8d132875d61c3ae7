package hcm

import (
	"encoding/hex"
	"encoding/pem"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"strings"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"crypto/sha256"

	"github.com/chandler-proxy/chandler/internal/engine/http1"
)

// remote is who the client is taken for.
type remote struct {
	addr netip.AddrPort
}

// prepare does what comes before the filters: it checks the path and changes the
// head, as Envoy's ConnectionManagerUtility::mutateRequestHeaders does. It returns
// false if the request is answered already.
func (s *stream) prepare() bool {
	f, cfg := s.fields, s.m.cfg
	if v, ok := f.Get("expect"); ok && strings.EqualFold(v, "100-continue") && !s.end {
		f.Remove("expect")
		if s.writer.proceed() != nil {
			s.abort()
			return false
		}
	}
	path, _ := f.Get(":path")
	if _, ok := f.Get(":authority"); !ok {
		return s.malformed(400, "missing_host_header")
	}
	if !strings.HasPrefix(path, "/") {
		s.reply(&reply{status: 404, details: "absolute_path_rejected"})
		return false
	}
	if strings.IndexByte(path, '#') >= 0 {
		return s.malformed(400, "path_normalization_failed")
	}
	if cfg.NormalizePath || cfg.MergeSlashes {
		normal, ok := normalize(path, cfg.NormalizePath, cfg.MergeSlashes)
		if !ok {
			s.reply(&reply{status: 400, details: "path_normalization_failed"})
			return false
		}
		put(f, ":path", normal)
	}
	s.hopByHop()
	s.client()
	s.clientCert()
	s.requestID()
	if s.wantsUpgrade() {
		s.end = false // whatever comes next is not a request
		if !cfg.WebSocket || !strings.EqualFold(fieldOf(f, "upgrade"), "websocket") || s.writer.multiplexed() {
			s.reply(&reply{status: 403, details: "upgrade_failed"})
			return false
		}
		s.upgrade = true
	}
	return true
}

// malformed answers a request that makes no sense, and has the connection closed.
func (s *stream) malformed(status int, details string) bool {
	s.writer.early()
	s.reply(&reply{status: status, details: details})
	return false
}

func fieldOf(f *http1.Fields, name string) string {
	v, _ := f.Get(name)
	return v
}

// wantsUpgrade reports whether the request asks for another protocol.
func (s *stream) wantsUpgrade() bool {
	return fieldOf(s.fields, "upgrade") != "" && hasToken(fieldOf(s.fields, "connection"), "upgrade")
}

func hasToken(list, token string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(item), token) {
			return true
		}
	}
	return false
}

// hopByHop removes what is between two neighbours only. That the client would upgrade to
// HTTP/2 is ignored, as by Envoy.
func (s *stream) hopByHop() {
	f := s.fields
	if s.wantsUpgrade() && strings.EqualFold(fieldOf(f, "upgrade"), "h2c") {
		f.Remove("upgrade")
		f.Remove("http2-settings")
	}
	if !s.wantsUpgrade() {
		s.removeNamed(fieldOf(f, "connection"))
		f.Remove("connection")
		f.Remove("upgrade")
	}
	f.Remove("x-envoy-internal")
	f.Remove("keep-alive")
	f.Remove("proxy-connection")
	f.Remove("transfer-encoding")
}

// removeNamed removes the fields that are for the next hop by the word of the client.
func (s *stream) removeNamed(list string) {
	f := s.fields
	if v, ok := f.Get("te"); ok {
		if hasToken(v, "trailers") {
			put(f, "te", "trailers")
		} else {
			f.Remove("te")
		}
	}
	for item := range strings.SplitSeq(list, ",") {
		switch name := strings.ToLower(strings.TrimSpace(item)); name {
		case "", "te", "close":
		default:
			f.Remove(name)
		}
	}
}

// client finds out who the client is, and tells the upstream.
func (s *stream) client() {
	f, cfg := s.fields, s.m.cfg
	s.remote = remote{addr: s.conn.Remote}
	list := fieldOf(f, "x-forwarded-for")
	if cfg.RemoteAddress {
		if a, ok := nthFromEnd(list, cfg.TrustedHops-1); ok && cfg.TrustedHops > 0 {
			s.remote.addr = netip.AddrPortFrom(a, 0)
		}
		if !cfg.SkipAppendXFF {
			self := s.conn.Remote.Addr().String()
			if s.conn.Remote.Addr().IsLoopback() {
				self = s.m.env.Address.String()
			}
			if list != "" {
				self = list + "," + self
			}
			put(f, "x-forwarded-for", self)
		}
		if cfg.TrustedHops == 0 || fieldOf(f, "x-forwarded-proto") == "" {
			put(f, "x-forwarded-proto", s.conn.scheme())
		}
	} else {
		if a, ok := nthFromEnd(list, cfg.TrustedHops); ok {
			s.remote.addr = netip.AddrPortFrom(a, 0)
		}
		if fieldOf(f, "x-forwarded-proto") == "" {
			put(f, "x-forwarded-proto", s.conn.scheme())
		}
	}
	if v := fieldOf(f, "x-forwarded-proto"); v == "http" || v == "https" {
		put(f, ":scheme", v)
	}
	s.distrust()
	if cfg.RemoteAddress {
		put(f, "x-envoy-external-address", s.remote.addr.Addr().String())
	}
}

// nthFromEnd is an address of x-forwarded-for; the last one is number 0.
func nthFromEnd(list string, n int) (netip.Addr, bool) {
	for ; n >= 0; n-- {
		i := strings.LastIndexByte(list, ',')
		item := strings.TrimSpace(list[i+1:])
		if n == 0 {
			a, err := netip.ParseAddr(item)
			return a, err == nil
		}
		if i < 0 {
			break
		}
		list = list[:i]
	}
	return netip.Addr{}, false
}

// distrust removes what only a client inside may say. Envoy takes no client to be
// inside unless internal_address_config says so.
func (s *stream) distrust() {
	for _, name := range [...]string{
		"x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
		"x-envoy-expected-rq-timeout-ms", "x-envoy-force-trace", "x-envoy-hedge-on-per-try-timeout", "x-envoy-ip-tags",
		"x-envoy-max-retries", "x-envoy-original-path", "x-envoy-original-host", "x-envoy-retriable-header-names",
		"x-envoy-retriable-status-codes", "x-envoy-retry-grpc-on", "x-envoy-retry-on", "x-envoy-upstream-alt-stat-name",
		"x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response", "x-envoy-upstream-rq-timeout-ms",
		"x-envoy-upstream-stream-duration-ms",
	} {
		s.fields.Remove(name)
	}
}

// requestID gives the request an id, unless it has one that is to be believed.
func (s *stream) requestID() {
	cfg := s.m.cfg
	if !cfg.RequestID {
		return
	}
	if fieldOf(s.fields, "x-request-id") == "" || cfg.RemoteAddress && !cfg.KeepRequestID {
		put(s.fields, "x-request-id", newID())
	}
}

// newID is a random UUID.
func newID() string {
	var raw [16]byte
	a, b := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		raw[i], raw[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	var text [36]byte
	hex.Encode(text[:8], raw[:4])
	hex.Encode(text[9:13], raw[4:6])
	hex.Encode(text[14:18], raw[6:8])
	hex.Encode(text[19:23], raw[8:10])
	hex.Encode(text[24:], raw[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

const xfcc = "x-forwarded-client-cert"

// clientCert tells the upstream of the client's certificate, or removes what the
// client says of it.
func (s *stream) clientCert() {
	f, cfg := s.fields, s.m.cfg
	mutual := s.conn.TLS != nil && len(s.conn.TLS.PeerCertificates) > 0
	mode := cfg.ClientCert
	if mode == hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY {
		return
	}
	if !mutual || mode == hcmv3.HttpConnectionManager_SANITIZE {
		f.Remove(xfcc)
		return
	}
	if mode == hcmv3.HttpConnectionManager_FORWARD_ONLY {
		return
	}
	element := s.certElement()
	if old := fieldOf(f, xfcc); old != "" && mode == hcmv3.HttpConnectionManager_APPEND_FORWARD {
		element = old + "," + element
	}
	put(f, xfcc, element)
}

// certElement describes the certificate as Envoy documents the header.
func (s *stream) certElement() string {
	details := s.m.cfg.CertDetails
	peers := s.conn.TLS.PeerCertificates
	leaf := peers[0]
	var parts []string
	sum := sha256.Sum256(leaf.Raw)
	parts = append(parts, "Hash="+hex.EncodeToString(sum[:]))
	if details.Cert {
		parts = append(parts, `Cert="`+encodePEM(leaf.Raw)+`"`)
	}
	if details.Chain {
		var all string
		for _, c := range peers {
			all += encodePEM(c.Raw)
		}
		parts = append(parts, `Chain="`+all+`"`)
	}
	if details.Subject {
		parts = append(parts, `Subject="`+strings.ReplaceAll(leaf.Subject.String(), `"`, `\"`)+`"`)
	}
	if details.URI {
		for _, u := range leaf.URIs {
			parts = append(parts, "URI="+u.String())
		}
	}
	if details.DNS {
		for _, name := range leaf.DNSNames {
			parts = append(parts, "DNS="+name)
		}
	}
	return strings.Join(parts, ";")
}

func encodePEM(der []byte) string {
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
}

// normalize removes dot segments, makes backslashes slashes, and decodes what
// needs no encoding, as Envoy (with Chromium's rules) does. It refuses a path
// with an encoded NUL or one that is not absolute.
func normalize(path string, dots, slashes bool) (string, bool) {
	query := ""
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		path, query = path[:i], path[i:]
	}
	if dots {
		if !strings.ContainsAny(path, `\%`) && !strings.Contains(path, "/.") {
			// The usual case: nothing to do.
		} else if clean, ok := removeDots(canonical(path)); ok {
			path = clean
		} else {
			return "", false
		}
	}
	if slashes {
		for strings.Contains(path, "//") {
			path = strings.ReplaceAll(path, "//", "/")
		}
	}
	return path + query, true
}

// canonical decodes the escapes of characters that need none.
func canonical(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '\\':
			b.WriteByte('/')
			continue
		case c == '%' && i+2 < len(path):
			if d, err := hex.DecodeString(path[i+1 : i+3]); err == nil && unreserved(d[0]) {
				b.WriteByte(d[0])
				i += 2
				continue
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func removeDots(path string) (string, bool) {
	if !strings.HasPrefix(path, "/") || strings.Contains(path, "%00") {
		return "", false
	}
	segments := strings.Split(path[1:], "/")
	out := segments[:0]
	for i, seg := range segments {
		last := i == len(segments)-1
		switch seg {
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, seg)
		}
	}
	return "/" + strings.Join(out, "/"), true
}

// finalize changes the head of a response as Envoy does last.
func (s *stream) finalize(f *http1.Fields) {
	if fieldOf(f, "date") == "" {
		f.Add("date", s.m.now())
	}
	put(f, "server", s.m.cfg.ServerName)
	if fieldOf(f, ":status") != "101" {
		f.Remove("connection")
		f.Remove("upgrade")
	}
	f.Remove("transfer-encoding")
	f.Remove("keep-alive")
	f.Remove("proxy-connection")
	if s.m.cfg.EchoRequestID {
		put(f, "x-request-id", fieldOf(s.fields, "x-request-id"))
	}
}
