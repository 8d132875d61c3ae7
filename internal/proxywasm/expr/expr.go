// Package expr has Envoy's foreign functions of expressions in the Common Expression
// Language: expr_create, expr_evaluate and expr_delete, over the attributes that
// proxy_get_property serves; and it looks up what is in messages that plugins have
// declared properties to be.
//
// It stands apart from package proxywasm because it brings a parser and the types of
// Envoy's API along. An expression is parsed, not checked, as in Envoy: an attribute
// that there is not is an error when it is looked at. It refuses what would take a proxy's time: an
// expression may loop 10,000 times, as in Envoy, and take as long as a call into the
// guest may.
//
// The parser, the operators and the functions are cel-go's; where it differs from
// Envoy's C++ library in ways that show, this package adapts it: see [environment]. What
// is known to differ still: times after the year 9999, which Envoy clamps, and literals
// of numbers too large for a double, which it takes for infinite, are errors here; and a
// root context may hold 4,096 expressions at a time, then more are refused.
//
// Start at [Register].
//
// https://github.com/envoyproxy/envoy/blob/v1.40.0/source/extensions/common/wasm/foreign.cc
package expr

import (
	"encoding/binary"
	"time"
	"unicode/utf8"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"

	"github.com/chandler-proxy/chandler/internal/abi"
	"github.com/chandler-proxy/chandler/internal/proxywasm"
)

// Register adds the functions to those of s, and has it look into messages.
func Register(s *proxywasm.Services) {
	env := newEnvironment()
	if s.Foreign == nil {
		s.Foreign = map[string]proxywasm.ForeignFunc{}
	}
	s.Foreign["expr_create"] = env.create
	s.Foreign["expr_evaluate"] = evaluate
	s.Foreign["expr_delete"] = remove
	s.Messages = lookup
}

// maxExpressions is how many a root context may hold.
const maxExpressions = 4096

// expressions are those of a root context, by token.
type expressions struct {
	next     uint32
	programs map[uint32]cel.Program
}

type dataKey struct{}

// of returns those of the plugin whose callback runs, nil if that is none's.
func of(c *proxywasm.Context) *expressions {
	e, _ := c.Data(dataKey{}, func() any { return &expressions{programs: map[uint32]cel.Program{}} }).(*expressions)
	return e
}

// create is expr_create: the argument is the expression, the result its token, of four
// bytes.
func (env *environment) create(c *proxywasm.Context, argument []byte) ([]byte, abi.Status) {
	e := of(c.Current())
	if e == nil || len(e.programs) == maxExpressions {
		return nil, abi.InternalFailure
	}
	if !utf8.Valid(argument) {
		return nil, abi.BadArgument
	}
	p, err := env.compile(string(argument))
	if err != nil {
		return nil, abi.BadArgument
	}
	token := e.next
	for e.programs[token] != nil {
		token++
	}
	e.next = token + 1
	e.programs[token] = p
	return binary.LittleEndian.AppendUint32(nil, token), abi.OK
}

// evaluate is expr_evaluate: the argument is the token, the result the value, encoded
// as those of properties are. Without a value there is INTERNAL_FAILURE, and
// SERIALIZATION_FAILURE for one that has no encoding, such as null.
func evaluate(c *proxywasm.Context, argument []byte) ([]byte, abi.Status) {
	c = c.Current() // not the effective one, as in Envoy
	e := of(c)
	switch {
	case e == nil:
		return nil, abi.InternalFailure
	case len(argument) != 4:
		return nil, abi.BadArgument
	}
	p := e.programs[binary.LittleEndian.Uint32(argument)]
	if p == nil {
		return nil, abi.NotFound
	}
	return value(p, &activation{c: c, began: time.Now(), limit: c.Deadline()})
}

// value is that of an expression, encoded.
func value(p cel.Program, a *activation) ([]byte, abi.Status) {
	v, _, err := p.Eval(a)
	if err != nil || types.IsUnknownOrError(v) {
		return nil, abi.InternalFailure
	}
	out, ok := appendValue(nil, v)
	if !ok {
		return nil, abi.SerializationFailure
	}
	return out, abi.OK
}

// remove is expr_delete: the argument is the token. As in Envoy there need be none.
func remove(c *proxywasm.Context, argument []byte) ([]byte, abi.Status) {
	e := of(c.Current())
	switch {
	case e == nil:
		return nil, abi.InternalFailure
	case len(argument) != 4:
		return nil, abi.BadArgument
	}
	delete(e.programs, binary.LittleEndian.Uint32(argument))
	return nil, abi.OK
}
