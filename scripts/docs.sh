#!/usr/bin/env bash
# Builds docs/ as a site, in an environment of its own (requirements/docs.txt), and fails on a link
# that leads nowhere.
#
# usage: scripts/docs.sh [mkdocs arguments]     (none: build, into site/)
#        scripts/docs.sh serve                  shows pages while they are written
#        scripts/docs.sh build --site-dir DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  printf 'docs: error: %s\n' "$*" >&2
  exit 1
}

case ${1:-} in
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' "scripts/${BASH_SOURCE[0]##*/}"; exit ;;
esac

lock=requirements/docs.txt
environment=.tools/docs-$(sha256sum "$lock" | cut -c 1-12)
if [[ ! -x $environment/bin/mkdocs ]]; then
  uv=$(command -v uv || find .tools/ -path "*/bin/uv" | head -n 1) || true
  [[ -n $uv && -x .venv/bin/python ]] || die "no uv or no .venv; run scripts/setup.sh first"
  # Renamed when it is whole, so that an interrupted set-up is made again.
  rm -rf .tools/docs-*
  "$uv" venv --quiet --no-project --relocatable --python .venv/bin/python .tools/docs-new
  "$uv" pip sync --quiet --python .tools/docs-new/bin/python --require-hashes "$lock"
  mv .tools/docs-new "$environment"
fi

[[ $# -gt 0 ]] || set -- build
# Its theme advertises another program at each start.
export NO_MKDOCS_2_WARNING=1
exec "$environment/bin/python" -m mkdocs "$@"
