#!/bin/sh
# Assembles every .wat here into the .wasm beside it. Needs wat2wasm (Debian: wabt).
set -eu
cd "$(dirname "$0")"
for text in *.wat; do
	wat2wasm "$text" -o "${text%.wat}.wasm"
done
