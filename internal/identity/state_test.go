package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testPolicy = Policy{Life: 1000 * time.Hour, Overlap: 100 * time.Hour, Publish: 24 * time.Hour}

func at(hours int) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(hours) * time.Hour)
}

// rootAt makes a root at that hour.
func rootAt(t testing.TB, hour int) root {
	t.Helper()
	r, err := newRoot(at(hour), testPolicy.Life)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDue(t *testing.T) {
	first, second := rootAt(t, 0), rootAt(t, 900)
	var (
		one   = state{phase: steady, since: at(0), roots: []root{first}}
		learn = state{phase: publishing, since: at(900), roots: []root{first, second}}
		late  = state{phase: publishing, since: at(990), roots: []root{first, second}}
		two   = state{phase: retiring, since: at(924), roots: []root{first, second}}
	)
	for _, tt := range []struct {
		name  string
		state state
		now   int
		want  step
		next  int // hour
	}{
		{"nothing kept", state{}, 5, stepCreate, 5},
		{"new", one, 0, stepNone, 900},
		{"made by a clock that is ahead", one, -10, stepNone, 900},
		{"before the overlap", one, 899, stepNone, 900},
		{"overlap", one, 900, stepPublish, 900},
		{"root has ended", one, 2000, stepPublish, 2000},
		{"published just now", learn, 900, stepNone, 924},
		{"published for almost long enough", learn, 923, stepNone, 924},
		{"published for long enough", learn, 924, stepSign, 924},
		{"published late: before the root ends", late, 999, stepNone, 1000},
		{"published late: the root has ended", late, 1000, stepSign, 1000},
		{"retiring", two, 924, stepNone, 1000},
		{"the old root still serves", two, 999, stepNone, 1000},
		{"the old root has ended", two, 1000, stepRetire, 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, next := testPolicy.due(tt.state, at(tt.now))
			if got != tt.want || !next.Equal(at(tt.next)) {
				t.Errorf("due = %s at %v, want %s at %v", got, next, tt.want, at(tt.next))
			}
		})
	}
}

// TestStepsConverge: however long nobody was there, what is due ends with a root
// that can sign.
func TestStepsConverge(t *testing.T) {
	for hour := 0; hour <= 3000; hour += 50 {
		s := state{phase: steady, since: at(0), roots: []root{rootAt(t, 0)}}
		if hour%100 == 0 {
			s = state{phase: publishing, since: at(900), roots: []root{s.roots[0], rootAt(t, 900)}}
		}
		for n := 0; ; n++ {
			next, _ := testPolicy.due(s, at(hour))
			if next == stepNone {
				break
			}
			if n == 6 {
				t.Fatalf("hour %d: still due: %s", hour, next)
			}
			var err error
			if s, err = testPolicy.take(s, next, at(hour)); err != nil {
				t.Fatal(err)
			}
		}
		if end := s.signer().certificate.NotAfter; !end.After(at(hour)) {
			t.Errorf("hour %d: signing root has ended at %v", hour, end)
		}
	}
}

func TestTakeModifiesNothing(t *testing.T) {
	before := state{phase: steady, since: at(0), roots: make([]root, 1, 4)}
	before.roots[0] = rootAt(t, 0)
	for range 2 {
		if _, err := testPolicy.take(before, stepPublish, at(900)); err != nil {
			t.Fatal(err)
		}
	}
	if before.phase != steady || len(before.roots) != 1 || before.roots[:2][1].certificate != nil {
		t.Error("take modified its input")
	}
}

