// Package bench measures what the project's speed and size claims are about:
//
//   - conversion_test.go: an extension through the relay, its module stored
//   - fetch_test.go: a module from a registry and a web server
//   - change_test.go: from a file's change to a request that meets it
//   - memory_test.go: what control plane and agent keep resident
//
// A claim is a ratio to a peer that does the same work without Chandler, measured
// in turn with it, wherever there is such a peer; nothing here asserts a time.
// The last three need the built binary, Envoy and Debian's docker-registry (build
// tag e2e). The control plane with many proxies is in bench/control, the engine
// beside Envoy under load in bench/engine. How to run it all, and what the columns
// are: README.md.
package bench
