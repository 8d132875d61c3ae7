// Package document reads what people write test specifications in, YAML and the text
// form of protocol buffers, into Go values, and knows the line of everything.
//
// Both notations become one tree of [Node], and [Decoder.Decode] makes structs of it:
// their fields are those that the document may have, so that a field nobody knows, or a
// value of the wrong kind, is a [Problem] with its line and path, never ignored. The same
// structs make the JSON schema ([Schema]) that editors check documents against. It opens
// no file itself. Documents are bounded: in size, in depth, and in what their aliases
// make of them.
//
// Start at [ParseYAML], [ParseTextproto] and [Decoder].
package document

import (
	"fmt"
	"strings"
)

// MaxSize is how many bytes a document may have.
const MaxSize = 4 << 20

// Limits on what comes of a document.
const (
	maxDepth = 100
	maxNodes = 1 << 18
)

// A Kind says what a Node is.
type Kind uint8

// The kinds of nodes.
const (
	Scalar Kind = iota
	List
	Map
)

// String is the kind as users know it.
func (k Kind) String() string { return [...]string{"a scalar", "a list", "a mapping"}[k] }

// A Node is a value in a document.
type Node struct {
	Kind Kind
	Line int // from 1

	Text   string  // of a scalar, without quotes
	Value  any     // what the scalar means: nil, bool, int64, uint64, float64, string, []byte or time.Time
	Items  []*Node // of a list
	Fields []Field // of a map, in order; a name may come twice where the notation allows that

	proto bool // of the text form
	word  bool // a word or number there, where a string would have quotes
}

// A Field is one entry of a map.
type Field struct {
	Name  string
	Line  int
	Value *Node
}

// Field returns the value of the first field of that name, nil if there is none.
func (n *Node) Field(name string) *Node {
	if n == nil {
		return nil
	}
	for _, f := range n.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return nil
}

// A Problem is what is wrong with a document, and where.
type Problem struct {
	Line    int    // from 1; 0 if it concerns the document
	Path    string // such as tests[0].steps[2].expect; may be empty
	Message string // what is wrong, and what to do about it
}

func (p Problem) in(file string) string {
	var b strings.Builder
	b.WriteString(file)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// An Error is all that is wrong with a document.
type Error struct {
	File     string
	Problems []Problem // one at least
}

// maxTold is how many problems an error tells of: the rest follows from them, often.
const maxTold = 10

func (e *Error) Error() string {
	var lines []string
	for i, p := range e.Problems {
		if i == maxTold {
			lines = append(lines, fmt.Sprintf("%s: and %d more", e.File, len(e.Problems)-i))
			break
		}
		lines = append(lines, p.in(e.File))
	}
	return strings.Join(lines, "\n")
}
