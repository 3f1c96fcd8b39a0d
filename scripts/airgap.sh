#!/usr/bin/env bash
# Packs this checkout with everything it runs on (Python, the locked packages, Horovod and our
# operations as built) into slices that can be carried to machines without a network.
#
# usage: scripts/airgap.sh pack --output DIR [--gpu sm_90] [--environment DIR]
#                               [--slice SIZE] [--compression 0..9]
#
# There, DIR/unpack.sh TARGET checks the hashes and makes a working tree; docs/how-to/airgap.md.
# With --gpu the environment is the one that scripts/gpu/build.sh makes, cut to that architecture.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

case ${1-} in
  pack) shift ;;
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
  *) echo "airgap: error: expected pack, received ${1-nothing}; --help says more" >&2; exit 2 ;;
esac
"$root/scripts/setup.sh"
exec "$root/.venv/bin/python" "$root/scripts/airgap/pack.py" "$@"