func TestPolicyDefaults(t *testing.T) {
	const day = 24 * time.Hour
	got, err := Policy{}.withDefaults()
	want := Policy{Life: 3650 * day, Overlap: 365 * day, Publish: 365 * day / 12}
	if err != nil || got != want {
		t.Errorf("defaults = %v, %v; want %v", got, err, want)
	}
	for _, bad := range []Policy{
		{Life: day, Overlap: day},
		{Life: 10 * day, Overlap: day, Publish: day},
		{Life: -day},
		{Publish: -1},
	} {
		if _, err := bad.withDefaults(); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

func TestStateEncoding(t *testing.T) {
	for _, s := range []state{
		{phase: steady, since: at(0), roots: []root{rootAt(t, 0)}},
		{phase: publishing, since: at(900), roots: []root{rootAt(t, 0), rootAt(t, 900)}},
		{phase: retiring, since: at(924), roots: []root{rootAt(t, 0), rootAt(t, 900)}},
	} {
		data, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeState(data)
		if err != nil {
			t.Fatal(err)
		}
		if got.phase != s.phase || !got.since.Equal(s.since) || !bytes.Equal(got.bundle(), s.bundle()) {
			t.Errorf("decoded %s since %v with %d roots, want %s since %v", got.phase, got.since, len(got.roots), s.phase, s.since)
		}
		for i, r := range got.roots {
			if !r.key.Equal(s.roots[i].key) {
				t.Errorf("key of root %d differs", i)
			}
		}
	}
}

func TestDecodeStateRefuses(t *testing.T) {
	good := state{phase: steady, since: at(0), roots: []root{rootAt(t, 0)}}
	data, err := good.encode()
	if err != nil {
		t.Fatal(err)
	}
	var kept keptState
	if err := json.Unmarshal(data, &kept); err != nil {
		t.Fatal(err)
	}
	other, err := keyPEM(rootAt(t, 0).key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _, err := good.roots[0].issue(at(0), time.Hour, servingTemplate([]string{"x"}))
	if err != nil {
		t.Fatal(err)
	}
	with := func(edit func(*keptState)) []byte {
		k := kept
		k.Roots = []keptRoot{kept.Roots[0]}
		edit(&k)
		out, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, tt := range []struct {
		name string
		data []byte
		says string
	}{
		{"empty", nil, "no JSON"},
		{"not JSON", []byte("-----BEGIN"), "no JSON"},
		{"long", bytes.Repeat([]byte(" "), maxState+1), "more than"},
		{"future version", with(func(k *keptState) { k.Version = 2 }), "version 2"},
		{"unknown phase", with(func(k *keptState) { k.Phase = "x" }), `phase "x"`},
		{"too few roots", with(func(k *keptState) { k.Phase = retiring }), "1 roots"},
		{"no roots", with(func(k *keptState) { k.Roots = nil }), "0 roots"},
		{"too many roots", with(func(k *keptState) { k.Roots = append(k.Roots, k.Roots[0]) }), "2 roots"},
		{"no certificate", with(func(k *keptState) { k.Roots[0].Certificate = "" }), "not one certificate"},
		{"two certificates", with(func(k *keptState) { k.Roots[0].Certificate += k.Roots[0].Certificate }), "not one certificate"},
		{"no authority's certificate", with(func(k *keptState) { k.Roots[0].Certificate = string(certificatePEM(leaf)) }), "not an authority's"},
		{"certificate cut short", with(func(k *keptState) { k.Roots[0].Certificate = string(certificatePEM(leaf[:50])) }), "malformed"},
		{"no key", with(func(k *keptState) { k.Roots[0].Key = "hush" }), "not a private key"},
		{"another's key", with(func(k *keptState) { k.Roots[0].Key = string(other) }), "not the certificate's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decodeState(tt.data)
			if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("error = %v, want ErrState that says %q", err, tt.says)
			}
			if strings.Contains(err.Error(), "hush") {
				t.Error("error tells of the key")
			}
		})
	}
}

func FuzzDecodeState(f *testing.F) {
	for _, s := range []state{
		{phase: steady, since: at(0), roots: []root{rootAt(f, 0)}},
		{phase: retiring, since: at(924), roots: []root{rootAt(f, 0), rootAt(f, 900)}},
	} {
		data, err := s.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"version":1,"phase":"steady","roots":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeState(data)
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatalf("error %v does not wrap ErrState", err)
			}
			return
		}
		// What is accepted can be worked with, and kept.
		if _, _, err := s.signer().issue(at(0), time.Hour, servingTemplate([]string{"x"})); err != nil {
			t.Skip("a key of another curve")
		}
		testPolicy.due(s, at(0))
		again, err := s.encode()
		if err != nil {
			t.Skip("a time that JSON has no form for")
		}
		back, err := decodeState(again)
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if diff := cmp.Diff(string(s.bundle()), string(back.bundle())); diff != "" {
			t.Error(diff)
		}
	})
}
