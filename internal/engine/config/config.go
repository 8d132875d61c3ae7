// Package config decodes Envoy's configuration into what the engine runs:
// immutable values, made of a message at once or not at all.
//
// It is pure: it opens no file, resolves no name and reads no clock. It refuses
// what the engine does not do. Every field of a message that is set must be in
// the table of the fields that are understood (see check), so that a
// configuration is never taken in part; the error names the field by its path.
// What a message means without the engine's help is checked by the rules that
// Envoy's own API has (protoc-gen-validate).
//
// Start at [DecodeListener], [DecodeRoutes], [DecodeCluster], [DecodeEndpoints],
// [DecodeSecret] and [DecodeExtension], one for each type of resource.
//
// https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api
package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// A FieldError says which field of a message cannot be honoured, and why.
type FieldError struct {
	Path   string // such as filter_chains[0].filters[1].typed_config.http_filters[0]
	Reason string
}

func (e *FieldError) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return e.Path + ": " + e.Reason
}

// A decoder keeps the first thing that is wrong. What is decoded after that is
// thrown away.
type decoder struct {
	err error
}

func (d *decoder) fail(path, format string, args ...any) {
	if d.err == nil {
		d.err = &FieldError{Path: path, Reason: fmt.Sprintf(format, args...)}
	}
}

// validator is what protoc-gen-validate generates.
type validator interface{ Validate() error }

// start checks m, which is at path, by Envoy's rules and by ours.
func (d *decoder) start(path string, m proto.Message) bool {
	if d.err != nil {
		return false
	}
	if v, ok := m.(validator); ok {
		if err := v.Validate(); err != nil {
			d.fail(path, "%s", violation(err))
			return false
		}
	}
	d.check(path, m.ProtoReflect())
	return d.err == nil
}

// violation shortens the text of a protoc-gen-validate error to its innermost cause.
func violation(err error) string {
	text := err.Error()
	for {
		inner := errors.Unwrap(err)
		if c, ok := err.(interface{ Cause() error }); ok && c.Cause() != nil {
			inner = c.Cause()
		}
		if inner == nil {
			return strings.TrimSpace(text)
		}
		err, text = inner, inner.Error()
	}
}

// unpack decodes a, which is at path, into m.
func (d *decoder) unpack(path string, a *anypb.Any, m proto.Message) bool {
	if d.err != nil {
		return false
	}
	if err := a.UnmarshalTo(m); err != nil {
		d.fail(path, "decode %s: %v", a.GetTypeUrl(), err)
		return false
	}
	return d.start(path, m)
}

// typeOf is the name of the message in a.
func typeOf(a *anypb.Any) string {
	return string(a.MessageName())
}

// duration is d, or otherwise if it is not set.
func duration(d *durationpb.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return d.AsDuration()
}

func at(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

func in(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}
