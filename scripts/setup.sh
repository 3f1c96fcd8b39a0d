#!/usr/bin/env bash
# Makes .venv, the one environment that everything here runs in: Python 3.11, the packages of
# requirements/dev.txt, Horovod built against that TensorFlow with Gloo, the operations of kernels/,
# and this checkout as the package `lookback`.
#
# usage: scripts/setup.sh
#
# Idempotent: a finished .venv carries a stamp of its inputs, and when it matches there is nothing
# to do. The stamp is removed first and written last, so a set-up that was killed at any point is
# seen and repaired by the next run. Writes only .venv/ and .tools/ in this checkout, and uv's
# cache. LOOKBACK_PYTHON=/path/to/python3.11 chooses the interpreter.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
tools=$root/.tools
log=$tools/setup.log
ours=$venv/.lookback        # a .venv without this file was made by somebody else
stamp=$venv/.lookback-ready # a .venv without this one is incomplete

# Free space needed, in MB. First set-up: measured 3050 MB (.venv and uv's cache share files).
first_mb=3500
again_mb=1000

main() {
  [[ $# -eq 0 ]] || die "takes no arguments; got: $*"
  cd "$root"
  [[ ! -f $venv/.lookback-carried ]] || return 0 # out of a pack of scripts/airgap.sh
  ready && return
  check_platform
  mkdir -p "$tools"
  echo '*' > "$tools/.gitignore"

  # The descriptor is inherited by what we start: if this script is killed, a compiler that it
  # leaves behind keeps the lock, and the next run does not write beside it.
  exec 9> "$tools/lock"
  if ! flock --nonblock 9; then
    say "another set-up is running in this checkout; waiting for it"
    flock 9
    ready && return
  fi
  : > "$log"

  # What can be missing is looked for before .venv is touched.
  check_venv
  check_compiler
  check_space
  get_tools
  get_python
  check_registry

  make_venv
  install_packages
  link_package
  # Each has its time in which one core is idle: CMake's questions, the longest file.
  log=$tools/kernels.log build_kernels &
  local kernels=$!
  install_horovod
  wait "$kernels" || exit
  verify
  { location && environment_key; } > "$stamp.new"
  mv "$stamp.new" "$stamp"
  say "ready"
}

say() { printf 'set-up [%3d s] %s\n' "$SECONDS" "$*"; }

die() {
  printf 'set-up: error: %s\n' "$*" >&2
  exit 1
}

# Where .venv was made and from which Python: its files name both.
location() { printf '%s <- %s\n' "$root" "$(readlink "$venv/bin/python")"; }

# What .venv was made from.
environment_key() {
  sha256sum requirements/{dev,triton,horovod,tools,build}.txt kernels/{,tiles/}{*.cc,*.h} \
    kernels/build.py scripts/{setup.sh,check_environment.py} | sha256sum | cut -d ' ' -f 1
}

ready() {
  [[ -f $stamp && -x $venv/bin/python ]] || return 1
  compgen -G "$venv/lib/python3.11/site-packages/horovod/tensorflow/mpi_lib*.so" > /dev/null ||
    return 1
  compgen -G "$venv/lib/lookback_kernels-*.so" > /dev/null || return 1
  [[ -x $venv/bin/lookback && -d $venv/src/lookback/core ]] || return 1
  [[ $(< "$stamp") == "$(location && environment_key)" ]]
}

check_platform() {
  local platform tool
  platform=$(uname -sm)
  [[ $platform == "Linux x86_64" ]] ||
    die "needs Linux on x86-64 (TensorFlow 2.12 for CPU has no other build); this is $platform"
  for tool in flock sha256sum; do
    command -v "$tool" > /dev/null ||
      die "$tool is missing. Debian and Ubuntu: apt-get install util-linux coreutils"
  done
}

check_venv() {
  [[ ! -e $venv || -f $ours ]] ||
    die ".venv exists and scripts/setup.sh did not make it. Move it away, then run" \
      "scripts/setup.sh again."
}

check_compiler() {
  local advice="Debian and Ubuntu: apt-get install g++. Fedora: dnf install gcc-c++."
  if [[ -z ${CXX:-} ]]; then
    CXX=$(command -v g++ || command -v clang++ || command -v c++) ||
      die "no C++ compiler, and Horovod is built here: g++, clang++, c++ are not on PATH. $advice"
  fi
  export CXX
  printf '#include <cmath>\n#include <string>\nint main() { return 0; }\n' |
    "$CXX" -std=c++17 -x c++ - -o "$tools/compiler-check" 2> "$log" ||
    die "the C++ compiler $CXX cannot build a small program: $(head -n 1 "$log"). $advice"
  rm "$tools/compiler-check"
}

free_mb() { df -Pm "$1" | awk 'NR == 2 { print $4 }'; }

# An earlier set-up that got past its downloads has left them in uv's cache.
check_space() {
  local need=$first_mb free place cache=${UV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/uv}
  [[ ! -f $stamp && ! -f $tools/downloaded ]] || need=$again_mb
  while [[ ! -e $cache ]]; do cache=$(dirname "$cache"); done
  for place in "$root" "$cache"; do
    free=$(free_mb "$place")
    ((free >= need)) ||
      die "$place has $free MB free and the set-up needs $need MB: free some space, or move the" \
        "checkout (or uv's cache, with UV_CACHE_DIR) to a larger disk."
  done
}

# Runs a command, its output in the log. A failure of a known kind is told in one line.
run() { # WHAT COMMAND...
  local what=$1 output status=0
  shift
  "$@" > "$log.step" 2>&1 || status=$?
  # On a full disk the log cannot be written either, which must not hide the reason.
  { printf '\n== %s: %s\n' "$what" "$*" && cat "$log.step"; } >> "$log" 2> /dev/null || true
  ((status)) || return 0
  output=$(< "$log.step")
  (($(free_mb "$root") > 10)) || output="No space left on device"
  case $output in
    *"No space left on device"*)
      die "$what: the disk is full ($(free_mb "$root") MB free at $root). Free some space and run" \
        "scripts/setup.sh again. Log: $log" ;;
    *"Failed to fetch"* | *"Failed to download"* | *"error sending request"* | *"timed out"* | \
      *"NewConnectionError"* | *"Temporary failure in name resolution"* | *"from versions: none"*)
      die "$what: no network, the package registry cannot be reached. Check the connection and" \
        "HTTPS_PROXY, then run scripts/setup.sh again. Log: $log" ;;
    *"ash mismatch"* | *"DO NOT MATCH"*)
      die "$what: a downloaded file is not the one that was locked (its hash differs), so it was" \
        "refused. Check the package mirror in use. Log: $log" ;;
  esac
  tail -n 15 "$log.step" >&2
  die "$what failed: the last lines are above, all of them in $log"
}

