package proxywasm

import (
	"sync"

	"github.com/chandler-proxy/chandler/internal/abi"
)

func sharedDataFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_get_shared_data", getSharedData, param{"key", text}, param{"value", retData}, param{"cas", ret32}),
		proxy("proxy_set_shared_data", setSharedData, param{"key", text}, param{"value", text}, param{"cas", number}),
	}
}

// getSharedData is proxy_get_shared_data.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_get_shared_data
func getSharedData(in *Instance, stack []uint64) abi.Status {
	key, ok := in.view(stack, 0)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	value, cas, status := in.vm.cfg.Shared.Get(in.vm.cfg.ID, key)
	if status != abi.OK {
		return status
	}
	if status := in.give(stack, 2, value); status != abi.OK {
		return status
	}
	return in.put32(u32(stack, 4), cas)
}

// setSharedData is proxy_set_shared_data. As in Envoy, a value that is not there yet
// is set whatever cas says.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_set_shared_data
func setSharedData(in *Instance, stack []uint64) abi.Status {
	key, ok := in.read(stack, 0)
	value, ok2 := in.read(stack, 2)
	if !ok || !ok2 {
		return abi.InvalidMemoryAccess
	}
	return in.vm.cfg.Shared.Set(in.vm.cfg.ID, string(key), string(value), u32(stack, 4))
}

// Shared is the data and the queues that all instances share, by vm_id. What a vm_id
// has is gone with the last VM of that id. It is safe for concurrent use.
type Shared struct {
	mu     sync.Mutex
	vms    map[string]int // how many VMs have the id
	data   map[string]map[string]datum
	cas    uint32 // the last one given
	queues map[uint32]*queue
	tokens map[queueKey]uint32
	token  uint32 // the last one given
}

type datum struct {
	value string
	cas   uint32
}

// NewShared returns one without data and queues.
func NewShared() *Shared {
	return &Shared{
		vms:    map[string]int{},
		data:   map[string]map[string]datum{},
		queues: map[uint32]*queue{},
		tokens: map[queueKey]uint32{},
	}
}

// Get returns the value and its compare-and-swap number, or NotFound.
func (s *Shared) Get(vmID, key string) (value string, cas uint32, status abi.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.data[vmID][key]
	if !ok {
		return "", 0, abi.NotFound
	}
	return d.value, d.cas, abi.OK
}

// Set sets the value, unless there is one whose number is not cas and cas is not 0:
// then it is CASMismatch.
func (s *Shared) Set(vmID, key, value string, cas uint32) abi.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.data[vmID][key]; ok && cas != 0 && cas != d.cas {
		return abi.CASMismatch
	}
	if s.data[vmID] == nil {
		s.data[vmID] = map[string]datum{}
	}
	s.data[vmID][key] = datum{value: value, cas: next(&s.cas)}
	return abi.OK
}

// next counts up and leaves out 0, which means none.
func next(n *uint32) uint32 {
	if *n++; *n == 0 {
		*n++
	}
	return *n
}

func (s *Shared) retain(vmID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vms[vmID]++
}

func (s *Shared) release(vmID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vms[vmID]--; s.vms[vmID] > 0 {
		return
	}
	delete(s.vms, vmID)
	delete(s.data, vmID)
	for key, token := range s.tokens {
		if key.vmID == vmID {
			delete(s.tokens, key)
			delete(s.queues, token)
		}
	}
}
