package fetch_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/fetchtest"
	"github.com/chandler-proxy/chandler/internal/module"
)

func TestLocal(t *testing.T) {
	dir := t.TempDir()
	fetchtest.Run(t, fetchtest.Subject{
		New: func(_ testing.TB, maxModule int64) fetch.Fetcher {
			return fetch.Schemes{module.File: fetch.Retry{Fetcher: fetch.Local{MaxModule: maxModule}}}
		},
		Publish: fetchtest.Publisher(func(t testing.TB, name string, content []byte) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			return "file://" + path
		}),
		Absent: func(testing.TB) string { return "file://" + dir + "/absent" },
	})
}

func TestLocalRefusesWhatIsNoFile(t *testing.T) {
	var s fetchtest.Sink
	_, err := fetch.Local{}.Fetch(t.Context(), fetchtest.Request(t, "file://"+t.TempDir(), "", &s))
	fetchtest.Refused(t, err, &s, fetch.NotModule, "not a Wasm module")
}

func TestSchemes(t *testing.T) {
	var s fetchtest.Sink
	_, err := fetch.Schemes{}.Fetch(t.Context(), fetchtest.Request(t, "oci://x/y:1", "", &s))
	fetchtest.Refused(t, err, &s, fetch.Failed, "oci")
}
