package trust

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/chandler-proxy/chandler/internal/identity"
)

// secretKey is the key of the Secret that has the CA's state.
const secretKey = "ca.json"

// A SecretKeeper keeps the CA in the Secret chandler-ca. A Secret of that name
// without state, such as one that was applied to be filled, is filled; other
// keys and metadata stay. It implements [identity.Keeper].
type SecretKeeper struct {
	client    kubernetes.Interface
	namespace string
	log       *slog.Logger
}

// NewSecretKeeper returns a keeper in that namespace, which is the root namespace.
// A nil log means none.
func NewSecretKeeper(client kubernetes.Interface, namespace string, log *slog.Logger) *SecretKeeper {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &SecretKeeper{client, namespace, log}
}

// Load implements [identity.Keeper]. The version is the Secret's, with its UID: one
// that was made anew is another.
func (k *SecretKeeper) Load(ctx context.Context) (identity.Kept, error) {
	secret, err := k.get(ctx)
	if apierrors.IsNotFound(err) {
		return identity.Kept{}, nil
	}
	if err != nil {
		return identity.Kept{}, fmt.Errorf("load CA: %w", err)
	}
	return identity.Kept{Data: secret.Data[secretKey], Version: version(secret)}, nil
}

func (k *SecretKeeper) get(ctx context.Context) (*corev1.Secret, error) {
	return k.client.CoreV1().Secrets(k.namespace).Get(ctx, SecretName, metav1.GetOptions{})
}

func version(s *corev1.Secret) string { return string(s.UID) + "/" + s.ResourceVersion }

// Save implements [identity.Keeper]. The API server decides which of two replicas
// was first.
func (k *SecretKeeper) Save(ctx context.Context, data []byte, expected string) error {
	var err error
	if expected == "" {
		err = k.create(ctx, data)
	} else {
		err = k.update(ctx, data, expected)
	}
	if err != nil {
		return fmt.Errorf("save CA: %w", err)
	}
	return nil
}

func (k *SecretKeeper) create(ctx context.Context, data []byte) error {
	_, err := k.client.CoreV1().Secrets(k.namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: SecretName, Namespace: k.namespace, Labels: labels()},
		Type:       corev1.SecretTypeOpaque,
		Data:       map[string][]byte{secretKey: data},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return identity.ErrConflict
	}
	return err
}

func (k *SecretKeeper) update(ctx context.Context, data []byte, expected string) error {
	secret, err := k.get(ctx)
	if apierrors.IsNotFound(err) || err == nil && version(secret) != expected {
		return identity.ErrConflict
	}
	if err != nil {
		return err
	}
	// Its resource version makes the API server refuse this if another comes in between.
	secret = secret.DeepCopy()
	if secret.Data == nil {
		secret.Data = make(map[string][]byte)
	}
	secret.Data[secretKey] = data
	_, err = k.client.CoreV1().Secrets(k.namespace).Update(ctx, secret, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return identity.ErrConflict
	}
	return err
}

// Watch implements [identity.Keeper]. It watches that one Secret, and holds
// nothing of its data.
func (k *SecretKeeper) Watch(ctx context.Context, changed func()) error {
	_, controller := inform(k.client, k.client.CoreV1().Secrets(k.namespace), new(corev1.Secret), named(SecretName),
		withoutData, func(cache.ObjectName) { changed() }, k.log)
	return run(ctx, controller, k.log)
}

func withoutData(object any) (any, error) {
	s, ok := object.(*corev1.Secret)
	if !ok {
		return object, nil
	}
	return &corev1.Secret{ObjectMeta: slim(&s.ObjectMeta)}, nil
}

// slim is what informers need of an object's metadata.
func slim(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion,
		DeletionTimestamp: m.DeletionTimestamp,
	}
}
