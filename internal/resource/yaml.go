package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds on what one file may ask for. etcd takes resources up to 1.5 MiB, so
// nothing that a cluster could hold comes near them.
const (
	// MaxFile is the largest file, in bytes, that Decode takes.
	MaxFile = 4 << 20
	// maxValues is how many mappings, lists and scalars a document may have once
	// its aliases are replaced by what they stand for.
	maxValues = 300_000
	// maxDepth is how deep they may be nested.
	maxDepth = 500
	// maxDocuments is how many resources a file may have.
	maxDocuments = 10_000
	// maxProblems is how many problems of one document are told.
	maxProblems = 20
)

// parse splits data into documents. Each is a node, or the finding that it is
// not YAML. Empty documents are left out.
//
// Documents are parsed one by one, so that a slip in one does not hide the rest.
func parse(data []byte) (nodes []*yaml.Node, bad []finding) {
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[') {
		if nodes, err := parseJSON(data); err == nil {
			return nodes, nil
		}
	}
	chunks := split(data)
	if len(chunks) > 2*maxDocuments {
		return nil, []finding{{message: fmt.Sprintf("more than %d documents", 2*maxDocuments)}}
	}
	for _, c := range chunks {
		got, err := parseYAML(c.data)
		for _, n := range got {
			shift(n, c.line)
			nodes = append(nodes, n)
		}
		if err != nil {
			bad = append(bad, syntaxFinding(err, c.line))
		}
	}
	return nodes, bad
}

// A chunk is a piece of a file that begins after line lines.
type chunk struct {
	data []byte
	line int
}

// split cuts data before each line that begins a document. "---" at the
// beginning of a line means that wherever it stands, even in a quoted scalar.
func split(data []byte) []chunk {
	var chunks []chunk
	begin, beginLine, line := 0, 0, 0
	for at := 0; at < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if at > begin && marksDocument(data[at:end]) {
			chunks = append(chunks, chunk{data[begin:at], beginLine})
			begin, beginLine = at, line
		}
		at = end
	}
	return append(chunks, chunk{data[begin:], beginLine})
}

func marksDocument(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n"))
}

func parseYAML(data []byte) ([]*yaml.Node, error) {
	var nodes []*yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nodes, err
		}
		if document.Kind != yaml.DocumentNode || len(document.Content) == 0 {
			continue
		}
		if n := document.Content[0]; n.ShortTag() != "!!null" {
			nodes = append(nodes, n)
		}
	}
}

// shift adds by to the line of n and of everything below it.
func shift(n *yaml.Node, by int) {
	n.Line += by
	for _, c := range n.Content {
		shift(c, by)
	}
}

// syntaxFinding reads the line from the parser's message, which has it nowhere else.
func syntaxFinding(err error, shift int) finding {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := shift + 1
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(message); m != nil {
		n, _ := strconv.Atoi(m[1])
		line = shift + n
		message = message[len(m[0]):]
	}
	return finding{line: line, message: "not YAML: " + message}
}

