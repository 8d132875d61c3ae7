// Package http1 reads and writes HTTP/1.1 messages as Envoy does: header fields
// in their order, names in lower case, pseudo-headers in front.
//
// It is here because package net/http keeps neither order nor case, both of which
// plugins see and clients of Envoy are used to. It refuses what lets two parsers
// disagree where a message ends: folded lines, space before a colon, a length
// together with chunks, lengths that differ, other codings than chunked. It opens
// no connection. Whatever is read, no more is held in memory than the limit of a
// head, and nothing panics.
//
// Start at [ReadRequest] and [ReadResponse]. RFC 9110, RFC 9112.
package http1

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// Envoy's limits for a head.
const (
	MaxHead   = 60 << 10
	MaxFields = 100
)

// A Refusal is why a message is not taken, and what a client is told that sent it.
type Refusal struct {
	Status  int
	Details string // in Envoy's words
}

func (r *Refusal) Error() string { return "malformed HTTP/1.1 message: " + r.Details }

// Why a message is refused.
var (
	ErrSyntax     error = &Refusal{400, "http1.codec_error"}
	ErrCharacters error = &Refusal{400, "http1.invalid_characters"}
	ErrLengths    error = &Refusal{400, "http1.content_length_and_chunked_not_allowed"}
	ErrTarget     error = &Refusal{400, "http1.invalid_url"}
	ErrScheme     error = &Refusal{400, "http1.invalid_scheme"}
	ErrAuthority  error = &Refusal{400, "http.invalid_authority"}
	ErrConnection error = &Refusal{400, "http1.connection_header_rejected"}
	ErrTooLarge   error = &Refusal{431, "http1.headers_too_large"}
	ErrTooMany    error = &Refusal{431, "http1.too_many_headers"}
	ErrCoding     error = &Refusal{501, "http1.invalid_transfer_encoding"}
	ErrVersion    error = &Refusal{426, "low_version"}
	ErrIncomplete       = io.ErrUnexpectedEOF
)

// Fields is a header map.
type Fields = proxywasm.Fields

// A Message is the head of a request or response, and the way to its body.
type Message struct {
	Fields *Fields // with pseudo-headers
	Body   *Body
	Close  bool // the connection cannot be used again after it
}

// line reads a line without its end, at most limit bytes of it. It is valid until
// the next read.
func line(r *bufio.Reader, limit int) ([]byte, error) {
	b, err := rawLine(r, limit)
	if err != nil {
		return nil, err
	}
	b = b[:len(b)-1]
	if len(b) > 0 && b[len(b)-1] == '\r' {
		b = b[:len(b)-1]
	}
	return b, nil
}

// rawLine reads a line with its end.
func rawLine(r *bufio.Reader, limit int) ([]byte, error) {
	b, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := append([]byte(nil), b...)
		for errors.Is(err, bufio.ErrBufferFull) && len(long) <= limit {
			b, err = r.ReadSlice('\n')
			long = append(long, b...)
		}
		b = long
	}
	switch {
	case len(b) > limit:
		return nil, ErrTooLarge
	case err == io.EOF && len(b) > 0:
		return nil, ErrIncomplete
	case err != nil:
		return nil, err
	}
	return b, nil
}

// A head is what is before a body: the first line, and the fields that follow.
type head struct {
	first  string
	fields []abi.Pair
}

// readHead reads a head. spare is how many fields to leave room for in front.
func readHead(r *bufio.Reader, spare int) (head, error) {
	var h head
	first, err := line(r, MaxHead)
	for skipped := 0; err == nil && len(first) == 0 && skipped < 2; skipped++ {
		first, err = line(r, MaxHead) // an empty line or two may come before
	}
	if err != nil {
		return h, err
	}
	h.first = string(first)
	h.fields, err = readFields(r, spare, MaxHead-len(first))
	return h, err
}

// readFields reads fields until the empty line.
func readFields(r *bufio.Reader, spare, limit int) ([]abi.Pair, error) {
	fields := make([]abi.Pair, spare, spare+12)
	for {
		b, err := line(r, limit)
		switch {
		case err == io.EOF:
			return nil, ErrIncomplete
		case err != nil:
			return nil, err
		case len(b) == 0:
			return fields, nil
		case len(fields)-spare == MaxFields:
			return nil, ErrTooMany
		}
		limit -= len(b)
		p, err := field(b)
		if err != nil {
			return nil, err
		}
		fields = append(fields, p)
	}
}

