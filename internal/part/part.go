// Package part is how programs are assembled of parts that run until a context
// ends: each part in an errgroup, under a name that its error bears.
//
// It starts nothing and waits for nothing itself. Start at [Run].
package part

import (
	"context"
	"errors"
	"fmt"
)

// Run names run's error and makes an early return one, so no part can go missing
// while the rest carry on. What it returns is for errgroup.Group.Go.
func Run(ctx context.Context, name string, run func(context.Context) error) func() error {
	return func() error {
		err := run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errors.New("stopped")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
}
