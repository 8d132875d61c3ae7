package document

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ParseTextproto reads a message in the text form of protocol buffers. It knows no
// message types: whether a field is a string or a message, and repeated or not, is for
// whoever decodes the tree. Extensions and Any are refused. The error is a *Problem.
//
// https://protobuf.dev/reference/protobuf/textformat-spec
func ParseTextproto(data []byte) (*Node, error) {
	if len(data) > MaxSize {
		return nil, tooLarge()
	}
	p := textParser{text: string(data), line: 1}
	n := &Node{Kind: Map, Line: 1, proto: true}
	if err := p.fields(n, 0, 0); err != nil {
		return nil, err
	}
	return n, nil
}

// A textParser is at one place in a text.
type textParser struct {
	text  string
	at    int
	line  int
	nodes int
}

func (p *textParser) fail(format string, a ...any) error {
	return &Problem{Line: p.line, Message: fmt.Sprintf(format, a...)}
}

// peek skips white space and comments and returns the next byte, 0 at the end.
func (p *textParser) peek() byte {
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; c {
		case '\n':
			p.line++
		case ' ', '\t', '\r', '\v', '\f':
		case '#':
			end := strings.IndexByte(p.text[p.at:], '\n')
			if end < 0 {
				p.at = len(p.text)
				return 0
			}
			p.at += end - 1
		default:
			return c
		}
	}
	return 0
}

// what is the next thing, for messages.
func (p *textParser) what() string {
	if p.peek(); p.at == len(p.text) {
		return "the end"
	}
	r, _ := utf8.DecodeRuneInString(p.text[p.at:])
	return strconv.QuoteRune(r)
}

// take skips the byte if it is next.
func (p *textParser) take(c byte) bool {
	if p.peek() != c {
		return false
	}
	p.at++
	return true
}

// word takes letters, digits and the like.
func (p *textParser) word(more string) string {
	p.peek()
	from := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c != '_' && !('a' <= c && c <= 'z') && !('A' <= c && c <= 'Z') && !('0' <= c && c <= '9') && !strings.Contains(more, string(rune(c))) {
			break
		}
		p.at++
	}
	return p.text[from:p.at]
}

// fields reads a message's until the byte that ends it, 0 for the end of the text.
func (p *textParser) fields(n *Node, end byte, depth int) error {
	if depth > maxDepth {
		return p.fail("nested too deeply")
	}
	for {
		switch c := p.peek(); {
		case p.at == len(p.text) && end == 0:
			return nil
		case p.at == len(p.text):
			return p.fail("want %q before the end", end)
		case c == end && end != 0:
			p.at++
			return nil
		case c == '[':
			return p.fail("extensions and Any are not known here")
		case '0' <= c && c <= '9':
			return p.fail("want the name of a field, have %s", p.what())
		}
		line, name := p.line, p.word("")
		if name == "" {
			return p.fail("want the name of a field, have %s", p.what())
		}
		v, err := p.value(name, depth)
		if err != nil {
			return err
		}
		n.Fields = append(n.Fields, Field{name, line, v})
		if !p.take(',') {
			p.take(';')
		}
	}
}

// value reads what comes after a field's name.
func (p *textParser) value(name string, depth int) (*Node, error) {
	colon := p.take(':')
	switch c := p.peek(); {
	case c == '[':
		p.at++
		return p.list(name, colon, depth+1)
	case c == '{' || c == '<' || colon:
		return p.single(depth)
	}
	return nil, p.fail("want a colon after %s, have %s", name, p.what())
}

func (p *textParser) list(name string, colon bool, depth int) (*Node, error) {
	n := &Node{Kind: List, Line: p.line, proto: true}
	if p.take(']') {
		return n, nil
	}
	for {
		v, err := p.single(depth)
		if err != nil {
			return nil, err
		}
		if v.Kind == Scalar && !colon {
			return nil, &Problem{Line: n.Line, Message: "want a colon after " + name}
		}
		n.Items = append(n.Items, v)
		if p.take(']') {
			return n, nil
		}
		if !p.take(',') {
			return nil, p.fail("want a comma or ] in the list, have %s", p.what())
		}
	}
}

