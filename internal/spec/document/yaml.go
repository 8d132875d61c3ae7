package document

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// ParseYAML reads one YAML document. Aliases are followed; merge keys and keys that come
// twice are refused. An empty document is an empty map. The error is a *Problem.
func ParseYAML(data []byte) (*Node, error) {
	if len(data) > MaxSize {
		return nil, tooLarge()
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	switch err := d.Decode(&root); {
	case errors.Is(err, io.EOF):
		return &Node{Kind: Map, Line: 1}, nil
	case err != nil:
		return nil, yamlProblem(err)
	}
	var second yaml.Node
	switch err := d.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, yamlProblem(err)
	default:
		return nil, &Problem{Line: second.Line, Message: "a second document: want one a file"}
	}
	c := converter{left: maxNodes}
	return c.node(&root, 0)
}

func tooLarge() *Problem {
	return &Problem{Message: fmt.Sprintf("larger than %d bytes", MaxSize)}
}

func (p *Problem) Error() string { return p.in("document") }

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\n\s*)?line (\d+): (?s)(.*)$`)

func yamlProblem(err error) *Problem {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1]) // digits
		if strings.HasPrefix(m[2], "did not find expected") {
			line++ // the parser, other than the scanner, counts from 0
		}
		return &Problem{Line: line, Message: "not YAML: " + m[2]}
	}
	return &Problem{Message: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
}

// A converter makes nodes of YAML's.
type converter struct{ left int }

func (c *converter) node(y *yaml.Node, depth int) (*Node, error) {
	if c.left--; c.left < 0 || depth > maxDepth {
		return nil, &Problem{Line: y.Line, Message: "too large, or nested too deeply"}
	}
	n := &Node{Line: y.Line}
	switch y.Kind {
	case yaml.DocumentNode:
		return c.node(y.Content[0], depth+1)
	case yaml.AliasNode:
		return c.node(y.Alias, depth+1)
	case yaml.SequenceNode:
		n.Kind = List
		for _, item := range y.Content {
			v, err := c.node(item, depth+1)
			if err != nil {
				return nil, err
			}
			n.Items = append(n.Items, v)
		}
		return n, nil
	case yaml.MappingNode:
		return n, c.fields(n, y, depth)
	}
	return n, scalar(n, y)
}

func (c *converter) fields(n *Node, y *yaml.Node, depth int) error {
	n.Kind = Map
	seen := map[string]bool{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		key := y.Content[i]
		for key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		switch {
		case key.Kind != yaml.ScalarNode:
			return &Problem{Line: key.Line, Message: "a key must be a scalar"}
		case key.ShortTag() == "!!merge":
			return &Problem{Line: key.Line, Message: "merge keys (<<) are not supported: write the fields out"}
		case seen[key.Value]:
			return &Problem{Line: key.Line, Path: key.Value, Message: "comes twice"}
		}
		seen[key.Value] = true
		v, err := c.node(y.Content[i+1], depth+1)
		if err != nil {
			return err
		}
		n.Fields = append(n.Fields, Field{key.Value, key.Line, v})
	}
	return nil
}

// scalar finds out what a scalar means.
func scalar(n *Node, y *yaml.Node) error {
	n.Text = y.Value
	var err error
	switch tag := y.ShortTag(); tag {
	case "!!str":
		n.Value = y.Value
	case "!!null":
		n.Value = nil
	case "!!bool", "!!int", "!!float":
		if err = y.Decode(&n.Value); err == nil {
			n.Value = widened(n.Value)
		}
	case "!!timestamp":
		var t time.Time
		err = y.Decode(&t)
		n.Value = t
	case "!!binary":
		var b []byte
		b, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(y.Value), ""))
		n.Value = b
	default:
		err = fmt.Errorf("tag %s is unknown", tag)
	}
	if err != nil {
		return &Problem{Line: y.Line, Message: err.Error()}
	}
	return nil
}

// widened is a number of the types that Node has.
func widened(v any) any {
	if i, ok := v.(int); ok {
		return int64(i)
	}
	return v
}
