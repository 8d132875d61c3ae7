package inject

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	kjson "sigs.k8s.io/json"
)

func TestDifference(t *testing.T) {
	for name, tt := range map[string]struct{ from, to, ops string }{
		"none":            {`{"a": [1, {"name": "x"}]}`, `{"a": [1, {"name": "x"}]}`, `null`},
		"add":             {`{}`, `{"a/b~c": 1}`, `[{"op":"add","path":"/a~1b~0c","value":1}]`},
		"remove":          {`{"a": 1}`, `{}`, `[{"op":"remove","path":"/a"}]`},
		"replace":         {`{"a": {"b": 1}}`, `{"a": {"b": null}}`, `[{"op":"replace","path":"/a/b","value":null}]`},
		"item first":      {`[{"name": "a"}]`, `[{"name": "b"}, {"name": "a", "x": 1}]`, `[{"op":"add","path":"/0","value":{"name":"b"}},{"op":"add","path":"/1/x","value":1}]`},
		"item gone":       {`[{"name": "a"}, {"name": "b"}, {"name": "c"}]`, `[{"name": "b"}]`, `[{"op":"remove","path":"/2"},{"op":"remove","path":"/0"}]`},
		"other order":     {`[{"name": "a"}, {"name": "b"}]`, `[{"name": "b"}, {"name": "a"}]`, `[{"op":"replace","path":"","value":[{"name":"b"},{"name":"a"}]}]`},
		"same name twice": {`[{"name": "a"}, {"name": "a"}]`, `[{"name": "a"}]`, `[{"op":"replace","path":"","value":[{"name":"a"}]}]`},
		"other type":      {`{"a": []}`, `{"a": {}}`, `[{"op":"replace","path":"/a","value":{}}]`},
		"scalars":         {`["x", "y"]`, `["y", "z"]`, `[{"op":"remove","path":"/0"},{"op":"add","path":"/1","value":"z"}]`},
	} {
		t.Run(name, func(t *testing.T) {
			var from, to any
			if err := json.Unmarshal([]byte(tt.from), &from); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(tt.to), &to); err != nil {
				t.Fatal(err)
			}
			ops, err := difference(from, to)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(ops)
			if err != nil {
				t.Fatal(err)
			}
			if string(text) != tt.ops {
				t.Errorf("patch %s, want %s", text, tt.ops)
			}
			checkPatch(t, from, to)
		})
	}
}

func TestPatchRefuses(t *testing.T) {
	for _, op := range []operation{
		{"add", "/a/b", 1}, {"remove", "/b", nil}, {"replace", "/list/2", 1}, {"add", "/list/4", 1}, {"add", "/list/-", 1}, {"remove", "", nil}, {"add", "/list/x/y", 1},
	} {
		document := map[string]any{"list": []any{1, 2}}
		if got, err := patch(document, []operation{op}); err == nil {
			t.Errorf("%v makes %v", op, got)
		}
	}
}

// FuzzDifference: the patch between any two documents makes the one of the other.
func FuzzDifference(f *testing.F) {
	f.Add([]byte(`{"a": [{"name": "x"}, 1]}`), []byte(`{"a": [2, {"name": "x", "y": {}}], "b": null}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var from, to any
		if kjson.UnmarshalCaseSensitivePreserveInts(a, &from) != nil || kjson.UnmarshalCaseSensitivePreserveInts(b, &to) != nil {
			return
		}
		checkPatch(t, from, to)
	})
}

func TestOperationsEncode(t *testing.T) {
	text, err := json.Marshal([]operation{{"add", "/a", []byte("pem")}, {Op: "remove", Path: "/b"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`[{"op":"add","path":"/a","value":"cGVt"},{"op":"remove","path":"/b"}]`, string(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
