#!/usr/bin/env bash
# Installs the Debian packages that the tests need, those of them that are
# missing. Needs apt-get, and root or sudo, only if something is missing.
set -euo pipefail

# package: a command that shows it is there
needed='
buildah: buildah --version
skopeo: skopeo --version
docker-registry: docker-registry --version
apache2-utils: command -v htpasswd
wabt: command -v wat2wasm
wrk: command -v wrk
nghttp2-client: command -v h2load
curl: command -v curl
git: command -v git
iproute2: command -v ip
iptables: command -v iptables
containerd: command -v containerd && command -v ctr
runc: command -v runc
containernetworking-plugins: test -x /usr/lib/cni/ptp
mmdebstrap: command -v mmdebstrap
openssl: command -v openssl
python3-venv: python3 -c "import ensurepip, venv"
gcc: command -v gcc
clang: command -v clang
lld: command -v wasm-ld
wasi-libc: test -d /usr/include/wasm32-wasi
libc++-dev-wasm32: ls /usr/lib/llvm-*/include/wasm32-wasi/c++
libclang-rt-dev-wasm32: ls /usr/lib/llvm-*/lib/clang/*/lib/wasi
libc6-dev: test -e /usr/include/stdlib.h
'

missing=()
while IFS= read -r line; do
	[ -n "$line" ] || continue
	bash -c "${line#*: }" >/dev/null 2>&1 </dev/null || missing+=("${line%%: *}")
done <<<"$needed"

# Rust for plugins: its Wasm target is a component of rustup's.
if command -v rustup >/dev/null && ! rustup target list --installed | grep -qx wasm32-wasip1; then
	rustup target add wasm32-wasip1 >&2
fi
[ ${#missing[@]} -gt 0 ] || exit 0

fail() {
	echo "deps.sh: $1; the tests need: ${missing[*]}" >&2
	exit 1
}
command -v apt-get >/dev/null || fail "no apt-get on this machine"
as_root=()
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || fail "neither root nor sudo"
	as_root=(sudo)
fi
echo "deps.sh: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
