package document

import (
	"encoding/json"
	"errors"
	"math"
	"time"
)

// JSON is the node as JSON, its fields in their order.
func (n *Node) JSON() ([]byte, error) { return n.appendJSON(nil) }

func (n *Node) appendJSON(b []byte) ([]byte, error) {
	var err error
	switch n.Kind {
	case List:
		b = append(b, '[')
		for i, item := range n.Items {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = item.appendJSON(b); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case Map:
		b = append(b, '{')
		for i, f := range n.Fields {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendValue(b, f.Name); err != nil {
				return nil, err
			}
			b = append(b, ':')
			if b, err = f.Value.appendJSON(b); err != nil {
				return nil, err
			}
		}
		return append(b, '}'), nil
	}
	return appendValue(b, n.Value)
}

func appendValue(b []byte, v any) ([]byte, error) {
	switch f := v.(type) {
	case float64:
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, errors.New("JSON has no such number")
		}
	case time.Time:
		v = f.Format(time.RFC3339Nano)
	}
	text, err := json.Marshal(v)
	return append(b, text...), err
}