# uv, cmake and ninja at their locked versions, in a directory named by the lock's hash.
get_tools() {
  toolbox=$tools/$(sha256sum requirements/tools.txt | cut -c 1-12)
  uv=$toolbox/bin/uv
  [[ ! -d $toolbox ]] || return 0
  say "fetching uv, cmake and ninja"
  rm -rf "$tools/new" "$tools/bootstrap"
  local fetch
  if find_pip; then
    fetch=("$pip_python" -m pip --no-input --disable-pip-version-check install)
  elif command -v uv > /dev/null; then
    uv=uv
    get_python
    fetch=(uv pip install --python "$python")
  else
    die "no Python 3 with pip or venv, and no uv to fetch Python with." \
      "Debian and Ubuntu: apt-get install python3.11 python3.11-venv."
  fi
  run "fetching uv, cmake and ninja" "${fetch[@]}" --target "$tools/new" --require-hashes \
    --no-deps --only-binary :all: -r requirements/tools.txt
  uv=$toolbox/bin/uv
  mv "$tools/new" "$toolbox"
  rm -rf "$tools/bootstrap"
}

# Sets pip_python to a Python that has pip, if need be a throw-away environment's; 1 if none.
find_pip() {
  local candidate
  for candidate in ${LOOKBACK_PYTHON:+"$LOOKBACK_PYTHON"} python3.11 python3; do
    command -v "$candidate" > /dev/null || continue
    pip_python=$candidate
    "$pip_python" -m pip --version >> "$log" 2>&1 && return
    pip_python=$tools/bootstrap/bin/python
    "$candidate" -m venv "$tools/bootstrap" >> "$log" 2>&1 && return
  done
  return 1
}

# Sets python to the interpreter to build on.
get_python() {
  local version advice="Debian and Ubuntu: apt-get install python3.11. Or set LOOKBACK_PYTHON."
  local find=("$uv" python find --system --no-project --no-python-downloads)
  if [[ -n ${LOOKBACK_PYTHON:-} ]]; then
    python=$("${find[@]}" "$LOOKBACK_PYTHON" 2>> "$log") ||
      die "LOOKBACK_PYTHON=$LOOKBACK_PYTHON is not a Python that runs. $advice"
  elif ! python=$("${find[@]}" 3.11 2>> "$log"); then
    say "no Python 3.11 on this machine; downloading one"
    "$uv" python install --no-bin 3.11 >> "$log" 2>&1 ||
      die "no Python 3.11 on this machine, and it could not be downloaded. $advice Log: $log"
    python=$("$uv" python find --no-project 3.11)
  fi
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [[ $version == 3.11 ]] || die "needs Python 3.11; $python is Python $version. $advice"
}

# Asks for every locked package and fetches none: a missing network shows here, in seconds.
check_registry() {
  run "asking the package registry" "$uv" pip sync --dry-run --require-hashes \
    --python "$python" --target "$tools/dry-run" requirements/dev.txt
}

