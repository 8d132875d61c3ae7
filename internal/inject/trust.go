package inject

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// Configurations is what [Trust] needs of an API server: client-go's
// MutatingWebhookConfigurations, and the rights to watch and patch the one.
type Configurations interface {
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
	Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (*admissionregistrationv1.MutatingWebhookConfiguration, error)
}

// Trust makes the API server trust the webhook: it keeps the caBundle in the webhook's
// configuration that of now, whoever applies or changes it, and touches nothing else
// there. Any number of replicas may do so, if their bundles are the same.
type Trust struct {
	Configurations Configurations
	Name           string        // of the configuration; see [ConfigurationName]
	Bundles        <-chan []byte // PEM: the newest certificates that the webhook's is issued by; never closed
	Log            *slog.Logger
}

// The time between attempts to reach the API server.
const (
	firstWait = time.Second
	maxWait   = 30 * time.Second
)

// errWatchEnded is an API server's way: it ends watches from time to time.
var errWatchEnded = errors.New("the watch ended")

// Run keeps the bundle until ctx ends. A configuration that is not there is waited for,
// and so is an API server that does not answer.
func (t *Trust) Run(ctx context.Context) error {
	var bundle []byte
	for wait := firstWait; ; wait = min(2*wait, maxWait) {
		heard, err := t.follow(ctx, &bundle)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errWatchEnded) {
			t.Log.Warn("webhook configuration cannot be followed", "name", t.Name, "error", err)
		}
		if heard {
			wait = firstWait
		}
		if !t.pause(ctx, wait, &bundle) {
			return nil
		}
	}
}

// pause waits, and keeps a bundle that comes meanwhile; false is the end of ctx.
func (t *Trust) pause(ctx context.Context, wait time.Duration, bundle *[]byte) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case *bundle = <-t.Bundles:
		case <-timer.C:
			return true
		}
	}
}

// follow watches the configuration, whose present state comes first, until the watch
// ends or a change is refused. heard says whether the API server told anything.
func (t *Trust) follow(ctx context.Context, bundle *[]byte) (heard bool, err error) {
	w, err := t.Configurations.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, t.Name).String(),
	})
	if err != nil {
		return false, fmt.Errorf("watch: %w", err)
	}
	defer w.Stop()
	var last *admissionregistrationv1.MutatingWebhookConfiguration
	for {
		select {
		case <-ctx.Done():
			return heard, nil
		case *bundle = <-t.Bundles:
		case event, ok := <-w.ResultChan():
			if !ok {
				return heard, errWatchEnded
			}
			if event.Type == watch.Error {
				return heard, fmt.Errorf("watch: %w", apierrors.FromObject(event.Object))
			}
			heard = true
			last, _ = event.Object.(*admissionregistrationv1.MutatingWebhookConfiguration)
			if event.Type == watch.Deleted {
				last = nil
			}
		}
		if last == nil || last.Name != t.Name {
			continue
		}
		if err := t.mend(ctx, last, *bundle); err != nil {
			return heard, err
		}
	}
}

// mend puts the bundle into the webhooks of c that have another, if c is still what we
// have seen; if not, its next state is on its way.
func (t *Trust) mend(ctx context.Context, c *admissionregistrationv1.MutatingWebhookConfiguration, bundle []byte) error {
	ops := bundlePatch(c, bundle)
	if len(ops) == 0 {
		return nil
	}
	text, err := json.Marshal(ops)
	if err != nil {
		return err
	}
	_, err = t.Configurations.Patch(ctx, c.Name, types.JSONPatchType, text, metav1.PatchOptions{FieldManager: "chandler"})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil
	case apierrors.IsInvalid(err): // a test of the patch failed, or the bundle is none
		t.Log.Warn("webhook configuration cannot be patched as it is", "name", c.Name, "error", err)
		return nil
	case err != nil:
		return fmt.Errorf("patch: %w", err)
	}
	t.Log.Info("webhook is trusted", "name", c.Name)
	return nil
}

// bundlePatch is nothing if all is right. Its tests fail if the webhooks are no more
// the ones of c.
func bundlePatch(c *admissionregistrationv1.MutatingWebhookConfiguration, bundle []byte) []operation {
	if len(bundle) == 0 {
		return nil
	}
	var ops []operation
	for i, w := range c.Webhooks {
		if bytes.Equal(w.ClientConfig.CABundle, bundle) {
			continue
		}
		at := fmt.Sprintf("/webhooks/%d", i)
		ops = append(ops,
			operation{"test", at + "/name", w.Name},
			operation{"add", at + "/clientConfig/caBundle", bundle})
	}
	return ops
}
