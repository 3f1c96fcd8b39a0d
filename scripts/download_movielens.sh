#!/usr/bin/env bash
# Downloads and unpacks a MovieLens dataset.
set -euo pipefail
program=download_movielens.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=scripts/lib/download.sh
source "$root/scripts/lib/download.sh"

sizes=(100k 1m 20m 25m)
base_url=${LOOKBACK_MOVIELENS_URL:-https://files.grouplens.org/datasets/movielens}

usage() {
  cat << END
usage: scripts/download_movielens.sh SIZE [--output DIR] [--base_url URL]

Downloads MovieLens and unpacks it as DIR/ml-SIZE (DIR: data of this checkout if left out), which
\`python -m workflows run --dataset movielens\` reads. An interrupted download continues when the
command is given again. The archive must have the MD5 sum that is published beside it.
LOOKBACK_MOVIELENS_URL is the same as --base_url.

sizes: ${sizes[*]}
END
}

# The bytes that an archive unpacks to, and the unpacking: with unzip, or else with Python.
unpacked_size() { # ARCHIVE
  if command -v unzip > /dev/null; then
    unzip -l "$1" | awk 'END { print $1 }'
  else
    python3 -c 'import sys, zipfile
print(sum(entry.file_size for entry in zipfile.ZipFile(sys.argv[1]).infolist()))' "$1"
  fi
}

unpack() { # ARCHIVE DIR
  if command -v unzip > /dev/null; then
    unzip -q "$1" -d "$2"
  else
    python3 -m zipfile -e "$1" "$2"
  fi
}

test_archive() { # ARCHIVE
  if command -v unzip > /dev/null; then
    unzip -tq "$1"
  else
    python3 -m zipfile -t "$1"
  fi
}

size_name='' output=''
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --output | --base_url)
      [[ -n ${2:-} ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    -*) die "unknown option $1; allowed: --output DIR, --base_url URL" ;;
    *)
      [[ -z $size_name ]] || die "one size at a time; got $size_name and $1"
      size_name=$1
      ;;
  esac
  shift
done
[[ -n $size_name ]] || die "which size? One of: ${sizes[*]}"
[[ " ${sizes[*]} " == *" $size_name "* ]] || die "unknown size $size_name; allowed: ${sizes[*]}"
need curl awk md5sum
command -v unzip > /dev/null || command -v python3 > /dev/null ||
  die "unzip is missing (and so is python3). Debian and Ubuntu: apt-get install unzip"

name=ml-$size_name
open_output "${output:-$root/data}"
if [[ -d $output/$name ]]; then
  say "$output/$name is here already"
  exit
fi
[[ ! -e $output/$name && ! -L $output/$name ]] ||
  die "$output/$name is in the way: it is no directory. Move it away, or choose another --output."
had_archive=''
[[ ! -e $output/$name.zip ]] || had_archive=1
url=${base_url%/}/$name.zip
md5=$(published_md5 "$url.md5")
[[ -n $md5 ]] || say "no checksum is published at $url.md5; the archive's own are used"
fetch "$url" "$name.zip" "$md5" test_archive

bytes=$(unpacked_size "$output/$name.zip") || die "cannot read $output/$name.zip"
check_space "$bytes" "unpacking $name"
unpacked=$(mktemp -d "$output/.$name.XXXXXX")
trap 'rm -rf "$unpacked"' EXIT
unpack "$output/$name.zip" "$unpacked"
[[ -d $unpacked/$name ]] || die "$output/$name.zip does not hold a directory $name."
mv "$unpacked/$name" "$output/$name"
# An archive that was there before may be somebody's own.
[[ $had_archive ]] || rm "$output/$name.zip"
say "done: $output/$name"
