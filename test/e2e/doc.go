// Package e2e tests Chandler from outside, as its users meet it: the built
// binary, the real Envoy, Debian's docker-registry, images made by buildah, and
// clients that keep sending requests while things change and break.
//
// The tests need the tag e2e, the paths CHANDLER_BIN and CHANDLER_ENVOY, and
// the packages that scripts/deps.sh installs. What is missing fails a test;
// nothing is skipped. Start at start in harness_test.go.
package e2e
