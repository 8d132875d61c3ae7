package trust

import (
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/chandler-proxy/chandler/internal/identity"
)

func TestReviewer(t *testing.T) {
	const token = "a.b.hush"
	user := func(name string, extra map[string]authenticationv1.ExtraValue) authenticationv1.UserInfo {
		return authenticationv1.UserInfo{Username: name, Extra: extra}
	}
	ours := []string{identity.Audience}
	bound := map[string]authenticationv1.ExtraValue{extraPodName: {"httpbin-1"}, extraPodUID: {"u-1"}}
	for _, tt := range []struct {
		name   string
		status authenticationv1.TokenReviewStatus
		err    error // of the call
		want   identity.Peer
		refuse bool
		says   string
	}{
		{
			name:   "bound to a pod",
			status: authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: ours, User: user("system:serviceaccount:default:httpbin", bound)},
			want:   identity.Peer{Namespace: "default", ServiceAccount: "httpbin", Pod: "httpbin-1", PodUID: "u-1"},
		},
		{
			name:   "bound to nothing",
			status: authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"x", identity.Audience}, User: user("system:serviceaccount:default:httpbin", nil)},
			want:   identity.Peer{Namespace: "default", ServiceAccount: "httpbin"},
		},
		{name: "not authenticated", status: authenticationv1.TokenReviewStatus{Error: "token has expired"}, refuse: true, says: "token has expired"},
		{name: "not authenticated, without reason", refuse: true, says: "does not know"},
		{name: "reason quotes the token", status: authenticationv1.TokenReviewStatus{Error: "bad: " + token}, refuse: true, says: "does not know"},
		{
			name:   "not authenticated, but a user is named",
			status: authenticationv1.TokenReviewStatus{Audiences: ours, User: user("system:serviceaccount:default:httpbin", nil)}, refuse: true, says: "does not know",
		},
		{
			name:   "other audience",
			status: authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"vault"}, User: user("system:serviceaccount:default:httpbin", nil)}, refuse: true, says: `["vault"]`,
		},
		{
			name:   "no audience, which is the API server's",
			status: authenticationv1.TokenReviewStatus{Authenticated: true, User: user("system:serviceaccount:default:httpbin", nil)}, refuse: true, says: "audiences []",
		},
		{name: "a person", status: authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: ours, User: user("jane", nil)}, refuse: true, says: `"jane"`},
		{name: "a node", status: authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: ours, User: user("system:node:a", nil)}, refuse: true, says: "no service account"},
		{name: "half a service account", status: authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: ours, User: user("system:serviceaccount:default", nil)}, refuse: true, says: "no service account"},
		{name: "no answer", err: errors.New("connection refused"), says: "connection refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := fake.NewClientset()
			client.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
				review := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
				if review.Spec.Token != token || len(review.Spec.Audiences) != 1 || review.Spec.Audiences[0] != identity.Audience {
					t.Errorf("review asks for %+v", review.Spec)
				}
				review.Status = tt.status
				return true, review, tt.err
			})
			got, err := NewReviewer(client, "").Review(t.Context(), token)
			if got != tt.want || errors.Is(err, identity.ErrRefused) != tt.refuse || (err == nil) != (tt.says == "") {
				t.Fatalf("Review = %+v, %v; want %+v", got, err, tt.want)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "hush")) {
				t.Errorf("error = %v, want one that says %q, and not the token", err, tt.says)
			}
		})
	}
}
