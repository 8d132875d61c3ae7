package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// How a lease is kept. Who loses it has leaseDuration less renewDeadline to end
// what it does, before another can have it. Who waits has it at most leaseDuration
// and twice retryPeriod after the leader died.
const (
	leaseDuration = 6 * time.Second
	renewDeadline = 4 * time.Second // without a renewal the lease counts as lost
	retryPeriod   = time.Second     // between renewals, and between looks at whether it is free
)

// A LeadConfig is what Lead must be told. Namespace and Identity are required.
type LeadConfig struct {
	Namespace string
	Name      string       // of the Lease, default chandler-leader
	Identity  string       // of this process, no other's
	Log       *slog.Logger // default: none
}

func (c LeadConfig) withDefaults() (LeadConfig, error) {
	if c.Namespace == "" || c.Identity == "" {
		return c, errors.New("namespace and identity are required")
	}
	c.Name = cmp.Or(c.Name, "chandler-leader")
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Lead calls run while this process holds the Lease, again and again, until ctx
// ends; then it gives the Lease away and returns nil. The context of run ends when
// ctx does or the Lease is lost; run must then return soon. Another process gets the
// Lease only after run has returned, or run was given its time to. If run returns
// while its context lasts, Lead ends with its error.
//
// client-go's own elector gives the lease away while what it guards still runs, and
// does not wait for that, hence this one. The Lease is as any elector makes it.
func Lead(ctx context.Context, leases coordinationv1client.LeasesGetter, cfg LeadConfig, run func(context.Context) error) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return fmt.Errorf("lead: %w", err)
	}
	c := &candidate{LeadConfig: cfg, leases: leases.Leases(cfg.Namespace)}
	retry := time.NewTicker(retryPeriod)
	defer retry.Stop()
	for ctx.Err() == nil {
		if until, ok := c.acquire(ctx); ok {
			lost, err := c.lead(ctx, until, run)
			if !lost {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-retry.C:
		}
	}
	return nil
}

// A candidate is one process that would lead.
type candidate struct {
	LeadConfig
	leases coordinationv1client.LeaseInterface
	lease  *coordinationv1.Lease // as last read or written; nil if there is none
	seen   time.Time             // when lease was first read as it is: clocks of others do not count
	failed bool                  // the last call
}

// acquire takes the lease if it is free, and returns until when it is held.
func (c *candidate) acquire(ctx context.Context) (time.Time, bool) {
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, renewDeadline)
	defer cancel()
	err := c.read(limited)
	if err == nil {
		if !c.free() {
			c.failed = false
			return time.Time{}, false
		}
		err = c.claim(limited)
	}
	switch {
	case err == nil:
		c.failed = false
		c.Log.Info("leads", "lease", c.Name, "identity", c.Identity)
		return began.Add(renewDeadline), true
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), ctx.Err() != nil: // another was faster, or we leave
	case !c.failed:
		c.failed = true
		c.Log.Warn("lease not acquired", "lease", c.Name, "reason", err)
	}
	return time.Time{}, false
}

func (c *candidate) read(ctx context.Context) error {
	lease, err := c.leases.Get(ctx, c.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		c.lease = nil
		return nil
	}
	if err != nil {
		return err
	}
	if c.lease == nil || c.lease.UID != lease.UID || c.lease.ResourceVersion != lease.ResourceVersion {
		c.seen = time.Now()
	}
	c.lease = lease
	return nil
}

// free reports whether nobody else holds the lease.
func (c *candidate) free() bool {
	if c.lease == nil || c.holder() == "" || c.holder() == c.Identity {
		return true
	}
	lasts := leaseDuration
	if s := c.lease.Spec.LeaseDurationSeconds; s != nil {
		lasts = time.Duration(*s) * time.Second
	}
	return !time.Now().Before(c.seen.Add(lasts))
}

func (c *candidate) holder() string {
	if c.lease == nil || c.lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *c.lease.Spec.HolderIdentity
}

// claim writes that the lease is ours from now on.
func (c *candidate) claim(ctx context.Context) error {
	now := metav1.NowMicro()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name}}
	transitions := int32(0)
	if c.lease != nil {
		lease = c.lease.DeepCopy()
		if t := lease.Spec.LeaseTransitions; t != nil {
			transitions = *t
		}
		if c.holder() != c.Identity {
			transitions++
		}
	}
	if c.holder() != c.Identity || lease.Spec.AcquireTime == nil {
		lease.Spec.AcquireTime = &now
	}
	lease.Spec.HolderIdentity = new(c.Identity)
	lease.Spec.LeaseDurationSeconds = new(int32(leaseDuration / time.Second))
	lease.Spec.RenewTime = &now
	lease.Spec.LeaseTransitions = &transitions
	return c.put(ctx, lease)
}

func (c *candidate) put(ctx context.Context, lease *coordinationv1.Lease) error {
	var err error
	if lease.ResourceVersion == "" {
		lease, err = c.leases.Create(ctx, lease, metav1.CreateOptions{FieldManager: fieldManager})
	} else {
		lease, err = c.leases.Update(ctx, lease, metav1.UpdateOptions{FieldManager: fieldManager})
	}
	if err == nil {
		c.lease, c.seen = lease, time.Now()
	}
	return err
}

// lead calls run and renews the lease until run has returned, also while it ends.
// It reports whether the lease was lost before; the error is that of run.
func (c *candidate) lead(ctx context.Context, until time.Time, run func(context.Context) error) (lost bool, err error) {
	term, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- run(term) }()

	renewal := time.NewTicker(retryPeriod)
	defer renewal.Stop()
	end := time.NewTimer(time.Until(until))
	defer end.Stop()
	for {
		select {
		case err := <-done:
			if lost {
				if err != nil {
					c.Log.Warn("run ended with the lease", "reason", err)
				}
				return true, nil
			}
			c.release(ctx)
			return false, err
		case <-renewal.C:
			if lost {
				continue
			}
			next, err := c.renew(ctx, until)
			if err == nil {
				until = next
				end.Reset(time.Until(until))
				continue
			}
			c.Log.Warn("lease not renewed", "lease", c.Name, "reason", err)
			if errors.Is(err, errTaken) {
				lost = true
				stop()
			}
		case <-end.C:
			if !lost {
				c.Log.Warn("lease lost", "lease", c.Name)
			}
			lost = true
			stop()
		}
	}
}

var errTaken = errors.New("another has the lease")

// renew holds the lease for longer. It asks until the lease counts as lost, also
// when ctx has ended: run may not have.
func (c *candidate) renew(ctx context.Context, until time.Time) (time.Time, error) {
	began := time.Now()
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
	defer cancel()
	err := c.claim(ctx)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		if err = c.read(ctx); err == nil && c.holder() != c.Identity {
			return time.Time{}, errTaken
		}
		if err == nil {
			err = c.claim(ctx)
		}
	}
	return began.Add(renewDeadline), err
}

// release lets another have the lease at once.
func (c *candidate) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	lease := c.lease.DeepCopy()
	lease.Spec.HolderIdentity = new("")
	lease.Spec.LeaseDurationSeconds = new(int32(1))
	if err := c.put(ctx, lease); err != nil {
		c.Log.Warn("lease not released", "lease", c.Name, "reason", err)
		return
	}
	c.Log.Info("leads no more", "lease", c.Name)
}
