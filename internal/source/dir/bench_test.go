package dir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/chandler-proxy/chandler/internal/source"
)

// BenchmarkChange is the time from writing a file to the snapshot that has it,
// among so many other files. The time of quiet is in it.
func BenchmarkChange(b *testing.B) {
	for _, others := range []int{0, 50, 1000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			dir := b.TempDir()
			for i := range others {
				name := fmt.Sprintf("p%d", i)
				if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(plugin(name, "v1")), 0o644); err != nil {
					b.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(b.Context())
			delivered, done := make(chan int), make(chan error)
			go func() {
				done <- New(Config{Paths: []string{dir}}).Run(ctx, func(s source.Snapshot) {
					select {
					case delivered <- len(s.Objects):
					case <-ctx.Done():
					}
				})
			}()
			<-delivered
			i := 0
			for b.Loop() {
				i++
				if err := os.WriteFile(filepath.Join(dir, "changed.yaml"), []byte(plugin("changed", fmt.Sprint("n", i))), 0o644); err != nil {
					b.Fatal(err)
				}
				<-delivered
			}
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