// single reads a message, a string, a number or a word.
func (p *textParser) single(depth int) (*Node, error) {
	if p.nodes++; p.nodes > maxNodes {
		return nil, p.fail("too large")
	}
	c := p.peek()
	n := &Node{Line: p.line, proto: true}
	switch c {
	case '{', '<':
		p.at++
		n.Kind = Map
		return n, p.fields(n, map[byte]byte{'{': '}', '<': '>'}[c], depth+1)
	case '"', '\'':
		var b []byte
		for p.peek() == '"' || p.peek() == '\'' { // adjacent strings are one
			part, err := p.quoted()
			if err != nil {
				return nil, err
			}
			b = append(b, part...)
		}
		n.Text = string(b)
		n.Value = n.Text
		return n, nil
	}
	n.word = true
	minus := p.take('-')
	n.Text = p.word(".+-")
	if n.Text == "" {
		return nil, p.fail("want a value, have %s", p.what())
	}
	if minus {
		n.Text = "-" + n.Text
	}
	n.Value = n.Text
	return n, nil
}

// escapes are those of one letter.
const (
	escapeNames  = `abfnrtv\'"?`
	escapeValues = "\a\b\f\n\r\t\v\\'\"?"
)

func (p *textParser) quoted() ([]byte, error) {
	quote := p.text[p.at]
	p.at++
	var b []byte
	for p.at < len(p.text) {
		c := p.text[p.at]
		p.at++
		switch {
		case c == quote:
			return b, nil
		case c == '\n':
			return nil, p.fail("a string ends with its line; write \\n for a new line")
		case c != '\\':
			b = append(b, c)
			continue
		}
		var err error
		if b, err = p.escape(b); err != nil {
			return nil, err
		}
	}
	return nil, p.fail("a string without its closing %q", quote)
}

// escape appends what comes after a backslash.
func (p *textParser) escape(b []byte) ([]byte, error) {
	if p.at == len(p.text) {
		return nil, p.fail("a string ends in a backslash")
	}
	c := p.text[p.at]
	if i := strings.IndexByte(escapeNames, c); i >= 0 {
		p.at++
		return append(b, escapeValues[i]), nil
	}
	switch {
	case '0' <= c && c <= '7':
		v, err := p.digits(8, 1, 3)
		if err != nil || v > 255 {
			return nil, p.fail("an octal escape above \\377")
		}
		return append(b, byte(v)), nil
	case c == 'x' || c == 'X':
		p.at++
		v, err := p.digits(16, 1, 2)
		return append(b, byte(v)), err
	case c == 'u':
		p.at++
		v, err := p.digits(16, 4, 4)
		if err == nil && 0xd800 <= v && v < 0xdc00 { // half of a pair
			if !strings.HasPrefix(p.text[p.at:], `\u`) {
				return nil, p.fail("half of a surrogate pair")
			}
			p.at += 2
			low, e := p.digits(16, 4, 4)
			if e != nil || low < 0xdc00 || low > 0xdfff {
				return nil, p.fail("half of a surrogate pair")
			}
			v = (v-0xd800)<<10 + (low - 0xdc00) + 0x10000
		}
		return p.rune(b, v, err)
	case c == 'U':
		p.at++
		v, err := p.digits(16, 8, 8)
		return p.rune(b, v, err)
	}
	return nil, p.fail("unknown escape \\%c", c)
}

func (p *textParser) rune(b []byte, v uint64, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	if v > utf8.MaxRune || 0xd800 <= v && v < 0xe000 {
		return nil, p.fail("%x is no character", v)
	}
	return utf8.AppendRune(b, rune(v)), nil
}

// digits takes between least and most of them.
func (p *textParser) digits(base, least, most int) (uint64, error) {
	n := 0
	for n < most && p.at+n < len(p.text) {
		if _, err := strconv.ParseUint(p.text[p.at+n:p.at+n+1], base, 8); err != nil {
			break
		}
		n++
	}
	if n < least {
		return 0, p.fail("an escape wants %d digits, has %d", least, n)
	}
	v, err := strconv.ParseUint(p.text[p.at:p.at+n], base, 64)
	p.at += n
	return v, err
}
