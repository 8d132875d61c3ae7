package http2

import (
	"strconv"
	"strings"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/engine/http1"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// A head is a header block as it is being decoded. It is used again and again.
type head struct {
	pairs   []abi.Pair
	pseudo  [6]string // see the constants
	known   [6]bool
	regular bool // fields that are no pseudo-headers were seen
	kind    kind
	size    int    // bytes of names and values
	count   int    // fields
	length  int64  // content-length; -1 if there is none
	host    string // field
	hosts   int
	cookies int
	fault   string // why it is malformed; empty if it is not
}

// A kind is what a header block is.
type kind uint8

const (
	request kind = iota
	response
	trailers
)

const (
	method = iota
	scheme
	authority
	path
	protocol
	status
)

func (h *head) begin(k kind) {
	clear(h.pairs)
	*h = head{pairs: h.pairs[:0], kind: k, length: -1}
}

// large reports whether there is more than is taken. What is above is not kept.
func (h *head) large() bool { return h.size > http1.MaxHead || h.count > http1.MaxFields }

func (h *head) refuse(reason string) {
	if h.fault == "" {
		h.fault = reason
	}
}

// add takes a field. It is called by the decoder.
func (h *head) add(f hpack.HeaderField) {
	h.size += len(f.Name) + len(f.Value)
	h.count++
	switch {
	case h.large() || h.fault != "":
	case !validValue(f.Value):
		h.refuse("character in a field's value")
	case strings.HasPrefix(f.Name, ":"):
		h.addPseudo(f)
	case !validName(f.Name):
		h.refuse("character in a field's name")
	default:
		h.regular = true
		h.addField(f)
	}
}

func (h *head) addPseudo(f hpack.HeaderField) {
	i := -1
	switch f.Name {
	case ":method":
		i = method
	case ":scheme":
		i = scheme
	case ":authority":
		i = authority
	case ":path":
		i = path
	case ":protocol":
		i = protocol
	case ":status":
		i = status
	}
	if i < 0 || h.known[i] || h.regular || h.kind == trailers || (i == status) != (h.kind == response) {
		h.refuse("pseudo-header")
		return
	}
	h.known[i], h.pseudo[i] = true, f.Value
	h.pairs = append(h.pairs, abi.Pair{Key: f.Name, Value: f.Value})
}

func (h *head) addField(f hpack.HeaderField) {
	switch f.Name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		h.refuse("connection-specific field")
	case "te":
		if h.kind == request && !strings.EqualFold(f.Value, "trailers") {
			h.refuse("te")
		}
	case "content-length":
		n, err := strconv.ParseUint(f.Value, 10, 63)
		if err != nil || f.Value[0] == '+' || h.length >= 0 {
			h.refuse("content-length")
		}
		h.length = int64(n)
	case "cookie":
		h.cookies++
	case "host":
		if h.kind == request {
			h.host = f.Value
			h.hosts++
			return // it is another name of :authority
		}
	}
	h.pairs = append(h.pairs, abi.Pair{Key: f.Name, Value: f.Value})
}

// check finds out whether the whole makes a message, as Envoy's codec does.
func (h *head) check() {
	switch {
	case h.fault != "" || h.large():
	case h.kind == request:
		h.checkRequest()
	case h.kind == response && !validStatus(h.pseudo[status]):
		h.refuse("status")
	}
}

func validStatus(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && len(s) == 3 && n >= 100 && n != 101
}

func (h *head) checkRequest() {
	connect := h.pseudo[method] == "CONNECT"
	host := h.pseudo[authority]
	if !h.known[authority] {
		host = h.host
	}
	switch {
	case h.known[protocol]:
		h.refuse("extended CONNECT")
	case !validMethod(h.pseudo[method]):
		h.refuse("method")
	case connect && (h.known[scheme] || h.known[path]):
		h.refuse("CONNECT with a path")
	case !connect && !validScheme(h.pseudo[scheme]):
		h.refuse("scheme")
	case !connect && !validPath(h.pseudo[path], h.pseudo[method]):
		h.refuse("path")
	case host == "" || !validAuthority(host) || h.hosts > 1 || h.hosts == 1 && !validAuthority(h.host):
		h.refuse("authority")
	}
}

// fields makes a header map of what was decoded. A host field is the authority if
// there is no other, and else dropped: an upstream must not be told two. Cookies are
// joined, after all others (RFC 9113, section 8.2.3).
func (h *head) fields() *http1.Fields {
	const more = 8 // that the proxy will add
	list := make([]abi.Pair, 0, len(h.pairs)+1+more)
	if h.kind == trailers {
		return proxywasm.NewFields(append(list, h.pairs...)...)
	}
	of := proxywasm.NewResponseFields
	if h.kind == request {
		of = proxywasm.NewRequestFields
		if !h.known[authority] {
			list = append(list, abi.Pair{Key: ":authority", Value: h.host})
		}
	}
	list = append(list, h.pairs...)
	if h.kind == request && h.cookies > 0 {
		list = joinCookies(list)
	}
	if !repeated(list) {
		return of(list...)
	}
	f := of()
	for _, p := range list { // one that Envoy holds in a single slot is there once
		f.Add(p.Key, p.Value)
	}
	return f
}

func joinCookies(list []abi.Pair) []abi.Pair {
	var cookies []string
	kept := list[:0]
	for _, p := range list {
		if p.Key == "cookie" {
			cookies = append(cookies, p.Value)
		} else {
			kept = append(kept, p)
		}
	}
	return append(kept, abi.Pair{Key: "cookie", Value: strings.Join(cookies, "; ")})
}

func repeated(list []abi.Pair) bool {
	for i := range list {
		for j := range i {
			if list[i].Key == list[j].Key {
				return true
			}
		}
	}
	return false
}

// validName reports whether s is a token in lower case.
func validName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0:
			return false
		}
	}
	return s != ""
}

// validMethod reports whether s is a token.
func validMethod(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'A' || c > 'Z') && !validName(s[i:i+1]) {
			return false
		}
	}
	return s != ""
}

// validValue is Envoy's rule: space and tabs may be anywhere, other control characters not.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func validScheme(s string) bool {
	for i := range len(s) {
		switch c := s[i] | 0x20; {
		case c >= 'a' && c <= 'z':
		case i == 0 || (s[i] < '0' || s[i] > '9') && strings.IndexByte("+-.", s[i]) < 0:
			return false
		}
	}
	return s != ""
}

func validPath(s, method string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return strings.HasPrefix(s, "/") || s == "*" && method == "OPTIONS"
}

func validAuthority(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("!$%&'()*+,-.:;=[]_~", c) < 0:
			return false
		}
	}
	return true
}

// block decodes the header block that starts with a frame.
func (c *conn) block(f *h2.HeadersFrame, k kind) error {
	c.head.begin(k)
	fragment, ended, size := f.HeaderBlockFragment(), f.HeadersEnded(), 0
	for {
		if size += len(fragment); size > maxBlock {
			return &ProtocolError{h2.ErrCodeEnhanceYourCalm, "header block is too long"}
		}
		if _, err := c.dec.Write(fragment); err != nil {
			return &ProtocolError{h2.ErrCodeCompression, "header block"}
		}
		if ended {
			break
		}
		next, err := c.next()
		if err != nil {
			return err
		}
		more := next.(*h2.ContinuationFrame) // the framer takes no other now
		fragment, ended = more.HeaderBlockFragment(), more.HeadersEnded()
	}
	if err := c.dec.Close(); err != nil {
		return &ProtocolError{h2.ErrCodeCompression, "header block"}
	}
	c.head.check()
	return nil
}