// parseJSON makes the nodes that the YAML parser would make. JSON is not quite
// a subset of the YAML it reads: tabs, and escapes of surrogate pairs.
func parseJSON(data []byte) ([]*yaml.Node, error) {
	p := jsonParser{data: data, line: 1, decoder: json.NewDecoder(bytes.NewReader(data))}
	p.decoder.UseNumber()
	var nodes []*yaml.Node
	for {
		n, err := p.value()
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
}

type jsonParser struct {
	data    []byte
	decoder *json.Decoder
	at      int64 // how far line counts
	line    int
}

func (p *jsonParser) value() (*yaml.Node, error) {
	token, err := p.decoder.Token()
	if err != nil {
		return nil, err
	}
	p.line += bytes.Count(p.data[p.at:p.decoder.InputOffset()], []byte("\n"))
	p.at = p.decoder.InputOffset()
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: p.line}
	switch t := token.(type) {
	case json.Delim:
		return n, p.content(n, t)
	case string:
		n.Tag, n.Value, n.Style = "!!str", t, yaml.DoubleQuotedStyle
	case json.Number:
		n.Tag, n.Value = "!!int", t.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}

// content reads what stands between open and its counterpart into n.
func (p *jsonParser) content(n *yaml.Node, open json.Delim) error {
	n.Kind, n.Tag = yaml.MappingNode, "!!map"
	if open == '[' {
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
	}
	for p.decoder.More() {
		c, err := p.value()
		if err != nil {
			return unexpectedEOF(err)
		}
		n.Content = append(n.Content, c)
	}
	_, err := p.decoder.Token()
	return unexpectedEOF(err)
}

// unexpectedEOF makes sure that the end within a value is not taken for the end after one.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A reader turns nodes into the values that JSON has, as kubectl would: a
// mapping is a map[string]any, numbers are int64 or float64.
type reader struct {
	left     int // how many more values may be made
	findings []finding
}

// read returns the value of n, which stands at field.
func (r *reader) read(n *yaml.Node, field string, depth int) any {
	r.left--
	switch {
	case r.left < 0 || depth > maxDepth:
		r.refuse()
		return nil
	case n.Kind == yaml.AliasNode:
		return r.read(n.Alias, field, depth+1)
	case n.Kind == yaml.MappingNode:
		return r.mapping(n, field, depth)
	case n.Kind == yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for i, c := range n.Content {
			list = append(list, r.read(c, fmt.Sprintf("%s[%d]", field, i), depth+1))
		}
		return list
	default:
		v, message := scalar(n)
		if message != "" {
			r.add(finding{field: field, line: n.Line, message: message})
		}
		return v
	}
}

func (r *reader) add(f finding) {
	if len(r.findings) < maxProblems {
		r.findings = append(r.findings, f)
	}
}

// refuse says once that the document is too large.
func (r *reader) refuse() {
	tooLarge := finding{message: fmt.Sprintf("too large: more than %d values with its aliases replaced, or nested deeper than %d", maxValues, maxDepth)}
	if !slices.Contains(r.findings, tooLarge) {
		r.findings = append(r.findings, tooLarge)
	}
	r.left = -1
}

func (r *reader) mapping(n *yaml.Node, field string, depth int) any {
	m := make(map[string]any, len(n.Content)/2)
	lines := make(map[string]int, len(n.Content)/2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.ShortTag() == "!!merge" {
			merged = append(merged, value)
			continue
		}
		name, ok := keyName(key)
		if !ok {
			r.add(finding{field: field, line: key.Line, message: "a key must be a string"})
			continue
		}
		at := join(field, name)
		if first, ok := lines[name]; ok {
			r.add(finding{
				field: at, line: key.Line,
				message: fmt.Sprintf("duplicate field %q", at),
				mend:    fmt.Sprintf("it is already set at line %d", first),
			})
			continue
		}
		lines[name] = key.Line
		m[name] = r.read(value, at, depth+1)
	}
	for _, source := range merged {
		r.merge(m, source, field, depth)
	}
	return m
}

// merge adds to m what source, the value of a key "<<", has and m has not.
func (r *reader) merge(m map[string]any, source *yaml.Node, field string, depth int) {
	switch v := r.read(source, field, depth+1).(type) {
	case map[string]any:
		fill(m, v)
	case []any:
		for _, one := range v {
			if one, ok := one.(map[string]any); ok {
				fill(m, one)
			}
		}
	default:
		r.add(finding{field: field, line: source.Line, message: `"<<" must have a mapping or a list of mappings`})
	}
}

func fill(m, from map[string]any) {
	for k, v := range from {
		if _, ok := m[k]; !ok {
			m[k] = v
		}
	}
}

// keyName is the key as JSON would have it: kubectl makes strings of the rest.
func keyName(n *yaml.Node) (string, bool) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.ScalarNode {
		return "", false
	}
	v, message := scalar(n)
	if message != "" || v == nil {
		return "", false
	}
	return fmt.Sprint(v), true
}

func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

// scalar is the value of a scalar node, or why it has none.
func scalar(n *yaml.Node) (v any, message string) {
	switch n.ShortTag() {
	case "!!str":
		if b, ok := oldBool(n.Value); ok && n.Style == 0 {
			return b, ""
		}
		return n.Value, ""
	case "!!timestamp":
		return n.Value, ""
	case "!!null":
		return nil, ""
	case "!!bool", "!!int", "!!float":
		return number(n)
	default:
		return nil, fmt.Sprintf("tag %s is not known", n.Tag)
	}
}

// oldBool reads the booleans that only YAML 1.1 has. kubectl takes plain
// scalars for them.
func oldBool(s string) (value, ok bool) {
	switch s {
	case "y", "Y", "yes", "Yes", "YES", "on", "On", "ON":
		return true, true
	case "n", "N", "no", "No", "NO", "off", "Off", "OFF":
		return false, true
	}
	return false, false
}

func number(n *yaml.Node) (any, string) {
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, fmt.Sprintf("not a valid %s", strings.TrimPrefix(n.ShortTag(), "!!"))
	}
	switch v := v.(type) {
	case int:
		return int64(v), ""
	case uint64:
		return float64(v), ""
	case float64:
		if math.IsInf(v, 0) || math.IsNaN(v) {
			return nil, "a number must be finite"
		}
	}
	return v, ""
}
