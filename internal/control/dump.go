package control

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/cncf/xds/go/udpa/annotations"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/chandler-proxy/chandler/internal/envoytypes"
	"github.com/chandler-proxy/chandler/internal/xds"
)

// redacted stands for a secret.
const redacted = "[redacted]"

// A dump is what a proxy should have of one type.
type dump struct {
	Type      string         `json:"@type"` // type URL
	Version   string         `json:"version"`
	Resources []dumpResource `json:"resources"`
}

type dumpResource struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Body    any    `json:"resource,omitempty"`
	Error   string `json:"error,omitempty"` // why there is no body
}

// configDump shows what the proxy with the id in the query should have, without secrets.
func (p *Plane) configDump(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("proxyID")
	if id == "" {
		http.Error(w, "say which proxy: ?proxyID=ID; /debug/syncz lists them", http.StatusBadRequest)
		return
	}
	snap, connected := p.xds.Snapshot(id)
	if !connected {
		http.Error(w, "no proxy with that id is connected; /debug/syncz lists them", http.StatusNotFound)
		return
	}
	writeJSON(w, map[string]any{"configs": dumpSnapshot(snap)})
}

func dumpSnapshot(snap *xds.Snapshot) []dump {
	dumps := []dump{}
	for _, typeURL := range xds.Types() {
		d := dump{Type: typeURL, Version: snap.Version(typeURL), Resources: []dumpResource{}}
		for _, res := range snap.Resources(typeURL) {
			shown := dumpResource{Name: res.Name, Version: res.Version}
			var err error
			if shown.Body, err = show(res.Body); err != nil {
				shown.Error = err.Error()
			}
			d.Resources = append(d.Resources, shown)
		}
		dumps = append(dumps, d)
	}
	return dumps
}

// show is body as JSON, without secrets. Of a type that is not known only the
// type URL is shown.
func show(body *anypb.Any) (any, error) {
	body = proto.CloneOf(body)
	if err := redact(body.ProtoReflect(), false); err != nil {
		return nil, err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, Resolver: lenient{envoytypes.Types()}}.Marshal(body)
	if err != nil {
		return nil, err
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, err
	}
	return redactKeys(v), nil
}

// lenient knows every type: what is not known it takes for an empty message.
type lenient struct{ *envoytypes.Resolver }

func (l lenient) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	mt, err := l.Resolver.FindMessageByURL(url)
	if err == protoregistry.NotFound {
		return new(emptypb.Empty).ProtoReflect().Type(), nil
	}
	return mt, err
}

// redact overwrites every string and byte in m, or, unless all, in what Envoy's
// API marks as sensitive. It looks into Anys.
func redact(m protoreflect.Message, all bool) error {
	if a, ok := m.Interface().(*anypb.Any); ok {
		return redactAny(a, all)
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		err = redactField(m, fd, v, all || sensitive(fd))
		return err == nil
	})
	return err
}

func redactAny(a *anypb.Any, all bool) error {
	if a.GetTypeUrl() == "" {
		return nil // protojson refuses it if there is a value
	}
	m, err := anypb.UnmarshalNew(a, proto.UnmarshalOptions{Resolver: lenient{envoytypes.Types()}})
	if err != nil {
		return err
	}
	if err := redact(m.ProtoReflect(), all); err != nil {
		return err
	}
	a.Value, err = proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return err
}

func sensitive(fd protoreflect.FieldDescriptor) bool {
	marked, ok := proto.GetExtension(fd.Options(), annotations.E_Sensitive).(bool)
	return ok && marked
}

func redactField(m protoreflect.Message, fd protoreflect.FieldDescriptor, v protoreflect.Value, all bool) error {
	switch {
	case fd.IsMap():
		return redactMap(fd, v.Map(), all)
	case fd.IsList():
		return redactList(fd, v.List(), all)
	case fd.Message() != nil:
		return redact(v.Message(), all)
	case all:
		if hidden, ok := hide(fd); ok {
			m.Set(fd, hidden)
		}
	}
	return nil
}

func redactMap(fd protoreflect.FieldDescriptor, entries protoreflect.Map, all bool) error {
	var err error
	entries.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if fd.MapValue().Message() != nil {
			err = redact(v.Message(), all)
		} else if hidden, ok := hide(fd.MapValue()); ok && all {
			entries.Set(k, hidden)
		}
		return err == nil
	})
	return err
}

func redactList(fd protoreflect.FieldDescriptor, list protoreflect.List, all bool) error {
	for i := range list.Len() {
		if fd.Message() != nil {
			if err := redact(list.Get(i).Message(), all); err != nil {
				return err
			}
		} else if hidden, ok := hide(fd); ok && all {
			list.Set(i, hidden)
		}
	}
	return nil
}

// hide is what a string or bytes field shows instead of a secret.
func hide(fd protoreflect.FieldDescriptor) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(redacted), true
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(redacted)), true
	}
	return protoreflect.Value{}, false
}

// redactKeys replaces the secrets that no type marks: the pull secret among a
// VM's environment variables, the credentials in URLs of modules, and what a
// TypedStruct holds of marked fields.
func redactKeys(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			address, isString := value.(string)
			switch {
			case secretKey(key):
				v[key] = redacted
			case key == "uri" && isString:
				v[key] = withoutCredentials(address)
			default:
				v[key] = redactKeys(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = redactKeys(v[i])
		}
	}
	return v
}

// withoutCredentials is a URL without its user, and without its query, in which
// signed URLs carry their credentials.
func withoutCredentials(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return redacted
	}
	if u.User != nil {
		u.User = url.User(redacted)
	}
	if u.RawQuery != "" {
		u.RawQuery = redacted
	}
	return u.String()
}

func secretKey(key string) bool {
	switch key {
	case "private_key", "privateKey", "private_key_provider", "privateKeyProvider", "pkcs12",
		"password", "session_ticket_keys", "sessionTicketKeys", "generic_secret", "genericSecret":
		return true
	}
	return strings.HasSuffix(key, "_SECRET")
}
