package expr

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/interpreter"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

// An environment compiles expressions as Envoy does. It is safe for concurrent use.
//
// What is told to cel-go otherwise than it would have it:
//   - a function that there is not, with that many arguments, is refused when an
//     expression is created;
//   - maps keep the order in which they are written;
//   - an index is for maps and lists, not for fields of messages;
//   - string() writes times and durations with three, six or nine decimals, int() takes
//     a bool, and getMilliseconds() of a duration is what it has above the second;
//   - contains, startsWith and endsWith need no receiver;
//   - the names of types are those of CEL alone, not of messages.
type environment struct {
	env       *cel.Env
	factory   ast.ExprFactory
	functions map[function]bool
}

// A function is known by how it is called.
type function struct {
	name      string
	member    bool
	arguments int // with the receiver
}

// Functions that calls are replaced by. An expression cannot name them.
const (
	indexFunction  = "@index"
	stringFunction = "@string"
	intFunction    = "@int"
	millisFunction = "@milliseconds"
	mapFunction    = "@map"
)

func newEnvironment() *environment {
	registry, err := types.NewRegistry()
	if err != nil {
		panic(err) // nothing in it is from outside, nor in what follows
	}
	any := func(name string, f func(...ref.Val) ref.Val) cel.EnvOption {
		return cel.Function(name, cel.Overload(name, nil, cel.DynType), cel.SingletonFunctionBinding(f))
	}
	global := func(name string) cel.EnvOption {
		return cel.Function(name, cel.Overload(name+"_global", []*cel.Type{cel.StringType, cel.StringType}, cel.BoolType,
			cel.BinaryBinding(func(s, arg ref.Val) ref.Val { return s.(traits.Receiver).Receive(name, "", []ref.Val{arg}) })))
	}
	env, err := cel.NewEnv(
		cel.CustomTypeAdapter(registry), cel.CustomTypeProvider(provider{registry}),
		cel.EnableIdentifierEscapeSyntax(), cel.EnableErrorOnBadPresenceTest(true), cel.DefaultUTCTimeZone(true),
		global("contains"), global("startsWith"), global("endsWith"),
		any(indexFunction, index), any(mapFunction, newMap),
		any(stringFunction, text), any(intFunction, integer), any(millisFunction, milliseconds),
	)
	if err != nil {
		panic(err)
	}
	e := &environment{env: env, factory: ast.NewExprFactory(), functions: map[function]bool{}}
	for name, f := range env.Functions() {
		for _, o := range f.OverloadDecls() {
			e.functions[function{name, o.IsMemberFunction(), len(o.ArgTypes())}] = true
		}
	}
	return e
}

// errFunction says that there is no such function; Envoy words it for the log only.
var errFunction = errors.New("no such function")

// compile parses an expression and readies it.
func (e *environment) compile(text string) (cel.Program, error) {
	parsed, issues := e.env.Parse(text)
	if err := issues.Err(); err != nil {
		return nil, err
	}
	tree := parsed.NativeRep()
	var err error
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(x ast.Expr) {
		if err == nil {
			err = e.adapt(x)
		}
	}))
	if err != nil {
		return nil, err
	}
	return e.env.PlanProgram(tree, cel.InterruptCheckFrequency(1), cel.CustomDecorator(bounded))
}

// adapt refuses a node, or replaces it.
func (e *environment) adapt(x ast.Expr) error {
	switch x.Kind() {
	case ast.CallKind:
		return e.adaptCall(x)
	case ast.MapKind:
		var args []ast.Expr
		for _, entry := range x.AsMap().Entries() {
			args = append(args, entry.AsMapEntry().Key(), entry.AsMapEntry().Value())
		}
		x.SetKindCase(e.factory.NewCall(x.ID(), mapFunction, args...))
	case ast.StructKind:
		return checkFields(x.AsStruct())
	}
	return nil
}

func (e *environment) adaptCall(x ast.Expr) error {
	call := x.AsCall()
	f := function{call.FunctionName(), call.IsMemberFunction(), len(call.Args())}
	if f.member {
		f.arguments++
	}
	if !e.functions[f] {
		return fmt.Errorf("%s: %w", f.name, errFunction)
	}
	switch f {
	case function{operators.Index, false, 2}:
		x.SetKindCase(e.factory.NewCall(x.ID(), indexFunction, call.Args()...))
	case function{"string", false, 1}:
		x.SetKindCase(e.factory.NewCall(x.ID(), stringFunction, call.Args()...))
	case function{"int", false, 1}:
		x.SetKindCase(e.factory.NewCall(x.ID(), intFunction, call.Args()...))
	case function{"getMilliseconds", true, 1}:
		x.SetKindCase(e.factory.NewCall(x.ID(), millisFunction, call.Target()))
	}
	return nil
}

