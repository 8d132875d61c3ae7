package xds

import (
	"container/list"
	"sync"
)

// maxPast bounds how many sets of clusters are remembered.
const maxPast = 64

// A past is the clusters that clients of state of the world were sent lately, by version.
// Such a client tells, when it connects again, only the version of what it has; to be
// sent clusters without losing one that its routes still use, it must be sent that one,
// too. No class is told of another's. Its methods may be called concurrently, and on nil.
type past struct {
	mu   sync.Mutex
	sets map[pastKey]*list.Element // of pastSets
	used *list.List                // the last used first
}

type pastKey struct{ class, version string }

type pastSet struct {
	key       pastKey
	resources []*Resource
}

func newPast() *past {
	return &past{sets: make(map[pastKey]*list.Element), used: list.New()}
}

// note remembers a set, and forgets the one that was not used for longest.
func (p *past) note(key pastKey, resources []*Resource) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.sets[key]; e != nil {
		p.used.MoveToFront(e)
		return
	}
	p.sets[key] = p.used.PushFront(pastSet{key, resources})
	if p.used.Len() > maxPast {
		oldest := p.used.Remove(p.used.Back()).(pastSet)
		delete(p.sets, oldest.key)
	}
}

// clusters are a set; none if it is not known.
func (p *past) clusters(key pastKey) []*Resource {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.sets[key]
	if e == nil {
		return nil
	}
	p.used.MoveToFront(e)
	return e.Value.(pastSet).resources
}
