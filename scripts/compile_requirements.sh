#!/usr/bin/env bash
# Compiles requirements/*.in to *.txt: exact versions and hashes, no registry's address.
# usage: scripts/compile_requirements.sh [--upgrade | --upgrade-package NAME]
# Versions already in a .txt stay unless an .in no longer allows them or --upgrade says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=$(command -v uv || find .tools -path "*/bin/uv" | head -n 1)
[[ -n $uv ]] || { echo "compile_requirements: no uv; run scripts/setup.sh first" >&2; exit 1; }

compile() { # NAME PYTHON [options]
  local name=$1 python=$2
  shift 2
  echo "requirements/$name.txt"
  "$uv" pip compile --quiet --generate-hashes --no-header \
    --python-version "$python" --python-platform "${platform:-x86_64-unknown-linux-gnu}" \
    "$@" "requirements/$name.in" --output-file "requirements/$name.txt"
}

# TensorFlow's package asks for these, for JAX's models and for its own build: 500 MB to fetch and
# unpack, half a second of every start, and nothing of ours runs them.
unused=(--no-emit-package jax --no-emit-package jaxlib --no-emit-package ml-dtypes
  --no-emit-package libclang)
compile runtime 3.11 "${unused[@]}" "$@"
compile dev 3.11 "${unused[@]}" --constraints requirements/runtime.txt "$@"
platform=x86_64-manylinux_2_35 compile triton 3.11 --constraints requirements/dev.txt "$@"
compile tools 3.11 "$@"
compile build 3.11 "$@"
compile docs 3.11 "$@"
# Its dependencies are locked in runtime.txt.
compile horovod 3.11 --no-deps "$@"
# The Merlin image has these already, in versions that its TensorFlow and pandas were built with.
compile gpu 3.10 --no-emit-package numpy --no-emit-package packaging --no-emit-package six \
  --no-emit-package python-dateutil --no-emit-package tzdata \
  --no-emit-package typing-extensions "$@"
