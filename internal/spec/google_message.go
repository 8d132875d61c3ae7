package spec

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/chandler-proxy/chandler/internal/abi"
)

// parseMessage reads the head of an HTTP/1.1 message and returns it as a plugin sees it,
// with pseudo-headers. Lines may end in LF alone; an empty line, or the end of the text,
// ends the head, and what comes after is left out. A request for an absolute URI has its
// host from there, other than that from its Host field, if there is one.
func parseMessage(text string, request bool) ([]abi.Pair, error) {
	text = strings.TrimLeft(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	head, _, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(strings.TrimSuffix(head, "\n"), "\n")
	fields, err := fieldLines(lines[1:])
	if err != nil {
		return nil, err
	}
	first := responseLine
	if request {
		first = func(line string) ([]abi.Pair, error) { return requestLine(line, &fields) }
	}
	pseudo, err := first(lines[0])
	return append(pseudo, fields...), err
}

// fieldLines reads header fields. A line that begins with white space goes on with the
// one before.
func fieldLines(lines []string) ([]abi.Pair, error) {
	var fields []abi.Pair
	for _, line := range lines {
		if line != "" && (line[0] == ' ' || line[0] == '\t') && len(fields) > 0 {
			last := &fields[len(fields)-1].Value
			*last = strings.TrimSpace(*last + " " + strings.TrimSpace(line))
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("HTTP message: %q is no header field", line)
		}
		fields = append(fields, abi.Pair{Key: strings.ToLower(name), Value: strings.Trim(value, " \t")})
	}
	return fields, nil
}

func responseLine(line string) ([]abi.Pair, error) {
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	n, err := strconv.Atoi(code)
	if !strings.HasPrefix(version, "HTTP/") || err != nil || n < 100 || n > 999 {
		return nil, fmt.Errorf("HTTP message: %q is no status line, as in HTTP/1.1 200 OK", line)
	}
	return []abi.Pair{{Key: ":status", Value: strconv.Itoa(n)}}, nil
}

// requestLine reads the first line of a request, and takes Host from the fields.
func requestLine(line string, fields *[]abi.Pair) ([]abi.Pair, error) {
	parts := strings.Fields(line)
	if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && !strings.HasPrefix(parts[2], "HTTP/") {
		return nil, fmt.Errorf("HTTP message: %q is no request line, as in GET / HTTP/1.1", line)
	}
	pseudo := []abi.Pair{{Key: ":method", Value: parts[0]}}
	host := takeHost(fields)
	u, err := url.Parse(parts[1])
	switch {
	case err != nil:
	case strings.HasPrefix(parts[1], "/") && u.Fragment == "":
		pseudo = append(pseudo, abi.Pair{Key: ":path", Value: parts[1]})
		if host != "" {
			pseudo = append(pseudo, abi.Pair{Key: ":authority", Value: host})
		}
		return pseudo, nil
	case u.Scheme != "" && u.Host != "":
		return append(pseudo, abi.Pair{Key: ":scheme", Value: strings.ToLower(u.Scheme)},
			abi.Pair{Key: ":path", Value: u.RequestURI()}, abi.Pair{Key: ":authority", Value: authority(u)}), nil
	}
	return nil, fmt.Errorf("HTTP message: %q is neither a path nor an absolute URI", parts[1])
}

// authority is the host, with the port unless the scheme implies it.
func authority(u *url.URL) string {
	if u.Port() == "" || u.Scheme == "http" && u.Port() == "80" || u.Scheme == "https" && u.Port() == "443" {
		return strings.ToLower(strings.TrimSuffix(u.Host, ":"+u.Port()))
	}
	return strings.ToLower(u.Host)
}

func takeHost(fields *[]abi.Pair) (host string) {
	*fields = slices.DeleteFunc(*fields, func(f abi.Pair) bool {
		if f.Key != "host" {
			return false
		}
		host = f.Value
		return true
	})
	return host
}

// mergedHeaders are headers as Google's runner keeps them: sorted by name, fields of the
// same name joined by commas.
type mergedHeaders struct{ fields []mergedField }

type mergedField struct{ name, value string } // the name in lower case

func (h *mergedHeaders) clone() *mergedHeaders { return &mergedHeaders{slices.Clone(h.fields)} }

func (h *mergedHeaders) find(name string) (int, bool) {
	return slices.BinarySearchFunc(h.fields, strings.ToLower(name), func(f mergedField, name string) int {
		return strings.Compare(f.name, name)
	})
}

func (h *mergedHeaders) insert(i int, name, value string) {
	h.fields = slices.Insert(h.fields, i, mergedField{strings.ToLower(name), value})
}

// Len is the number of fields.
func (h *mergedHeaders) Len() int { return len(h.fields) }

// Get returns the value of the field.
func (h *mergedHeaders) Get(name string) (string, bool) {
	i, ok := h.find(name)
	if !ok {
		return "", false
	}
	return h.fields[i].value, true
}

// Add adds a field, or to the value of the one there is.
func (h *mergedHeaders) Add(name, value string) {
	i, ok := h.find(name)
	switch {
	case !ok:
		h.insert(i, name, value)
	case h.fields[i].value == "":
		h.fields[i].value = value
	default:
		h.fields[i].value += ", " + value
	}
}

// Set adds a field, or changes its value.
func (h *mergedHeaders) Set(name, value string) {
	i, ok := h.find(name)
	if !ok {
		h.insert(i, name, value)
		return
	}
	h.fields[i].value = value
}

// Remove removes the field.
func (h *mergedHeaders) Remove(name string) {
	if i, ok := h.find(name); ok {
		h.fields = slices.Delete(h.fields, i, i+1)
	}
}

// Each calls yield for each field.
func (h *mergedHeaders) Each(yield func(name, value string) bool) {
	for _, f := range h.fields {
		if !yield(f.name, f.value) {
			return
		}
	}
}

// lines are the fields, for matchers.
func (h *mergedHeaders) lines() []candidate {
	var all []candidate
	for _, f := range h.fields {
		all = append(all, candidate(f))
	}
	return all
}
