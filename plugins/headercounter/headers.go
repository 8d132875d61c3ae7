package main

import (
	"strings"

	"github.com/chandler-proxy/chandler/plugins/internal/config"
)

// A header is a response header to add.
type header struct {
	name  string // in lower case, as HTTP/2 wants it
	value string
}

// parse reads the plugin's configuration: an object of strings, in the order
// to add them. No configuration is no headers. Its error names the field that
// is wrong.
func parse(text []byte) ([]header, error) {
	if len(text) == 0 {
		return nil, nil
	}
	top, err := config.Parse(text)
	if err != nil {
		return nil, err
	}
	fields, err := top.Fields()
	if err != nil {
		return nil, err
	}
	headers := make([]header, len(fields))
	for i, f := range fields {
		value, err := f.Value.Text()
		switch {
		case err != nil:
			return nil, err
		case !isToken(f.Name):
			return nil, f.Value.Wrong("the field's name is no header name")
		case !isFieldValue(value):
			return nil, f.Value.Wrong("want printable characters, without space at the ends")
		}
		headers[i] = header{strings.ToLower(f.Name), value}
	}
	return headers, nil
}

// isToken says whether s is a header name (RFC 9110, section 5.6.2). It keeps
// out pseudo-headers such as :status too.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// isFieldValue says whether s is a header value (RFC 9110, section 5.5): no
// line break can end the header early.
func isFieldValue(s string) bool {
	return strings.Trim(s, " \t") == s && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' && r != '\t' || r == 0x7f
	})
}
