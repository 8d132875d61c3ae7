package config

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is how deep lists and objects may nest: guests have small stacks.
const maxDepth = 32

// Parse reads one JSON value. Its error is an *[Error].
func Parse(text []byte) (Value, error) {
	p := parser{text: string(text)}
	v := p.value("", 0)
	if p.space(); p.err == nil && p.at < len(p.text) {
		p.fail("", "text after the end")
	}
	if p.err != nil {
		return Value{}, p.err
	}
	return v, nil
}

// A parser goes through text once. The first error stays; after it every
// method returns at once.
type parser struct {
	text string
	at   int
	err  *Error
}

func (p *parser) fail(path, why string) {
	if p.err == nil {
		p.err = &Error{Field: path, Why: "not JSON at byte " + strconv.Itoa(p.at) + ": " + why}
	}
}

func (p *parser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// take skips space and then c, if c is what comes next.
func (p *parser) take(c byte) bool {
	p.space()
	if p.err != nil || p.at == len(p.text) || p.text[p.at] != c {
		return false
	}
	p.at++
	return true
}

func (p *parser) value(path string, depth int) Value {
	v := Value{path: path}
	p.space()
	switch rest := p.text[p.at:]; {
	case p.err != nil:
	case depth > maxDepth:
		p.fail(path, "nested too deep")
	case rest == "":
		p.fail(path, "a value is missing")
	case rest[0] == '{':
		v.Kind = Object
		p.object(&v, depth)
	case rest[0] == '[':
		v.Kind = List
		p.list(&v, depth)
	case rest[0] == '"':
		v.Kind, v.text = String, p.str(path)
	case rest[0] == '-' || isDigit(rest[0]):
		v.Kind, v.text = Number, p.number(path)
	default:
		v.Kind, v.text = p.word(path)
	}
	return v
}

func (p *parser) object(v *Value, depth int) {
	p.take('{')
	if p.take('}') {
		return
	}
	for p.err == nil {
		if p.space(); !strings.HasPrefix(p.text[p.at:], `"`) {
			p.fail(v.path, "want a field name in quotes")
			return
		}
		name := p.str(v.path)
		if !p.take(':') {
			p.fail(v.member(name), "want a colon")
		}
		for _, f := range v.fields {
			if f.Name == name {
				p.fail(v.member(name), "given twice")
			}
		}
		v.fields = append(v.fields, Field{name, p.value(v.member(name), depth+1)})
		if p.take('}') {
			return
		}
		if !p.take(',') {
			p.fail(v.path, "want a comma or the end of the object")
		}
	}
}

func (p *parser) list(v *Value, depth int) {
	p.take('[')
	if p.take(']') {
		return
	}
	for p.err == nil {
		v.items = append(v.items, p.value(v.item(len(v.items)), depth+1))
		if p.take(']') {
			return
		}
		if !p.take(',') {
			p.fail(v.path, "want a comma or the end of the list")
		}
	}
}

// word reads null, true or false.
func (p *parser) word(path string) (Kind, string) {
	for _, w := range []struct {
		kind Kind
		text string
	}{{Null, "null"}, {Bool, "true"}, {Bool, "false"}} {
		if strings.HasPrefix(p.text[p.at:], w.text) {
			p.at += len(w.text)
			return w.kind, w.text
		}
	}
	p.fail(path, "want a value")
	return "", ""
}

// number reads a number and keeps it as written.
func (p *parser) number(path string) string {
	start := p.at
	p.skip('-')
	if !p.skip('0') && !p.digits() {
		p.fail(path, "want a digit")
	}
	if p.skip('.') && !p.digits() {
		p.fail(path, "want a digit")
	}
	if p.skip('e') || p.skip('E') {
		_ = p.skip('+') || p.skip('-')
		if !p.digits() {
			p.fail(path, "want a digit")
		}
	}
	return p.text[start:p.at]
}

// skip goes past c, if c is what comes next.
func (p *parser) skip(c byte) bool {
	if p.at == len(p.text) || p.text[p.at] != c {
		return false
	}
	p.at++
	return true
}

// digits goes past digits and says whether there was one.
func (p *parser) digits() bool {
	start := p.at
	for p.at < len(p.text) && isDigit(p.text[p.at]) {
		p.at++
	}
	return p.at > start
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// str reads a string, from quote to quote.
func (p *parser) str(path string) string {
	var b strings.Builder
	p.at++
	for p.err == nil {
		if p.at == len(p.text) {
			p.fail(path, "a string does not end")
			break
		}
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			return b.String()
		case c == '\\':
			p.escape(path, &b)
		case c < ' ':
			p.fail(path, "a control character in a string")
		default:
			r, size := utf8.DecodeRuneInString(p.text[p.at:])
			if r == utf8.RuneError && size == 1 {
				p.fail(path, "a string is not UTF-8")
			}
			b.WriteString(p.text[p.at : p.at+size])
			p.at += size
		}
	}
	return ""
}

// escape reads one escape sequence, and two where they are a surrogate pair. A
// lone surrogate becomes U+FFFD, as with encoding/json.
func (p *parser) escape(path string, b *strings.Builder) {
	const short = `"\/bfnrt`
	const plain = "\"\\/\b\f\n\r\t"
	p.at++
	if p.at == len(p.text) {
		p.fail(path, "a string does not end")
		return
	}
	c := p.text[p.at]
	p.at++
	if i := strings.IndexByte(short, c); i >= 0 {
		b.WriteByte(plain[i])
		return
	}
	r, ok := p.hex()
	if c != 'u' || !ok {
		p.fail(path, "an unknown escape sequence in a string")
		return
	}
	if utf16.IsSurrogate(r) {
		before := p.at
		low := rune(utf8.RuneError)
		if strings.HasPrefix(p.text[p.at:], `\u`) {
			p.at += 2
			low, _ = p.hex()
		}
		if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
			p.at = before
		}
	}
	b.WriteRune(r)
}

// hex reads four hexadecimal digits.
func (p *parser) hex() (rune, bool) {
	if len(p.text)-p.at < 4 {
		return utf8.RuneError, false
	}
	n, err := strconv.ParseUint(p.text[p.at:p.at+4], 16, 16)
	if err != nil {
		return utf8.RuneError, false
	}
	p.at += 4
	return rune(n), true
}
