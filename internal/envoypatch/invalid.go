package envoypatch

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// invalid checks m by the rules in Envoy's API, which Envoy itself enforces; nil
// if it passes. The refusal's field is the path below m. What is in an Any is
// not looked at.
func invalid(m proto.Message) *refusal {
	v, ok := m.(interface{ Validate() error })
	if !ok {
		return nil
	}
	err := v.Validate()
	if err == nil {
		return nil
	}
	r := refuse("value is not valid")
	scope := m.ProtoReflect().Descriptor()
	for {
		var broken interface { // what protoc-gen-validate generates
			Field() string
			Reason() string
			Cause() error
		}
		if !errors.As(err, &broken) {
			return r
		}
		var step string
		step, scope = fieldNamed(scope, broken.Field())
		r.field += "." + step
		r.message = broken.Reason()
		err = broken.Cause()
	}
}

// fieldNamed finds the field or oneof whose Go name, perhaps with an index, is
// given, and the message type within. A name that it does not find it gives back.
func fieldNamed(md protoreflect.MessageDescriptor, goName string) (string, protoreflect.MessageDescriptor) {
	name, index := goName, ""
	if i := strings.IndexByte(goName, '['); i >= 0 {
		name, index = goName[:i], goName[i:]
	}
	same := func(n protoreflect.Name) bool {
		return strings.EqualFold(strings.ReplaceAll(string(n), "_", ""), strings.ReplaceAll(name, "_", ""))
	}
	if md != nil {
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			if !same(fd.Name()) {
				continue
			}
			if fd.IsMap() {
				fd = fd.MapValue()
			}
			return string(md.Fields().Get(i).Name()) + index, fd.Message()
		}
		for i := range md.Oneofs().Len() {
			if od := md.Oneofs().Get(i); same(od.Name()) {
				return string(od.Name()), nil
			}
		}
	}
	return goName, nil
}

// describe is what m is and its name, as in: cluster "a".
func describe(m proto.Message) string {
	kind := map[protoreflect.Name]string{
		"Listener": "listener", "ListenerFilter": "listener filter", "FilterChain": "filter chain",
		"Filter": "network filter", "HttpConnectionManager": "HTTP connection manager", "HttpFilter": "HTTP filter",
		"RouteConfiguration": "route configuration", "VirtualHost": "virtual host", "Route": "route",
		"Cluster": "cluster", "TransportSocket": "transport socket", "TypedExtensionConfig": "extension config",
	}[m.ProtoReflect().Descriptor().Name()]
	if named, ok := m.(interface{ GetName() string }); ok && named.GetName() != "" {
		return fmt.Sprintf("%s %q", kind, named.GetName())
	}
	return kind
}
