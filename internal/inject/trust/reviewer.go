package trust

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// What a TokenReview tells of a token that is bound to a pod.
const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
)

// A Reviewer asks the API server whether tokens are good. It implements
// [identity.TokenReviewer].
type Reviewer struct {
	client   kubernetes.Interface
	audience string
}

// NewReviewer returns a Reviewer of tokens for audience, or for
// [identity.Audience] if that is empty. The client's rate limit is how many
// proxies a second can connect.
func NewReviewer(client kubernetes.Interface, audience string) *Reviewer {
	if audience == "" {
		audience = identity.Audience
	}
	return &Reviewer{client, audience}
}

// Review tells whose the token is. Errors wrap [identity.ErrRefused] if the API
// server does not vouch for it, it is for another audience, or its holder is no
// service account.
func (r *Reviewer) Review(ctx context.Context, token string) (identity.Peer, error) {
	review, err := r.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{r.audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return identity.Peer{}, fmt.Errorf("review token: %w", err)
	}
	return r.judge(review.Status, token)
}

func (r *Reviewer) judge(status authenticationv1.TokenReviewStatus, token string) (identity.Peer, error) {
	refuse := func(reason string) (identity.Peer, error) {
		return identity.Peer{}, fmt.Errorf("%s: %w", reason, identity.ErrRefused)
	}
	if !status.Authenticated {
		// An authenticator of the cluster's own might quote what it was asked about.
		if status.Error == "" || strings.Contains(status.Error, token) {
			return refuse("API server does not know the token")
		}
		return refuse("API server refuses the token: " + status.Error)
	}
	// No audience at all means that of the API server.
	if !slices.Contains(status.Audiences, r.audience) {
		return refuse(fmt.Sprintf("token is for audiences %q, not %q", status.Audiences, r.audience))
	}
	rest, ok := strings.CutPrefix(status.User.Username, "system:serviceaccount:")
	namespace, account, both := strings.Cut(rest, ":")
	if !ok || !both || namespace == "" || account == "" {
		return refuse(fmt.Sprintf("token is that of %q, which is no service account", status.User.Username))
	}
	return identity.Peer{
		Namespace:      namespace,
		ServiceAccount: account,
		Pod:            only(status.User.Extra[extraPodName]),
		PodUID:         only(status.User.Extra[extraPodUID]),
	}, nil
}

// only is the value of an extra that has one.
func only(values authenticationv1.ExtraValue) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}
