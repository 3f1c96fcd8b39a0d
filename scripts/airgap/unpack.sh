#!/bin/sh
# Makes a working tree of the pack that this file lies in: Lookback with its Python and packages.
# Needs no network, and no Python: Linux on x86-64, sh, sed, tar, gzip and sha256sum.
#
# usage: sh unpack.sh TARGET        a directory that is not there yet, on a disk with enough room
#
# The slices are checked against SHA256SUMS first. TARGET appears when it is whole.
set -eu

die() {
  printf 'unpack: error: %s\n' "$*" >&2
  exit 1
}

[ $# -eq 1 ] || die "expected one directory to make, received $# arguments: sh unpack.sh TARGET"
here=$(cd "$(dirname "$0")" && pwd -P)
target=$1
[ ! -e "$target" ] || die "$target exists. Name a directory that is not there yet."
[ "$(uname -sm)" = "Linux x86_64" ] || die "needs Linux on x86-64; this is $(uname -sm)"
for tool in sed tar gzip sha256sum; do
  command -v "$tool" > /dev/null || die "$tool is missing on this machine"
done

parent=$(dirname "$target")
mkdir -p "$parent" || die "$parent cannot be made"
parent=$(cd "$parent" && pwd -P)
target=$parent/$(basename "$target")
new=$target.unpacking.$$

if ! said=$(cd "$here" && sha256sum -c SHA256SUMS 2>&1); then
  printf '%s\n' "$said" | sed '/: OK$/d' >&2
  die "the pack is not what was packed (above): carry the named files again"
fi

trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$new" || die "$parent cannot be written to"
tar -xzf "$here/python.tar.gz" -C "$new" || die "Python could not be unpacked to $parent"
"$new/.venv/bin/python" -c 'import ctypes, lzma' ||
  die "the Python in the pack does not run here (above): the pack was made where the C library is" \
    "newer. Pack on a machine whose system is as old as this one."
"$new/.venv/bin/python" "$here/unpack.py" "$here" "$new"
mv "$new" "$target"
printf 'ready: %s\ntry:   %s/.venv/bin/lookback doctor\n' "$target" "$target"