// checkFields refuses a message with a field that it has not.
func checkFields(x ast.StructExpr) error {
	t, err := envoytypes.Types().FindMessageByName(protoreflect.FullName(x.TypeName()))
	if err != nil {
		return err
	}
	for _, f := range x.Fields() {
		if name := f.AsStructField().Name(); t.Descriptor().Fields().ByName(protoreflect.Name(name)) == nil {
			return fmt.Errorf("%s has no field %q", x.TypeName(), name)
		}
	}
	return nil
}

// A limited call is one that is not made when the time is up.
type limited struct{ interpreter.InterpretableCall }

// Eval calls the function.
func (l limited) Eval(vars interpreter.Activation) ref.Val {
	if _, expired := vars.ResolveName(expiredName); expired {
		return types.NewErr("deadline exceeded")
	}
	return l.InterpretableCall.Eval(vars)
}

// bounded has calls ask for the time: those are what work is made of.
func bounded(i interpreter.Interpretable) (interpreter.Interpretable, error) {
	if call, ok := i.(interpreter.InterpretableCall); ok {
		return limited{call}, nil
	}
	return i, nil
}

// index is an index of a map or a list.
func index(args ...ref.Val) ref.Val {
	switch of := args[0].(type) {
	case traits.Mapper:
		v, ok := of.Find(args[1])
		if !ok && v == nil {
			return types.NewErr("no such key: %v", args[1])
		}
		return v
	case traits.Lister:
		return of.Get(args[1])
	}
	return types.MaybeNoSuchOverloadErr(args[0])
}

// text is string().
func text(args ...ref.Val) ref.Val {
	switch v := args[0].(type) {
	case types.Timestamp:
		return types.String(v.Time.UTC().Format("2006-01-02T15:04:05") + decimals(int64(v.Nanosecond())) + "Z")
	case types.Duration:
		d, sign := v.Duration, ""
		if d < 0 {
			sign = "-"
		}
		seconds, nanos := int64(d)/1e9, int64(d)%1e9
		return types.String(sign + strconv.FormatInt(max(seconds, -seconds), 10) + decimals(max(nanos, -nanos)) + "s")
	case types.Double:
		return types.String(number(float64(v)))
	case *types.Type, types.Null:
		return types.MaybeNoSuchOverloadErr(v)
	}
	return args[0].ConvertToType(types.StringType)
}

// decimals are those of a second, as few groups of three as there are; none for none.
func decimals(nanos int64) string {
	if nanos == 0 {
		return ""
	}
	digits := strconv.FormatInt(1e9+nanos, 10)[1:]
	for len(digits) > 3 && digits[len(digits)-3:] == "000" {
		digits = digits[:len(digits)-3]
	}
	return "." + digits
}

func number(v float64) string {
	switch s := strconv.FormatFloat(v, 'g', -1, 64); s {
	case "+Inf":
		return "inf"
	case "-Inf":
		return "-inf"
	case "NaN":
		if math.Signbit(v) { // what 0.0/0.0 is on amd64
			return "-nan(ind)"
		}
		return "nan"
	default:
		return s
	}
}

// integer is int().
func integer(args ...ref.Val) ref.Val {
	if b, ok := args[0].(types.Bool); ok {
		if b {
			return types.IntOne
		}
		return types.IntZero
	}
	if _, ok := args[0].(types.Null); ok {
		return types.MaybeNoSuchOverloadErr(args[0])
	}
	return args[0].ConvertToType(types.IntType)
}

// milliseconds is getMilliseconds() without a time zone.
func milliseconds(args ...ref.Val) ref.Val {
	switch v := args[0].(type) {
	case types.Duration:
		return types.Int(v.Duration % time.Second / time.Millisecond)
	case types.Timestamp:
		return types.Int(v.Nanosecond() / int(time.Millisecond))
	}
	return types.MaybeNoSuchOverloadErr(args[0])
}
