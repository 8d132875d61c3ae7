package control

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chandler-proxy/chandler/internal/mesh"
	"github.com/chandler-proxy/chandler/internal/resource"
	"github.com/chandler-proxy/chandler/internal/source"
)

// TestGather delivers changes at moments and looks when they are published, in
// milliseconds after the first.
func TestGather(t *testing.T) {
	every := func(step, until int) (moments []int) {
		for ms := 0; ms <= until; ms += step {
			moments = append(moments, ms)
		}
		return moments
	}
	for _, tt := range []struct {
		name          string
		changes, want []int
	}{
		{"a lone change goes at once", []int{0}, []int{0}},
		{"so do changes that are far apart", []int{0, 100, 5000}, []int{0, 100, 5000}},
		{"a second one soon after waits for quiet", []int{0, 30}, []int{0, 130}},
		{"a storm is gathered until it is quiet", []int{0, 30, 60, 90, 120}, []int{0, 220}},
		{"a storm that does not end is published all the same", every(30, 2490), []int{0, 1030, 2050, 2590}},
		{"after a storm a lone change goes at once again", []int{0, 30, 60, 1000}, []int{0, 160, 1000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := testPublisher(t)
				began := time.Now()
				var got []int
				p.newWorld = func(objects []resource.Object) (*mesh.World, []resource.Problem) {
					got = append(got, int(time.Since(began).Milliseconds()))
					return new(mesh.World), nil
				}
				run(t, p.Run)
				for _, ms := range tt.changes {
					time.Sleep(time.Until(began.Add(time.Duration(ms) * time.Millisecond)))
					p.deliver(source.Snapshot{})
					synctest.Wait()
				}
				time.Sleep(2 * longest)
				synctest.Wait()
				if !slices.Equal(got, tt.want) {
					t.Errorf("published at %v, want %v", got, tt.want)
				}
			})
		})
	}
}

// TestNewestIsPublished: a snapshot that was replaced before it was published is
// never seen.
func TestNewestIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPublisher(t)
		var got []int
		p.newWorld = func(objects []resource.Object) (*mesh.World, []resource.Problem) {
			got = append(got, len(objects))
			return new(mesh.World), nil
		}
		run(t, p.Run)
		for n := range 10 {
			p.deliver(source.Snapshot{Objects: make([]resource.Object, 0, n)})
			p.deliver(source.Snapshot{Objects: services(n)})
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(longest)
		synctest.Wait()
		if want := []int{0, 9}; !slices.Equal(got, want) {
			t.Errorf("worlds of %v objects, want %v", got, want)
		}
	})
}
