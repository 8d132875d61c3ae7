package envoy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// HasBootstrap reports whether args name a file with a bootstrap of the user's
// own. With --config-yaml alone the user adds to ours: Envoy merges it over the file.
func HasBootstrap(args []string) bool {
	_, ok := argument(args, "-c", "--config-path")
	return ok
}

// argument returns the value of the first of names in args, and whether it is there.
func argument(args []string, names ...string) (string, bool) {
	for i, arg := range args {
		if arg == "--" || arg == "--ignore_rest" {
			break
		}
		name, value, joined := strings.Cut(arg, "=")
		switch {
		case !slices.Contains(names, name):
		case joined:
			return value, true
		case i+1 < len(args):
			return args[i+1], true
		default:
			return "", true
		}
	}
	return "", false
}

// An Own is what the agent must know of a bootstrap that the user wrote.
type Own struct {
	NodeID  string
	Cluster string   // the node's
	Admin   string   // host:port, or the path of a Unix socket
	Pipes   []string // Unix sockets that it mentions: the agent's must be among them
}

// ReadOwn reads the bootstrap that args name, from the file after -c and the
// text after --config-yaml, the latter merged over the former as Envoy does it.
// YAML and JSON are read. A bootstrap without an admin interface is refused:
// nobody could say whether that Envoy is ready.
func ReadOwn(args []string, readFile func(name string) ([]byte, error)) (Own, error) {
	var own Own
	merged := new(bootstrapv3.Bootstrap)
	file, hasFile := argument(args, "-c", "--config-path")
	if hasFile {
		text, err := readFile(file)
		if err != nil {
			return own, fmt.Errorf("read bootstrap: %w", err)
		}
		if err := own.add(text, merged); err != nil {
			return own, fmt.Errorf("read bootstrap %s: %w", file, err)
		}
	}
	if text, ok := argument(args, "--config-yaml"); ok {
		if err := own.add([]byte(text), merged); err != nil {
			return own, fmt.Errorf("read bootstrap in --config-yaml: %w", err)
		}
	}
	own.NodeID, own.Cluster = merged.GetNode().GetId(), merged.GetNode().GetCluster()
	own.Admin = adminAddress(merged)
	if own.Admin == "" {
		return own, errors.New("read bootstrap: admin.address is missing: the agent asks it whether envoy is ready")
	}
	return own, nil
}

// add merges what text says of node and admin into merged. The rest may hold
// types that this program does not know, and is only searched for sockets.
func (o *Own) add(text []byte, merged *bootstrapv3.Bootstrap) error {
	var all map[string]any
	if err := yaml.Unmarshal(text, &all); err != nil {
		return err
	}
	o.Pipes = append(o.Pipes, pipes(all)...)
	part := map[string]any{}
	if node, ok := all["node"]; ok {
		part["node"] = node
	}
	if admin, ok := all["admin"].(map[string]any); ok {
		part["admin"] = map[string]any{"address": admin["address"]}
	}
	raw, err := json.Marshal(part)
	if err != nil {
		return err
	}
	msg := new(bootstrapv3.Bootstrap)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, msg); err != nil {
		return err
	}
	proto.Merge(merged, msg)
	return nil
}

// pipes finds every address of the form pipe: {path: PATH} in v.
func pipes(v any) []string {
	var found []string
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			found = append(found, pipes(item)...)
		}
	case map[string]any:
		for key, item := range v {
			if pipe, ok := item.(map[string]any); ok && key == "pipe" {
				if path, ok := pipe["path"].(string); ok {
					found = append(found, path)
				}
				continue
			}
			found = append(found, pipes(item)...)
		}
	}
	slices.Sort(found)
	return found
}

func adminAddress(b *bootstrapv3.Bootstrap) string {
	addr := b.GetAdmin().GetAddress()
	if path := addr.GetPipe().GetPath(); path != "" {
		return path
	}
	if s := addr.GetSocketAddress(); s.GetAddress() != "" {
		return net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(s.GetPortValue())))
	}
	return ""
}
