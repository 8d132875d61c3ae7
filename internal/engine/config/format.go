package config

import (
	"net/netip"
	"strings"
)

// Facts is what header values can tell of a request.
type Facts struct {
	Request       Headers
	Protocol      string // HTTP/1.1 or HTTP/2
	Remote, Local netip.AddrPort
}

// A Format is a header value with Envoy's command operators in it.
type Format []part

// A part is text, or else a fact.
type part struct {
	text string
	fact func(*Facts) string
}

func (f Format) expand(facts *Facts) string {
	if len(f) == 1 && f[0].fact == nil {
		return f[0].text
	}
	var b strings.Builder
	for _, p := range f {
		if p.fact != nil {
			b.WriteString(p.fact(facts))
		} else {
			b.WriteString(p.text)
		}
	}
	return b.String()
}

// format reads a header value: %% is a percent sign, %NAME% or %NAME(ARGUMENT)%
// a fact.
func (d *decoder) format(path, s string) Format {
	var f Format
	for s != "" {
		text, rest, found := strings.Cut(s, "%")
		if text != "" {
			f = append(f, part{text: text})
		}
		if !found {
			break
		}
		if strings.HasPrefix(rest, "%") {
			f, s = append(f, part{text: "%"}), rest[1:]
			continue
		}
		command, after, closed := cutCommand(rest)
		fact := factOf(command)
		if !closed || fact == nil {
			d.fail(path, "%%%s%% is not supported by the engine", command)
			return nil
		}
		f, s = append(f, part{fact: fact}), after
	}
	return f
}

// cutCommand cuts after the percent sign that ends a command. One between
// parentheses does not.
func cutCommand(s string) (command, rest string, ok bool) {
	from := 0
	if open, end := strings.IndexByte(s, '('), strings.IndexByte(s, ')'); open >= 0 && end > open && open < strings.IndexByte(s+"%", '%') {
		from = end
	}
	i := strings.IndexByte(s[from:], '%')
	if i < 0 {
		return s, "", false
	}
	return s[:from+i], s[from+i+1:], true
}

func factOf(command string) func(*Facts) string {
	switch command {
	case "PROTOCOL":
		return func(f *Facts) string { return f.Protocol }
	case "DOWNSTREAM_REMOTE_ADDRESS":
		return func(f *Facts) string { return f.Remote.String() }
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		return func(f *Facts) string { return f.Remote.Addr().String() }
	case "DOWNSTREAM_LOCAL_ADDRESS":
		return func(f *Facts) string { return f.Local.String() }
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		return func(f *Facts) string { return f.Local.Addr().String() }
	}
	if name, ok := strings.CutPrefix(command, "REQ("); ok && strings.HasSuffix(name, ")") {
		name, other, _ := strings.Cut(strings.TrimSuffix(name, ")"), "?")
		return request(strings.ToLower(name), strings.ToLower(other))
	}
	return nil
}

func request(name, other string) func(*Facts) string {
	return func(f *Facts) string {
		v, ok := f.Request.Get(name)
		if !ok && other != "" {
			v, _ = f.Request.Get(other)
		}
		return v
	}
}
