package admin

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/chandler-proxy/chandler/internal/envoytypes"
)

// A refusal is an answer that is not what was asked for.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refused(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

func (s *Server) configDump(w http.ResponseWriter, r *http.Request) {
	dump, err := s.Source.ConfigDump()
	if err == nil {
		dump, err = choose(dump, r.URL.Query())
	}
	if err != nil {
		status := http.StatusInternalServerError
		if r, ok := err.(*refusal); ok {
			status = r.status
		}
		w.Header().Set("Content-Type", "text/plain")
		refuse(w, status, err.Error())
		return
	}
	writeMessage(w, dump, false)
}

// choose is the part of a dump that is asked for, without secrets.
func choose(dump *adminv3.ConfigDump, q url.Values) (*adminv3.ConfigDump, error) {
	name, err := regexp.Compile(`^(?:` + q.Get("name_regex") + `)$`)
	if err != nil {
		_, err = regexp.Compile(q.Get("name_regex"))
		return nil, refused(http.StatusBadRequest, "INVALID_ARGUMENT: Error while parsing name_regex from %s: %s", q.Get("name_regex"), regexError(err))
	}
	var configs []proto.Message
	for _, a := range dump.GetConfigs() {
		m, err := unpack(a)
		if err != nil {
			return nil, err
		}
		if _, ok := m.(*adminv3.EndpointsConfigDump); ok && !q.Has("include_eds") {
			continue
		}
		redact(m.ProtoReflect(), false)
		if q.Get("name_regex") != "" {
			keepNamed(m.ProtoReflect(), name)
		}
		configs = append(configs, m)
	}
	var mask []string
	if m := q.Get("mask"); m != "" {
		mask = strings.Split(m, ",")
	}
	if resource := q.Get("resource"); resource != "" {
		configs, err = elements(configs, resource, mask)
	} else if mask != nil {
		configs, err = masked(configs, mask)
	}
	if err != nil {
		return nil, err
	}
	out := new(adminv3.ConfigDump)
	for _, m := range configs {
		a, err := anypb.New(m)
		if err != nil {
			return nil, err
		}
		out.Configs = append(out.Configs, a)
	}
	return out, nil
}

// unpack decodes what a makes: it shares nothing with it.
func unpack(a *anypb.Any) (proto.Message, error) {
	return anypb.UnmarshalNew(a, proto.UnmarshalOptions{Resolver: envoytypes.Types()})
}

// elements are those of the repeated field of that name, masked.
func elements(configs []proto.Message, resource string, mask []string) ([]proto.Message, error) {
	for _, config := range configs {
		m := config.ProtoReflect()
		field := m.Descriptor().Fields().ByName(protoreflect.Name(resource))
		switch {
		case field == nil:
			continue
		case !field.IsList():
			return nil, refused(http.StatusBadRequest, "%s is not a repeated field. Use ?mask=%s to get only this field", resource, resource)
		}
		var list []proto.Message
		for i := range m.Get(field).List().Len() {
			element := m.Get(field).List().Get(i).Message()
			if mask != nil && !trim(element, mask, true) {
				return nil, refused(http.StatusBadRequest, "FieldMask %s could not be successfully used.", strings.Join(mask, ","))
			}
			list = append(list, element.Interface())
		}
		return list, nil
	}
	return nil, refused(http.StatusNotFound, "%s not found in config dump", resource)
}

// masked are the configurations that have all the fields, without any other.
func masked(configs []proto.Message, mask []string) (list []proto.Message, err error) {
	for _, m := range configs {
		if trim(m.ProtoReflect(), mask, false) {
			list = append(list, m)
		}
	}
	if list == nil {
		return nil, refused(http.StatusBadRequest, "FieldMask %s could not be successfully applied to any configs.", strings.Join(mask, ","))
	}
	return list, nil
}

// trim takes away all fields but those at the paths. It returns false, and does
// nothing, if there is not one of them. A path goes through messages, not through lists
// and maps, and, where that is allowed, through an Any.
func trim(m protoreflect.Message, paths []string, any bool) bool {
	below := map[protoreflect.FieldDescriptor][]string{} // nil: all of it
	for _, path := range paths {
		name, rest, deeper := strings.Cut(path, ".")
		field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if field == nil || deeper && (field.IsList() || field.IsMap() || field.Message() == nil) {
			return false
		}
		before, seen := below[field]
		switch {
		case !deeper:
			below[field] = nil
		case !seen || before != nil:
			below[field] = append(before, rest)
		}
	}
	for field, rest := range below {
		if rest != nil && m.Has(field) && !trimField(m.Mutable(field).Message(), rest, any) {
			return false
		}
	}
	m.Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if _, ok := below[field]; !ok {
			m.Clear(field)
		}
		return true
	})
	return true
}

func trimField(m protoreflect.Message, paths []string, any bool) bool {
	a, ok := m.Interface().(*anypb.Any)
	if !ok {
		return trim(m, paths, false)
	}
	if !any {
		return false
	}
	inner, err := unpack(a)
	return err == nil && trim(inner.ProtoReflect(), paths, false) && a.MarshalFrom(inner) == nil
}

// keepNamed leaves of all lists what has a matching name.
func keepNamed(m protoreflect.Message, name *regexp.Regexp) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if !field.IsList() || field.Message() == nil {
			return true
		}
		list, kept := v.List(), 0
		for i := range list.Len() {
			if name.MatchString(nameOf(list.Get(i).Message())) {
				list.Set(kept, list.Get(i))
				kept++
			}
		}
		list.Truncate(kept)
		if kept == 0 {
			m.Clear(field)
		}
		return true
	})
}

// nameOf is the name of a resource, or of the one in it.
func nameOf(m protoreflect.Message) string {
	for _, name := range []protoreflect.Name{"name", "cluster_name"} {
		if f := m.Descriptor().Fields().ByName(name); f != nil && f.Kind() == protoreflect.StringKind && m.Has(f) {
			return m.Get(f).String()
		}
	}
	name := ""
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() == nil || f.IsList() || f.IsMap() {
			return true
		}
		if a, ok := v.Message().Interface().(*anypb.Any); ok {
			if inner, err := unpack(a); err == nil {
				name = nameOf(inner.ProtoReflect())
			}
		}
		return name == ""
	})
	return name
}
