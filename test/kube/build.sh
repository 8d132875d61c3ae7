#!/usr/bin/env bash
# build.sh OUT - builds the programs of a test cluster into OUT, unless they are
# there already, built from the same sources by the same Go: one binary with a
# link for each of etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
# kube-proxy, kubelet and kubectl, and coredns and pause. OUT serves as
# KUBEBUILDER_ASSETS too.
#
# Cold this takes many minutes and 2.5 GB of memory; with Go's build cache, seconds.
set -euo pipefail

[ $# = 1 ] || { echo "usage: build.sh OUT" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/build"
export CGO_ENABLED=0 GOFLAGS="-mod=readonly -trimpath" GOWORK=off

exec 9>"$out/.lock"
flock 9

sources=$({ go version; cat ../build.sh go.mod go.sum */*.go; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/.sources" 2>/dev/null)" != "$sources" ] || exit 0

echo "build.sh: building Kubernetes for the tests" >&2
rm -f "$out/.sources"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
base=k8s.io/component-base/version
flags="-s -w -X $base.gitVersion=$version -X $base.gitMajor=1 -X $base.gitMinor=$(cut -d. -f2 <<<"$version")"
flags+=" -X $base.gitTreeState=clean -X k8s.io/client-go/pkg/version.gitVersion=$version"
for program in pause coredns kubebox; do
	nice go build -ldflags "$flags" -o "$out/$program" "./$program"
done
for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
	ln -sfn kubebox "$out/$name"
done
echo "$sources" >"$out/.sources"