// field reads one line. It makes the name lower-case in place.
func field(b []byte) (abi.Pair, error) {
	colon := -1
	for i, c := range b {
		if c == ':' {
			colon = i
			break
		}
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		} else if !token(c) {
			return abi.Pair{}, ErrSyntax
		}
	}
	if colon <= 0 {
		return abi.Pair{}, ErrSyntax
	}
	from, to := colon+1, len(b)
	for from < to && (b[from] == ' ' || b[from] == '\t') {
		from++
	}
	for to > from && (b[to-1] == ' ' || b[to-1] == '\t') {
		to--
	}
	for _, c := range b[from:to] {
		if c < ' ' && c != '\t' || c == 0x7f {
			return abi.Pair{}, ErrCharacters
		}
	}
	text := string(b[:to])
	return abi.Pair{Key: text[:colon], Value: text[from:]}, nil
}

// token reports whether c can be in a field's name or a method.
func token(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// ReadRequest reads the head of a request. The scheme is that of the connection. One
// that names no host has no :authority. It returns [io.EOF] if the connection ends
// before one starts.
func ReadRequest(r *bufio.Reader, scheme string) (*Message, error) {
	const pseudo = 4
	h, err := readHead(r, pseudo)
	if err != nil {
		return nil, err
	}
	method, target, err := requestLine(h.first)
	if err != nil {
		return nil, err
	}
	f, host, known, err := takeHost(h.fields, pseudo)
	if err != nil {
		return nil, err
	}
	if target[0] != '/' && !(target == "*" && method == "OPTIONS") {
		if host, target, err = absolute(target); err != nil {
			return nil, err
		}
		known = true
	}
	connection := value(f, "connection")
	if !validConnection(connection) {
		return nil, ErrConnection
	}
	f[0] = abi.Pair{Key: ":authority", Value: host}
	f[1] = abi.Pair{Key: ":path", Value: target}
	f[2] = abi.Pair{Key: ":method", Value: method}
	f[3] = abi.Pair{Key: ":scheme", Value: scheme}
	if !known || hasToken(connection, "host") { // which would have it removed, as any other field
		f = f[1:]
	}
	m := &Message{Fields: merged(proxywasm.NewRequestFields, f)}
	n, chunked, err := length(f)
	if err != nil {
		return nil, err
	}
	m.Close = hasToken(connection, "close")
	if chunked {
		m.Body = chunkedBody(r)
	} else {
		m.Body = fixedBody(r, max(n, 0))
	}
	return m, nil
}

// maxNamed is how many fields a client may have removed, as in Envoy.
const maxNamed = 9

// validConnection reports whether the connection field names only fields that a client may
// have removed: those that tell proxies who it is are not among them.
func validConnection(list string) bool {
	if strings.Count(list, ",") >= maxNamed {
		return false
	}
	for item := range strings.SplitSeq(list, ",") {
		switch name := strings.ToLower(strings.TrimSpace(item)); name {
		case "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto":
			return false
		default:
			if strings.HasPrefix(name, ":") {
				return false
			}
		}
	}
	return true
}

// requestLine reads the first line of a request, whose parts have one space between them.
func requestLine(line string) (method, target string, err error) {
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	switch {
	case !validMethod(method) || !validTarget(target):
		return "", "", ErrSyntax
	case version == "HTTP/1.1":
		return method, target, nil
	case version == "" || len(version) == len("HTTP/1.1") && strings.HasPrefix(version, "HTTP/") && isDigit(version[5]) && version[6] == '.' && isDigit(version[7]):
		return "", "", ErrVersion
	}
	return "", "", ErrSyntax
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// validMethod knows the methods that Envoy's parser knows.
func validMethod(s string) bool {
	switch s {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
		"ACL", "BIND", "CHECKOUT", "COPY", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "M-SEARCH",
		"NOTIFY", "PROPFIND", "PROPPATCH", "PURGE", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "UNBIND", "UNLINK",
		"UNLOCK", "UNSUBSCRIBE":
		return true
	}
	return false
}

func validTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}

// takeHost takes the host field out, if there is one. There may not be two: Envoy would
// join them.
func takeHost(f []abi.Pair, spare int) (rest []abi.Pair, host string, known bool, err error) {
	rest = f[:spare]
	for _, p := range f[spare:] {
		switch {
		case p.Key != "host":
			rest = append(rest, p)
		case known || !validAuthority(p.Value):
			return nil, "", false, ErrAuthority
		default:
			host, known = p.Value, true
		}
	}
	return rest, host, known, nil
}

// validAuthority reports whether all of s can be in an authority. Envoy takes a comma and
// an at sign, too.
func validAuthority(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', isDigit(c):
		case strings.IndexByte("!$%&'()*+-.:;=[]_~", c) < 0:
			return false
		}
	}
	return true
}