# Leaves a .venv that is complete (then the next steps change what differs) or empty.
make_venv() {
  rm -rf "$tools/old" "$tools/new"
  if [[ -f $stamp && -x $venv/bin/python && $(head -n 1 "$stamp") == "$root <- $python" ]]; then
    rm "$stamp"
    return
  fi
  # Renames, because they happen at once: half a removal would look like somebody else's .venv.
  if [[ -e $venv ]]; then
    say "removing .venv: an interrupted set-up, another Python or a moved checkout"
    mv "$venv" "$tools/old"
    rm -rf "$tools/old"
  fi
  mkdir "$tools/new"
  touch "$tools/new/${ours##*/}"
  mv "$tools/new" "$venv"
  say "creating .venv with $python"
  run "creating .venv" "$uv" venv --no-project --allow-existing --python "$python" "$venv"
}

install_packages() {
  local libc locks=(requirements/dev.txt)
  libc=$(getconf GNU_LIBC_VERSION | cut -d ' ' -f 2)
  if printf '%s\n' 2.35 "$libc" | sort --check=quiet --version-sort; then
    locks+=(requirements/triton.txt)
  else
    say "without Triton, whose wheel needs glibc 2.35, and this is $libc: serve with --engine local"
  fi
  say "installing $(cat "${locks[@]}" | grep '==' | sort --unique | wc -l) packages"
  run "installing packages" "$uv" pip sync --python "$venv/bin/python" --require-hashes \
    --build-constraints requirements/build.txt --compile-bytecode "${locks[@]}"
  touch "$tools/downloaded"
}

# The wheel that is built is kept here: uv's own cache knows its source, but not the TensorFlow,
# the compiler and the options that it was built with.
install_horovod() {
  local name wheels options=(
    HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
    HOROVOD_WITHOUT_MPI=1 HOROVOD_WITH_GLOO=1
  )
  for name in $(compgen -e HOROVOD_); do unset "$name"; done
  wheels=$tools/horovod-$({
    printf '%s\n' "${options[@]}" "$(grep '^tensorflow-cpu==' requirements/dev.txt)"
    "$CXX" --version
    cat requirements/{horovod,build,tools}.txt
  } | sha256sum | cut -c 1-12)
  compgen -G "$wheels/horovod-*.whl" > /dev/null || build_horovod
  run "installing Horovod" "$uv" pip install --python "$venv/bin/python" --no-deps \
    --compile-bytecode "$wheels"/horovod-*.whl
}

build_horovod() {
  say "building Horovod (about a minute on 2 cores)"
  # Its CMake files cannot stand blanks, neither in their own path nor in TensorFlow's.
  scratch=$tools/build
  [[ $scratch != *[[:space:]]* ]] || scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  rm -rf "$tools"/{build,new,horovod-*}
  mkdir -p "$scratch" "$tools/new"
  ln -s "$venv/lib/python3.11/site-packages" "$scratch/packages"
  # It builds Gloo for two ABIs, of which TensorFlow has one, and asks for what a debugger reads:
  # half of the compiler's time.
  printf '#!/bin/sh\nexec "%s" "$@" -g0\n' "$CXX" > "$scratch/c++"
  cat > "$scratch/cmake" << END
#!/bin/sh
[ "\$1" != --build ] || set -- "\$@" --target tensorflow
exec "$toolbox/cmake/data/bin/cmake" "\$@"
END
  chmod +x "$scratch"/{c++,cmake}
  # Its setup.py hands two options to make that ninja does not want: -j8, whatever the machine,
  # unless MAKEFLAGS is set, and VERBOSE=1 unless the build is quiet.
  run "building Horovod" env "${options[@]}" "CXX=$scratch/c++" "PYTHONPATH=$scratch/packages" \
    "HOROVOD_CMAKE=$scratch/cmake" "PATH=$toolbox/bin:$PATH" \
    CMAKE_GENERATOR=Ninja "MAKEFLAGS=-j$(nproc)" "CMAKE_BUILD_PARALLEL_LEVEL=$(nproc)" \
    "$uv" pip install --python "$venv/bin/python" --cache-dir "$scratch/cache" --no-deps \
    --require-hashes --no-build-isolation --config-settings quiet=1 -r requirements/horovod.txt
  find "$scratch/cache" -name 'horovod-*.whl' -type f -exec cp {} "$tools/new" \;
  mv "$tools/new" "$wheels"
  rm -rf "$scratch"
}

build_kernels() {
  say "building our operations"
  run "building our operations" "$venv/bin/python" cli.py setup-kernels
}

# The checkout is the package: a link under the package's name, in a directory that a path file
# names. An editable install's import hook would do for Python, but not for mypy and editors. Both
# are relative, so that they hold wherever the checkout lies.
link_package() {
  mkdir -p "$venv/src"
  ln -sfn ../.. "$venv/src/lookback"
  echo ../../../src > "$venv/lib/python3.11/site-packages/lookback.pth"
  # Not with this Python in its first line: a path there must be short and without blanks.
  cat > "$venv/bin/lookback" << 'END'
#!/bin/sh
bin=$(dirname "$0")
exec "$bin/python" "$bin/../src/lookback/cli.py" "$@"
END
  chmod +x "$venv/bin/lookback"
}

verify() {
  say "checking the environment"
  run "checking the environment" "$venv/bin/python" scripts/check_environment.py \
    requirements/dev.txt requirements/horovod.txt
}

unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
main "$@"
