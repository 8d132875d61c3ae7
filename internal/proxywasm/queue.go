package proxywasm

import "github.com/chandler-proxy/chandler/internal/abi"

func queueFunctions() []*hostFunc {
	return []*hostFunc{
		proxy("proxy_register_shared_queue", registerSharedQueue, param{"name", text}, param{"queue", ret32}),
		proxy("proxy_resolve_shared_queue", resolveSharedQueue, param{"vm_id", text}, param{"name", text}, param{"queue", ret32}),
		proxy("proxy_enqueue_shared_queue", enqueueSharedQueue, param{"queue", number}, param{"value", text}),
		proxy("proxy_dequeue_shared_queue", dequeueSharedQueue, param{"queue", number}, param{"value", retData}),
	}
}

type queueKey struct{ vmID, name string }

type queue struct {
	items []string
	ready func(token uint32) // tells whoever registered it last
}

// registerSharedQueue is proxy_register_shared_queue. Whoever registers a queue last,
// in Envoy as here, is told of its items.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_register_shared_queue
func registerSharedQueue(in *Instance, stack []uint64) abi.Status {
	name, ok := in.read(stack, 0)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	r := in.effective.root
	token := in.vm.cfg.Shared.Register(in.vm.cfg.ID, string(name), func(token uint32) {
		in.post(func() { r.queueReady(token) })
	})
	return in.put32(u32(stack, 2), token)
}

// queueReady is proxy_on_queue_ready.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_on_queue_ready
func (r *root) queueReady(token uint32) {
	if r != nil && r.in.roots[r.plugin] == r {
		r.in.call(&r.Context, onQueueReady, r.id, token)
	}
}

// resolveSharedQueue is proxy_resolve_shared_queue. An empty vm_id is the caller's own.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_resolve_shared_queue
func resolveSharedQueue(in *Instance, stack []uint64) abi.Status {
	vmID, ok := in.view(stack, 0)
	name, ok2 := in.view(stack, 2)
	if !ok || !ok2 {
		return abi.InvalidMemoryAccess
	}
	if vmID == "" {
		vmID = in.vm.cfg.ID
	}
	token, status := in.vm.cfg.Shared.Resolve(vmID, name)
	if status != abi.OK {
		return status
	}
	return in.put32(u32(stack, 4), token)
}

// enqueueSharedQueue is proxy_enqueue_shared_queue.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_enqueue_shared_queue
func enqueueSharedQueue(in *Instance, stack []uint64) abi.Status {
	value, ok := in.read(stack, 1)
	if !ok {
		return abi.InvalidMemoryAccess
	}
	return in.vm.cfg.Shared.Enqueue(u32(stack, 0), string(value))
}

// dequeueSharedQueue is proxy_dequeue_shared_queue.
//
// https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1#proxy_dequeue_shared_queue
func dequeueSharedQueue(in *Instance, stack []uint64) abi.Status {
	value, status := in.vm.cfg.Shared.Dequeue(u32(stack, 0))
	if status != abi.OK {
		return status
	}
	return in.give(stack, 1, value)
}

// Register returns the token of the queue, which it makes if there is none. From now
// on ready, and no one else, is called for every item that is enqueued, by whoever
// enqueues it; it must not block.
func (s *Shared) Register(vmID, name string, ready func(token uint32)) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := queueKey{vmID, name}
	token, ok := s.tokens[key]
	if !ok {
		token = next(&s.token)
		s.tokens[key] = token
		s.queues[token] = &queue{}
	}
	s.queues[token].ready = ready
	return token
}

// Resolve returns the token of the queue, or NotFound.
func (s *Shared) Resolve(vmID, name string) (token uint32, status abi.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token, ok := s.tokens[queueKey{vmID, name}]; ok {
		return token, abi.OK
	}
	return 0, abi.NotFound
}

// Enqueue adds an item to the queue's end, or is NotFound.
func (s *Shared) Enqueue(token uint32, item string) abi.Status {
	s.mu.Lock()
	q := s.queues[token]
	if q == nil {
		s.mu.Unlock()
		return abi.NotFound
	}
	q.items = append(q.items, item)
	ready := q.ready
	s.mu.Unlock()
	ready(token)
	return abi.OK
}

// Dequeue removes the item at the queue's front, or is NotFound or Empty.
func (s *Shared) Dequeue(token uint32) (item string, status abi.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[token]
	switch {
	case q == nil:
		return "", abi.NotFound
	case len(q.items) == 0:
		return "", abi.Empty
	}
	item = q.items[0]
	q.items[0] = ""
	q.items = q.items[1:]
	return item, abi.OK
}