// absolute cuts a target that has scheme and authority. As in Envoy who the user is is dropped.
func absolute(target string) (authority, path string, err error) {
	scheme, rest, ok := strings.Cut(target, "://")
	switch {
	case !ok:
		return "", "", ErrTarget
	case !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https"):
		return "", "", ErrScheme
	}
	authority, path = rest, "/"
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	authority = authority[strings.LastIndexByte(authority, '@')+1:]
	if authority == "" || !validAuthority(authority) || !validPort(authority) || path[0] == '#' {
		return "", "", ErrTarget
	}
	return authority, path, nil
}

// validPort reports whether an authority has no port, or one that there can be.
func validPort(authority string) bool {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || strings.HasSuffix(authority, "]") {
		return true
	}
	_, err := strconv.ParseUint(authority[i+1:], 10, 16)
	return err == nil
}

// ReadResponse reads the head of a response to a request of that method, after
// those that are for information only. 101 is not.
func ReadResponse(r *bufio.Reader, method string) (*Message, error) {
	for {
		m, status, err := readResponse(r, method)
		if err != nil || status == 101 || status >= 200 {
			return m, err
		}
	}
}

func readResponse(r *bufio.Reader, method string) (*Message, int, error) {
	h, err := readHead(r, 1)
	if err != nil {
		return nil, 0, err
	}
	version, rest, _ := strings.Cut(h.first, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if err != nil || status < 100 || status > 999 || len(code) != 3 || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return nil, 0, ErrSyntax
	}
	f := h.fields
	f[0] = abi.Pair{Key: ":status", Value: code}
	m := &Message{Fields: merged(proxywasm.NewResponseFields, f)}
	n, chunked, err := length(f)
	if err != nil {
		return nil, 0, err
	}
	connection := value(f, "connection")
	m.Close = hasToken(connection, "close") || version == "HTTP/1.0" && !hasToken(connection, "keep-alive")
	switch {
	case status == 101:
		m.Body, m.Close = rawBody(r), true
	case status < 200 || status == 204 || status == 304 || method == "HEAD":
		m.Body = fixedBody(r, 0)
	case chunked:
		m.Body = chunkedBody(r)
	case n >= 0:
		m.Body = fixedBody(r, n)
	default:
		m.Body, m.Close = rawBody(r), true
	}
	return m, status, nil
}

// merged is a map of the fields. One that Envoy holds in a single slot is there once.
func merged(of func(...abi.Pair) *Fields, fields []abi.Pair) *Fields {
	if !repeated(fields) {
		return of(fields...)
	}
	f := of()
	for _, p := range fields {
		f.Add(p.Key, p.Value)
	}
	return f
}

func repeated(fields []abi.Pair) bool {
	for i := range fields {
		for j := range i {
			if fields[i].Key == fields[j].Key {
				return true
			}
		}
	}
	return false
}

// length says how long a body is; -1 if the head does not tell.
func length(f []abi.Pair) (n int64, chunked bool, err error) {
	n = -1
	for _, p := range f {
		switch p.Key {
		case "content-length":
			v, err := strconv.ParseUint(p.Value, 10, 62)
			if err != nil || p.Value[0] == '+' || n >= 0 {
				return 0, false, ErrSyntax
			}
			n = int64(v)
		case "transfer-encoding":
			if chunked || !strings.EqualFold(p.Value, "chunked") {
				return 0, false, ErrCoding
			}
			chunked = true
		}
	}
	if chunked && n >= 0 {
		return 0, false, ErrLengths
	}
	return n, chunked, nil
}

func value(f []abi.Pair, name string) string {
	for _, p := range f {
		if p.Key == name {
			return p.Value
		}
	}
	return ""
}

// hasToken reports whether a list has the token, whatever its case.
func hasToken(list, token string) bool {
	for list != "" {
		var item string
		item, list, _ = strings.Cut(list, ",")
		if strings.EqualFold(strings.TrimSpace(item), token) {
			return true
		}
	}
	return false
}
