package cluster

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// TestTurns: one peer has some turns and all peers together some more; who waits is
// served when another is done, or gives up.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var under, served atomic.Int32
		done := make(chan struct{})
		turns := takeTurns(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			under.Add(1)
			<-done
			under.Add(-1)
			served.Add(1)
		}))
		var wg sync.WaitGroup
		var refused atomic.Int32
		request := func(ctx context.Context, host string) {
			r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/inject", nil)
			r.RemoteAddr = host + ":1234"
			wg.Go(func() {
				w := httptest.NewRecorder()
				turns.ServeHTTP(w, r)
				if w.Code == http.StatusServiceUnavailable {
					refused.Add(1)
				}
			})
		}
		expect := func(what string, got, want int32) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %d, want %d", what, got, want)
			}
		}
		impatient, giveUp := context.WithCancel(t.Context())
		for range 100 {
			request(impatient, "10.0.0.1")
		}
		synctest.Wait()
		expect("under way of one address", under.Load(), peerReviews)
		request(t.Context(), "10.0.0.2")
		synctest.Wait()
		expect("and of another", under.Load(), peerReviews+1)
		giveUp()
		synctest.Wait()
		expect("given up", refused.Load(), 100-peerReviews)

		for i := range 100 {
			request(t.Context(), fmt.Sprintf("10.0.1.%d", i))
		}
		synctest.Wait()
		expect("under way of all", under.Load(), reviews)
		close(done)
		wg.Wait()
		expect("served", served.Load(), peerReviews+1+100)
		expect("peers that are remembered", int32(len(turns.peers)), 0)
	})
}
