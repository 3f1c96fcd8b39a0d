#!/usr/bin/env bash
# Sets up if needed, then checks everything: ruff (lint, format), mypy, pytest.
#
# usage: scripts/test.sh                        but for what is marked `slow`
#        scripts/test.sh --all                  everything, as CI does
#        scripts/test.sh [--all] ARGUMENTS      of pytest, e.g. tests/workflows -k amazon
#
# Where a test is named, it runs, slow or not. All four checks run even if one fails; the exit
# status is that of the last that failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh

all=false
(($#)) && all=true # who chooses says what is left out
processes=$(nproc)
if [[ ${1-} == --all ]]; then
  shift
  # Slow tests wait an eighth of the time, for others' clocks; one process more has work then.
  processes=$((processes + 1))
fi
$all || set -- -m "not slow"

bin=$PWD/.venv/bin
export PATH=$bin:$PATH TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
status=0
failed=()

check() { # NAME COMMAND...
  local name=$1 code=0
  shift
  printf '\n== %s\n' "$name"
  "$@" || code=$?
  ((code == 0)) || { status=$code; failed+=("$name"); }
}

# mypy takes the time in which pytest's processes wait for others.
mypy_said=$(mktemp)
trap 'rm -f "$mypy_said"' EXIT
"$bin/mypy" > "$mypy_said" 2>&1 &
mypy=$!

# shellcheck disable=SC2329 # check() calls it
mypy_ends() {
  local code=0
  wait "$mypy" || code=$?
  cat "$mypy_said"
  return "$code"
}

check "ruff check" "$bin/ruff" check .
check "ruff format" "$bin/ruff" format --check .
# A file stays in one process: tests of a file share models that take seconds to trace. Files come
# in the order of tests/conftest.py, where the longest are first.
check "pytest" "$bin/python" -m pytest \
  --numprocesses "$processes" --dist loadfile --no-loadscope-reorder "$@"
check "mypy" mypy_ends

$all || printf '\ntest.sh: slow tests were left out; scripts/test.sh --all runs them, as CI does\n'
if ((status)); then
  printf '\ntest.sh: failed: %s\n' "$(IFS=,; echo "${failed[*]}")" >&2
fi
exit "$status"
